"""The answers to remote control: forms, bounds, who answers, and what is taken out."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery

from celery_delay.beats.commands import MOST, Commands, has_stamp, info, scheduled_form
from celery_delay.domain.entries import EntryId, StoredEntry
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import State
from celery_delay.exceptions import StoreUnavailable

NODE = "delay-7@host"


def entry(
    task_id: str = "a",
    eta_ms: int = 1_000,
    *,
    body: Any = ([1], {"b": 2}, {}),
    state: State = State.SCHEDULED,
    kind: str = "application/json",
    **headers: Any,
) -> StoredEntry:
    told = {"task": "till.pay", "argsrepr": "(1, '…')", "kwargsrepr": "{'b': 2}", **headers}
    envelope = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-type": kind,
        "properties": {"delivery_info": {"exchange": "", "routing_key": "till"}, "priority": 3},
    }
    return StoredEntry(EntryId(task_id, 1), 1, eta_ms, 0, told, "till", envelope, state)


class Shard:
    """A shard of a dictionary."""

    def __init__(self, *entries: StoredEntry) -> None:
        self.entries = {one.entry_id.task_id: one for one in entries}
        self.keys = SimpleNamespace(has=lambda task_id, shards: True)

    def between(
        self, *, after_ms: int, before_ms: int, limit: int, offset: int, state: Any = None
    ) -> list[StoredEntry]:
        found = [
            one
            for one in self.entries.values()
            if after_ms <= one.eta_ms <= before_ms and state in (None, one.state)
        ]
        found.sort(key=lambda one: (one.eta_ms, one.entry_id))
        return found[offset : offset + limit]

    def count(self, *, after_ms: int, before_ms: int, state: Any) -> int:
        return sum(one.state is state for one in self.entries.values())

    def get(self, task_id: str) -> StoredEntry | None:
        return self.entries.get(task_id)

    def sizes(self) -> Mapping[str, int]:
        empty = dict.fromkeys(("held", "claimed", "blocked", "gated", "quarantined"), 0)
        return {**empty, "pending": len(self.entries)}


class Delayed:
    """``app.delayed`` over such shards."""

    def __init__(self, *shards: Shard, **settings: Any) -> None:
        self.shards: Sequence[Shard] = shards
        self.settings = Settings(**settings)
        self.app = Celery("unit", broker="memory://", set_as_current=False)
        self.away = False

    def cancel(self, task_id: str, *, reason: str) -> None:
        self.revoke(task_id)

    def revoke(self, task_id: str) -> None:
        if self.away:
            raise StoreUnavailable("Redis is away")
        for shard in self.shards:
            shard.entries.pop(task_id, None)


def commands(delayed: Delayed, *leads: int) -> Commands:
    def term(shard: int) -> int | None:
        return 4 if shard in leads else None

    return Commands(cast(Any, delayed), term, "host:7:x", NODE)


def ask(given: Commands, command: str, **arguments: Any) -> Any:
    """The answer, which must go as JSON."""
    answer = given.handlers[command](None, **arguments)
    return json.loads(json.dumps(answer))


def test_an_entry_has_the_form_of_a_task_that_a_worker_holds() -> None:
    assert scheduled_form(entry(eta_ms=1_500), NODE) == {
        "eta": "1970-01-01T00:00:01.500000+00:00",
        "priority": 6,
        "request": {
            "id": "a",
            "name": "till.pay",
            "args": [1],
            "kwargs": {"b": 2},
            "type": "till.pay",
            "hostname": NODE,
            "time_start": None,
            "acknowledged": False,
            "delivery_info": {
                "exchange": "",
                "routing_key": "till",
                "priority": 3,
                "redelivered": False,
            },
            "worker_pid": None,
        },
    }


@pytest.mark.parametrize(
    "given",
    [
        entry(kind="application/x-python-serialize"),
        entry(compression="application/x-gzip"),
        entry(body=(["x" * 5_000], {}, {})),
        entry(body="nonsense"),
    ],
)
def test_arguments_that_cannot_be_told_as_they_are_are_told_as_text(given: StoredEntry) -> None:
    told = info(given, NODE)

    assert (told["args"], told["kwargs"]) == ("(1, '…')", "{'b': 2}")


def test_scheduled_lists_the_earliest_of_the_led_shards_and_says_how_many_more_there_are() -> None:
    first = Shard(*(entry(f"a{one}", 2 * one) for one in range(MOST)))
    second = Shard(*(entry(f"b{one}", 2 * one + 1) for one in range(50)))
    second.entries["held"] = entry("held", 0, state=State.HELD)
    delayed = Delayed(first, second, shards=2)

    told = ask(commands(delayed, 0, 1), "scheduled")
    assert len(told) == MOST
    assert [one["request"]["id"] for one in told[:4]] == ["a0", "b0", "a1", "b1"]
    assert told[-1]["more"] == 50
    assert not any("more" in one for one in told[:-1])
    # who leads one shard tells of that one; who leads none, of none
    assert len(ask(commands(delayed, 1), "scheduled")) == 50
    assert ask(commands(delayed), "scheduled") == []


def test_query_task_tells_the_state_of_what_is_stored() -> None:
    delayed = Delayed(Shard(entry("a"), entry("b", state=State.HELD)))

    told = ask(commands(delayed, 0), "query_task", ids=["a", "b", "c"])
    assert {task_id: state for task_id, (state, _) in told.items()} == {
        "a": "scheduled",
        "b": "held",
    }
    assert told["a"][1]["name"] == "till.pay"
    assert ask(commands(delayed), "query_task", ids=["a"]) == {}


def test_stats_tell_the_part_of_this_beat_and_what_readers_of_stats_expect() -> None:
    delayed = Delayed(Shard(entry("a")), Shard(), shards=2)

    told = ask(commands(delayed, 1), "stats")
    assert (told["role"], told["pending"]) == ("leader", 1)
    assert [(one["role"], one["term"]) for one in told["shards"]] == [
        ("standby", None),
        ("leader", 4),
    ]
    assert told["pool"]["max-concurrency"] == 0
    assert {"broker", "total", "pid"} <= told.keys()
    assert ask(commands(delayed), "stats")["role"] == "standby"


def test_conf_tells_our_settings_and_no_secret() -> None:
    delayed = Delayed(Shard(), redis_url="redis://:secret@host/0", batch_size=5)

    told = ask(commands(delayed), "conf")
    assert told == {"delay_redis_url": "********", "delay_batch_size": 5}
    delayed = Delayed(Shard(entry("a")), payload_keys="env:SHOP_KEYS")
    assert ask(commands(delayed), "conf") == {"delay_payload_keys": "********"}
    assert len(ask(commands(delayed), "conf", with_defaults=True)) > 20
    assert ask(commands(delayed), "ping") == {"ok": "pong"}
    assert "celery-delay:" in ask(commands(delayed), "report")["ok"]


@pytest.mark.parametrize("given", ["a", ["a", "b"]])
def test_revoke_takes_out_on_every_beat_and_any_number_of_times(given: Any) -> None:
    delayed = Delayed(Shard(entry("a"), entry("b"), entry("c")))

    for _ in range(2):
        assert "ok" in ask(
            commands(delayed), "revoke", task_id=given, terminate=True, signal="TERM"
        )
    assert delayed.shards[0].entries.keys() == {"b", "c"} - set(given)


def test_a_revoke_that_failed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    delayed = Delayed(Shard(entry("a")))
    delayed.away = True

    assert "Redis is away" in ask(commands(delayed), "revoke", task_id="a")["error"]
    assert [getattr(one, "event", None) for one in caplog.records] == ["revoke_failed"]


STAMPED = {"stamped_headers": ["order", "shop"], "stamps": {"order": [17, 18], "shop": "north"}}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"order": 17}, True),
        ({"order": [3, 18]}, True),
        ({"order": 3}, False),
        ({"shop": "north"}, True),
        ({"shop": ["south", "north"]}, True),
        ({"shop": "south"}, False),
        ({"customer": 17}, False),
    ],
)
def test_stamps_are_compared_as_workers_compare_them(wanted: Any, found: bool) -> None:
    assert has_stamp(STAMPED, wanted) is found
    assert has_stamp({}, wanted) is False


@pytest.mark.parametrize("together", [1, 7, 199, 1_000])
def test_stamped_tasks_are_taken_out_page_by_page_after_the_answer(together: int) -> None:
    marked = {"stamped_headers": ["shop"], "stamps": {"shop": "north"}}
    delayed = Delayed(
        Shard(
            *(
                entry(f"{one:04}", one // together, **(marked if one % 3 else {}))
                for one in range(1_000)
            )
        )
    )
    given = commands(delayed)
    delayed.away = True

    assert "ok" in ask(given, "revoke_by_stamped_headers", headers=["shop=north"])
    with pytest.raises(StoreUnavailable):
        given.go_on()
    assert len(delayed.shards[0].entries) == 1_000
    # what failed is done again
    delayed.away = False
    steps = 0
    while given.is_searching:
        given.go_on()
        steps += 1

    assert steps > 3
    assert {int(one) % 3 for one in delayed.shards[0].entries} == {0}
    assert len(delayed.shards[0].entries) == 334
