"""Chords whose headers wait for longer than Celery keeps the counters.

With Celery's Redis backend the keys of a chord expire ``result_chord_expires`` (or
``result_expires``) after the call, and again after each part that returns; a header that
waits for longer would never fire its body.  So the longest wait of a chord's header is kept
beside them, and whoever may have set their time to live lengthens it to that: the call that
delays a part, and the worker that has run one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from celery import signals
from celery.backends.redis import RedisBackend

from celery_delay.domain.clock import Clock

__all__ = ["Chords", "chords_in", "chords_of"]

logger = logging.getLogger(__name__)

#: What Celery keeps of a chord: size, results, corrections, who has returned; "": its group.
_KEYS = (".s", ".j", ".t", ".d", "")
#: Ours: until when (seconds since the epoch) the header's last part waits.
_WAITS = ".waits"


class Chords:
    """The chords' counters in the app's result backend.  Nothing here raises."""

    def __init__(self, app: Any, clock: Clock) -> None:
        self._app = app
        self._clock = clock

    def connect(self) -> None:
        """Listen to the tasks that end in this process."""
        signals.task_postrun.connect(
            self.on_postrun, weak=False, dispatch_uid=("celery-delay chords", id(self._app))
        )

    def keep(self, group_id: str, delay: float) -> None:
        """A part of the header of chord *group_id* waits for *delay* seconds."""
        expires = self._expires
        if not expires or delay * 2 <= expires:
            return  # the time that Celery gives is enough
        try:
            now = self._clock.wall()
            until = max(now + delay, float(self._client.get(self._key(group_id, _WAITS)) or 0))
            life = int(until - now + expires) + 1
            self._client.set(self._key(group_id, _WAITS), until, ex=life)
            self._lengthen(group_id, life)
        except Exception:
            logger.warning(
                "the counter of chord %s may expire before its header is due",
                group_id,
                exc_info=True,
                extra={"event": "chord_not_kept", "group_id": group_id},
            )

    def on_postrun(self, task: Any = None, **_: Any) -> None:
        """A task has run; if it was a part of a chord, Celery has set the times anew."""
        request = task.request
        if task.app is not self._app or not request.chord or not request.group:
            return
        expires = self._expires
        if not expires:
            return
        try:
            waits = self._client.get(self._key(request.group, _WAITS))
            if waits is not None and float(waits) > self._clock.wall():
                self._lengthen(request.group, int(float(waits) - self._clock.wall() + expires) + 1)
        except Exception:
            logger.warning(
                "the counter of chord %s may expire before its header is due",
                request.group,
                exc_info=True,
                extra={"event": "chord_not_kept", "group_id": request.group},
            )

    def _lengthen(self, group_id: str, life: int) -> None:
        keys = [self._key(group_id, one) for one in _KEYS]
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.ttl(key)
            lives = pipe.execute()
        with self._client.pipeline(transaction=False) as pipe:
            for key, present in zip(keys, lives, strict=True):
                if 0 <= present < life:
                    pipe.expire(key, life)
            pipe.execute()

    def _key(self, group_id: str, suffix: str) -> Any:
        return self._app.backend.get_key_for_group(group_id, suffix)

    @property
    def _client(self) -> Any:
        return self._app.backend.client

    @property
    def _expires(self) -> float:
        """For how long the backend keeps a chord's keys; 0: for ever, or it is not Redis'."""
        backend = self._app.backend
        return float(backend.chord_expires or 0) if isinstance(backend, RedisBackend) else 0.0


def chords_of(message: Any) -> Iterator[str]:
    """The group ids of the chords to which a task *message*, or the rest of its chain, belongs."""
    headers, _, body = message[:3]
    return chords_in(headers, body[2] if isinstance(body, tuple) and len(body) == 3 else {})


def chords_in(headers: Mapping[str, Any], embed: Mapping[str, Any]) -> Iterator[str]:
    """The same by the message's *headers* and the third part of its body."""
    if embed.get("chord") and headers.get("group"):
        yield str(headers["group"])
    for one in embed.get("chain") or ():
        options = one.get("options") if isinstance(one, Mapping) else None
        if options and options.get("chord") and options.get("group_id"):
            yield str(options["group_id"])
