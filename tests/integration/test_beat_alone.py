"""`python -m celery_delay`: a beat without the celery command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.store.keys import ShardKeys
from tests.processes import ProcessHarness, wait_until

APP = """
import os, sys, threading, time
from celery import Celery
from celery_delay import CeleryDelay

app = Celery("alone", broker=os.environ["URL"], set_as_current=False)
app.conf.delay_audit = "off"
app.conf.beat_schedule = {"often": {"task": "alone.note", "schedule": 0.25}}
if limit := os.environ.get("LIMIT"):
    app.conf.delay_redis_timeout = limit
CeleryDelay(app)
number = 7

@app.task(shared=False)
def note():
    pass

def tell():
    loaded = {name.partition(".")[0] for name in sys.modules}
    os.write(2, " ".join(["loaded:", *sorted(loaded), os.linesep]).encode())

threading.Thread(target=lambda: (time.sleep(2.0), tell()), daemon=True).start()
"""


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url, socket_timeout=5) as made:
        yield made


@pytest.fixture
def processes(
    redis_server: EmbeddedRedis, harness: Callable[..., ProcessHarness], tmp_path: Path
) -> ProcessHarness:
    (tmp_path / "alone.py").write_text(APP)
    return harness("alone", path=(tmp_path,), env={"URL": redis_server.tcp_url})


def refused(processes: ProcessHarness, *options: str, **env: str) -> str:
    """What it says, as it does not even start."""
    ended = subprocess.run(
        [sys.executable, "-m", "celery_delay", *options],
        cwd=processes.folder, env={**processes.env, **env}, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    return ended.stderr.strip()


def test_it_leads_fires_and_gives_the_lease_back(
    processes: ProcessHarness, client: redis.Redis
) -> None:
    pidfile = processes.folder / "beat.pid"
    options = ("-A", "alone", "-l", "info", "--pidfile", str(pidfile), "--max-interval", "0.5")
    beat = processes.python("beat", "-m", "celery_delay", *options)
    beat.wait_for_log(r"leads \(term \d+\)")
    wait_until(lambda: client.llen("celery") > 2, 15, "occurrences")
    assert ". store -> redis" in beat.output()
    assert pidfile.read_text().strip() == str(beat.pid)

    assert beat.stop() == 0
    assert "gave the lease back" in beat.output()
    assert not client.hget(ShardKeys("celery-delay:", 0).lease, "holder")
    assert not pidfile.exists()


def test_it_does_not_load_what_the_celery_command_does(processes: ProcessHarness) -> None:
    alone = processes.python("beat", "-m", "celery_delay", "-A", "alone", "-q")
    loaded = alone.wait_for_log(r"loaded: .*")[0].split()
    assert {"celery", "celery_delay", "redis"} <= set(loaded)
    assert not {"flower", "prompt_toolkit", "pygments", "alembic", "rich"} & set(loaded)

    command = processes.beat("command")
    assert "prompt_toolkit" in command.wait_for_log(r"loaded: .*")[0].split()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "Missing option '-A'"),
        (("-A", "nowhere"), "-A nowhere: there is no module nowhere here"),
        (("-A", "nowhere.app:app"), "there is no module nowhere here"),
        (("-A", "alone:other"), "-A alone:other: the module alone has no other"),
        (("-A", "alone:number"), "-A alone:number: that is no Celery app, but 7"),
        (("-A", "string"), "-A string: no Celery app is in there"),
        (("-A", "alone", "-l", "loud"), "'-l' / '--loglevel'"),
        (("-A", "alone", "--workdir", "/nowhere"), "'/nowhere' does not exist"),
    ],
)
def test_what_it_cannot_start_is_said(
    processes: ProcessHarness, options: tuple[str, ...], says: str
) -> None:
    said = refused(processes, *options)
    assert says in said
    assert "Traceback" not in said


def test_a_wrong_setting_is_its_last_word(processes: ProcessHarness) -> None:
    said = refused(processes, "-A", "alone", "-q", LIMIT="soon")
    assert "delay_redis_timeout" in said.rpartition("Error: ")[2]
    # Celery logs where it came from, once; its own command would show that once more
    assert said.count("Traceback") == 1


def test_an_error_of_the_project_itself_is_shown_whole(processes: ProcessHarness) -> None:
    (processes.folder / "broken.py").write_text("import no_such_package\n")
    broken = processes.python("broken", "-m", "celery_delay", "-A", "broken")
    assert broken.wait() != 0
    assert "Traceback" in broken.output()
    assert "No module named 'no_such_package'" in broken.output()


def test_it_starts_in_another_folder(processes: ProcessHarness, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "elsewhere.py").write_text(APP)
    options = ("--workdir", str(there), "-A", "elsewhere:app", "-l", "INFO")
    beat = processes.python("beat", "-m", "celery_delay", *options)
    beat.wait_for_log(r"leads \(term \d+\)")
