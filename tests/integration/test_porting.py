"""Out of one store and into another, on real Redis: every shape, again and again, and cut short."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from click.testing import CliRunner
from cryptography.fernet import Fernet

from celery_delay import EntryId, State
from celery_delay.cli import delay
from celery_delay.domain.backing import unpack
from celery_delay.domain.ports import Transition
from celery_delay.exceptions import ExportUnreadable, InvalidSetting
from celery_delay.porting import importing
from celery_delay.porting.resealing import Resealed
from celery_delay.services.auditor import Auditor
from celery_delay.store.keys import shard_of
from tests.projects import hand_off, make_app, messages
from tests.schemas import DRAFT
from tests.shards import park

LINE = DRAFT(
    json.loads(files("celery_delay.porting").joinpath("export-line.schema.json").read_text())
)
NOON = datetime(2040, 1, 31, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
NAMES = ("till.pay", "till.refund", "mail.send")


def nothing(*_: Any, **__: Any) -> None:
    """The body of tasks that nobody runs."""


@pytest.fixture
def make(redis_url: str) -> Iterator[Callable[..., Celery]]:
    """Make an app; the second one has another DB, another prefix and other queues' keys."""
    made: list[Celery] = []

    def make(number: int = 1, **conf: Any) -> Celery:
        base, _, _ = redis_url.rpartition("/")
        if number > 1:
            conf = {
                "delay_key_prefix": f"celery-delay:{number}:",
                "broker_transport_options": {"global_keyprefix": f"shop{number}:"},
                **conf,
            }
        conf = {"delay_audit": "off", "accept_content": ["json", "pickle"], **conf}
        app = make_app(f"{base}/{number - 1}", **conf)
        for name in NAMES:
            app.task(nothing, name=name, shared=False)
        made.append(app)
        return app

    yield make
    for app in made:
        for shard in app.delayed.shards:
            shard.close()
        app.close()


@pytest.fixture
def known_keys(known_keys: tuple[str, ...]) -> tuple[str, ...]:
    return (*known_keys, "shop2:*", "slow*")


def put_everything(app: Celery) -> None:
    """One entry, or some, of each shape there is."""
    pay, send = app.tasks["till.pay"], app.tasks["mail.send"]
    at: dict[str, Any] = {"eta": NOON}
    pay.apply_delayed((1, "ü"), {"k": None}, **at, task_id="plain")
    pay.apply_delayed((2,), **at, task_id="slow", queue="slow", priority=6)
    pay.apply_delayed(({1, 2},), **at, task_id="pickled", serializer="pickle")
    pay.apply_delayed(("x" * 2_000,), **at, task_id="small", compression="gzip")
    pay.apply_delayed((b"\0\xff",), **at, task_id="bytes")
    pay.apply_delayed((3,), **at, task_id="linked", link=send.s(1), link_error=send.s(2))
    pay.apply_delayed((4,), **at, task_id='odd "id" ü', headers={"own": "1"}, shadow="called")
    send.apply_delayed(
        ("bob",), **at, task_id="labelled", namespace="acme", tags=["vip", "mail"],
        unique_key="mail:bob", expires=86_400 * 365 * 40, time_limit=5, argsrepr="(…)",
    )  # fmt: skip
    send.apply_delayed(("eve",), **at, task_id="once", unique_key="mail:eve",
                       unique_until="done", unique_for=60)  # fmt: skip
    send.apply_delayed(("idem",), **at, task_id="idem", idempotency_key="call-1")
    group(pay.s(n) for n in range(3)).apply_delayed(**at)
    chain(pay.s(1), pay.s(2)).apply_delayed(**at)
    chord([pay.s(1), pay.s(2)], send.s()).apply_delayed(**at)
    pay.apply_delayed((5,), **at, task_id="held")
    app.delayed.hold("held")
    pay.apply_delayed((6,), **at, task_id="parked")
    park(app, "parked")


