"""The shop, its beats and workers, and Flower before it."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import celery_delay
from celery_delay.embedded import free_port
from tests.flower.project.shop import build
from tests.processes import ProcessHarness, wait_until

__all__ = ["Stage"]

PROJECT = Path(__file__).parent / "project"
USER = "ann:secret"


class Stage:
    """All processes, on the Redis at *url*, with their files in *folder*.

    Attributes:
        app: the same project in this process.
        procs: its processes.
    """

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        audit = f"sqlite:///{folder / 'audit.sqlite'}"
        self.app = build(url, audit, **settings)
        env = {"SHOP_REDIS": url, "SHOP_AUDIT": audit, "SHOP_SETTINGS": json.dumps(settings)}
        path = (PROJECT, Path(celery_delay.__file__).parents[1])
        self.procs = ProcessHarness(folder, "shop", path=path, env=env)

    def start(self, *names: str) -> None:
        """Start beats; one of them leads when this returns."""
        beats = [self.procs.beat(name) for name in names]
        leads = " leads (term"
        wait_until(lambda: any(leads in one.output() for one in beats), 30, "a beat that leads")

    def flower(
        self,
        *options: str,
        name: str = "flower",
        prefix: str = "",
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Start Flower with the page; its address, before it answers: see :meth:`answers`."""
        port = port or free_port()
        address = f"http://127.0.0.1:{port}"
        own = [f"--port={port}", "--address=127.0.0.1", "--enable-events=False"]
        if prefix:
            own.append(f"--url-prefix={prefix}")
            address += f"/{prefix}"
        self.procs.start(name, "delay", "flower", *own, *options, env=env)
        return address

    def answers(self, address: str) -> None:
        """Wait until that Flower does."""

        def told() -> bool:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"{address}/healthcheck", timeout=2),
            ):
                return True
            return False

        wait_until(told, 30, "Flower")

    def close(self) -> None:
        self.procs.close()
        self.app.close()
