"""Stretches of entries by number and digest: the same as Python makes of the same entries."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.filters import LAST_MS
from celery_delay.domain.ports import Change
from celery_delay.store import digests
from celery_delay.store.digests import Line, digest
from celery_delay.store.paging import Position
from tests.contract.bench import NOW, Bench, answers
from tests.shards import addition


def put(bench: Bench, task_id: str, delay_ms: int = 0, **options: Any) -> None:
    bench.store.add([addition(task_id, at_ms=NOW + 9_000 + delay_ms, run=NOW, **options)])


def line(task_id: str, delay_ms: int = 0, version: int = 1, *, is_held: bool = False) -> Line:
    return Line(task_id, str(NOW), str(version), NOW + 9_000 + delay_ms, is_held)


@answers("digest", "MORE now", "END now")
def test_a_shard_is_digested_in_stretches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "STRETCH", 2)
    for task_id in ("c", "é", "B"):
        put(bench, task_id)
    put(bench, "late", 5, version=3)
    put(bench, "held", 7)
    bench.store.steer("held", Change(hold=True))
    put(bench, "far", 10**9)

    found = list(bench.store.stretches(NOW + 60_000))

    assert [(one.number, one.after, one.until) for one in found] == [
        (2, Position(0), Position(NOW + 9_000, b"c")),
        (2, Position(NOW + 9_000, b"c"), Position(NOW + 9_005, b"late")),
        (1, Position(NOW + 9_005, b"late"), None),
    ]
    assert [one.digest for one in found] == [
        digest([line("B"), line("c")]),
        digest([line("é"), line("late", 5, 3)]),
        digest([line("held", 7, 2, is_held=True)]),
    ]


def test_an_empty_shard_is_one_empty_stretch(bench: Bench) -> None:
    [only] = bench.store.stretches(LAST_MS)

    assert (only.number, only.until, only.digest) == (0, None, digest([]))


def test_each_field_changes_the_digest(bench: Bench) -> None:
    one = line("a")
    others = [one._replace(task_id="b"), one._replace(run="2"), one._replace(version="2"),
              one._replace(eta_ms=1), one._replace(is_held=True)]  # fmt: skip

    assert len({digest([each]) for each in (one, *others)}) == 6


def test_a_damaged_record_is_told_apart(bench: Bench) -> None:
    put(bench, "a")
    bench.raw.hset(bench.keys.entries, "a", "what")

    [only] = bench.store.stretches(LAST_MS)

    assert only.digest == digest([line("a")._replace(run="?", version="?")])


def test_what_the_journal_tells_of(bench: Bench) -> None:
    put(bench, "a")
    put(bench, "b")
    ours = {EntryId("a", NOW), EntryId("a", NOW + 1), EntryId("c", NOW)}

    assert bench.store.told(ours) == {EntryId("a", NOW)}
