"""What the deployment's files run, run here as processes: same commands, environment and probes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from celery_delay.audit.database import Database
from celery_delay.embedded import free_port
from tests.deployment import DEPLOY, compose, manifests
from tests.processes import ProcessHarness, wait_until

SERVICES = compose()["services"]


def probe_of(component: str, kind: str) -> dict[str, Any]:
    """A probe of the Kubernetes manifests."""
    [container] = [
        document["spec"]["template"]["spec"]["containers"][0]
        for _, document in manifests()
        if document["kind"] == "Deployment"
        and document["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    found: dict[str, Any] = container[kind]
    return found


def answers(probe: dict[str, Any], port: int) -> bool:
    """Whether a probe over HTTP would succeed."""
    url = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(200 <= answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False


class Deployed:
    """The services of the compose file, with our servers and ports in place of theirs."""

    def __init__(self, procs: ProcessHarness, redis_url: str, sql_url: str) -> None:
        self.procs = procs
        self._places = {
            "redis://redis:6379/0": redis_url,
            "postgresql+psycopg://shop:shop@postgres:5432/shop_audit": sql_url,
            "/tmp/shop.sqlite3": str(procs.folder / "shop.sqlite3"),
            "${FLOWER_BASIC_AUTH:-admin:change-me}": "admin:change-me",
        }

    def environment(self, service: str, **ours: str) -> dict[str, str]:
        given = SERVICES[service]["environment"].items()
        return {**{name: self._places.get(value, value) for name, value in given}, **ours}

    def start(self, name: str, service: str, port: int = 0, **ours: str) -> Any:
        words = [re.sub(r"^--port=\d+$", f"--port={port}", one) for one in self.command(service)]
        return self.procs.start(name, *words, env=self.environment(service, **ours))

    def command(self, service: str) -> list[str]:
        words: list[str] = SERVICES[service]["command"]
        return words

    def check(self, service: str, environment: dict[str, str], port: int = 0) -> bool:
        """Whether the health check of a service succeeds, as compose would run it."""
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        words = [
            re.sub(r"127\.0\.0\.1:\d+\b", f"127.0.0.1:{port}", one).replace("$$", "$")
            for one in words
        ]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {**self.procs.env, **environment, "PATH": path, "HOSTNAME": socket.gethostname()}
        command: Any = words[0] if kind == "CMD-SHELL" else words
        done = subprocess.run(
            command,
            shell=kind == "CMD-SHELL",
            env=given,
            cwd=self.procs.folder,
            capture_output=True,
            check=False,
            timeout=60,
        )
        return done.returncode == 0


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
def test_the_deployment_works_as_it_is_written(
    harness: Callable[..., ProcessHarness], redis_url: str, database: Database, sql_url: str
) -> None:
    procs = harness("shop", path=(DEPLOY.parent,))
    shop = Deployed(procs, redis_url, sql_url)
    ports = {"one": free_port(), "two": free_port(), "flower": free_port()}

    migrating = shop.start("migrate", "migrate")
    assert migrating.wait(40) == 0, migrating
    beats = {
        name: shop.start(name, "beat", SHOP_HTTP=f"127.0.0.1:{ports[name]}")
        for name in ("one", "two")
    }
    shop.start("worker", "worker")
    shop.start("flower", "flower", ports["flower"])

    # probes: Kubernetes', then compose's
    for name, beat in beats.items():
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = probe_of("beat", kind)
            wait_until(lambda: answers(probe, ports[name]), 40, f"{kind} of {beat}")  # noqa: B023
        assert shop.check("beat", {}, ports[name])
        assert not shop.check("beat", {}, free_port()), "this check proves nothing"
    wait_until(lambda: answers(probe_of("flower", "readinessProbe"), ports["flower"]), 40, "Flower")
    assert shop.check("flower", {}, ports["flower"])
    assert not shop.check("flower", {}, free_port())
    wait_until(lambda: shop.check("worker", shop.environment("worker")), 40, "the worker's check")
    [container] = [
        one["spec"]["template"]["spec"]["containers"][0]
        for name, one in manifests()
        if name == "worker.yaml" and one["kind"] == "Deployment"
    ]
    assert container["livenessProbe"]["exec"]["command"][-1] == SERVICES["worker"]["healthcheck"][
        "test"
    ][-1].replace("$$", "$")

    # one is stopped, in the time that it is given, and the other goes on
    grace = float(SERVICES["beat"]["stop_grace_period"].rstrip("s"))
    beats["one"].stop(timeout=grace)
    procs.env.update(shop.environment("worker"))
    added = procs.run(
        "delay", "add", "shop.tasks.greet", "--args", '["Ann"]', "--countdown", "0.5", "--json"
    )
    assert added.returncode == 0, added.stderr
    [task_id] = re.findall(r"[0-9a-f-]{36}", added.stdout)

    def story() -> str:
        return procs.run("delay", "history", task_id, "--json").stdout

    wait_until(lambda: "SUCCEEDED" in story(), 40, f"{task_id} in the audit\n{procs}")
    with urllib.request.urlopen(f"http://127.0.0.1:{ports['two']}/metrics", timeout=5) as page:
        assert b"celery_delay_due{" in page.read()
