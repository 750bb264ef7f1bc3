"""``apply_delayed`` on signatures and canvas, run by a real beat and a real worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult, GroupResult

from celery_delay import CancelOutcome, DelayedResult, State
from celery_delay.exceptions import AlreadyScheduled
from tests.integration.running import Running
from tests.processes import ProcessHarness, wait_until
from tests.projects import hand_off, messages
from tests.servers import RedisServers, wipe


@pytest.fixture(scope="module")
def here(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The project with a beat and a worker; one for all tests."""
    server = redis_servers.new()
    folder = tmp_path_factory.mktemp("canvas")
    made: list[ProcessHarness] = []

    def harness(app: str, **options: Any) -> ProcessHarness:
        made.append(ProcessHarness(folder, app, **options))
        return made[-1]

    project = Running(harness, server.tcp_url, folder)
    try:
        yield project.start()
    finally:
        project.app.close()
        for one in made:
            one.close()
            print(one)
        server.stop()


@pytest.fixture
def add(here: Running) -> Any:
    return here.app.tasks["add"]


@pytest.fixture
def total(here: Running) -> Any:
    return here.app.tasks["total"]


@pytest.fixture
def idle(redis_servers: RedisServers, tmp_path: Any) -> Iterator[Running]:
    """The project on an empty Redis, without any process."""
    server = redis_servers.get()
    wipe(server)
    project = Running(
        lambda app, **options: ProcessHarness(tmp_path, app, **options), server.tcp_url, tmp_path
    )
    yield project
    project.app.close()
    wipe(server)


def in_time(seconds: float, build: Callable[[], Any]) -> Any:
    """Call *build*, and let its result say when it was ready: not before *seconds* are over."""
    started = time.time()
    result = build()
    value = result.get(timeout=20)
    assert time.time() - started >= seconds, "early"
    return value


# --- what runs ----------------------------------------------------------------------------


def test_a_signature(add: Any) -> None:
    assert in_time(0.3, lambda: add.s(1, 2).apply_delayed(countdown=0.3)) == 3
    assert in_time(0.3, lambda: add.s(y=2).apply_delayed((5,), countdown=0.3)) == 7
    # options of the signature and of the call
    result = add.s(1, 2).set(priority=3).apply_delayed(countdown=30, expires=4000)
    entry = result.app.delayed.get(result.id)
    assert entry.envelope["properties"]["priority"] == 3
    assert entry.expires_ms > 0
    assert result.cancel()


def test_a_signature_by_name(here: Running) -> None:
    by_name = here.app.signature("add", args=(3, 4))

    assert in_time(0.2, lambda: by_name.apply_delayed(countdown=0.2)) == 7


def test_a_group(add: Any) -> None:
    result = group(add.s(i, i) for i in range(5)).apply_delayed(countdown=0.3)

    assert isinstance(result, GroupResult)
    assert all(isinstance(one, DelayedResult) for one in result)
    assert len({one.eta for one in result}) == 1
    assert {one.delay_state for one in result} == {State.SCHEDULED}
    assert result.get(timeout=20) == [0, 2, 4, 6, 8]
    assert result.successful()


def test_a_group_is_saved_and_restored(here: Running, add: Any) -> None:
    result = group(add.s(i, 1) for i in range(3)).apply_delayed(countdown=0.2)
    result.save()

    restored = GroupResult.restore(result.id, app=here.app)

    assert restored == result
    assert restored.get(timeout=20) == [1, 2, 3]


def test_a_chain(add: Any) -> None:
    result = chain(add.s(1, 2), add.s(10), add.s(100)).apply_delayed(countdown=0.3)

    assert [isinstance(one, DelayedResult) for one in (result, result.parent)] == [False] * 2
    assert isinstance(result, AsyncResult)
    assert isinstance(result.parent.parent, DelayedResult)
    assert result.parent.parent.delay_state is State.SCHEDULED
    assert result.get(timeout=20) == 113
    assert result.parent.parent.get(timeout=5) == 3


