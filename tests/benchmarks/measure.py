"""What is measured, each beside a yardstick of the same run.

Every function takes a :class:`Bench` and returns a flat mapping of figures.  Rates are per
second, times in the unit that their name ends with; a plan is a text.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import celery
import kombu
import redis
from celery import signals

from celery_delay.calling.calls import DelayedCall
from celery_delay.domain.clock import from_ms
from celery_delay.domain.entries import PUBLISHED
from celery_delay.embedded import EmbeddedRedis, free_port
from celery_delay.services.handoff import ACK_WINDOW
from celery_delay.store.redis import RedisStore
from tests.benchmarks import bench_app, confirms
from tests.benchmarks.browsing import browsing
from tests.benchmarks.cold import cold
from tests.benchmarks.draining import draining
from tests.benchmarks.finding import finding
from tests.benchmarks.history import history
from tests.benchmarks.resident import resident
from tests.brokers import OwnRabbitMQ
from tests.processes import ProcessHarness, wait_until
from tests.projects import make_app
from tests.shards import addition, lead, shape, shard

#: About 100 bytes of arguments.
TEXT = "x" * 70
#: Far enough that nothing of it becomes due during the run, in seconds.
FAR = 86_400.0

#: What a queue holds for a trivial task: the envelope that the bare Lua move pushes.
BARE_MOVE = """
local due = redis.call('ZRANGE', KEYS[1], '-inf', ARGV[1], 'BYSCORE', 'LIMIT', 0, ARGV[2])
if #due == 0 then return 0 end
local messages = redis.call('HMGET', KEYS[2], unpack(due))
redis.call('LPUSH', KEYS[3], unpack(messages))
redis.call('ZREM', KEYS[1], unpack(due))
redis.call('HDEL', KEYS[2], unpack(due))
return #due
"""

Figures = dict[str, float]


@dataclass
class Bench:
    """The servers and sizes of one run."""

    server: EmbeddedRedis
    folder: Path
    quick: bool
    rows: int | None = None
    kinds: tuple[str, ...] = ()
    client: redis.Redis = field(init=False)
    runs: int = 0

    def __post_init__(self) -> None:
        self.client = redis.Redis.from_url(self.server.tcp_url)

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def empty(self) -> None:
        """An empty server; the scripts stay loaded, the connections open."""
        self.client.flushall()

    @contextmanager
    def processes(self, **env: str) -> Iterator[ProcessHarness]:
        """Real beats and workers of the bench app."""
        environment = {"BENCH_BROKER": self.server.tcp_url, **env}
        # only this folder: the processes import the celery_delay that is installed
        here = Path(__file__).parent
        self.runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        harness = ProcessHarness(folder, "bench_app:app", path=(here,), env=environment)
        try:
            yield harness
        finally:
            harness.close()


def _cpu_us(count: int, work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) / count * 1e6


def schedule(bench: Bench) -> Figures:
    """CPU of the caller, per task, for one call and in bulk, beside ``apply_async``."""
    ours, stock = bench_app.note_ours, bench_app.note_stock
    n = bench.size(3_000, 600)
    rounds: dict[str, list[float]] = {}

    def each(call: Callable[[int], object]) -> Callable[[], object]:
        return lambda: [call(number) for number in range(n)]

    def bulk() -> object:
        calls = [DelayedCall((0.0, i), {"text": TEXT}) for i in range(n)]
        return ours.apply_delayed_many(calls, countdown=FAR)

    def connected() -> object:
        def receiver(**_: object) -> None: ...

        signals.before_task_publish.connect(receiver)
        try:
            return each(lambda i: ours.apply_delayed((0.0, i), {"text": TEXT}, countdown=FAR))()
        finally:
            signals.before_task_publish.disconnect(receiver)

    work = {
        "stock_apply_async_us": each(lambda i: stock.apply_async((0.0, i), {"text": TEXT})),
        "stock_countdown_us": each(
            lambda i: stock.apply_async((0.0, i), {"text": TEXT}, countdown=FAR)
        ),
        "single_us": each(lambda i: ours.apply_delayed((0.0, i), {"text": TEXT}, countdown=FAR)),
        "single_with_receiver_us": connected,
        "bulk_us": bulk,
    }
    for one in work.values():  # warm: connections, templates, code paths
        one()
    for _ in range(bench.size(5, 3)):
        for name, one in work.items():
            rounds.setdefault(name, []).append(_cpu_us(n, one))
        bench.empty()
        ours.apply_delayed((0.0, 0), {"text": TEXT}, countdown=FAR)
    figures = {name: statistics.median(values) for name, values in rounds.items()}
    figures["bulk_x_stock"] = figures["stock_apply_async_us"] / figures["bulk_us"]
    figures["single_x_stock"] = figures["stock_countdown_us"] / figures["single_us"]
    figures["receiver_of_stock"] = (
        figures["single_with_receiver_us"] / figures["stock_countdown_us"]
    )
    return figures


def dispatch(bench: Bench) -> Figures:
    """From all due at once to all on their queue, by a real beat, beside a bare Lua move.

    Once more by one that counts what it does, and is asked for its metrics ten times a second.
    """
    n = bench.size(20_000, 5_000)
    rates, metered, bare = [], [], []
    for _ in range(bench.size(3, 2)):
        rates.append(_dispatch(bench, n))
        metered.append(_dispatch(bench, n, metrics_port=free_port()))
        bare.append(_bare_move(bench, n))
    rate, floor = statistics.median(rates), statistics.median(bare)
    return {
        "tasks": n,
        "rate": rate,
        "bare_move_rate": floor,
        "of_bare_move": rate / floor,
        "metered_of_rate": statistics.median(metered) / rate,
    }


def _dispatch(bench: Bench, n: int, metrics_port: int | None = None) -> float:
    bench.empty()
    env = {} if metrics_port is None else {"BENCH_HTTP": f"127.0.0.1:{metrics_port}"}
    with bench.processes(**env) as processes, _scraped(metrics_port):
        processes.beat()
        wait_until(lambda: bench_app.app.delayed.shards[0].leader()[2], what="a leader")
        lead = 4.0 + n / 10_000
        due = time.time() + lead
        _fill(n, countdown=lead, until=due)
        done = _when(lambda: bench.client.llen("ours") >= n, due)
        return n / (done - due)


@contextmanager
def _scraped(port: int | None) -> Iterator[None]:
    """Ask a beat for its metrics ten times a second."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).close()

    asking = threading.Thread(target=ask, daemon=True)
    if port is not None:
        asking.start()
    try:
        yield
    finally:
        ended.set()
        if port is not None:
            asking.join()


