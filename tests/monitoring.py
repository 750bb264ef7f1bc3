"""Prometheus and Alertmanager for tests: the shipped configuration, with a quick pulse.

Only the programs of Debian's packages are needed, not their services.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from celery_delay.embedded import free_port
from tests.processes import CeleryProcess, wait_until
from tests.servers import unavailable

__all__ = ["DEPLOY", "Monitoring", "program"]

DEPLOY = Path(__file__).parents[1] / "example_project/deploy"

#: Of scrapes, evaluations and what an alert must last, here.
PULSE = "200ms"


def program(*names: str) -> str:
    """The path of the first of some programs that is there, or the end of the test."""
    found = next(filter(None, map(shutil.which, names)), None)
    package = "prometheus-alertmanager" if "amtool" in names[0] or "alert" in names[0] else None
    return found or unavailable(names[0], f"apt-get install {package or 'prometheus'}")


class Monitoring:
    """Both, in a folder of their own.

    Arguments:
        beats: the ports at which beats are to be scraped.
    """

    def __init__(self, folder: Path, beats: Sequence[int]) -> None:
        self.programs = program("prometheus"), program("prometheus-alertmanager", "alertmanager")
        self._port, self._alerts_port = free_port(), free_port()
        self._configure(folder, beats)
        prometheus, alertmanager = self.programs
        commands = {
            "prometheus": [
                prometheus, "--config.file=prometheus.yml", "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            "alertmanager": [
                alertmanager, "--config.file=alertmanager.yml", "--storage.path=alerts",
                f"--web.listen-address=127.0.0.1:{self._alerts_port}",
                "--cluster.listen-address=",
            ],
        }  # fmt: skip
        self.processes = [
            CeleryProcess(name, command, os.environ, folder) for name, command in commands.items()
        ]

    def _configure(self, folder: Path, beats: Sequence[int]) -> None:
        shipped = DEPLOY / "prometheus"
        config = yaml.safe_load((shipped / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": PULSE, "evaluation_interval": PULSE}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [
            f"127.0.0.1:{self._alerts_port}"
        ]
        for job in config["scrape_configs"]:
            if job["job_name"] == "celery-delay":
                targets = [f"127.0.0.1:{port}" for port in beats]
                job["static_configs"][0]["targets"] = targets
                job["scrape_timeout"] = PULSE
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        rules = yaml.safe_load((shipped / "celery-delay.rules.yml").read_text())
        for one in (one for group in rules["groups"] for one in group["rules"]):
            # longer than a takeover, which must not raise it
            one["for"] = "3s"
        (folder / "celery-delay.rules.yml").write_text(yaml.safe_dump(rules))
        shutil.copy(shipped / "alertmanager.yml", folder)

    def start(self) -> Monitoring:
        for one in self.processes:
            one.start()
        for port in (self._port, self._alerts_port):
            wait_until(lambda port=port: _is_ready(port), 20, "Prometheus and Alertmanager")  # type: ignore[misc]
        return self

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        from urllib.parse import quote

        answer = _get(self._port, f"/api/v1/query?query={quote(query)}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def alerts(self) -> set[str]:
        """The names of the alerts that Alertmanager has now."""
        found = _get(self._alerts_port, "/api/v2/alerts?active=true")
        return {one["labels"]["alertname"] for one in found}

    def end(self) -> None:
        for one in self.processes:
            one.end()

    def __str__(self) -> str:
        return "\n".join(map(str, self.processes))


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)
