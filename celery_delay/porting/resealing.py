"""What is sealed in SQL, sealed anew with the newest key."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from celery_delay.exceptions import InvalidSetting
from celery_delay.porting.exporting import Exporting

__all__ = ["Resealed", "Resealing"]

#: Rows of one transaction.
_BATCH = 200


class Resealed(NamedTuple):
    """What became of the payloads in SQL.

    Attributes:
        resealed: how many have the newest key now, or are plain now where there is none.
        current: how many were so already.
        unreadable: how many need a key that is not known, or were changed; they are as before.
    """

    resealed: int = 0
    current: int = 0
    unreadable: int = 0


class Resealing(Exporting):
    """The part of ``app.delayed`` about keys of payloads."""

    def rotate_keys(self, *, progress: Callable[[int], object] | None = None) -> Resealed:
        """Seal the payloads in SQL with the newest of ``delay_payload_keys``.

        In small transactions, while everything else goes on; a crash leaves some with the old key,
        and the call is simply made again.  When ``unreadable`` is 0, the old keys can go.

        Arguments:
            progress: called after each transaction with how many were looked at.

        Raises:
            InvalidSetting: there is no audit database, or the keys are wrong.
            AuditUnavailable: what was sealed stays so.
        """
        if not self.settings.has_database:
            raise InvalidSetting("payloads rest in SQL, and delay_database_url is not set")
        from celery_delay.audit.resealing import reseal  # and SQLAlchemy with it

        database = self.audit_log.database
        told, after = Resealed(), None
        while True:
            *part, after = reseal(database, self.seal, after, _BATCH)
            told = Resealed(*map(int.__add__, told, part))
            if progress is not None:
                progress(sum(told))
            if after is None:
                return told