def _fill(n: int, *, countdown: float, until: float) -> None:
    """*n* tasks that are all due at the same millisecond."""
    store = bench_app.app.delayed
    at_ms = store.now_ms() + round(countdown * 1000)
    calls = [DelayedCall((0.0, i), {"text": TEXT}) for i in range(n)]
    bench_app.note_ours.apply_delayed_many(calls, eta=from_ms(at_ms))
    if time.time() > until:
        raise SystemExit("the machine is too slow: the tasks were due before they were scheduled")


def _when(reached: Callable[[], bool], begun: float, patience: float = 60.0) -> float:
    while not reached():
        if time.time() > begun + patience:
            raise SystemExit(f"not reached within {patience:g} s")
        time.sleep(0.001)
    return time.time()


def _bare_move(bench: Bench, n: int) -> float:
    message = bench.client.lindex("ours", 0)
    pipe = bench.client.pipeline(transaction=False)
    for number in range(n):
        name = f"{number:036d}"
        pipe.zadd("bare:z", {name: number})
        pipe.hset("bare:h", name, message)
        if number % 500 == 499:
            pipe.execute()
    pipe.execute()
    move = bench.client.register_script(BARE_MOVE)
    begun = time.perf_counter()
    while move(keys=["bare:z", "bare:h", "bare:q"], args=[n, 300]):
        pass
    return n / (time.perf_counter() - begun)


def claims(bench: Bench) -> Figures:
    """The store's part of the claim path, claim and ack, beside the move of as many."""
    n = bench.size(20_000, 4_000)
    figures: Figures = {"tasks": n}
    for together in (20, 100):
        store = _waiting(bench, n, PUBLISHED)
        begun, token = time.perf_counter(), 0
        while taken := store.claim(token=f"t{token}", limit=together, ttl_ms=60_000).taken:
            store.ack(f"t{token}", [one.entry_id.task_id for one in taken])
            token += 1
        figures[f"rate_{together}"] = n / (time.perf_counter() - begun)
        store.close()
    store = _waiting(bench, n, 0)
    begun = time.perf_counter()
    while store.move().moved:
        pass
    figures["move_rate"] = n / (time.perf_counter() - begun)
    store.close()
    return figures | {"of_move": figures["rate_100"] / figures["move_rate"]}


