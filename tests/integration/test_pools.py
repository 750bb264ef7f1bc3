"""Each way in which a task can end, in each pool: the audit has it, once, in the right run.

One beat and one Redis for all; a worker per pool.  All cases of a pool are scheduled at once,
and then looked at one by one.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from kombu.serialization import register, registry

from tests.integration.running import Running
from tests.processes import CeleryProcess, ProcessHarness, wait_until
from tests.servers import RedisServers

STORED = ["SCHEDULED", "DISPATCHED"]
RAN = [*STORED, "STARTED"]
NATIVE = ["DISPATCHED", "STARTED"]

#: Pools, and how their workers are started.  ``once`` is prefork with a process per task.
POOLS: dict[str, dict[str, Any]] = {
    "prefork": {"concurrency": 4},
    "once": {"pool": "prefork", "concurrency": 2, "options": ("--max-tasks-per-child=1",)},
    "threads": {"concurrency": 4},
    "solo": {"concurrency": 1},
    "gevent": {"concurrency": 20},
}
PREFORK = frozenset({"prefork", "once"})
#: Pools that can end a task.
LIMITING = frozenset({"prefork", "gevent"})
ALL = frozenset(POOLS)


class Case:
    """One way to end.

    Attributes:
        runs: what the audit must say at last, run by run.
        pools: where it can happen.
        late: on a queue that the worker takes up only when all else is under way.
    """

    def __init__(
        self,
        task: str,
        *args: Any,
        runs: list[list[str]],
        pools: frozenset[str] = ALL,
        late: bool = False,
        **options: Any,
    ) -> None:
        self.task, self.args, self.options = task, args, options
        self.runs, self.pools, self.late = runs, pools, late


#: Seconds from the call.
EXPIRES = 3.0
FLAG = object()  # becomes the path of a file of the case's own

CASES = {
    "success": Case("add", 1, runs=[[*RAN, "SUCCEEDED"]]),
    "failure": Case("fails", runs=[[*RAN, "FAILED"]]),
    "retry, native": Case(
        "flaky", 1, 0.05, runs=[[*RAN, "RETRIED"], [*NATIVE, "SUCCEEDED"]]
    ),
    "retry, stored": Case("flaky", 1, 0.6, runs=[[*RAN, "RETRIED"], [*RAN, "SUCCEEDED"]]),
    "retries exceeded": Case(
        "hopeless", runs=[[*RAN, "RETRIED"], [*NATIVE, "FAILED"]]
    ),
    "rejected": Case("rejects", runs=[[*RAN, "REJECTED"]]),
    "rejected, requeued": Case("rejects_once", FLAG, runs=[[*RAN, "STARTED", "SUCCEEDED"]]),
    # without acks_late there is no message left that could go back
    "rejected, in vain": Case("rejects_early", FLAG, runs=[[*RAN, "REJECTED"]]),
    "ignored": Case("ignores", runs=[[*RAN, "SUCCEEDED"]]),
    "replaced": Case("replacing", 1, runs=[[*RAN, "RETRIED"], [*NATIVE, "SUCCEEDED"]]),
    "unknown": Case("unheard.of", runs=[[*STORED, "REJECTED"]]),
    "content refused": Case("add", 1, serializer="yaml", runs=[[*STORED, "REJECTED"]]),
    "content broken": Case("add", 1, serializer="broken", runs=[[*STORED, "REJECTED"]]),
    "revoked": Case("note", late=True, runs=[[*STORED, "REVOKED"]]),
    "expired": Case("note", late=True, expires=EXPIRES, runs=[[*STORED, "REVOKED"]]),
    "soft time limit": Case(
        "waits", 30, soft_time_limit=0.5, pools=PREFORK, runs=[[*RAN, "FAILED"]]
    ),
    "hard time limit": Case("waits", 30, time_limit=1, pools=LIMITING, runs=[[*RAN, "FAILED"]]),
    "hard time limit, requeued": Case(
        "overruns_once", FLAG, pools=LIMITING, runs=[[*RAN, "STARTED", "SUCCEEDED"]]
    ),
    "terminated": Case("waits", 29, pools=LIMITING, runs=[[*RAN, "REVOKED"]]),
    "lost": Case("dies", "exits", pools=PREFORK, runs=[[*RAN, "FAILED"]]),
    "killed": Case("dies", "killed", pools=PREFORK, runs=[[*RAN, "FAILED"]]),
    # it ends a solo worker
    "sys.exit": Case("dies", "sys.exit", pools=ALL - {"solo"}, runs=[[*RAN, "FAILED"]]),
    "killed, acks late": Case("dies_late", "killed", pools=PREFORK, runs=[[*RAN, "FAILED"]]),
    "killed, requeued": Case(
        "dies_requeued", "killed", FLAG, pools=PREFORK, runs=[[*RAN, "STARTED", "SUCCEEDED"]]
    ),
    "killed, retried": Case(
        "dies_retried", "killed", FLAG, pools=PREFORK,
        runs=[[*RAN, "RETRIED"], [*NATIVE, "SUCCEEDED"]],
    ),
    "killed, retried through the store": Case(
        "dies_retried_late", "killed", FLAG, pools=PREFORK,
        runs=[[*RAN, "RETRIED"], [*RAN, "SUCCEEDED"]],
    ),
}  # fmt: skip

#: Their process dies at once.  A pool that has not read by then that the task was taken gives it
#: to another process (celery.concurrency.asynpool, on_job_process_down), so it may start twice.
GIVEN_AGAIN = {"lost", "killed", "killed, acks late", "sys.exit"}

register("broken", lambda _: "{ not json", None, "application/json", "utf-8")
# for the tests that this process runs after these
registry.type_to_name["application/json"] = "json"


class Pool:
    """The worker of one pool, and the tasks that were sent to it, by case."""

    def __init__(self, here: Running, name: str, folder: Path) -> None:
        self.here, self.name, self._folder = here, name, folder
        self.sent: dict[str, str] = {}
        options = POOLS[name]
        self.worker = here.procs.worker(
            name,
            *options.get("options", ()),
            pool=options.get("pool", name),
            concurrency=options["concurrency"],
            queues=name,
            wait=False,
        )

    def send(self) -> None:
        """Schedule all cases."""
        self.worker.wait_for_log(r"\bready\.$", timeout=60)
        self._expired_at = time.time() + EXPIRES + 0.2
        for number, (name, case) in enumerate(CASES.items()):
            if self.name in case.pools:
                flag = str(self._folder / f"{self.name}-{number}")
                self.sent[name] = self.here.app.delayed.send_task(
                    case.task,
                    [flag if one is FLAG else one for one in case.args],
                    countdown=0 if case.late else 0.1,
                    queue=f"{self.name}-late" if case.late else self.name,
                    **case.options,
                ).id

    def act(self) -> None:
        """Terminate, revoke, and let the worker at what was revoked or has expired."""
        app = self.here.app
        if "terminated" in self.sent:
            there = [[*RAN]]
            self.here.wait_for_history(self.sent["terminated"], there)
            app.control.revoke(self.sent["terminated"], terminate=True)
        for name in ("revoked", "expired"):
            wait_until(lambda one=name: app.delayed.get(self.sent[one]) is None, 20)
        app.control.revoke(self.sent["revoked"])
        wait_until(lambda: time.time() > self._expired_at, 20)
        app.control.add_consumer(f"{self.name}-late", destination=[f"{self.name}@test"])


@pytest.fixture(scope="module")
def here(
    redis_servers: RedisServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The project, without a process yet."""
    folder = tmp_path_factory.mktemp("pools")
    server = redis_servers.new()
    harnesses: list[ProcessHarness] = []

    def harness(app: str, **options: Any) -> ProcessHarness:
        harnesses.append(ProcessHarness(folder, app, **options))
        return harnesses[-1]

    here = Running(
        harness,
        server.tcp_url,
        folder,
        delay_intercept="retry",
        delay_intercept_min=0.3,
        worker_lost_wait=0.5,
    )
    try:
        yield here
    finally:
        for group in harnesses:
            group.close()
            print(group)
        here.close()
        server.stop()


