"""Workers killed with and without ``delay_guard``, against a ledger outside the system.

The tasks write what they do, and who kills itself writes that first: ``processes/killed_app.py``.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from celery import Celery

import celery_delay
from celery_delay import CeleryDelay
from celery_delay.calling.calls import DelayedCall
from celery_delay.embedded import EmbeddedRedis
from celery_delay.store.keys import ShardKeys
from tests.faults.processes.book import read
from tests.faults.run import PROCESSES, publish
from tests.faults.witness import Witness, story
from tests.processes import ProcessHarness

#: Set, each mode takes as long, also the one without the guard.
SOAK = float(os.environ.get("DELAY_SOAK_SECONDS", "0"))
SEED = int(os.environ.get("DELAY_SOAK_SEED", random.SystemRandom().randrange(10**6)))
MODES = ("off", "track", "guard") if SOAK else ("track", "guard")
#: For so long in seconds tasks come due, and how many of each kind.
SECONDS = SOAK or 2.5
TASKS = round(SOAK * 15) or 100
#: Bullets; of a soak, so many each 20 s.
BULLETS = {
    "fetched": 2, "copy": 1, "claimed": 1, "accepted": 1, "unbegun": 1, "reported": 1,
    "requeued": 1, "finished": 1, "before": 6, "after": 4,
}  # fmt: skip
PATIENCE, VISIBILITY = 2.0, 2.5
#: A task that runs for longer than the visibility time-out.
LONG = VISIBILITY + 2.0
KEYS = ShardKeys("celery-delay:", 0)


class Verdict(NamedTuple):
    """Task ids, by what went wrong with them."""

    #: Nobody ever began them, nor said that they failed; or they are acknowledged late, and had
    #: no effect.
    lost: set[str]
    #: More than one effect, though the process of the earlier one was not killed.
    doubled: set[str]
    #: More than one effect, and that was the reason.
    doubled_by_death: set[str]
    #: Acknowledged early, begun, and their process was killed: what acknowledging early means.
    cut_short: set[str]
    #: Acknowledged early, not begun, and Celery has said that their process was lost.
    failed: set[str]
    #: Acknowledged early, begun, and no more, though no process that had them was killed.
    faded: set[str]


def deaths(kills: list[dict[str, Any]]) -> set[int]:
    """Processes and groups that were killed."""
    return {line["pid"] for line in kills} | {line["group"] for line in kills}


def judge(
    early: set[str],
    late: set[str],
    work: list[dict[str, Any]],
    kills: list[dict[str, Any]],
) -> Verdict:
    """What is wrong, by the ledger alone."""
    dead = deaths(kills)
    begun: set[str] = set()
    shot: set[str] = set()
    failed = {line["id"] for line in work if line["what"] == "failed"}
    effects: dict[str, list[bool]] = defaultdict(list)
    for line in work:
        if line["what"] == "begun":
            begun.add(line["id"])
            if line["pid"] in dead or line["group"] in dead:
                shot.add(line["id"])
        elif line["what"] == "effect":
            effects[line["id"]].append(line["pid"] in dead or line["group"] in dead)
    twice = {one for one, by in effects.items() if len(by) > 1}
    undone = (early & begun) - effects.keys()
    excused = {one for one in twice if all(effects[one][:-1])}
    return Verdict(
        (early - begun - failed) | (late - effects.keys()),
        twice - excused,
        excused,
        undone & shot,
        (early & failed) - begun,
        undone - shot,
    )


class World:
    """A Redis, a beat and two workers in one mode."""

    def __init__(
        self, mode: str, folder: Path, server: EmbeddedRedis, harness: Callable[..., ProcessHarness]
    ) -> None:
        self.mode, self.folder = mode, folder
        folder.mkdir()
        self.client = redis.Redis.from_url(server.url, decode_responses=True)
        self.witness = Witness(server.tcp_url, folder / "redis")
        conf = {"delay_guard": mode, "delay_guard_patience": PATIENCE}
        world = {
            "url": server.tcp_url, "folder": str(folder), "visibility": VISIBILITY, "conf": conf,
        }  # fmt: skip
        path = (PROCESSES, Path(celery_delay.__file__).parents[1])
        self.procs = harness("killed_app", path=path, env={"WORLD": json.dumps(world)})
        self.app = Celery("producer", broker=server.tcp_url, set_as_current=False)
        self.app.conf.update(task_ignore_result=True, **conf)
        CeleryDelay(self.app)
        self.early: set[str] = set()
        self.late: set[str] = set()
        self.random = random.Random(f"{SEED}/{mode}")
        options = ("--without-gossip", "--without-mingle", "--prefetch-multiplier", "3")
        self.beat = self.procs.beat()
        self.workers = [
            self.procs.worker(f"w{n}", *options, loglevel="info", wait=False) for n in (1, 2)
        ]
        self.kills = 0

    def begin(self) -> None:
        """Wait until all work, and schedule the tasks and lay out the bullets."""
        self.beat.wait_for_log(r"leads \(term", timeout=40)
        for worker in self.workers:
            worker.wait_for_log(r"\bready\.$", timeout=40)

        @self.app.task(name="early", shared=False)
        def early() -> None: ...

        @self.app.task(name="late", shared=False)
        def late(seconds: float) -> None: ...

        calls = [DelayedCall((), countdown=self.random.uniform(0.5, SECONDS)) for _ in range(TASKS)]
        self.early = {one.id for one in early.apply_delayed_many(calls)}
        calls = [
            DelayedCall((self.random.choice((0.0, 0.0, 0.02)),), countdown=one.countdown)
            for one in calls
        ]
        calls += [DelayedCall((LONG,), countdown=0.1)]
        self.late = {one.id for one in late.apply_delayed_many(calls)}
        for kind, count in BULLETS.items():
            for number in range(round(count * max(1.0, SOAK / 20))):
                (self.folder / f"{kind} {number}").touch()

    def step(self) -> None:
        """Start again whoever has been killed."""
        for worker in self.workers:
            if not worker.is_running:
                self.kills += 1
                worker.start()

    def judge(self) -> Verdict:
        work, kills = read(self.folder / "work"), read(self.folder / "kills")
        return judge(self.early, self.late, work, kills)

    def unrest(self) -> list[str]:
        """What says that more will happen: keys, and tasks under way."""
        places = ("celery", "unacked", KEYS.schedule, KEYS.watched, KEYS.watching)
        # of a message that was delivered twice the end of one run removes it from unacked
        begun = Counter((line["id"], line["pid"], line["group"]) for line in self.lines("begun"))
        begun.subtract((line["id"], line["pid"], line["group"]) for line in self.lines("effect"))
        dead = deaths(read(self.folder / "kills"))
        runs = [one[0] for one, left in begun.items() if left > 0 and not dead & set(one[1:])]
        return [one for one in places if self.client.exists(one)] + runs

    def lines(self, what: str) -> list[dict[str, Any]]:
        return [line for line in read(self.folder / "work") if line["what"] == what]

    def story(self, task_ids: set[str]) -> str:
        """What is known of these tasks, to be shown when they are why a run fails."""
        pages = [self.folder / one for one in ("work", "kills", "redis")]
        told = story(task_ids, pages + [one.log for one in (self.beat, *self.workers)])
        return f"seed {SEED}, {self.mode}, {self.folder}:\n{told}"

    def close(self) -> None:
        self.procs.close()
        self.witness.close()
        self.app.close()
        self.client.close()

    def report(self, verdict: Verdict) -> dict[str, Any]:
        shot = Counter(line["kind"] for line in read(self.folder / "kills"))
        return {
            "variant": f"guard {self.mode}",
            "seed": SEED,
            "tasks": len(self.early) + len(self.late),
            "kills": dict(sorted(shot.items())),
            **{name: len(ids) for name, ids in verdict._asdict().items()},
            "sent again": self.beat.output().count("is sent again: its"),
            "dropped": sum(one.output().count("one copy too many") for one in self.workers),
            "waited": sum(one.output().count("another worker has it") for one in self.workers),
        }


@pytest.mark.timeout(4 * SECONDS + 180)
def test_workers_that_are_killed_lose_nothing_and_with_the_guard_double_nothing(
    tmp_path: Path,
    new_redis: Callable[..., EmbeddedRedis],
    harness: Callable[..., ProcessHarness],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """GIVEN workers in each mode, and tasks that are acknowledged early and late
    WHEN workers and their children are killed, at the worst moments too
    THEN with ``track`` each task is begun
    AND with ``guard`` none has its effect twice, unless the first one's process was killed.
    """
    worlds = [World(mode, tmp_path / mode, new_redis(), harness) for mode in MODES]
    try:
        for world in worlds:
            world.begin()
        ends = time.monotonic() + SECONDS

        def restless() -> dict[str, list[str]]:
            for world in worlds:
                world.step()
            return {world.mode: left for world in worlds if (left := world.unrest())}

        while time.monotonic() < ends or (left := restless()):
            restless()
            assert time.monotonic() < ends + 90, f"seed {SEED}, no rest: {left}"
            time.sleep(0.1)
        verdicts = {world.mode: world.judge() for world in worlds}
        with capfd.disabled():
            for world in worlds:
                publish(world.report(verdicts[world.mode]))
    finally:
        for world in worlds:
            world.close()

    for world in worlds:
        assert len(read(world.folder / "kills")) >= 10, "few kills prove little"
        if world.mode != "off":
            lost = verdicts[world.mode].lost | verdicts[world.mode].faded
            assert not lost, world.story(lost)
            assert "is sent again: its" in world.beat.output()
        if world.mode == "guard":
            assert not (doubled := verdicts["guard"].doubled), world.story(doubled)


def test_the_judge_sees_each_breach() -> None:
    def lines(*what: str) -> list[dict[str, Any]]:
        found = []
        for one in what:
            kind, task_id, pid = one.split()
            found.append({"what": kind, "id": task_id, "pid": int(pid), "group": 1})
        return found

    work = lines(
        "begun a 2", "effect a 2", "begun b 3", "begun c 2", "effect c 2", "effect c 3",
        "effect d 3", "effect d 2", "begun d 3", "begun e 3", "begun g 2",
        "failed h 1", "failed e 1",
    )  # fmt: skip
    kills = [{"kind": "after", "pid": 3, "group": 0}]

    found = judge({"a", "b", "f", "g", "h"}, {"c", "d", "e"}, work, kills)

    assert found == Verdict({"f", "e"}, {"c"}, {"d"}, {"b"}, {"h"}, {"g"})
