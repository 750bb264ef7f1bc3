"""A real Flower with the Delayed tab, on a project of its own, and what its JSON is to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from celery import Celery

import celery_delay
from celery_delay.embedded import EmbeddedRedis, free_port
from tests.integration.project.running import build
from tests.processes import CeleryProcess, ProcessHarness, wait_until

__all__ = ["ANN", "FlowerSite", "flower_site"]

PROJECT = Path(__file__).parent / "project"
#: Who may log in.
ANN = ("ann", "secret")

#: Method and address → the schema of the answer; the first that fits.
_SCHEMAS = {
    r"GET /api/delayed": "list",
    r"GET /api/delayed/overview": "overview",
    r"GET /api/delayed/forecast": "forecast",
    r"GET /api/delayed/schedules": "schedules",
    r"GET /api/delayed/schedules/[^/]+": "schedule",
    r"GET /api/delayed/[^/]+": "task",
    r"POST /api/delayed/schedules/[^/]+/[a-z]+": "schedule-act",
    r"POST /api/delayed/pauses/[a-z]+": "pause",
    r"POST /api/delayed/many/[a-z-]+": "many",
    r"POST /api/delayed/[^/]+/[a-z-]+": "act",
}


@cache
def validator(name: str) -> Any:
    """Of one of the schemas that the package has."""
    text = files("celery_delay.flower").joinpath("schemas", f"{name}.json").read_text("utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def fits(method: str, path: str, status: int, document: Any) -> None:
    """Whatever is answered is what the package says that it is."""
    called = f"{method} {path.partition('?')[0]}"
    name = next(one for pattern, one in _SCHEMAS.items() if re.fullmatch(pattern, called))
    schema = validator(name if status == 200 else "error")
    assert [f"{one.json_path}: {one.message}" for one in schema.iter_errors(document)] == []


class FlowerSite:
    """Flower, and the app of a producer beside it.

    Attributes:
        app: has the settings that Flower's has.
        client: speaks HTTP to it; paths begin behind the prefix.
        process: Flower.
    """

    def __init__(
        self,
        folder: Path,
        redis: EmbeddedRedis,
        *options: str,
        verb: tuple[str, ...] = ("delay", "flower"),
        prefix: str = "",
        auth: tuple[str, str] | None = None,
        env: dict[str, str] | None = None,
        **conf: Any,
    ) -> None:
        conf = {"delay_database_url": f"sqlite:///{folder}/audit.sqlite", **conf}
        effects = str(folder / "effects")
        self.redis = redis
        self.app: Celery = build(redis.tcp_url, effects, **conf)
        settings = {"url": redis.tcp_url, "effects": effects, **conf}
        path = (PROJECT, Path(celery_delay.__file__).parents[1])
        variables = {"PROJECT": json.dumps(settings), **(env or {})}
        self.procs = ProcessHarness(folder, "running", path=path, env=variables)
        port = free_port()
        self.process: CeleryProcess = self.procs.start(
            "flower", *verb, "--address=127.0.0.1", f"--port={port}", "--inspect-timeout=300",
            *options,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}{prefix}"
        self.client = httpx.Client(base_url=self.url, timeout=20, auth=auth)
        wait_until(self._is_up, 30, "Flower")

    def _is_up(self) -> bool:
        assert self.process.is_running, self.process
        with suppress(httpx.TransportError):
            return self.client.get("/healthcheck").status_code == 200
        return False

    def get(self, path: str, expected: int = 200, **options: Any) -> Any:
        """The document of a GET."""
        answer = self.client.get(path, **options)
        return self._told("GET", path, expected, answer)

    def token(self) -> str:
        """What the page says its token is."""
        page = self.client.get("/delayed")
        assert page.status_code == 200, page.text
        found = re.search(r'<meta name="delayed-csrf" content="([^"]+)"', page.text)
        assert found, page.text
        return found[1]

    def post(self, path: str, body: Any = None, expected: int = 200, **headers: str | None) -> Any:
        """The document of a POST as the page sends it; *headers* in place of its own."""
        origin = self.url.partition("//")[2].partition("/")[0]
        sent = {
            "X-Delayed-CSRF": headers.pop("token", None) or self.token(),
            "Origin": f"http://{origin}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        answer = self.client.post(
            path, json=body, headers={name: one for name, one in sent.items() if one is not None}
        )
        return self._told("POST", path, expected, answer)

    @staticmethod
    def _told(method: str, path: str, expected: int, answer: httpx.Response) -> Any:
        assert answer.status_code == expected, (answer, answer.text[:2000])
        assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
        document = answer.json()
        fits(method, path, expected, document)
        return document

    def close(self) -> None:
        self.client.close()
        self.procs.close()
        for shard in vars(self.app.delayed).get("shards", ()):
            shard.close()
        self.app.delayed.audit_log.close()
        self.app.close()


@contextmanager
def flower_site(
    folder: Path, redis: EmbeddedRedis, *options: str, **more: Any
) -> Iterator[FlowerSite]:
    """A Flower, ended afterwards; its log is shown beside a failure."""
    site = FlowerSite(folder, redis, *options, **more)
    try:
        yield site
    finally:
        site.close()
        print(site.procs)  # captured
