"""``doctor``: everything that can be wrong with an installation, looked at one by one.

A check that fails, or cannot be made, never hides the others.  Nothing is mended here, and what
a check writes are keys of its own, which are gone afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.delayed.supervision import Supervision

if TYPE_CHECKING:
    from celery_delay.doctor.checks import Checkup

__all__ = ["Doctoring"]


class Doctoring(Supervision):
    """The part of ``app.delayed`` that looks at everything."""

    def doctor(self) -> Checkup:
        """Look at all that can be wrong: servers, rights, clocks, versions, settings, shards.

        Never raises because something is away or broken: that is what it tells.  It takes a
        second or two, some twenty if servers do not answer.  Like a beat that starts, it sends a
        message to a queue of its own, and tries commands on keys of its own.
        """
        from celery_delay.doctor.examination import examine  # who only schedules needs none of it

        return examine(self)
