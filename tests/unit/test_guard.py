"""The worker's side of the guard, with a store that answers or is silent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_delay.domain.settings import Settings
from celery_delay.exceptions import StoreUnavailable
from celery_delay.store.guarding import Claim
from celery_delay.worker.guard import Guard
from tests.fakes import FakeClock

APP = SimpleNamespace()
HEADER = {"task_id": "a", "run": 7}


class Store:
    def __init__(self) -> None:
        self.answers: list[Claim | Exception] = []
        self.asked: list[dict[str, Any]] = []
        self.given_back: list[str] = []

    def begin_run(self, entry_id: Any, **options: Any) -> Claim:
        self.asked.append(options)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def unclaim(self, entry_id: Any, token: str) -> bool:
        self.given_back.append(token)
        return True


class Request:
    """What of Celery's request is used."""

    def __init__(self, *, acks_late: bool = False, redelivered: bool = False, ours: bool = True):
        self.id, self.hostname = "a", "w@host"
        self.task = SimpleNamespace(app=APP, acks_late=acks_late)
        self.delivery_info = {"redelivered": redelivered}
        self.celery_delay = HEADER if ours else None
        self.request_dict: dict[str, Any] = {}
        self.acknowledged = 0
        self.rejected: list[bool] = []
        self.on_reject: Any = lambda logger, errors, requeue=False: self.rejected.append(requeue)
        self.ran: list[Any] = []

    def execute_using_pool(self, pool: Any, **options: Any) -> str:
        self.ran.append(pool)
        return "result"

    def acknowledge(self) -> None:
        self.acknowledged += 1


class Consumer:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.qos = SimpleNamespace(increment_eventually=lambda: self.calls.append("more"))
        self.timer = SimpleNamespace(call_after=self.call_after)

    def call_after(self, seconds: float, function: Any, args: Any, priority: int) -> str:
        self.calls.append((seconds, function, args))
        return "timer"

    def apply_eta_task(self, request: Any) -> None: ...


class Bench:
    def __init__(self, mode: str = "guard") -> None:
        self.store, self.clock, self.consumer = Store(), FakeClock(), Consumer()
        settings = Settings(guard=mode, guard_patience=10.0)
        delayed = SimpleNamespace(settings=settings, clock=self.clock, shards=(self.store,))
        self.guard = Guard(APP, delayed)  # type: ignore[arg-type]

    def turn(self, request: Request, *answers: Claim | Exception) -> Any:
        self.store.answers = list(answers)
        self.guard.on_received(sender=self.consumer, request=request)
        return request.execute_using_pool("pool")


@pytest.mark.parametrize("answer", [Claim.RUN, Claim.TAKEN])
def test_what_is_claimed_runs(answer: Claim) -> None:
    bench, request = Bench(), Request()
    assert bench.turn(request, answer) == "result"
    assert request.ran == ["pool"]
    # nothing of ours is left in the way
    assert "execute_using_pool" not in vars(request)


def test_what_is_too_much_is_acknowledged_and_gives_its_place_back() -> None:
    bench, request = Bench(), Request()
    with pytest.raises(TaskRevokedError):
        bench.turn(request, Claim.DROP)
    assert (request.ran, request.acknowledged) == ([], 1)


def test_what_waits_is_not_acknowledged_and_asks_again() -> None:
    bench, request = Bench(), Request(redelivered=True)
    with pytest.raises(TaskRevokedError):
        bench.turn(request, Claim.WAIT, Claim.RUN)
    assert (request.ran, request.acknowledged) == ([], 0)
    assert bench.consumer.calls == ["more", (2.0, bench.consumer.apply_eta_task, (request,))]

    assert request.execute_using_pool("pool") == "result"
    assert len({one["token"] for one in bench.store.asked}) == 1


@pytest.mark.parametrize(
    ("late", "redelivered", "comes_again"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_the_store_is_told_whether_a_message_may_be_the_last(
    late: bool, redelivered: bool, comes_again: bool
) -> None:
    bench = Bench()
    bench.turn(Request(acks_late=late, redelivered=redelivered), Claim.RUN)
    assert bench.store.asked[0]["comes_again"] is comes_again


def test_a_store_that_is_silent_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    silent = StoreUnavailable("silent")

    def begin_run(*_: Any, **__: Any) -> Claim:
        bench.clock.advance(0.5)
        raise silent

    answering, bench.store.begin_run = bench.store.begin_run, begin_run  # type: ignore[method-assign]
    for _ in range(3):
        assert bench.turn(Request()) == "result"
    assert bench.clock.monotonic() == FakeClock().monotonic() + 0.5, "asked once"
    assert caplog.text.count("tasks run unguarded") == 1

    bench.store.begin_run = answering  # type: ignore[method-assign]
    bench.clock.advance(1.1)
    with pytest.raises(TaskRevokedError):
        bench.turn(Request(), Claim.DROP)
    assert "guarded again" in caplog.text


def test_a_message_that_goes_back_to_its_queue_gives_its_claim_back() -> None:
    bench, request = Bench(), Request()
    bench.turn(request, Claim.RUN)
    request.on_reject(None, (), False)
    assert bench.store.given_back == []
    request.on_reject(None, (), True)
    assert bench.store.given_back == [bench.store.asked[0]["token"]]
    assert request.rejected == [False, True]


@pytest.mark.parametrize("mode", ["off", "track"])
def test_without_the_guard_nothing_is_asked(mode: str) -> None:
    bench = Bench(mode)
    assert bench.turn(Request()) == "result"
    assert bench.store.asked == []


def test_messages_that_are_not_ours_are_left_alone() -> None:
    bench = Bench()
    assert bench.turn(Request(ours=False)) == "result"
    foreign = Request()
    foreign.task.app = object()
    assert bench.turn(foreign) == "result"
    assert bench.store.asked == []
