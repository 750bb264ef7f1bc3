"""Many calls at a time: streamed in chunks, each whole or not at all; from Python and by lines."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pty
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner

from celery_delay.calling.calls import DelayedCall
from celery_delay.calling.eager import EagerDelayedResult
from celery_delay.cli import delay
from celery_delay.exceptions import AlreadyScheduled, OutcomeUnknown, StoreUnavailable
from tests.projects import close, make_app, messages

HOUR = 3600


def note(number: int, text: str = "") -> int:
    return number


@pytest.fixture
def new_app(redis_url: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**conf: Any) -> Celery:
        app = make_app(redis_url, **conf)
        app.note = app.task(note, shared=False, name="till.note")
        made.append(app)
        return app

    yield make
    for app in made:
        close(app)


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


def stored(app: Celery) -> list[str]:
    return sorted(one.entry_id.task_id for one in app.delayed.list(limit=10_000))


# --- from Python -------------------------------------------------------------------------


def test_a_generator_is_stored_in_chunks_while_it_is_read(app: Celery) -> None:
    # Given a generator that looks at the store while it makes calls
    seen: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(25):
            if number % 10 == 0:
                seen.append(app.delayed.count())
            yield (number,)

    told: list[int] = []
    results = app.note.apply_delayed_many(calls(), countdown=HOUR, chunk=10, progress=told.append)

    # Then each chunk was there before the next was read, and the results are in order
    assert seen == [0, 10, 20]
    assert told == [10, 20, 25]
    found = [json.loads(app.delayed.get(one.id).headers["argsrepr"][1:-2]) for one in results]
    assert found == list(range(25))


@pytest.mark.parametrize("shards", [1, 4])
def test_a_refused_chunk_leaves_those_before_it_and_the_error_tells_how_many(
    new_app: Callable[..., Celery], shards: int
) -> None:
    app = new_app(delay_shards=shards)
    app.note.apply_delayed((0,), countdown=HOUR, task_id="t7")

    with pytest.raises(AlreadyScheduled, match="t7") as caught:
        app.note.apply_delayed_many(
            (DelayedCall((i,), task_id=f"t{i}") for i in range(12)), countdown=HOUR, chunk=5
        )

    assert caught.value.stored == 5
    assert stored(app) == ["t0", "t1", "t2", "t3", "t4", "t7"]


@pytest.mark.parametrize("wrong", [("too", "many", "arguments"), (object(),)])
def test_a_call_that_cannot_be_built_refuses_its_chunk_alone(app: Celery, wrong: Any) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        app.note.apply_delayed_many([(1,)] * 8 + [wrong], countdown=HOUR, chunk=5)

    assert caught.value.stored == 5
    assert app.delayed.count() == 5


def test_what_the_iterable_raises_ends_the_call(app: Celery) -> None:
    def calls() -> Iterator[tuple[int]]:
        yield from ((number,) for number in range(7))
        raise LookupError("the source broke")

    with pytest.raises(LookupError, match="broke") as caught:
        app.note.apply_delayed_many(calls(), countdown=HOUR, chunk=5)

    assert caught.value.stored == 5  # type: ignore[attr-defined]
    assert app.delayed.count() == 5


def test_what_progress_raises_ends_the_call_after_the_chunk(app: Celery) -> None:
    def progress(number: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        app.note.apply_delayed_many(
            ((n,) for n in count()), countdown=HOUR, chunk=5, progress=progress
        )

    assert caught.value.stored == 5  # type: ignore[attr-defined]
    assert app.delayed.count() == 5


@pytest.mark.parametrize("error", [StoreUnavailable, OutcomeUnknown, KeyboardInterrupt])
def test_a_step_that_fails_in_the_middle_tells_what_is_stored(
    app: Celery, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    add, calls = app.delayed.add, count(1)

    def fails(additions: Any, **options: Any) -> Any:
        if next(calls) == 3:
            raise error("it is gone")
        return add(additions, **options)

    monkeypatch.setattr(app.delayed, "add", fails)

    with pytest.raises(error) as caught:
        app.note.apply_delayed_many([(1,)] * 20, countdown=HOUR, chunk=5)

    assert caught.value.stored == 10  # type: ignore[attr-defined]
    # the command tells the same of lines
    calls = count(1)
    answer = add_lines(app, lines(20), "--chunk", "5", "--json")
    assert answer.exit_code == (1 if error is KeyboardInterrupt else 69)
    document = json.loads(answer.stdout)
    assert (document["stored"], document["next_line"]) == (10, 11)
    assert document["in_doubt"] == (None if error is StoreUnavailable else [11, 15])
    assert "gone" in document["error"]


def test_chunks_come_one_by_one_and_an_endless_source_may_be_left(app: Celery) -> None:
    source = ((number,) for number in count())
    chunks = app.note.apply_delayed_chunks(source, countdown=HOUR, chunk=10)
    assert app.delayed.count() == 0

    found = list(islice(chunks, 3))

    assert [len(one) for one in found] == [10, 10, 10]
    assert app.delayed.count() == 30


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_calls(app: Celery) -> None:
    app.note.apply_delayed_many([(1,)] * 600, countdown=HOUR)  # what is made once

    def peak(number: int) -> int:
        tracemalloc.start()
        calls = ((i, f"{i:500}") for i in range(number))
        for _ in app.note.apply_delayed_chunks(calls, countdown=HOUR, chunk=100):
            gc.collect()  # results have cycles; when they go depends on the rest of the process
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(500), peak(1_500)
    assert many < few * 1.3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"chunk": 0}, ValueError),
        ({"countdown": "soon"}, TypeError),
        ({"countdown": 1, "eta": "2031-01-01T00:00Z"}, ValueError),
        ({"task_id": "mine"}, TypeError),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    app: Celery, options: Any, error: type
) -> None:
    source = iter([(1,)])

    with pytest.raises(error):
        app.note.apply_delayed_chunks(source, **{"countdown": HOUR, **options})

    assert next(source) == (1,)


def test_eager_calls_run_at_once(new_app: Callable[..., Celery]) -> None:
    app = new_app(task_always_eager=True)

    found = app.note.apply_delayed_many(((n,) for n in range(5)), countdown=HOUR, chunk=2)

    assert all(isinstance(one, EagerDelayedResult) for one in found)
    assert [one.get() for one in found] == [0, 1, 2, 3, 4]


# --- from the command line ---------------------------------------------------------------


def run(app: Celery, *arguments: str, stdin: bytes | None = None) -> Any:
    context = SimpleNamespace(app=app, no_color=False)
    return CliRunner().invoke(delay, list(arguments), obj=context, input=stdin)


def add_lines(app: Celery, text: str, *arguments: str) -> Any:
    return run(app, "add", "--from", "-", *arguments, stdin=text.encode())


def lines(number: int, **more: Any) -> str:
    texts = (
        json.dumps({"task": "till.note", "args": [i], "countdown": HOUR, **more})
        for i in range(number)
    )
    return "\n".join(texts) + "\n"


def test_add_stores_one_task(app: Celery) -> None:
    answer = run(
        app, "add", "till.note", "--args", "[42]", "--kwargs", '{"text": "hello"}',
        "--countdown", "30m", "--queue", "slow", "--task-id", "mine", "--json",
    )  # fmt: skip

    assert answer.exit_code == 0, answer.output
    entry = app.delayed.get("mine")
    document = json.loads(answer.stdout)
    assert document["task_id"] == "mine"
    assert document["eta_ms"] == entry.eta_ms
    assert -1_000 < app.delayed.now_ms() + 1_800_000 - entry.eta_ms < 60_000
    assert (entry.task, entry.queue) == ("till.note", "slow")
    assert entry.headers["argsrepr"] == "[42]"
    assert entry.headers["kwargsrepr"] == "{'text': 'hello'}"
    # and a second one of this id is refused
    again = run(app, "add", "till.note", "--args", "[1]", "--countdown", "1", "--task-id", "mine")
    assert again.exit_code == 1
    assert "mine" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("till.note", "--args", "[1]"), "say when"),
        (("till.note", "--args", "[1, 2, 3]", "--countdown", "1"), "takes from 1 to 2"),
        (("till.not", "--countdown", "1"), "no task 'till.not' is registered"),
        (("till.note", "--args", "[1]", "--countdown", "1", "--eta", "2031-01-01"), "one way"),
        (("--from", os.devnull, "--args", "[1]"), "for one task"),
        ((), "name a task"),
    ],
)
def test_add_refuses_what_cannot_be_stored(
    app: Celery, arguments: tuple[str, ...], says: str
) -> None:
    answer = run(app, "add", *arguments)

    assert answer.exit_code == 2
    assert says in answer.stderr
    assert app.delayed.count() == 0


def test_add_sends_by_name_what_lives_in_another_project(app: Celery) -> None:
    assert run(app, "add", "billing.pay", "--by-name", "--countdown", "5").exit_code == 0
    assert [one.task for one in app.delayed.list()] == ["billing.pay"]


def test_add_reads_a_file_of_lines(app: Celery, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(
        '{"task": "till.note", "args": [1], "eta": "2031-01-01T00:00:00Z", "task_id": "a"}\n'
        "\n"
        '{"task": "till.note", "kwargs": {"number": 2}, "countdown": 0.5, "queue": "slow",'
        ' "task_id": "b"}\n'
        '{"task": "till.note", "args": [3], "task_id": "c"}'
    )

    answer = run(app, "add", "--from", str(path), "--countdown", "2h", "--json")

    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout) == {
        "stored": 3, "checked": 3, "refused": [], "refusals": 0, "next_line": None,
        "in_doubt": None, "error": None,
    }  # fmt: skip
    a, b, c = (app.delayed.get(one) for one in "abc")
    assert a.eta_ms == 1_924_992_000_000
    assert b.queue == "slow"
    assert b.eta_ms < c.eta_ms - 7_000_000 < a.eta_ms


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nothing", "no JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "task is missing"),
        ('{"task": "till.note", "args": [1]}', "say when"),
        ('{"task": "till.note", "args": [1], "countdown": 1, "eta": "2031-01-01"}', "one of them"),
        ('{"task": "till.note", "args": [1], "countdown": true}', "a number of seconds"),
        ('{"task": "till.note", "args": [1], "countdown": NaN}', "countdown"),
        ('{"task": "till.note", "args": [1], "eta": "soon"}', "eta"),
        ('{"task": "till.note", "args": {"a": 1}, "countdown": 1}', "args must be a list"),
        ('{"task": "till.note", "arg": [1], "countdown": 1}', "unknown field 'arg'"),
        ('{"task": "till.note", "countdown": 1}', "missing 1 required"),
        ('{"task": "till.gone", "countdown": 1}', "no task 'till.gone'"),
        ('{"task": "till.note", "args": [1], "countdown": 1, "task_id": ""}', "task_id"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_with_its_chunk(
    app: Celery, line: str, says: str
) -> None:
    answer = add_lines(app, lines(6) + line + "\n" + lines(3), "--chunk", "5", "--json")

    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert (document["stored"], document["next_line"]) == (5, 6)
    [refused] = document["refused"]
    assert refused["line"] == 7
    assert says in refused["error"]
    assert "line 7" in answer.stderr
    assert app.delayed.count() == 5


def test_add_goes_on_where_it_stopped(app: Celery) -> None:
    answer = add_lines(app, lines(6) + "bad\n" + lines(3), "--chunk", "5")
    assert "--skip 5" in answer.stdout

    mended = add_lines(app, lines(10), "--chunk", "5", "--skip", "5")

    assert mended.exit_code == 0
    assert app.delayed.count() == 10


def test_an_id_that_is_taken_is_told_by_its_line(app: Celery) -> None:
    first = add_lines(app, lines(2) + lines(1, task_id="x"))
    again = add_lines(app, lines(2) + lines(1, task_id="x"), "--json")

    assert (first.exit_code, again.exit_code) == (0, 1)
    assert json.loads(again.stdout)["refused"][0]["line"] == 3
    twins = add_lines(app, lines(2, task_id="twin"), "--json")
    assert json.loads(twins.stdout)["refused"][0]["line"] == 2
    assert app.delayed.count() == 3


def test_a_dry_run_finds_all_bad_lines_and_stores_nothing(app: Celery) -> None:
    text = "bad\n" + lines(6) + "bad\n" * 30

    answer = add_lines(app, text, "--dry-run", "--chunk", "5", "--json")

    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert (document["stored"], document["checked"], document["refusals"]) == (0, 6, 31)
    assert app.delayed.count() == 0
    assert messages(app) == []


def test_add_refuses_an_eager_app(new_app: Callable[..., Celery]) -> None:
    answer = run(new_app(task_always_eager=True), "add", "till.note", "--countdown", "1")

    assert answer.exit_code == 2
    assert "task_always_eager" in answer.stderr


def test_a_terminal_gets_a_bar_and_a_pipe_a_clean_document(
    redis_url: str, app: Celery, tmp_path: Path
) -> None:
    # Given a project, and a terminal for stderr alone
    (tmp_path / "proj.py").write_text(
        "from celery import Celery\nfrom celery_delay import CeleryDelay\n"
        f"app = Celery('proj', broker={redis_url!r})\nCeleryDelay(app)\n"
        "@app.task(name='till.note')\ndef note(number): pass\n"
    )
    (tmp_path / "calls.jsonl").write_text(lines(2_000))
    ours, theirs = pty.openpty()
    # When
    command = "-m celery -A proj delay add --json --chunk 100 --from calls.jsonl".split()
    with (
        (tmp_path / "out").open("wb") as stdout,
        subprocess.Popen(
            [sys.executable, *command], cwd=tmp_path, stdout=stdout, stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        ) as process,
    ):  # fmt: skip
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # how Linux tells of a terminal's end
            while piece := os.read(ours, 10_000):
                seen += piece
    os.close(ours)
    # Then
    assert process.returncode == 0, seen
    assert json.loads((tmp_path / "out").read_text())["stored"] == 2_000
    assert b"adding" in seen
    assert app.delayed.count() == 2_000
