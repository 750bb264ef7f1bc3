"""The shop at work: Redis, two beats, a worker and Flower; the leading beat gets killed.

`sh demo.sh` installs what this needs and runs it.  Exit code 0: every effect happened
exactly once, on time and with the right result.  1: something did not, and the last lines
say what.  130 and 143: Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import redis
from sqlalchemy import make_url

# Ctrl-C while all this is being imported: there is nothing to clean up yet, and to say.
signal.signal(signal.SIGINT, signal.SIG_DFL)
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from stage.processes import Failure, Interrupted, Stack, Stop, free_port  # noqa: E402
from stage.screen import Screen  # noqa: E402
from stage.servers import given_broker, given_database  # noqa: E402
from stage.story import Story  # noqa: E402

from celery_delay.exceptions import StoreUnavailable  # noqa: E402

if TYPE_CHECKING:
    from stage.scenario import Scenario

#: Minutes from night to night: two or three of them fit in.
NIGHT = 20


class Options(NamedTuple):
    """The command line."""

    minute: float
    orders: int
    bound: float | None
    broker: str | None
    database: str | None
    flower: bool
    keep: bool
    plain: bool
    sabotage: str | None


@click.command(help=__doc__)
@click.option(
    "--minute", default=0.3, show_default=True, type=click.FloatRange(0.1, 60),
    help="Length of a minute in the shop, in seconds.",
)  # fmt: skip
@click.option("--orders", default=60, show_default=True, type=click.IntRange(1, 5000))
@click.option(
    "--bound", type=float,
    help="How late an effect may be, in seconds.  [default: 2; with a broker of yours 6]",
)  # fmt: skip
@click.option(
    "--broker", metavar="URL",
    help="Use this broker, amqp://guest:guest@127.0.0.1:5672// say; tasks still wait in Redis.",
)  # fmt: skip
@click.option(
    "--database",
    metavar="URL",
    help="Audit in a new database on this server, postgresql+psycopg://postgres@127.0.0.1 say.",
)
@click.option("--flower/--no-flower", default=True, help="Run Flower too.")
@click.option("--keep", is_flag=True, help="Leave all of it up until Ctrl-C.")
@click.option("--plain", is_flag=True, help="Lines instead of a table, as without a terminal.")
@click.option(
    "--sabotage", type=click.Choice(["no-beats", "twice"]),
    help="See the demo fail: start no beats, or run a task twice.",
)  # fmt: skip
def main(**given: Any) -> None:
    options, stop = Options(**given), Stop()
    code = 1
    try:
        with Stack(stop) as stack, Screen(options.plain) as screen:
            try:
                code = Demo(options, stack, screen).run()
            except Failure as exc:
                screen.stop_table()
                screen.say(f"FAILED: {exc}", "bold red")
                print(stack.last_words())
            finally:
                screen.stop_table()
                screen.say("ending all processes", "dim")
    except Interrupted:
        code = 128 + stop.signal
    except StoreUnavailable as exc:
        print(f"demo: {exc}", file=sys.stderr)
    sys.exit(code)


class Demo:
    """One run, act by act."""

    def __init__(self, options: Options, stack: Stack, screen: Screen) -> None:
        self._options = options
        self._stack = stack
        self._screen = screen
        self._ledger = stack.folder / "ledger"
        self._flower = ""
        self._prefix = ""
        self._audit = f"sqlite:///{stack.folder / 'audit.sqlite3'}"
        # the claim of a beat that was killed ends after 3 s
        self._bound = options.bound or (6.0 if options.broker else 2.0)

    def run(self) -> int:
        """Play it; the exit code."""
        name = self._stack.folder.name
        with contextlib.ExitStack() as given:
            if self._options.broker:
                given.enter_context(given_broker(self._options.broker, name))
            if self._options.database:
                self._audit = given.enter_context(given_database(self._options.database, name))
            self._story = Story(self._audit)
            try:
                return self._run()
            finally:
                self._story.close()
                # nobody may use what goes now
                self._stack.end_processes()

    def _run(self) -> int:
        self._set_environment()
        # the shop reads its configuration when it is imported
        from shop.app import app

        self._app = app
        app.delayed.now_ms()  # raises if a Redis that is not ours is not there
        try:
            self._start()
            scenario = self._play()
            faults = self._judge(scenario)
            if self._options.keep:
                self._stay()
            return 1 if faults else 0
        finally:
            if self._prefix:
                self._remove_keys()

    # -- act 1: everything comes up -----------------------------------------------------

    def _set_environment(self) -> None:
        redis = self._stack.redis
        self._stack.env = {
            "SHOP_REDIS_URL": redis.broker_url,
            "SHOP_AUDIT_URL": self._audit,
            "SHOP_DATABASE": str(self._stack.folder / "shop.sqlite3"),
            "SHOP_LEDGER": str(self._ledger),
            "SHOP_MINUTE": str(self._options.minute),
            "SHOP_NIGHT": str(self._night),
            "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.getenv("PYTHONPATH")])]),
        }
        if not hasattr(redis, "pid"):  # it is not ours: keep apart from what else it holds
            self._prefix = f"{self._stack.folder.name}:"
            self._stack.env["SHOP_KEY_PREFIX"] = self._prefix
        if self._options.broker:
            self._stack.env["SHOP_BROKER_URL"] = self._options.broker
            self._stack.env["SHOP_QUEUE"] = self._stack.folder.name
        os.environ.update(self._stack.env)

    @property
    def _night(self) -> float:
        return NIGHT * self._options.minute

    def _start(self) -> None:
        stack, screen = self._stack, self._screen
        screen.say(f"Redis: {stack.redis.url}")
        if self._options.broker:
            screen.say(f"broker: {self._app.connection_for_write().as_uri()}")
        if self._options.database:
            screen.say(f"audit: {make_url(self._audit)!r}")
        if self._options.sabotage != "no-beats":
            stack.beat("beat-1")
            stack.beat("beat-2")
        stack.celery("worker", "worker", "-E", "-c", "2", "-l", "info", "-n", "worker@demo")
        if self._options.flower:
            self._flower = f"http://127.0.0.1:{free_port()}"
            port = self._flower.rpartition(":")[2]
            stack.env["FLOWER_UNAUTHENTICATED_API"] = "true"  # on the loopback interface only
            stack.celery("flower", "delay", "flower", "--address=127.0.0.1", f"--port={port}")
        screen.say("two beats, a worker and Flower come up …", "dim")
        stack.wait_for_log("worker", "ready.")
        if self._flower:
            stack.wait_for_page(f"{self._flower}/healthcheck")
            screen.say(f"Flower: {self._flower}")
        if self._options.sabotage != "no-beats":
            screen.say(f"leading beat: {self._leader()}")
            for name in ("beat-1", "beat-2"):
                stack.wait_for_log(name, "beat: Starting...")

    def _leader(self, seconds: float = 20.0) -> str:
        """Which of our beats holds the lease."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            holder, _, _ = self._app.delayed.shards[0].leader()
            name = self._stack.name_of(holder)
            if name:
                return name
            self._stack.pause(0.1)
        raise Failure(f"no beat leads after {seconds:g} s")

    # -- act 2: the shop is open --------------------------------------------------------

    def _play(self) -> Scenario:
        from stage.scenario import Scenario

        scenario = Scenario(self._options.orders)
        acts, begun = list(scenario.acts), time.monotonic()
        killed = self._options.sabotage == "no-beats"
        self._screen.say("the shop opens")
        while acts or not self._is_over(scenario):
            now = time.monotonic() - begun
            while acts and acts[0].at <= now:
                acts.pop(0).happens()
            if not killed and now >= scenario.kill_at:
                self._kill_leader()
                killed = True
            self._screen.tell(self._story.read(), scenario.labels)
            self._stack.pause(min(0.1, max(0.0, acts[0].at - now)) if acts else 0.1)
        if self._options.sabotage == "twice":
            scenario.run_a_task_twice()
            self._stack.pause(2)
        return scenario

    def _kill_leader(self) -> None:
        waiting = self._app.delayed.count()
        name = self._leader()
        pid = self._stack.kill(name)
        self._screen.say(
            f"kill -9 {pid}: {name}, the leader, while {waiting} tasks wait", "bold red"
        )

    def _is_over(self, scenario: Scenario) -> bool:
        """Whether every task has a result, or has had all the time that it may take."""
        if not hasattr(self, "_deadline"):
            last = max(one.due or 0.0 for one in scenario.expected)
            self._deadline = last + self._bound + 1.0
        if time.time() > self._deadline:
            return True
        results = (result for result, _ in scenario.results.values())
        return all(result.ready() for result in results)

    # -- act 3: the verdict -------------------------------------------------------------

    def _judge(self, scenario: Scenario) -> list[str]:
        from stage.verdict import judge, judge_nights, read_ledger

        until = time.monotonic() + 10
        told = self._story.read()
        while time.monotonic() < until and self._options.sabotage != "no-beats":
            told = self._story.read()
            self._screen.tell(told, scenario.labels)
            if all(one in told and told[one].is_over for one in scenario.results):
                break
            self._stack.pause(0.1)
        # a second effect would come late: leave it the time
        self._stack.pause(1.0)
        self._screen.stop_table()
        effects = read_ledger(self._ledger)
        nights = [one for one in effects if one.task == "clean_up"]
        verdict = judge(
            scenario.expected, [one for one in effects if one not in nights], self._bound
        )
        nightly = self._app.delayed.schedules.get("nightly-clean-up")
        fired = nightly.last_fired.timestamp() if nightly and nightly.last_fired else 0
        bound = min(self._bound, self._night - 0.1)
        cleaned = judge_nights(nights, fired, self._night, bound)
        faults = verdict.faults + cleaned.faults + self._wrong_results(scenario)
        if self._story.failure:
            faults.append(f"the audit cannot be read: {self._story.failure}")
        self._screen.summary(self._story.summary(scenario.results))
        self._screen.verdict(faults, verdict.lateness + cleaned.lateness, len(effects))
        return faults

    def _wrong_results(self, scenario: Scenario) -> list[str]:
        from shop import orders

        faults = []
        for result, value in scenario.results.values():
            label = scenario.labels[result.id]
            state, found = result.state, result.result
            if value is None and state != "REVOKED":
                faults.append(f"{label}: was called off, but is {state}")
            elif value is not None and (state, found) != ("SUCCESS", value):
                faults.append(f"{label}: the result is {state} {found!r}")
        for number in scenario.placed:
            # the clean-up deletes cancelled orders
            right = ["paid"] if number in scenario.paid else ["cancelled", None]
            if (status := orders.status(number)) not in right:
                faults.append(f"order {number}: is {status}")
        return faults

    # -- afterwards ---------------------------------------------------------------------

    def _stay(self) -> None:
        self._stack.beat("beat-3")
        script = self._stack.folder / "environment"
        env = self._stack.env
        script.write_text("".join(f"export {key}={shlex.quote(env[key])}\n" for key in env))
        celery = Path(sys.executable).with_name("celery")
        self._screen.console.print(
            f"\nAll of it stays up until Ctrl-C.\n"
            f"  Flower   {self._flower or '(not started)'}\n"
            f"  Redis    {self._stack.redis.url}\n"
            f"  audit    {self._audit}\n"
            f"  logs     {self._stack.folder}/*.log\n"
            f"\nIn another shell:\n"
            f"  . {script}\n"
            f"  {celery} -A shop delay list\n"
            f"  {celery} -A shop delay status\n"
            f"  {celery} -A shop delay history cancel-unpaid-order-1\n"
        )
        while True:
            self._stack.pause(1.0)

    def _remove_keys(self) -> None:
        """Leave nothing in a Redis that is not ours."""
        self._stack.end_processes()
        with redis.Redis.from_url(self._stack.redis.url) as client:
            for key in client.scan_iter(match=f"{self._prefix}*", count=1000):
                client.delete(key)


if __name__ == "__main__":
    main()
