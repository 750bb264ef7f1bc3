"""The journal of transitions: written by scripts and workers, read by the auditor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from redis.exceptions import ResponseError

from celery_delay.domain.events import Event, decode_lines, encode_lines
from celery_delay.domain.ports import JournalPosition, Transition
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.connection import AnswerLost
from celery_delay.store.shard import Shard

__all__ = ["PAGE", "Journal"]

#: What is in memory at once of who looks through all of it, with the last entry of a thousand.
_EVENTS = 1_000
#: Entries in one answer of Redis, at most: it bounds for how long Redis is busy with it.
PAGE = 25
#: Before a state: it is not journalled; the broker keeps the message.  See ``report.lua``.
UNSAID, KEPT = "!", "+"


class Journal(Shard):
    """The journal of a shard, and the audit database that it belongs to."""

    def record(
        self,
        transitions: Sequence[Transition],
        missing: int = 0,
        late: Sequence[Transition] = (),
    ) -> None:
        """Take note of transitions that happened outside the store, in workers; in one step.

        They go to the journal, and end the watch over what was handed off.

        Arguments:
            missing: how many transitions before these could not be journalled; that becomes
                a GAP in front of them.
            late: of those, which shall at least end their watch.

        An answer that is lost is not repeated: the audit may miss the transition or has it
        once; it never has it twice.
        """
        tracks = self._settings.tracks
        if not self._journal_max and not tracks:
            return
        rest: list[str] = []
        for one in late if tracks else ():
            told = UNSAID + KEPT * one.is_kept + one.state.value
            rest += [told, encode_lines([(one.entry_id, 1, None, {})])]
        for told, some in groupby(
            transitions, lambda one: KEPT * (tracks and one.is_kept) + one.state.value
        ):
            lines = [(one.entry_id, one.version, one.eta_ms, one.data) for one in some]
            rest += [told, encode_lines(lines)]
        values = {
            "now": self._given_now(),
            "journal_max": self._journal_max,
            "missing": missing,
        }
        if tracks:
            values["keep_ms"] = self._settings.keep_ms if self._settings.guards else 0
        try:
            self._call("report" if tracks else "record", values, rest)
        except (AnswerLost, ResponseError) as exc:
            raise StoreUnavailable(f"the journal may miss a transition: {exc}") from exc

    def read_journal(self, after: str, limit: int) -> list[tuple[str, list[Event]]]:
        """Journal entries behind the stream id *after* ("0" for all), with *limit* events in all.

        The entry that brings the last of them comes whole, and more than one event may be in it:
        a thousand, where many tasks were scheduled together.  Empty: there are none behind it.
        What cannot be read in one comes as events in the state GAP.
        """
        found: list[tuple[str, list[Event]]] = []
        events, wanted = 0, 1
        while events < limit:
            page = self._read(
                "XRANGE", self.keys.journal, "-" if after == "0" else f"({after}", "+",
                "COUNT", wanted,
            )  # fmt: skip
            for stream_id, pairs in page:
                after = stream_id.decode()
                found.append((after, self._events(after, pairs)))
                events += len(found[-1][1])
                if events >= limit:
                    break
            if len(page) < wanted:
                break
            # what is behind the limit was read in vain: at most as much as before it
            wanted = min(2 * wanted, PAGE)
        return found

    def journalled(self) -> Iterator[Event]:
        """All that the journal tells while it is read, the oldest first."""
        after = "0"
        while page := self.read_journal(after, _EVENTS):
            for _, events in page:
                yield from events
            after = page[-1][0]

    def _events(self, stream_id: str, pairs: Sequence[bytes]) -> list[Event]:
        parts = dict(zip(pairs[::2], pairs[1::2], strict=True))
        state, epoch, at_ms, text = (
            parts.get(name, b"").decode(errors="replace") for name in (b"s", b"e", b"t", b"d")
        )
        return decode_lines(self.keys.shard, _number(epoch), stream_id, state, _number(at_ms), text)

    def trim_journal(self, position: JournalPosition, *, term: int) -> int:
        """Forget the journal up to and including *position*, which SQL has committed."""
        with self._link() as link:
            answer = self._sure(
                link,
                "trim",
                {"epoch": position.epoch, "term": term, "last_id": position.last_id},
            )
        return answer if isinstance(answer, int) else 0

    def trimmed(self) -> JournalPosition | None:
        """How far the journal was forgotten, so that SQL must have come; ``None``: never."""
        stored = self._read("HGET", self.keys.mark, "trimmed")
        if stored is None:
            return None
        epoch, _, last_id = stored.decode().partition(":")
        return JournalPosition(self.keys.shard, _number(epoch), last_id)

    def audit_id(self, proposed: str | None = None) -> str | None:
        """The id of the audit database this shard belongs to; *proposed* becomes it if none is."""
        if proposed is not None:
            self._read("HSETNX", self.keys.mark, "audit_id", proposed)
        stored = self._read("HGET", self.keys.mark, "audit_id")
        return stored.decode() if stored else None


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0
