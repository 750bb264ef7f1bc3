"""pytest plugin of the leg ``everything``: each message that the tests send is delayed.

Few of Celery's tests use a delay.  Here every task, chain link, chord header and body waits in the
store, if only for some milliseconds, which their results must not show.
"""

from __future__ import annotations

from typing import Any

from celery_delay.calling.amqp import Capturing

#: In seconds.
DELAY = 0.01

_as_task_v2 = Capturing.as_task_v2


def as_task_v2(
    self: Any,
    task_id: str,
    name: str,
    args: Any = None,
    kwargs: Any = None,
    countdown: Any = None,
    eta: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """A message that is due at once becomes one that is due soon."""
    if not countdown and not eta:
        countdown = DELAY
    return _as_task_v2(self, task_id, name, args, kwargs, countdown, eta, *rest, **options)


def pytest_configure() -> None:
    Capturing.as_task_v2 = as_task_v2  # type: ignore[method-assign]
