"""What every command on a shard needs: a link, its scripts, the epoch, the server's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ResponseError

from celery_delay.domain.clock import Clock
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable
from celery_delay.store import scripts
from celery_delay.store.connection import AnswerLost, Link, Links
from celery_delay.store.keys import ShardKeys

__all__ = ["REPEAT_AFTER", "UNBOUNDED", "Shard"]

#: Pause, in seconds, before a command whose answer was lost is repeated.
REPEAT_AFTER = 0.05
#: More events than a journal can have.
UNBOUNDED = 2**53


class Shard:
    """Access to one shard.  Safe for threads; every method may raise StoreUnavailable.

    Arguments:
        links: connections to the server.
        test_now: gives the store's clock in ms in tests; ``None``: Redis' own TIME.
    """

    def __init__(
        self,
        links: Links,
        keys: ShardKeys,
        settings: Settings,
        clock: Clock,
        test_now: Callable[[], int] | None = None,
    ) -> None:
        self._links = links
        self.keys = keys
        self._settings = settings
        self._clock = clock
        self._test_now = test_now
        self._offset_ms: float | None = None
        self._not_before = 0
        self._tombstone_ms = settings.window_ms + 1_000
        self._journal_max = settings.journal_max if settings.audited else 0
        if settings.is_sync:
            # what a full journal leaves out would be taken for lost, and run twice: additions
            # are refused instead, and all else is written
            self._journal_max = UNBOUNDED
        #: After which time a moved entry is looked for (0: never), and how many are at most.
        watch_ms = settings.patience_ms if settings.tracks else 0
        self._watch = {"watch_ms": watch_ms, "watch_most": settings.guard_most}
        # shards share their connections, and each has a name of its own for this history
        self._epoch_name = f"epoch of {keys.mark}"

    def now_ms(self) -> int:
        """The store's clock in ms, estimated from the last answer; never ahead of it."""
        if self._test_now:
            return self._test_now()
        # another thread may forget it meanwhile
        offset = self._offset_ms
        if offset is None:
            offset = self._learn(self.time_ms())
        return int(offset + self._clock.boot() * 1000)

    def time_ms(self) -> int:
        """The store's clock in ms, asked for now."""
        seconds, micros = self._read("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    def close(self) -> None:
        """Close the idle connections."""
        self._links.close()

    @contextmanager
    def _link(self) -> Iterator[Link]:
        link = self._links.take()
        try:
            link.connect()
            yield link
        finally:
            self._links.give(link)

    def _epoch(self, link: Link) -> int | None:
        """The epoch of the history behind *link*; ``None`` while the leader has not named it."""
        if self._epoch_name not in link.learnt:
            run_id = scripts.server_of(link)["run_id"]
            try:
                marked, epoch = link.call("HMGET", self.keys.mark, "run_id", "epoch")
            except (AnswerLost, ResponseError) as exc:
                raise StoreUnavailable(f"the mark cannot be read: {exc}") from exc
            if not epoch or not marked or marked.decode() != run_id:
                return None
            link.learnt[self._epoch_name] = int(epoch)
        epoch_known: int = link.learnt[self._epoch_name]
        return epoch_known

    def _forget_epoch(self, link: Link) -> None:
        link.learnt.pop(self._epoch_name, None)

    def _script(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        return scripts.run(link, scripts.load(name), self.keys, values, rest)

    def _call(
        self,
        name: str,
        values: Mapping[str, object],
        rest: Sequence[object] = (),
        *,
        steady: bool = False,
    ) -> Any:
        links = self._links
        link = links.take()
        try:
            answer = scripts.run(link, scripts.load(name), self.keys, values, rest, steady=steady)
        finally:
            links.give(link)
        if not self._test_now and isinstance(answer, list) and len(answer) > 1:
            self._learn(int(answer[1]))
        return answer

    def _sure(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        """Run a script for which a lost answer is just a failed attempt."""
        try:
            return self._script(link, name, values, rest)
        except AnswerLost as exc:
            raise StoreUnavailable(f"lost the answer of {name}: {exc}") from exc
        except ResponseError as exc:
            raise StoreUnavailable(f"Redis fails in {name}: {exc}") from exc

    def _in_epoch(
        self, link: Link, name: str, values: Mapping[str, object], rest: Sequence[object] = ()
    ) -> Any:
        """Run a script that checks the epoch, with that of the history behind *link*."""
        answer: Any = None
        for _ in range(2):
            answer = self._sure(link, name, {**values, "epoch": self._epoch(link) or 0}, rest)
            if answer != b"EPOCH":
                break
            # what this link has learnt is out of date: somebody has emptied Redis meanwhile
            self._forget_epoch(link)
        return answer

    def _insist(
        self,
        entry_id: object,
        name: str,
        values: Mapping[str, object],
        rest: Sequence[object] = (),
    ) -> Any:
        """Run a script that can be repeated until its deadline, until its answer is heard.

        Raises:
            StoreUnavailable: it did nothing.
            OutcomeUnknown: no answer came within ``delay_add_window``.
        """
        unknown, deadline = "", self.now_ms() + self._settings.window_ms
        give_up = self._clock.boot() + self._settings.add_window
        while True:
            try:
                answer = self._attempt(name, {**values, "deadline": deadline}, rest)
            except (AnswerLost, StoreUnavailable, ResponseError) as exc:
                if isinstance(exc, StoreUnavailable) and not unknown:
                    raise
                unknown = unknown or str(exc) or "the answer was lost"
                if isinstance(exc, ResponseError) or self._clock.boot() >= give_up:
                    raise OutcomeUnknown(entry_id, unknown) from exc
                self._clock.sleep(REPEAT_AFTER)
                continue
            status = answer[0] if isinstance(answer, list) else answer
            if status not in (b"EPOCH", b"LATE"):
                return answer
            if status == b"LATE" and unknown:
                raise OutcomeUnknown(entry_id, unknown)
            if self._clock.boot() >= give_up:
                raise StoreUnavailable(f"each {name} came later to Redis than delay_add_window")
            if not unknown:  # else it stays: what the first attempt left behind lives as long
                self._offset_ms = None
                deadline = self.now_ms() + self._settings.window_ms

    def _attempt(self, name: str, values: Mapping[str, object], rest: Sequence[object]) -> Any:
        with self._link() as link:
            general: dict[str, object] = {
                "now": self._given_now(),
                "tombstone_ms": self._tombstone_ms,
                "journal_max": self._journal_max,
                "epoch": self._epoch(link) or 0,
            }
            takes = scripts.load(name).arguments
            general = {key: one for key, one in general.items() if key in takes}
            answer = self._script(link, name, {**general, **values}, rest)
            if answer == b"EPOCH" or (isinstance(answer, list) and answer[0] == b"EPOCH"):
                # what this link has learnt is out of date: somebody has emptied Redis meanwhile
                self._forget_epoch(link)
        return answer

    def _read(self, *command: object) -> Any:
        with self._link() as link:
            try:
                try:
                    return link.call(*command)
                except AnswerLost:
                    # reading again has no effect; the answer may merely have been too slow
                    return link.call(*command)
            except (AnswerLost, ResponseError) as exc:
                if isinstance(exc, ResponseError):
                    scripts.server_of(link)  # which has a better word for a server that is none
                raise StoreUnavailable(f"no usable answer of {command[0]}: {exc}") from exc

    def _learn(self, store_ms: int) -> float:
        # the answer took a while to come, so this offset is never too high; of several the
        # highest is nearest, unless somebody has set Redis' clock back
        offset = store_ms - self._clock.boot() * 1000
        known = self._offset_ms
        if known is None or offset > known or offset < known - 1000:
            self._offset_ms = known = offset
        return known

    def _given_now(self) -> int:
        return self._test_now() if self._test_now else 0