def everything(app: Celery) -> dict[str, Any]:
    """All that waits, by id, but for what belongs to the place."""
    found = {}
    for one in app.delayed.iterate(state=["SCHEDULED", "HELD", "QUARANTINED"]):
        envelope = json.loads(json.dumps(one.envelope))
        envelope["headers"].pop("celery_delay")
        envelope["properties"].pop("delivery_tag")
        facts = (
            one.entry_id.run,
            one.eta_ms,
            one.expires_ms,
            one.state,
            one.queue_name,
            one.labels,
        )
        found[one.entry_id.task_id] = (*facts, envelope)
    return found


def exported(app: Celery, **options: Any) -> bytes:
    file = io.BytesIO()
    app.delayed.export(file, **options)
    return file.getvalue()


def imported(app: Celery, text: bytes, **options: Any) -> Any:
    return app.delayed.import_(io.BytesIO(text), **options)


def changed(text: bytes, number: int, **facts: Any) -> bytes:
    """The export with the line of that number changed; counted from 1."""
    lines = text.splitlines(keepends=True)
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **facts}).encode() + b"\n"
    return b"".join(lines)


# --- there and back ----------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_everything_arrives_as_it_was(make: Callable[..., Celery], shards: int) -> None:
    source, target = make(), make(2, delay_shards=shards)
    put_everything(source)
    before = everything(source)
    text = exported(source)
    for line in text.splitlines():
        LINE.validate(json.loads(line))

    outcome = imported(target, text, dry_run=True)
    assert everything(target) == {}
    misplaced = [
        one for one, facts in before.items()
        if facts[5].unique and shard_of(facts[5].unique.key, shards) != shard_of(one, shards)
    ]  # fmt: skip
    assert (outcome.imported, outcome.refused_count) == (
        len(before) - len(misplaced),
        len(misplaced),
    )
    outcome = imported(target, text)

    assert outcome.imported == len(before) - len(misplaced)
    assert outcome.keys >= 1
    after = everything(target)
    assert after == {one: facts for one, facts in before.items() if one not in misplaced}
    assert (after["held"][3], after["parked"][3]) == (State.HELD, State.QUARANTINED)
    assert everything(source) == before
    # and each queue gets the messages that it would have got
    for app in (source, target):
        app.delayed.release("held", "parked")
        hand_off(app, until=int(NOON.timestamp() * 1000))
    for queue in ("celery", "slow"):
        one, other = plain(source, queue), plain(target, f"shop2:{queue}")
        assert {k: v for k, v in one.items() if k not in misplaced} == other
        assert other


def plain(app: Celery, queue: str) -> dict[str, Any]:
    found = {}
    for ending in ("", "\x06\x166"):
        for message in messages(app, f"{queue}{ending}"):
            message["properties"].pop("delivery_tag")
            found[message["headers"]["id"]] = message
    return found


# --- again -------------------------------------------------------------------------------


def test_the_same_file_again_doubles_nothing_also_of_what_has_run(
    make: Callable[..., Celery],
) -> None:
    source, target = make(), make(2)
    for number in range(6):
        put(source, f"t{number}", number)
    text = exported(source)
    assert imported(target, text).imported == 6
    hand_off(target, until=_ms(NOON + 2 * DAY))  # t0, t1 and t2
    target.delayed.cancel("t3")
    forget_tombstones(target)

    again = imported(target, text)

    assert (again.imported, again.present, again.before, again.over) == (0, 2, 4, 0)
    assert bool(again)
    assert len(messages(target, "shop2:celery")) == 3
    # a second export is another one: only whoever says so brings back what has left
    assert imported(target, text, force=True, dry_run=True).imported == 4
    assert imported(target, text, force=True).imported == 4


def test_lines_are_known_by_their_number_not_by_their_place(make: Callable[..., Celery]) -> None:
    source, target = make(), make(2)
    for number in range(4):
        put(source, f"t{number}", number)
    lines = exported(source).splitlines(keepends=True)
    imported(target, b"".join([lines[0], lines[3], lines[1]]))  # t2 and t0
    hand_off(target, until=_ms(NOON + 5 * DAY))
    forget_tombstones(target)

    whole = imported(target, b"".join(lines))

    assert (whole.imported, whole.before) == (2, 2)
    assert sorted(everything(target)) == ["t1", "t3"]


