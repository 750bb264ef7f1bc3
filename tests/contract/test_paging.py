"""Reading in order of eta and id, on a real Redis, 7 and 6.2: each answer, and stable pages."""

from __future__ import annotations

from typing import Any

import pytest

from celery_delay.domain.entries import PUBLISHED
from celery_delay.domain.filters import Filter
from celery_delay.domain.labels import Labels
from celery_delay.domain.ports import Change
from celery_delay.domain.states import State
from celery_delay.store.paging import Position
from tests.contract.bench import NOW, Bench, answers
from tests.shards import addition, shape

pytestmark = pytest.mark.redis62

OUT = shape("orders", PUBLISHED, task="shop.order")


def raw(bench: Bench, after_ms: int = 0, after_id: str = "", **given: Any) -> list[str]:
    values = {"before_ms": 10**15, "limit": 10, "bytes": 10**6, "state": "", **given}
    answer = bench.script("page", after_ms=after_ms, after_id=after_id, **values)
    return [one.decode() for one in answer]


def ids(bench: Bench, wanted: Filter | None = None, *args: Any, **options: Any) -> list[str]:
    return [one.task_id for one in bench.store.walk(wanted or Filter(), *args, **options)]


def put(bench: Bench, *task_ids: str, delay_ms: int = 0, **options: Any) -> None:
    bench.store.add([addition(one, at_ms=NOW + 9_000 + delay_ms, **options) for one in task_ids])


@answers("page", "END now")
def test_an_empty_shard_has_no_page(bench: Bench) -> None:
    assert raw(bench) == ["END", str(NOW)]
    assert ids(bench) == []


@answers("page", "MORE now", "END now")
def test_all_places_make_one_order(bench: Bench) -> None:
    put(bench, "c", "a")
    put(bench, "b", template=OUT)
    put(bench, "d", delay_ms=-5, template=OUT)
    put(bench, "held")
    bench.store.steer("held", Change(hold=True))
    bench.raw.zadd(bench.keys.blocked, {"e": NOW + 9_000})
    bench.raw.hset(bench.keys.entries, "e", bench.raw.hget(bench.keys.entries, "a") or "")

    first = raw(bench, limit=4)
    second = raw(bench, NOW + 9_000, "c", limit=4)

    assert first[:2] == ["MORE", str(NOW)]
    assert first[3::4] == ["d", "a", "b", "c"]
    assert first[4::4] == [str(NOW + 8_995)] + [str(NOW + 9_000)] * 3
    assert second[0] == "END"
    assert (second[2::4], second[3::4]) == (["S", "H"], ["e", "held"])
    assert raw(bench, state="H")[3::4] == ["held"]
    assert raw(bench, state="S")[3::4] == ["d", "a", "b", "c", "e"]
    assert [one.state for one in bench.store.walk(Filter()) if one.task_id == "held"] == [
        State.HELD
    ]


def test_the_bounds_of_the_eta_are_included(bench: Bench) -> None:
    for delay_ms in (1, 2, 3, 4):
        put(bench, str(delay_ms), delay_ms=delay_ms)
    base = NOW + 9_000

    assert ids(bench, Filter(after_ms=base + 2, before_ms=base + 3)) == ["2", "3"]
    assert raw(bench, base + 2, before_ms=base + 3)[0] == "END"
    assert ids(bench, Filter(after_ms=base + 2), Position(base)) == ["2", "3", "4"]


@pytest.mark.parametrize("page", [1, 2, 7, 200])
def test_ids_of_one_eta_are_in_the_order_of_their_bytes_whatever_the_page(
    bench: Bench, page: int
) -> None:
    names = [f"{one:03}" for one in range(60)] + [
        "ä",
        "Z",
        "a",
        "aa",
        "\N{SNOWMAN}",
        "~",
        "0",
        "00",
    ]
    put(bench, *names)
    expected = sorted(names, key=str.encode)

    assert ids(bench, page=page) == expected
    for at, name in enumerate(expected):
        assert ids(bench, None, Position(NOW + 9_000, name.encode())) == expected[at + 1 :]
    # behind one that has gone, too
    assert ids(bench, None, Position(NOW + 9_000, b"0305")) == expected[expected.index("031") :]


def test_large_records_end_a_page_early(bench: Bench) -> None:
    put(bench, "a", "b", "c", values=('"' + "x" * 600 + '"',))

    assert raw(bench, bytes=1)[3::4] == ["a"]
    assert raw(bench, bytes=1)[0] == "MORE"
    assert raw(bench, bytes=1_000)[3::4] == ["a", "b"]


def test_a_filter_is_about_what_the_record_and_its_template_say(bench: Bench) -> None:
    put(bench, "plain")
    put(bench, "labelled", labels=Labels("acme", ("red", "blue")))
    put(bench, "order", template=OUT, labels=Labels("acme"))
    inline = shape("inline", task="shop.inline")
    put(bench, "inline", template=inline)
    held = bench.raw.hget(bench.keys.entries, "inline")
    assert held is not None
    head, _, values = held.rpartition("\n")
    lines = head.split("\n")
    lines[-1] = "=" + inline.replace("\n", "\x02")
    bench.raw.hset(bench.keys.entries, "inline", "\n".join([*lines, values]))

    assert ids(bench, Filter(task="shop.pay")) == ["labelled", "plain"]
    assert ids(bench, Filter(task="shop.*")) == ["inline", "labelled", "order", "plain"]
    assert ids(bench, Filter(task="shop.inline")) == ["inline"]
    assert ids(bench, Filter(queue="orders")) == ["order"]
    assert ids(bench, Filter(namespace="acme")) == ["labelled", "order"]
    assert ids(bench, Filter(tags=("blue", "red"))) == ["labelled"]
    assert ids(bench, Filter(tags=("blue", "green"))) == []
    assert ids(bench, Filter(states=frozenset({State.FAILED}))) == []


def test_what_cannot_be_read_is_found_by_state_and_eta_alone(bench: Bench) -> None:
    put(bench, "a", "b", "c")
    bench.raw.hset(bench.keys.entries, "b", "9 what")
    bench.raw.hdel(bench.keys.entries, "c")

    found = {one.task_id: one.entry() for one in bench.store.walk(Filter())}

    assert {name: entry is None for name, entry in found.items()} == {
        "a": False, "b": True, "c": True,
    }  # fmt: skip
    assert ids(bench, Filter(task="shop.*")) == ["a"]


def test_an_entry_whose_template_went_between_two_looks_is_no_riddle(bench: Bench) -> None:
    put(bench, "a")
    template = bench.raw.hgetall(bench.keys.templates)
    (name,) = template
    bench.raw.hdel(bench.keys.templates, name)

    (found,) = bench.store.walk(Filter())
    assert found.entry() is None  # its template is lost: nobody can read it

    page = bench.store._page

    def handed_off_meanwhile(*args: Any) -> Any:
        answer = page(*args)
        bench.raw.delete(bench.keys.schedule, bench.keys.entries)
        return answer

    bench.store._page = handed_off_meanwhile  # type: ignore[method-assign]
    assert list(bench.store.walk(Filter())) == []


def test_a_lost_answer_is_asked_for_again(bench: Bench) -> None:
    put(bench, "a")
    bench.links.plan = ["answer", "ok"]

    assert ids(bench) == ["a"]
