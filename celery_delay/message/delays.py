"""What a caller says of a delay beside the task itself: when, spread over how long, labels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from celery_delay.domain.entries import Due
from celery_delay.domain.labels import NO_LABELS, Labels, labels_for
from celery_delay.domain.uniqueness import NOTHING_SAID, Keys, Said
from celery_delay.message.instants import LAST_MS, window_of

__all__ = ["AT_ONCE", "Delay", "take_words"]


class Delay(NamedTuple):
    """How one call, or all tasks of a canvas, wait.

    Attributes:
        due: when the first of them may run.
        window_ms: over how long after that they are spread, by their ids.
        labels: written on each of them.
        expires_from_eta: whether ``expires`` counts from the eta instead of from the call.
        keys: what goes with a unique key (which is a label) or an idempotency key; ``None``
            without one.
    """

    due: Due
    window_ms: int = 0
    labels: Labels = NO_LABELS
    expires_from_eta: bool = False
    keys: Keys | None = None

    def due_of(self, task_id: str) -> Due:
        """When *task_id* is due: the same for each repeat of the call, in every process."""
        if not self.window_ms:
            return self.due
        offset = zlib.crc32(task_id.encode()) % (self.window_ms + 1)
        return self.due._replace(ms=min(self.due.ms + offset, LAST_MS))

    def with_keys(
        self,
        said: Said,
        task: Any,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
    ) -> Delay:
        """This delay with the keys that a call, or its task, names; see ``Said.keys``.

        Raises:
            TypeError, ValueError: see there.
        """
        if said == NOTHING_SAID and getattr(task, "delay_unique_key", None) is None:
            return self
        unique, keys = said.keys(task, args, kwargs)
        if keys is None:
            return self
        return self._replace(labels=self.labels._replace(unique=unique), keys=keys)

    @property
    def key(self) -> str:
        """The key that decides in which shard the entry lives: the unique one, or the other."""
        if self.labels.unique is not None:
            return self.labels.unique.key
        return (self.keys.idempotency if self.keys else None) or ""

    def expiry(self, expires: str, due: Due, now_ms: int) -> str:
        """The instant of ``expires``, which was counted from the call, counted from *due*.

        Arguments:
            expires: ISO 8601.
            now_ms: when it was counted.
        """
        shift_ms = due.ms if due.is_delay else max(0, due.ms - now_ms)
        return (datetime.fromisoformat(expires) + timedelta(milliseconds=shift_ms)).isoformat()


#: Due at once, and nothing else.
AT_ONCE = Delay(Due(0, True))


def take_words(options: dict[str, Any]) -> Delay:
    """Take what is said of the delay out of a call's *options*; its ``due`` is yet to come.

    The words are ``window``, ``namespace``, ``tags`` and ``expires_from``.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    window_ms = window_of(options.pop("window", None))
    labels = labels_for(options.pop("namespace", None), options.pop("tags", ()))
    expires_from = options.pop("expires_from", "call")
    if expires_from not in ("call", "eta"):
        raise ValueError(f"expires_from must be 'call' or 'eta', not {expires_from!r}")
    if expires_from == "eta" and isinstance(options.get("expires"), (datetime, str)):
        raise ValueError(
            "expires is an instant, which needs no expires_from='eta': give seconds instead"
        )
    return Delay(Due(0, True), window_ms, labels, expires_from == "eta")
