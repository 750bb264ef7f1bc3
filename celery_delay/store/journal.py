"""The journal of transitions: written by scripts and workers, read by the auditor."""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import ResponseError

from celery_delay.entries import Event, decode_lines, encode_lines
from celery_delay.exceptions import StoreUnavailable
from celery_delay.ports import JournalPosition, Transition
from celery_delay.store.connection import AnswerLost
from celery_delay.store.shard import Shard

__all__ = ["Journal"]


class Journal(Shard):
    """The journal of a shard, and the audit database that it belongs to."""

    def record(self, transitions: Sequence[Transition], missing: int = 0) -> None:
        """Journal transitions that happened outside the store, in workers; in one step.

        Arguments:
            missing: how many transitions before these could not be journalled; that becomes
                a GAP in front of them.

        An answer that is lost is not repeated: the audit may miss the transition or has it
        once; it never has it twice.
        """
        if not self._journal_max:
            return
        rest: list[str] = []
        for one in transitions:
            rest += [one.state.value, encode_lines([(one.entry_id, one.version, None, one.data)])]
        values = {
            "now": self._given_now(),
            "journal_max": self._journal_max,
            "missing": missing,
        }
        try:
            self._call("record", values, rest)
        except (AnswerLost, ResponseError) as exc:
            raise StoreUnavailable(f"the journal may miss a transition: {exc}") from exc

    def read_journal(self, after: str, limit: int) -> list[tuple[str, list[Event]]]:
        """Journal entries behind the stream id *after* ("0" for all), at most *limit*.

        What cannot be read in one comes as events in the state GAP.
        """
        start = "-" if after == "0" else f"({after}"
        found = []
        for stream_id, pairs in self._read("XRANGE", self.keys.journal, start, "+", "COUNT", limit):
            parts = dict(zip(pairs[::2], pairs[1::2], strict=True))
            state, epoch, at_ms, text = (
                parts.get(name, b"").decode(errors="replace") for name in (b"s", b"e", b"t", b"d")
            )
            events = decode_lines(
                self.keys.shard, _number(epoch), stream_id.decode(), state, _number(at_ms), text
            )
            found.append((stream_id.decode(), events))
        return found

    def trim_journal(self, position: JournalPosition, *, term: int) -> int:
        """Forget the journal up to and including *position*, which SQL has committed."""
        with self._link() as link:
            answer = self._sure(
                link,
                "trim",
                {"epoch": position.epoch, "term": term, "last_id": position.last_id},
            )
        return answer if isinstance(answer, int) else 0

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