@pytest.fixture(scope="module")
def pools(here: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pool]:
    """All pools at work under one beat."""
    folder = tmp_path_factory.mktemp("flags")
    found = {name: Pool(here, name, folder) for name in POOLS}
    here.start_beat()
    for one in found.values():
        one.send()
    for one in found.values():
        one.act()
    return found


@pytest.mark.parametrize(
    ("pool", "case"),
    [(pool, name) for pool in POOLS for name, case in CASES.items() if pool in case.pools],
)
def test_each_end_reaches_the_audit_once(pools: dict[str, Pool], pool: str, case: str) -> None:
    one = pools[pool]
    with contextlib.suppress(AssertionError):
        wait_until(lambda: one.here.history(one.sent[case]) == CASES[case].runs, 15)
    told = one.here.history(one.sent[case])
    if case in GIVEN_AGAIN:
        told = [[state for state, _ in groupby(run)] for run in told]
    assert told == CASES[case].runs, one.here.audit.task(one.sent[case])


def begin(here: Running, queue: str, task: str, seconds: float) -> str:
    """The id of a task that runs now, for so many seconds; a number that nobody else uses."""
    task_id: str = here.app.delayed.send_task(task, (seconds,), countdown=0, queue=queue).id
    wait_until(lambda: f"waits {seconds}" in here.effects, 20)
    return task_id


def test_a_warm_shutdown_ends_with_all_told(pools: dict[str, Pool], here: Running) -> None:
    # Given a task under way in each pool
    tasks = [begin(here, name, "waits", 2 + 0.01 * n) for n, name in enumerate(pools)]

    # When the workers are told to stop
    for pool in pools.values():
        pool.worker.signal(signal.SIGTERM)

    # Then they end, and have told all by then
    for pool in pools.values():
        assert pool.worker.wait(30) == 0, pool.worker
    for task_id in tasks:
        here.wait_for_history(task_id, [[*RAN, "SUCCEEDED"]])


def test_a_soft_shutdown_tells_what_it_cuts_short(pools: dict[str, Pool], here: Running) -> None:
    # Given a worker that gives its tasks two seconds when it is stopped, and longer tasks
    def worker(name: str) -> CeleryProcess:
        conf = json.loads(here.procs.env["PROJECT"]) | {"worker_soft_shutdown_timeout": 2.0}
        return here.procs.worker(
            name, concurrency=4, queues="soft", env={"PROJECT": json.dumps(conf)}
        )

    first = worker("soft")
    long = begin(here, "soft", "waits", 31)
    late = begin(here, "soft", "waits_late", 3)
    short = begin(here, "soft", "waits", 0.7)

    # When it is stopped
    first.signal(signal.SIGQUIT)
    first.wait(30)

    # Then what it cut short is over, unless its message comes again
    here.wait_for_history(long, [[*RAN, "REVOKED"]])
    worker("again")
    here.wait_for_history(late, [[*RAN, "STARTED", "SUCCEEDED"]])
    # (Celery tells of the short one, too, that it was cut short)
    assert here.audit.task(short).state == "SUCCEEDED"
