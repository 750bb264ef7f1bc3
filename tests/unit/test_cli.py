"""The command line without servers: words for times, what steers a terminal, what is judged."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from celery.exceptions import QueueNotFound
from click.testing import CliRunner
from kombu.exceptions import EncodeError

from celery_delay.cli import delay, verb
from celery_delay.cli.output import Output, printable
from celery_delay.cli.times import DATETIME, INSTANT, SECONDS, iso, relative, span
from celery_delay.delayed.findings import AuditReport, Leading, Situation, findings
from celery_delay.domain.entries import Due
from celery_delay.domain.settings import Settings
from celery_delay.domain.states import HoldOutcome, ReleaseOutcome, RescheduleOutcome, UpdateOutcome
from celery_delay.exceptions import InvalidSetting, OutcomeUnknown, StoreUnavailable
from celery_delay.store.inspection import ServerReport, ShardReport

VERBS = [
    "add", "list", "count", "show", "history", "cancel", "reschedule", "update", "run-now", "hold",
    "release", "purge", "pause", "resume", "status", "leader", "forecast", "stats", "doctor",
    "check", "verify", "rebuild", "migrate", "prune", "forget",
]  # fmt: skip
#: What a verb needs to be used rightly.
NEEDS = {
    "prune": ["--yes"], "forget": ["x"],
    "show": ["x"], "history": ["x"], "cancel": ["x"], "reschedule": ["x", "--by", "1"],
    "update": ["x", "--queue", "q"], "resume": ["--all"],
    "run-now": ["x"], "hold": ["x"], "release": ["x"], "add": ["x", "--countdown", "1"],
}  # fmt: skip
NOW = 1_800_000_000_000


def run(*arguments: str, app: Any = None) -> Any:
    context = SimpleNamespace(app=app or Celery("bare", set_as_current=False), no_color=False)
    return CliRunner().invoke(delay, list(arguments), obj=context)


# --- the group ---------------------------------------------------------------------------


def test_help_names_every_verb_and_the_exit_codes() -> None:
    said = run("--help").output
    assert all(f"\n  {verb} " in said for verb in VERBS)
    assert "Exit codes" in said
    assert "69" in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_without_an_app_and_shows_examples(verb: str) -> None:
    answer = run(verb, "--help")
    assert answer.exit_code == 0
    assert f"celery -A proj delay {verb}" in answer.output
    assert "exit code" in answer.output
    assert "--json" in answer.output


@pytest.mark.parametrize("arguments", [(verb, *NEEDS.get(verb, ())) for verb in VERBS])
def test_without_an_app_it_says_how_to_name_one(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert f"say which app: celery -A proj delay {arguments[0]}" in answer.stderr
    assert answer.stdout == ""


def test_a_group_of_verbs_explains_itself_and_each_of_them() -> None:
    group = run("schedule", "--help").output
    assert "celery -A proj delay schedule list" in group
    context = click.Context(delay)
    found: Any = delay.get_command(context, "schedule")
    verbs = found.list_commands(context)
    assert {"list", "show", "preview", "pause", "resume", "trigger"} <= set(verbs)
    for name in verbs:
        answer = run("schedule", name, "--help")
        assert answer.exit_code == 0
        assert f"celery -A proj delay schedule {name}" in answer.output
        assert "exit code" in answer.output
        assert "--json" in answer.output
    answer = run("schedule", "list")
    assert answer.exit_code == 2
    assert "say which app: celery -A proj delay schedule list" in answer.stderr
    assert run("schedule", "explode").exit_code == 2


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(200, "task id task queue eta due"), (80, "task id task due"), (60, "task id task due")],
)
def test_a_table_fits_the_terminal_and_its_ids_are_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, shown: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    task_id = "5f0c6c2e-7b1d-4f62-9c39-0d6f3a5b8e11"
    name, eta = "a.task.with.a.name.that.goes.on.and.on", "2030-01-31 09:00:00+01:00"
    row = [task_id, name, "default", eta, "in 5m 03s"]

    Output(as_json=False, colours=False).table(
        ["task id", "task", "queue", "eta", "due"],
        [row],
        spare=("queue", "eta"),
        cut=("task", "queue"),
    )

    said = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, said)) <= columns
    text = "\n".join(said)
    assert task_id in text
    assert "in 5m 03s" in text
    assert " ".join(next(one for one in said if "task id" in one).split()) == shown
    assert "a.tas" in text
    assert ("on.and.on" in text) == (columns == 200)


def test_an_unknown_verb_is_wrong_usage() -> None:
    assert run("explode").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--limit", "0"),
        ("list", "--state", "LATER"),
        ("list", "--after", "soon"),
        ("show",),
        ("cancel",),
        ("hold",),
        ("run-now",),
        ("reschedule", "--by", "1"),
        ("reschedule", "x", "--by", "soon"),
        ("reschedule", "x", "--by", "inf"),
        ("reschedule", "x", "--eta", "30m"),
        ("reschedule", "x", "--eta", "soon"),
        ("update", "--queue", "q"),
        ("update", "x", "--args", "{}"),
        ("update", "x", "--kwargs", "[]"),
        ("update", "x", "--priority", "high"),
        ("update", "x", "--expires", "soon"),
        ("release", "--state", "SCHEDULED"),
        ("pause", "--all", "--task", "x"),
        ("pause", "--task", ""),
        ("pause", "--reason", "x"),
        ("resume",),
        ("resume", "--all", "--queue", "x"),
        ("resume", "--all", "--over", "soon"),
        ("check", "--limit", "0"),
        ("add",),
        ("add", "x", "--from", "-", "--countdown", "1"),
        ("add", "--from", "no-such-file"),
        ("add", "--from", "-", "--args", "[]"),
        ("add", "--from", "-", "--chunk", "1001"),
        ("add", "x", "--countdown", "1", "--skip", "1"),
        ("add", "x", "--args", "{}", "--countdown", "1"),
        ("add", "x", "--kwargs", "[]", "--countdown", "1"),
        ("add", "x", "--args", "nothing", "--countdown", "1"),
    ],
)
def test_wrong_arguments_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


# --- times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "-"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (59_900, "59.9 s"),
        (60_000, "1m 00s"),
        (303_000, "5m 03s"),
        (3_600_000, "1h 00m"),
        (86_399_999, "23h 59m"),
        (86_400_000, "1d 00h"),
        (187_200_000, "2d 04h"),
        (-5_000, "-5.0 s"),
    ],
)
def test_a_span_has_its_two_largest_units(ms: int | None, text: str) -> None:
    assert span(ms) == text


def test_relative_tells_future_and_past() -> None:
    assert relative(NOW + 2_000, NOW) == "in 2.0 s"
    assert relative(NOW - 2_000, NOW) == "2.0 s ago"
    assert relative(None, NOW) == "-"


def test_iso_is_utc_with_milliseconds() -> None:
    assert iso(1_800_000_000_007) == "2027-01-15T08:00:00.007Z"
    assert iso(None) is None
    assert iso(10**18) is None


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("30m", Due(1_800_000, True)),
        ("-2h", Due(-7_200_000, True)),
        ("1.5d", Due(129_600_000, True)),
        ("250ms", Due(250, True)),
        ("2027-01-15T08:00:00Z", Due(NOW, False)),
        ("2027-01-15T09:00:00+01:00", Due(NOW, False)),
    ],
)
def test_an_instant_is_a_span_or_iso_8601(text: str, due: Due) -> None:
    assert INSTANT.convert(text, None, None) == due


# --- output ------------------------------------------------------------------------------


def test_nothing_in_a_cell_can_steer_the_terminal_or_fake_a_row() -> None:
    assert printable("\x1b[2Jgone\r\nrow\x9b1m") == "\\x1b[2Jgone\\r\\nrow\\x9b1m"
    assert printable("grün [red] 任务") == "grün [red] 任务"


def test_a_table_in_a_pipe_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(as_json=False)
    out.table(["a", "b"], [["x" * 300, "[bold]y[/bold]"]], styles={"x" * 300: "red"})
    said = capsys.readouterr().out
    assert "x" * 300 in said
    assert "[bold]y[/bold]" in said
    assert "\x1b" not in said


# --- when --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("-1.5", -1.5),
        ("30m", 1_800),
        ("-2h", -7_200),
        ("250ms", 0.25),
        (" 1d ", 86_400),
    ],
)
def test_a_number_of_seconds_may_have_a_unit(text: str, seconds: float) -> None:
    assert SECONDS.convert(text, None, None) == timedelta(seconds=seconds)


def test_an_eta_is_an_instant() -> None:
    assert DATETIME.convert("2030-01-31T09:00:00Z", None, None) == datetime(
        2030, 1, 31, 9, tzinfo=timezone.utc
    )


class Delayed:
    """Answers as they come from Redis; keeps what it was asked for."""

    settings = Settings(audit="off")
    app = Celery("bare", set_as_current=False)

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    def _answer(self, *asked: Any, **more: Any) -> Any:
        self.asked.append((asked, {k: v for k, v in more.items() if v is not None}))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    reschedule = update = hold = run_now = release = _answer


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Any:
    def ask(delayed: Delayed, *arguments: str) -> Any:
        monkeypatch.setattr(verb, "delayed_of", lambda context: delayed)
        return run(*arguments)

    return ask


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--countdown", "30m"], {"countdown": timedelta(minutes=30)}),
        (["--by", "-60"], {"by": timedelta(seconds=-60)}),
        (["--eta", "2030-01-31T09:00Z", "--reason", "moved"],
         {"eta": datetime(2030, 1, 31, 9, tzinfo=timezone.utc), "reason": "moved"}),
    ],
)  # fmt: skip
def test_reschedule_asks_once_for_each_task(
    asking: Any, options: list[str], given: dict[str, Any]
) -> None:
    delayed = Delayed(RescheduleOutcome.RESCHEDULED, RescheduleOutcome.RESCHEDULED)

    answer = asking(delayed, "reschedule", "a", "b", "a", *options, "--json")

    assert answer.exit_code == 0
    assert delayed.asked == [(("a",), given), (("b",), given)]
    assert json.loads(answer.stdout)["rescheduled"] == 2


@pytest.mark.parametrize(
    "options", [[], ["--by", "1", "--countdown", "1"], ["--eta", "2030-01-31", "--by", "1"]]
)
def test_reschedule_wants_one_way_to_say_when(asking: Any, options: list[str]) -> None:
    delayed = Delayed()
    answer = asking(delayed, "reschedule", "a", *options)
    assert (answer.exit_code, delayed.asked) == (2, [])
    assert "--countdown, --eta or --by" in answer.stderr


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hold", HoldOutcome), ("run-now", RescheduleOutcome), ("update", UpdateOutcome)],
)
def test_each_answer_has_its_meaning_and_all_but_success_are_a_no(
    asking: Any, name: str, kind: Any
) -> None:
    ids = [one.value.lower() for one in kind]
    options = ["--queue", "q"] if name == "update" else []

    answer = asking(Delayed(*kind), name, *ids, *options, "--json")

    document = json.loads(answer.stdout)
    assert answer.exit_code == 1
    assert [one["outcome"] for one in document["answers"]] == [one.value for one in kind]
    assert all(one["meaning"] and one["error"] is None for one in document["answers"])
    assert document[next(iter(kind)).value.lower()] == 1


def test_a_failure_between_answers_is_69_and_hides_none_of_them(asking: Any) -> None:
    answers = [HoldOutcome.HELD, OutcomeUnknown("b", "lost"), StoreUnavailable("away")]

    answer = asking(Delayed(*answers), "hold", "a", "b", "c", "--json")

    assert answer.exit_code == 69
    told = {one["task_id"]: (one["outcome"], one["meaning"])
            for one in json.loads(answer.stdout)["answers"]}  # fmt: skip
    assert told == {
        "a": ("HELD", "it does not run before `release` or `run-now`"),
        "b": (None, "unknown; ask again"),
        "c": (None, "nothing has changed"),
    }
    assert "away" in answer.stderr


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--args", "[1, {}]", "--kwargs", '{"x": 1}'], {"args": [1, {}], "kwargs": {"x": 1}}),
        (["--args", "[]", "--kwargs", "{}"], {"args": [], "kwargs": {}}),
        (["--queue", "slow", "--priority", "0"], {"queue": "slow", "priority": 0}),
        (["--expires", "90", "--reason", "late"], {"expires": 90.0, "reason": "late"}),
        (["--expires", "2h"], {"expires": 7_200.0}),
        (["--expires", "2030-01-31T09:00Z"],
         {"expires": datetime(2030, 1, 31, 9, tzinfo=timezone.utc)}),
    ],
)  # fmt: skip
def test_update_asks_once_for_each_task(
    asking: Any, options: list[str], given: dict[str, Any]
) -> None:
    delayed = Delayed(UpdateOutcome.UPDATED, UpdateOutcome.UPDATED)

    answer = asking(delayed, "update", "a", "b", "a", *options, "--json")

    assert answer.exit_code == 0, answer.output
    assert delayed.asked == [(("a",), given), (("b",), given)]
    assert json.loads(answer.stdout)["updated"] == 2


def test_never_is_a_value_and_an_option_that_is_not_given_is_none(asking: Any) -> None:
    class Asked(Delayed):
        def update(self, *asked: Any, **more: Any) -> Any:
            self.asked.append(more)
            return UpdateOutcome.UPDATED

    delayed = Asked()
    assert asking(delayed, "update", "a", "--expires", "never").exit_code == 0
    assert delayed.asked == [{"expires": None, "reason": None}]
    answer = asking(delayed, "update", "a", "--reason", "why")
    assert (answer.exit_code, len(delayed.asked)) == (2, 1)
    assert "say what to change" in answer.stderr


def test_what_cannot_be_made_is_refused_and_all_others_are_answered(asking: Any) -> None:
    outcomes: list[Any] = [
        UpdateOutcome.UPDATED, TypeError("takes 1 argument"), ValueError("too large"),
        QueueNotFound("no 'q'"), EncodeError("a set"), UpdateOutcome.DAMAGED,
    ]  # fmt: skip
    ids = list("abcdef")

    answer = asking(Delayed(*outcomes), "update", *ids, "--queue", "q", "--json")

    assert answer.exit_code == 1
    told = [(one["outcome"], one["meaning"]) for one in json.loads(answer.stdout)["answers"]]
    assert [outcome for outcome, _ in told] == ["UPDATED", *["REFUSED"] * 4, "DAMAGED"]
    assert told[1][1] == "nothing has changed: takes 1 argument"
    assert "no 'q'" in told[3][1]
    # what is not about this task ends it all
    refused = asking(Delayed(InvalidSetting("task_protocol")), "update", "a", "--queue", "q")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_release_takes_each_id_once(asking: Any) -> None:
    delayed = Delayed(dict.fromkeys("xy", ReleaseOutcome.RELEASED))

    answer = asking(delayed, "release", "x", "y", "x", "--json")

    assert (answer.exit_code, delayed.asked) == (0, [(("x", "y"), {})])
    assert json.loads(answer.stdout)["released"] == 2


@pytest.mark.parametrize("verb", ["cancel", "reschedule", "run-now", "hold", "release"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "name task ids, or say which by a filter"),
        (["x", "--all"], "name task ids, or say which by a filter"),
        (["x", "--task", "shop.pay"], "name task ids, or say which by a filter"),
        (["x", "--dry-run"], "--limit, --dry-run and --yes go with a filter"),
        (["x", "--yes"], "--limit, --dry-run and --yes go with a filter"),
        (["--tag", "a"], "there is nobody to ask: say --yes, or --dry-run"),
        (["--all", "--json"], "there is nobody to ask: say --yes, or --dry-run"),
        ([""], "an ID is empty"),
    ],
)
def test_what_is_changed_is_told_exactly(
    asking: Any, verb: str, options: list[str], says: str
) -> None:
    when = ["--by", "5"] if verb == "reschedule" else []
    answer = asking(Many(), verb, *options, *when)

    assert (answer.exit_code, answer.stdout) == (2, "")
    assert says in " ".join(answer.stderr.replace("│", " ").split())


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_purge_without_anybody_to_ask_does_nothing(asking: Any, options: list[str]) -> None:
    answer = asking(Many(), "purge", *options)

    assert (answer.exit_code, answer.stdout) == (2, "")
    assert "there is nobody to ask" in answer.stderr


class Many(Delayed):
    """With many tasks, none of which may be touched."""

    cancel_many = reschedule_many = run_many = hold_many = release_many = purge = None


# --- findings ----------------------------------------------------------------------------

SERVER = ServerReport("7.0.15", "run-1", 60, 1_000, 0, "noeviction", True)
SHARD = ShardReport(
    shard=0, now_ms=NOW, holder="host:1:a", term=3, seq=9, epoch=5, run_id="run-1",
    progress_ms=NOW - 100, pending=10, overdue=0, next_due_ms=NOW + 60_000, blocked=0,
    blocked_reasons={}, quarantined=0, quarantined_reasons={}, journal=0, journal_oldest_ms=None,
    gap=0, templates=1, schedules=0, audit_id="uuid-1",
)  # fmt: skip
AUDIT = AuditReport("current", "sqlite:////a.db", "uuid-1")


def judged(
    *, leading: str = Leading.LEADING, audit: AuditReport = AUDIT,
    server: ServerReport = SERVER, settings: Settings | None = None, **shard: Any,
) -> dict[str, tuple[str, str, str]]:  # fmt: skip
    situation = Situation(
        settings or Settings(), server, [SHARD._replace(**shard)], [leading], audit
    )
    found = findings(situation)
    assert all(one.remedy for one in found)
    return {one.code: (one.level, one.text, one.remedy) for one in found}


def test_a_healthy_system_has_no_findings() -> None:
    assert judged() == {}
    assert judged(audit=AuditReport("off"), audit_id=None) == {}


@pytest.mark.parametrize(
    ("code", "level", "facts"),
    [
        ("no_leader", "problem", {"leading": Leading.NOBODY, "holder": ""}),
        ("leader_gone", "problem", {"leading": Leading.GONE}),
        ("leader_stuck", "problem", {"leading": Leading.STUCK}),
        ("history_unnamed", "problem", {"run_id": "run-0"}),
        ("overdue", "note", {"overdue": 2, "next_due_ms": NOW - 2_000}),
        ("overdue", "problem", {"overdue": 2, "next_due_ms": NOW - 20_000}),
        ("blocked", "problem", {"blocked": 3, "blocked_reasons": {"the key q is not a list": 3}}),
        ("held", "note", {"held": 1}),
        ("quarantined", "problem", {"quarantined": 1, "quarantined_reasons": {"damaged": ["t"]}}),
        ("drain_lag", "note", {"journal": 5, "journal_oldest_ms": NOW - 20_000}),
        ("drain_lag", "problem", {"journal": 5, "journal_oldest_ms": NOW - 90_000}),
        ("journal_filling", "problem", {"journal": 900_000}),
        ("journal_gap", "problem", {"gap": 17}),
        ("audit_unavailable", "problem", {"audit": AuditReport("unavailable", error="locked")}),
        ("schema_missing", "problem", {"audit": AuditReport("missing", "db")}),
        ("schema_outdated", "problem", {"audit": AuditReport("outdated", "db", "uuid-1")}),
        ("schema_newer", "problem", {"audit": AuditReport("newer", "db", "uuid-1")}),
        ("foreign_database", "problem", {"audit_id": "uuid-2"}),
        ("redis_version", "problem", {"server": SERVER._replace(version="6.0.16")}),
        ("eviction", "problem",
         {"server": SERVER._replace(max_memory=10**6, eviction="allkeys-lru")}),
        ("memory", "problem", {"server": SERVER._replace(max_memory=10**6, used_memory=950_000)}),
        ("not_persistent", "note", {"server": SERVER._replace(appends_to_file=False)}),
    ],
)  # fmt: skip
def test_each_abnormal_number_is_one_finding(code: str, level: str, facts: dict[str, Any]) -> None:
    found = judged(**facts)
    assert list(found) == [code]
    assert found[code][0] == level


def test_overdue_without_a_leader_is_a_problem_at_once_and_names_the_cure() -> None:
    found = judged(leading=Leading.GONE, overdue=1, next_due_ms=NOW - 1_500)
    assert found["overdue"][0] == "problem"
    assert "as soon as a beat leads" in found["overdue"][2]
    assert "celery -A proj beat" in found["leader_gone"][2]


def test_reasons_are_told_with_their_tasks() -> None:
    found = judged(
        quarantined=2, quarantined_reasons={"the record is damaged": ["t1", "t2"]},
        blocked=4, blocked_reasons={"the key q is not a list": 4},
    )  # fmt: skip
    assert "the record is damaged (t1, t2)" in found["quarantined"][1]
    assert "the key q is not a list (4)" in found["blocked"][1]


def test_a_refusing_journal_says_that_tasks_will_be_refused() -> None:
    refusing = Settings(journal_max=1_000, journal_full="refuse")
    assert "new tasks are refused" in judged(journal=800, settings=refusing)["journal_filling"][1]


def test_problems_come_before_notes() -> None:
    found = judged(gap=1, server=SERVER._replace(appends_to_file=False),
                   journal=1, journal_oldest_ms=NOW - 20_000)  # fmt: skip
    levels = [level for level, _, _ in found.values()]
    assert levels == sorted(levels, key="note".__eq__)
    assert set(levels) == {"problem", "note"}
