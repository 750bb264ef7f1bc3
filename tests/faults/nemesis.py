"""What goes wrong in a run: seeded, random, written down."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence

import redis

from celery_delay.embedded import EmbeddedRedis
from tests.faults.processes.book import Page
from tests.processes import CeleryProcess

__all__ = ["Nemesis"]

#: The default lease is 1 s; a beat is frozen for longer than that, in seconds.
FREEZE = (1.2, 3.0)
#: Between two faults, in seconds.
PAUSE = (0.4, 2.0)
#: For how long Redis answers nobody, in ms: longer than a client's time-out.
CLIENT_PAUSE = (300, 1_800)


class Nemesis:
    """Kills, freezes and stops beats, and on demand disturbs Redis.

    Arguments:
        leader: tells the pid of the leading beat; ``None`` if none leads.
        server: disturbed too if given.
    """

    def __init__(
        self,
        seed: int,
        beats: Sequence[CeleryProcess],
        page: Page,
        leader: Callable[[], int | None],
        server: EmbeddedRedis | None = None,
    ) -> None:
        self._random = random.Random(f"{seed}/nemesis")
        self._beats = beats
        self._page = page
        self._leader = leader
        self._server = server
        self._frozen: dict[CeleryProcess, float] = {}
        self._next = time.monotonic()
        #: How often each fault was caused; "of the leader" counts among the others.
        self.caused: Counter[str] = Counter()
        #: The longest that a beat took to end on SIGTERM, in seconds.
        self.slowest_stop = 0.0

    def step(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for beat in [one for one, until in self._frozen.items() if now >= until]:
            self._thaw(beat)
        if now < self._next:
            return
        if self._server is not None and self._random.random() < 0.25:
            self._disturb(self._server)
        else:
            self._attack()
        self._next = time.monotonic() + self._random.uniform(*PAUSE)

    def rest(self) -> None:
        """Let everything run again."""
        for beat in list(self._frozen):
            self._thaw(beat)
        for beat in self._beats:
            assert beat.is_running, f"a beat ended by itself\n{beat}"

    def _attack(self) -> None:
        for beat in self._beats:
            assert beat.is_running, f"a beat ended by itself\n{beat}"
        leading = self._leader()
        # the leader is what matters, so it is met more often than its share
        leaders = [one for one in self._beats if one.pid == leading]
        candidates = leaders if leaders and self._random.random() < 0.5 else self._beats
        beat = self._random.choice(list(candidates))
        fault = self._random.choice(("SIGKILL", "SIGSTOP", "SIGTERM"))
        if beat in self._frozen:
            fault = "SIGKILL"  # it could not answer to the others
        self._note(fault, beat.name, leader=beat in leaders)
        if fault == "SIGKILL":
            self._frozen.pop(beat, None)
            beat.kill()
            beat.start()
        elif fault == "SIGSTOP":
            beat.pause()
            self._frozen[beat] = time.monotonic() + self._random.uniform(*FREEZE)
        else:
            begun = time.monotonic()
            beat.stop()
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - begun)
            beat.start()

    def _disturb(self, server: EmbeddedRedis) -> None:
        fault = self._random.choice(("CLIENT PAUSE", "Redis SIGKILL", "Redis SIGSTOP"))
        self._note(fault, "redis")
        if fault == "CLIENT PAUSE":
            with redis.Redis.from_url(server.url) as client:
                client.execute_command("CLIENT", "PAUSE", self._random.randint(*CLIENT_PAUSE))
        elif fault == "Redis SIGKILL":
            server.kill()
            time.sleep(self._random.uniform(0.0, 1.0))
            server.start()
        else:
            assert server.pid is not None
            process = server._process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._random.uniform(0.3, 1.5))
            process.send_signal(signal.SIGCONT)

    def _thaw(self, beat: CeleryProcess) -> None:
        del self._frozen[beat]
        beat.resume()
        self._note("SIGCONT", beat.name)

    def _note(self, fault: str, whom: str, leader: bool = False) -> None:
        self.caused[fault] += 1
        if leader:
            self.caused[f"{fault} of the leader"] += 1
        self._page.write(at=int(time.time() * 1000), fault=fault, whom=whom, leader=leader)