def rabbitmq(bench: Bench) -> Figures:
    """From all due at once to all confirmed by RabbitMQ, by a real beat, beside bare loops."""
    n = bench.size(10_000, 3_000)
    node = OwnRabbitMQ()
    try:
        app = make_app(node.url, result_backend=bench.server.tcp_url,
                       delay_redis_url=bench.server.tcp_url, task_default_queue="ours")  # fmt: skip
        task = app.task(name="note", shared=False)(bench_app.note)
        bench.empty()
        with bench.processes(BENCH_RABBITMQ=node.url) as processes:
            processes.beat()
            wait_until(lambda: app.delayed.shards[0].leader()[2], what="a leader")
            lead = 4.0 + n / 5_000
            due = time.time() + lead
            calls = [DelayedCall((0.0, number), {"text": TEXT}) for number in range(n)]
            task.apply_delayed_many(calls, eta=from_ms(app.delayed.now_ms() + round(lead * 1000)))
            if time.time() > due:
                raise SystemExit("the machine is too slow: the tasks were due too early")
            done = _when(lambda: confirms.waiting(node.port, "ours") >= n, due)
        bare = {
            window: confirms.bare_rate(node.port, n, window, TEXT.encode() * 5)
            for window in (1, ACK_WINDOW)
        }
    finally:
        node.close()
    rate = n / (done - due)
    return {
        "tasks": n,
        "rate": rate,
        "bare_rate_1": bare[1],
        f"bare_rate_{ACK_WINDOW}": bare[ACK_WINDOW],
        "of_bare_1": rate / bare[1],
        f"of_bare_{ACK_WINDOW}": rate / bare[ACK_WINDOW],
    }


def _waiting(bench: Bench, n: int, database: int) -> RedisStore:
    """A store in which *n* entries are due."""
    bench.empty()
    store = shard(bench.server.url)
    lead(store)
    template, values = shape("bench-claims", database), (json.dumps(TEXT),)
    for start in range(0, n, 500):
        some = range(start, min(start + 500, n))
        store.add([addition(f"{i:036d}", template=template, values=values) for i in some])
    return store