def test_a_chord(add: Any, total: Any) -> None:
    result = chord([add.s(i, i) for i in range(4)], total.s()).apply_delayed(countdown=0.3)

    assert [type(one) for one in result.parent] == [DelayedResult] * 4
    assert result.get(timeout=20) == 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("group | task", 6),
        ("task | group", [13, 23]),
        ("task | group | task", 36),
        ("group of chains", [6, 13]),
        ("group of groups", [3, [7, 11]]),
        ("chord of one", 3),
        ("chord of chains", 19),
        ("chord in chain", 112),
        ("empty group", []),
    ],
)
def test_nested(here: Running, add: Any, total: Any, name: str, expected: Any) -> None:
    built = {
        "group | task": lambda: group(add.s(0, 1), add.s(2, 3)) | total.s(),
        "task | group": lambda: add.s(1, 2) | group(add.s(10), add.s(20)),
        "task | group | task": lambda: add.s(1, 2) | group(add.s(10), add.s(20)) | total.s(),
        "group of chains": lambda: group(add.s(1, 2) | add.s(3), add.s(4, 4) | add.s(5)),
        "group of groups": lambda: group(add.s(1, 2), group(add.s(3, 4), add.s(5, 6))),
        "chord of one": lambda: chord([add.s(1, 2)], total.s()),
        "chord of chains": lambda: chord(
            [add.s(1, 2) | add.s(3), add.s(4, 4) | add.s(5)], total.s()
        ),
        "chord in chain": lambda: add.s(1, 1) | chord([add.s(3), add.s(5)], total.s()) | add.s(100),
        "empty group": lambda: group([], app=here.app),
    }[name]()
    if name == "group of groups":
        expected = [3, 7, 11]  # Celery unrolls a group in a group

    result = built.apply_delayed(countdown=0.2)

    assert result.get(timeout=20) == expected


def test_parts_with_a_delay_of_their_own_count_it_from_the_end_of_ours(add: Any) -> None:
    skewed = group(add.s(i, 0) for i in range(3)).skew(start=1, stop=4, step=1)

    first, second, third = skewed.apply_delayed(countdown=100)

    assert round((second.eta - first.eta).total_seconds()) == 1
    assert round((third.eta - second.eta).total_seconds()) == 1
    for one in (first, second, third):
        # a worker whose clock is behind must not hold it a second time
        assert one.app.delayed.get(one.id).headers["eta"] is None
        assert one.cancel()
    late = group(add.s(1, 0), add.s(2, 0).set(countdown=50)).apply_delayed(
        eta="2031-01-01T00:00:00Z"
    )
    assert [one.eta.isoformat() for one in late] == [
        "2031-01-01T00:00:00+00:00",
        "2031-01-01T00:00:50+00:00",
    ]
    for one in late:
        assert one.cancel()


def test_a_link_waits_for_its_task_and_not_longer(here: Running, add: Any) -> None:
    before = len(here.effects)
    result = add.apply_delayed((20, 1), countdown=0.2, link=here.app.tasks["note"].si("linked"))

    assert result.get(timeout=20) == 21
    wait_until(lambda: here.effects[before:] == ["add 20 1", "note linked"], what="the link")


# --- what is stored -----------------------------------------------------------------------


def test_all_of_a_group_or_none_of_it(idle: Running) -> None:
    add = idle.app.tasks["add"]
    add.apply_delayed((0, 0), countdown=60, task_id="taken")

    with pytest.raises(AlreadyScheduled, match="taken"):
        group(add.s(1), add.s(2).set(task_id="taken"), add.s(3)).apply_delayed(countdown=60)

    assert [one.entry_id.task_id for one in idle.app.delayed.list()] == ["taken"]


def test_what_cannot_be_serialised_leaves_no_part_behind(idle: Running) -> None:
    add = idle.app.tasks["add"]

    with pytest.raises(Exception, match="not JSON serializable"):
        group(add.s(1), add.s(2), add.s(object())).apply_delayed(countdown=60)

    assert idle.app.delayed.count() == 0
    assert messages(idle.app) == []


def test_what_runs_meanwhile_in_other_threads_is_not_delayed(idle: Running) -> None:
    # Given a group whose arguments send a task of their own when they are counted
    from concurrent.futures import ThreadPoolExecutor

    add = idle.app.tasks["add"]
    with ThreadPoolExecutor(1) as pool:

        def signatures() -> Iterator[Any]:
            pool.submit(add.apply_async, (1, 1)).result()
            yield add.s(2, 2)

        group(signatures()).apply_delayed(countdown=60)

    assert len(messages(idle.app)) == idle.app.delayed.count() == 1