def test_an_old_export_is_refused_unless_it_is_remembered(
    make: Callable[..., Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = make(), make(2)
    put(source, "a", 1)
    text = exported(source)
    monkeypatch.setattr(importing, "REMEMBERED_MS", -1)
    with pytest.raises(ExportUnreadable, match=r"0 days old.*--force"):
        imported(target, text)
    assert everything(target) == {}

    monkeypatch.undo()
    imported(target, text)
    monkeypatch.setattr(importing, "REMEMBERED_MS", -1)
    known = imported(target, text, dry_run=True)  # a restart needs no --force

    assert (known.present, known.imported) == (1, 0)


def test_what_the_audit_knows_to_be_over_does_not_come_back(
    make: Callable[..., Celery], tmp_path: Path
) -> None:
    app = make(delay_audit="async", delay_database_url=f"sqlite:///{tmp_path}/audit.db")
    app.delayed.audit_log.migrate()
    for number in range(4):
        put(app, f"t{number}", number)
    text = exported(app)  # a backup, of this very store
    app.delayed.cancel("t0")
    hand_off(app, until=_ms(NOON + DAY))
    drain(app)
    forget_tombstones(app)

    outcome = imported(app, text, dry_run=True)
    assert (outcome.imported, outcome.present, outcome.over) == (0, 2, 2)
    assert imported(app, text, audit=False, dry_run=True).imported == 2
    assert imported(app, text).over == 2

    # one that was lost is not over: it waits again, and the audit tells so
    app.delayed.shards[0]._read("FLUSHDB")
    hand_off(app, until=_ms(NOON + 1.5 * DAY))  # a leader names the new history
    app.delayed.shards[0].record(
        [Transition(EntryId("t3", run_of(text, "t3")), 1, State.LOST, {"reason": "flushed"})]
    )
    drain(app)
    assert app.delayed.audit_queries().task("t3").state == "LOST"
    assert imported(app, text).imported == 2
    drain(app)
    assert app.delayed.audit_queries().task("t3").state == "SCHEDULED"


def test_where_sql_comes_first_it_has_each_before_redis(
    make: Callable[..., Celery], tmp_path: Path
) -> None:
    source = make()
    target = make(2, delay_audit="sync", delay_database_url=f"sqlite:///{tmp_path}/audit.db")
    target.delayed.audit_log.migrate()
    hand_off(target, until=_ms(NOON - DAY))  # a leader names the history
    put_everything(source)
    put(target, "other", 5, unique_key="mail:bob")
    wanted = everything(source)
    text = exported(source)
    assert imported(target, text, dry_run=True).imported == len(wanted) - 1

    first, second = imported(target, text), imported(target, text)

    assert "the task 'other' has the unique key 'mail:bob'" in first.refused[0][1]
    assert (first.imported, first.refused_count) == (len(wanted) - 1, 1)
    assert (second.present, second.imported) == (len(wanted) - 1, 0)
    here, states = everything(target), {"held": State.HELD, "parked": State.HELD}
    del here["other"], wanted["labelled"]
    assert {one: facts[:3] + facts[4:] for one, facts in here.items()} == {
        one: facts[:3] + facts[4:] for one, facts in wanted.items()
    }
    assert {one: facts[3] for one, facts in here.items() if facts[3] == State.HELD} == states
    rows = target.delayed.backed_rows.some([EntryId(one, facts[0]) for one, facts in here.items()])
    assert len(rows) == len(here)
    # what has left does not come again, though no mark was written
    hand_off(target, until=_ms(NOON + DAY))
    drain(target)
    forget_tombstones(target)
    assert imported(target, text).over == len(here) - 2


# --- what comes late, and what is wrong --------------------------------------------------


@pytest.mark.parametrize(
    ("overdue", "state"), [("run", State.SCHEDULED), ("hold", State.HELD), ("skip", None)]
)
def test_overdue_ones_run_at_once_are_held_or_left_out(
    make: Callable[..., Celery], overdue: str, state: State | None
) -> None:
    source, target = make(), make(2)
    put(source, "late", 1)
    put(source, "early", 2)
    past = datetime(2020, 1, 1, tzinfo=timezone.utc)
    text = changed(exported(source), 2, eta_ms=_ms(past))

    outcome = imported(target, text, overdue=overdue)

    found = everything(target)
    assert outcome.skipped == (state is None)
    assert found.get("late", (None,) * 4)[3] == state
    assert found["early"][3] == State.SCHEDULED
    assert hand_off(target) == (state is State.SCHEDULED)
    with pytest.raises(ValueError, match="overdue='later' must be one of run, hold, skip"):
        imported(target, text, overdue="later")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task_id": "other"}, "the header id is 't1', not the task_id"),
    ({"task_id": "a\nb"}, "no control characters"),
    ({"run": "7"}, "run must be a whole number"),
    ({"n": 10**12}, "n must be a whole number from 1 to"),
    ({"state": "DISPATCHED"}, "state='DISPATCHED' is none of SCHEDULED, HELD, QUARANTINED"),
    ({"eta_ms": True}, "eta_ms must be a whole number"),
    ({"tags": ["x" * 200]}, "tags"),
    ({"unique": {"key": "", "until": "done", "for_ms": 1}}, "is no key"),
    ({"unique": {"key": "k"}}, "until is missing"),
    ({"message": None}, "subscriptable"),
    ({"message": {"headers": {}, "properties": {}}}, "header id"),
    ({"kind": "entity"}, "kind='entity' is none of entry, key"),
    ({"task": "mail.send"}, "differ"),
]


def test_bad_lines_are_told_and_the_others_go_on(make: Callable[..., Celery]) -> None:
    source, target = make(delay_max_payload=10_000_000), make(2)
    for number in range(len(BAD) + 2):
        put(source, f"t{number}", number)
    source.tasks["till.pay"].apply_delayed(("x" * 1_100_000,), eta=NOON + 90 * DAY, task_id="big")
    first, *lines = exported(source).splitlines(keepends=True)
    wrong = [
        json.dumps({**json.loads(lines[1]), **facts}).encode() + b"\n" for facts, _ in BAD
    ]  # fmt: skip
    text = b"".join([first, lines[0], *wrong, b"{\n", b"[1]\n", b"\n", *lines[2:]])

    outcome = imported(target, text)

    told = dict(outcome.refused)
    for number, (facts, reason) in enumerate(BAD, 3):
        assert reason in told[number], (facts, told[number])
    assert told[3 + len(BAD)].startswith("no JSON")
    assert "not a JSON object" in told[4 + len(BAD)]
    assert "1100" in str(told.values()) and "delay_max_payload" in str(told.values())  # noqa: PT018
    assert outcome.refused_count == len(BAD) + 3
    assert sorted(everything(target)) == sorted(
        f"t{number}" for number in range(len(BAD) + 2) if number != 1
    )
    assert not outcome


def test_a_file_that_is_none_is_refused_as_a_whole(make: Callable[..., Celery]) -> None:
    source, target = make(), make(2)
    put(source, "a", 1)
    text = exported(source)

    for wrong, reason in (
        (changed(text, 1, version=2), "format version 2, and this release knows 1: upgrade"),
        (changed(text, 1, format="csv"), "this is no export"),
        (changed(text, 1, export_id="7"), "first line of the export is damaged"),
        (text.split(b"\n", 1)[1], "the first line of the export is missing"),
        (b"a,b\n1,2\n", "line 1 is no first line of an export"),
        (b"", "the file is empty"),
    ):
        with pytest.raises(ExportUnreadable, match=reason):
            imported(target, wrong)
    assert everything(target) == {}
    cut = imported(target, text.rsplit(b"\n", 2)[0])
    assert (cut.imported, cut.complete, bool(cut)) == (1, False, False)


def test_what_stands_in_the_way_is_told_and_left(make: Callable[..., Celery]) -> None:
    source, target = make(), make(2)
    put(source, "a", 1)
    put(source, "b", 2, unique_key="k")
    text = exported(source)
    put(target, "a", 3)
    put(target, "c", 4, unique_key="k")
    before = everything(target)

    outcome = imported(target, text)

    reasons = " ".join(reason for _, reason in outcome.refused)
    assert outcome.over + outcome.refused_count == 2, outcome
    assert "the task 'c' has the unique key 'k'" in reasons
    assert everything(target) == before


# --- keys, pauses, schedules -------------------------------------------------------------


def test_keys_go_on_counting(make: Callable[..., Celery]) -> None:
    source, target = make(), make(2)
    put(source, "a", 1, unique_key="k")
    put(source, "b", 2, idempotency_key="call")
    text = exported(source)
    imported(target, text)
    imported(target, text)

    assert put(target, "c", 5, unique_key="k").id == "a"
    assert put(target, "d", 5, idempotency_key="call").id == "b"
    assert sorted(everything(target)) == ["a", "b"]


def test_pauses_and_schedules_come_first_and_once(make: Callable[..., Celery]) -> None:
    source, target = make(), make(2)
    put(source, "late", -10_000)
    source.delayed.pause(queue="celery", reason="till is down")
    schedules = source.delayed.schedules
    schedules.add("nightly", "till.pay", "0 3 * * *", (1,), {"k": 2}, tz="Europe/Berlin",
                  misfire="skip", queue="slow")  # fmt: skip
    schedules.add("paused", "mail.send", 60.0)
    schedules.pause("paused", reason="spam")
    assert imported(target, exported(source), dry_run=True).pauses == 0

    text = exported(source, with_schedules=True)
    for line in text.splitlines():
        LINE.validate(json.loads(line))
    for expected in (1, 1, 2), (1, 0, 0):
        outcome = imported(target, text)
        assert (outcome.pauses, outcome.imported, outcome.schedules) == expected
    assert hand_off(target) == 0
    assert [(one.gate, one.reason) for one in target.delayed.pauses()] == [
        ("queue:celery", "till is down")
    ]
    for name in ("nightly", "paused"):
        one, other = (app.delayed.schedules.get(name) for app in (source, target))
        for field in ("task", "times", "args", "kwargs", "options", "misfire", "grace", "reason"):
            assert getattr(one, field) == getattr(other, field), field
        assert one.enabled == other.enabled


# --- filters, pages, encryption ----------------------------------------------------------


def test_filters_say_which(make: Callable[..., Celery], tmp_path: Path) -> None:
    app = make()
    put_everything(app)

    def ids(**filters: Any) -> set[str]:
        lines = [json.loads(one) for one in exported(app, **filters).splitlines()]
        return {one["task_id"] for one in lines if one.get("kind") == "entry"}

    assert ids(namespace="acme") == ids(tag=["vip"]) == {"labelled"}
    assert ids(state="HELD") == {"held"}
    assert ids(state=["QUARANTINED", "HELD"]) == {"held", "parked"}
    assert ids(queue="slow") == {"slow"}
    assert ids() == set(everything(app))
    assert ids(before=NOON - DAY) == set()
    with pytest.raises(ValueError, match="DISPATCHED is no state of what waits"):
        exported(app, state="DISPATCHED")
    dry = app.delayed.export(None, dry_run=True)
    assert (dry.entries, bool(dry)) == (len(ids()), False)
    path = tmp_path / "out.jsonl"
    app.delayed.export(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        app.delayed.export(path)


def test_an_encrypted_export_needs_its_key(make: Callable[..., Celery]) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    source, target = make(delay_payload_keys=[old]), make(2, delay_payload_keys=[new])
    put_everything(source)
    text = exported(source, encrypted=True)
    first, *rest = text.splitlines()

    assert not any(word in b"".join(rest) for word in (b"till.pay", b"task_id"))
    with pytest.raises(ExportUnreadable, match=r"encrypted: .*delay_payload_keys does not have"):
        imported(target, text)
    with pytest.raises(InvalidSetting, match="an encrypted export needs a key"):
        exported(make(3), encrypted=True)
    both = make(2, delay_payload_keys=[new, old])
    assert imported(both, text).imported == len(everything(source))
    assert everything(both) == everything(source)
    # a line that was changed is one bad line
    rest[1] = rest[1][:-20] + b"A" * 18 + b'"}'
    outcome = imported(make(4, delay_payload_keys=[old]), b"\n".join([first, *rest]))
    assert (outcome.refused_count, outcome.imported) == (1, len(everything(source)) - 1)


def test_keys_are_rotated_in_sql_and_what_needs_another_stays(
    make: Callable[..., Celery], tmp_path: Path
) -> None:
    lost, old, new = (Fernet.generate_key().decode() for _ in range(3))
    conf = {"delay_audit": "sync", "delay_database_url": f"sqlite:///{tmp_path}/audit.db"}

    def with_keys(*keys: str) -> Celery:
        return make(delay_payload_keys=keys, **conf)

    with_keys().delayed.audit_log.migrate()
    hand_off(with_keys(), until=_ms(NOON - DAY))
    for keys, task_id in (((), "raw"), ((old,), "old"), ((lost,), "lost"), ((new, old), "new")):
        put(with_keys(*keys), task_id, 1)
    both = with_keys(new, old)

    assert both.delayed.rotate_keys() == Resealed(resealed=2, current=1, unreadable=1)
    assert both.delayed.rotate_keys() == Resealed(resealed=0, current=3, unreadable=1)
    only = with_keys(new).delayed
    rows = only.backed_rows
    found = {one: unpack(rows.read(one)).template for one in ("raw", "old", "new")}
    assert len(set(found.values())) == 1
    said = CliRunner().invoke(
        delay, ["rotate-keys", "--json"], obj=SimpleNamespace(app=both, no_color=False)
    )
    assert (said.exit_code, json.loads(said.stdout)["key_ids"]) == (1, [*both.delayed.seal.key_ids])
    assert "1 payloads need a key that delay_payload_keys does not have" in said.stderr
    assert with_keys(new, lost).delayed.rotate_keys() == Resealed(1, 3, 0)


def test_an_unreadable_record_is_told_and_the_rest_written(make: Callable[..., Celery]) -> None:
    app = make()
    put(app, "a", 1)
    put(app, "b", 2)
    shard = app.delayed.shards[0]
    shard._read("HSET", shard.keys.entries, "a", "9 broken")
    file = io.BytesIO()

    outcome = app.delayed.export(file)

    assert (outcome.unreadable, outcome.entries, bool(outcome)) == (["a"], 1, False)


def put(app: Celery, task_id: str, days: float, **more: Any) -> Any:
    return app.tasks["till.pay"].apply_delayed((task_id,), eta=NOON + days * DAY, task_id=task_id,
                                               **more)  # fmt: skip


def run_of(text: bytes, task_id: str) -> int:
    [run] = [
        one["run"] for one in map(json.loads, text.splitlines())
        if one.get("task_id") == task_id and one["kind"] == "entry"
    ]  # fmt: skip
    return int(run)


def _ms(instant: datetime) -> int:
    return int(instant.timestamp() * 1000)


def forget_tombstones(app: Celery) -> None:
    """As when more than the add window has passed."""
    for shard in app.delayed.shards:
        for key in (shard.keys.tombstones_even, shard.keys.tombstones_odd):
            shard._read("DEL", key)


def drain(app: Celery) -> None:
    parts = app.delayed
    for number, shard in enumerate(parts.shards):
        auditor = Auditor(
            number, shard, parts.audit_log, parts.results, parts.settings, parts.clock
        )
        while auditor.run_once(shard.leader()[1]):
            pass