def lag(bench: Bench) -> Figures:
    """Executed by a worker, minus eta: with nothing else pending, with a lot, and stock."""
    n = bench.size(500, 150)
    pending = bench.size(100_000, 10_000)
    figures: Figures = {"tasks": n, "pending": pending}
    for name, filled, task in (
        ("empty", 0, bench_app.note_ours),
        ("full", pending, bench_app.note_ours),
        ("stock", 0, bench_app.note_stock),
    ):
        bench.empty()
        ledger = bench.folder / f"lag-{name}"
        app, queue = ("app", "ours") if task is bench_app.note_ours else ("stock", "stock")
        with bench.processes(BENCH_LEDGER=str(ledger)) as processes:
            processes.app = f"bench_app:{app}"
            if app == "app":
                processes.beat()
            processes.worker(concurrency=1, queues=queue)
            if filled:
                calls = [DelayedCall((0.0, i), {"text": TEXT}) for i in range(filled)]
                bench_app.note_ours.apply_delayed_many(calls, countdown=FAR)
            begun = time.time() + 1.0
            for number in range(n):
                eta = begun + number * (10.0 if not bench.quick else 4.0) / n
                _call_at(task, eta, number)
            _wait_for_lines(ledger, n)
        late = sorted(float(line.split()[0]) * 1000 for line in ledger.read_text().splitlines())
        for percent in (50, 95, 99):
            figures[f"{name}_p{percent}_ms"] = late[min(len(late) - 1, len(late) * percent // 100)]
        figures[f"{name}_earliest_ms"] = late[0]
    figures["p50_of_stock"] = figures["empty_p50_ms"] / figures["stock_p50_ms"]
    return figures


def _call_at(task: Any, eta: float, number: int) -> None:
    instant = from_ms(round(eta * 1000))
    if task is bench_app.note_ours:
        task.apply_delayed((eta, number), {"text": TEXT}, eta=instant)
    else:
        task.apply_async((eta, number), {"text": TEXT}, eta=instant)


def _wait_for_lines(path: Path, count: int) -> None:
    def there() -> bool:
        return path.exists() and path.read_bytes().count(b"\n") >= count

    wait_until(there, timeout=60, what=f"{count} runs")


def memory(bench: Bench) -> Figures:
    """Redis bytes per pending task, beside the message that Celery keeps in Redis."""
    n = bench.size(100_000, 20_000)
    bench.empty()
    before = int(bench.client.info("memory")["used_memory"])
    calls = [DelayedCall((0.0, i), {"text": TEXT}) for i in range(n)]
    bench_app.note_ours.apply_delayed_many(calls, countdown=FAR)
    ours = (int(bench.client.info("memory")["used_memory"]) - before) / n
    bench.empty()
    before = int(bench.client.info("memory")["used_memory"])
    few = n // 20
    for number in range(few):
        bench_app.note_stock.apply_async((0.0, number), {"text": TEXT}, countdown=FAR)
    stock = (int(bench.client.info("memory")["used_memory"]) - before) / few
    return {
        "tasks": n,
        "bytes_per_task": ours,
        "stock_bytes_per_task": stock,
        "of_stock": ours / stock,
    }


def worker(bench: Bench) -> Figures:
    """CPU of a worker and its children per task, journalled, beside stock."""
    n = bench.size(4_000, 1_000)
    figures: Figures = {"tasks": n}
    calls = [DelayedCall((0.0, number), {"text": TEXT}) for number in range(n)]
    for name, app, task in (
        ("us_per_task", "app", bench_app.note_ours),
        ("stock_us_per_task", "stock", bench_app.note_stock),
    ):
        bench.empty()
        ledger = bench.folder / f"worker-{app}"
        env = {
            "BENCH_LEDGER": str(ledger),
            "BENCH_DATABASE": f"sqlite:///{bench.folder / 'worker.sqlite'}",
        }
        with bench.processes(**env) as processes:
            processes.app = f"bench_app:{app}"
            if app == "app":
                processes.beat()
            process = processes.worker(concurrency=2, queues=task.app.conf.task_default_queue)
            for number in range(10):
                _call_at(task, time.time(), number)
            _wait_for_lines(ledger, 10)  # connected, and all is imported
            spent = _group_cpu(process.pid)
            if app == "app":
                task.apply_delayed_many(calls, countdown=0)
            else:
                for call in calls:
                    task.apply_async(call.args, call.kwargs)
            _wait_for_lines(ledger, n + 10)
            figures[name] = (_group_cpu(process.pid) - spent) / n * 1e6
    figures["of_stock"] = figures["us_per_task"] / figures["stock_us_per_task"]
    return figures


def _group_cpu(leader: int) -> float:
    """Seconds of CPU of a process and of those in its group."""
    found = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int(folder.name)
            if os.getpgid(pid) == leader:
                found += _process_cpu(pid)
    return found


def idle(bench: Bench) -> Figures:
    """What two beats cost while nothing is due."""
    pending, seconds = bench.size(100_000, 10_000), bench.size(15, 5)
    bench.empty()
    calls = [DelayedCall((0.0, i), {"text": TEXT}) for i in range(pending)]
    bench_app.note_ours.apply_delayed_many(calls, countdown=FAR)
    with bench.processes() as processes:
        beats = [processes.beat("beat-1"), processes.beat("beat-2")]
        time.sleep(3)  # elected, connected, calm
        commands = _client_commands(bench)
        spent = sum(_process_cpu(beat.pid) for beat in beats)
        begun = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - begun
        spent = sum(_process_cpu(beat.pid) for beat in beats) - spent
        commands = _client_commands(bench) - commands
    return {
        "pending": pending,
        "commands_per_s_per_beat": commands / elapsed / len(beats),
        "cpu_percent_per_beat": spent / elapsed / len(beats) * 100,
    }


def _client_commands(bench: Bench) -> int:
    """Commands that clients have sent; those inside scripts are not among them."""
    sent = bench.client.info("commandstats")
    return sum(
        int(sent.get(f"cmdstat_{name}", {}).get("calls", 0))
        for name in ("evalsha", "eval", "blpop")
    )


def _process_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MEASURES: Mapping[str, Callable[[Bench], Mapping[str, Any]]] = {
    "schedule": schedule,
    "dispatch": dispatch,
    "claims": claims,
    "rabbitmq": rabbitmq,
    "lag": lag,
    "worker": worker,
    "memory": memory,
    "idle": idle,
    "finding": finding,
    "browsing": browsing,
    "history": history,
    "cold": cold,
    "draining": draining,
    "resident": resident,
}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": f"{os.cpu_count()} x {model.group(1) if model else platform.machine()}",
        "python": platform.python_version(),
        "celery": celery.__version__,
        "kombu": kombu.__version__,
        "load": json.dumps(os.getloadavg()),
    }