@pytest.mark.parametrize("when", [{"countdown": 10 * 86_400}, {"eta": "2100-01-01T00:00Z"}])
def test_a_chord_lives_as_long_as_its_header_waits(idle: Running, when: dict[str, Any]) -> None:
    app = idle.app
    add, total = app.tasks["add"], app.tasks["total"]

    result = chord([add.s(1, 2), add.s(3, 4)], total.s()).apply_delayed(**when)

    client = app.backend.client
    [counter] = [one for one in client.scan_iter() if one.endswith(b".s")]
    waits = result.parent[0].eta.timestamp() - time.time()
    expires = app.conf.result_expires.total_seconds()
    assert client.ttl(counter) >= waits + expires - 5


def test_a_chord_of_chains_lives_as_long(idle: Running) -> None:
    add, total = idle.app.tasks["add"], idle.app.tasks["total"]

    chord([add.s(1) | add.s(2), add.s(3) | add.s(4)], total.s()).apply_delayed(countdown=864_000)

    client = idle.app.backend.client
    [counter] = [one for one in client.scan_iter() if one.endswith(b".s")]
    assert client.ttl(counter) > 864_000 + 86_000


def test_the_last_part_of_a_skewed_chord_counts(idle: Running) -> None:
    app = idle.app
    add, total = app.tasks["add"], app.tasks["total"]
    header = group(add.s(1, 2), add.s(3, 4).set(countdown=20 * 86_400))

    chord(header, total.s()).apply_delayed(countdown=60)

    [counter] = [one for one in app.backend.client.scan_iter() if one.endswith(b".s")]
    expires = app.conf.result_expires.total_seconds()
    assert app.backend.client.ttl(counter) >= 20 * 86_400 + expires - 5


# --- cancelling parts ---------------------------------------------------------------------


def test_a_cancelled_part_of_a_group(add: Any) -> None:
    result = group(add.s(i, 1) for i in range(3)).apply_delayed(countdown=0.5)

    assert result[1].cancel() is CancelOutcome.CANCELLED

    assert result[0].get(timeout=20) == 1
    assert result[2].get(timeout=20) == 3
    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)


def test_a_revoked_group(add: Any) -> None:
    result = group(add.s(i, 1) for i in range(3)).apply_delayed(countdown=60)

    result.revoke()

    assert [one.delay_state for one in result] == [State.REVOKED] * 3


@pytest.mark.parametrize("which", [0, 2])
def test_a_cancelled_part_of_a_chord_fails_its_body(add: Any, total: Any, which: int) -> None:
    result = chord([add.s(i, i) for i in range(3)], total.s()).apply_delayed(countdown=0.7)

    assert result.parent[which].cancel("no more") is CancelOutcome.CANCELLED

    wait_until(result.failed, 20, "the body's failure")
    with pytest.raises(ChordError, match="no more"):
        raise result.result
    with pytest.raises(TaskRevokedError):  # Celery raises the parent's error first
        result.get(timeout=5)


def test_a_cancelled_first_task_of_a_chain(idle: Running) -> None:
    add = idle.app.tasks["add"]
    result = chain(add.s(1, 2), add.s(10)).apply_delayed(countdown=0)

    assert result.parent.cancel() is CancelOutcome.CANCELLED

    assert hand_off(idle.app) == 0
    with pytest.raises(TaskRevokedError):
        result.parent.get(timeout=5)


def test_eager_canvas_runs_at_once(idle: Running) -> None:
    idle.app.conf.task_always_eager = True
    add, total = idle.app.tasks["add"], idle.app.tasks["total"]

    assert add.s(1, 2).apply_delayed(countdown=60).get() == 3
    assert group(add.s(1, 2), add.s(3, 4)).apply_delayed(countdown=60).get() == [3, 7]
    assert chain(add.s(1, 2), add.s(4)).apply_delayed(countdown=60).get() == 7
    assert chord([add.s(1, 2), add.s(3, 4)], total.s()).apply_delayed(countdown=60).get() == 10
    assert idle.app.delayed.count() == 0
