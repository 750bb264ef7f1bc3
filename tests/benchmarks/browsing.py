"""How long Flower's Delayed tab takes to tell what it shows, with much that waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx

from celery_delay.calling.calls import DelayedCall
from celery_delay.embedded import free_port
from tests.benchmarks import bench_app
from tests.processes import wait_until

if TYPE_CHECKING:
    from tests.benchmarks.measure import Bench

__all__ = ["browsing"]

#: Far enough that nothing of it becomes due during the run, in seconds.
_FAR = 86_400.0


def browsing(bench: Bench) -> dict[str, float]:
    """Each document of the tab, the slowest of five; then all of the first page at once."""
    n = bench.size(200_000, 20_000)
    bench.empty()
    rare = bench_app.note_ours.apply_delayed((0.0, 0), tags=["rare"], countdown=2 * _FAR).id
    for start in range(1, n, 1_000):
        calls = [DelayedCall((0.0, number)) for number in range(start, min(start + 1_000, n))]
        bench_app.note_ours.apply_delayed_many(calls, countdown=_FAR)
    figures: dict[str, float] = {"tasks": n}
    port = free_port()
    options = ("--address=127.0.0.1", f"--port={port}", "--inspect-timeout=100")
    with (
        bench.processes(FLOWER_UNAUTHENTICATED_API="true") as procs,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        procs.start("flower", "delay", "flower", *options)
        wait_until(lambda: _is_up(client), 30, "Flower")
        first = ("/delayed", "/api/delayed", "/api/delayed/overview", "/api/delayed/forecast")
        begun = time.perf_counter()
        for path in first:
            _get(client, path)
        figures["first_visit_s"] = time.perf_counter() - begun
        for name, path in {
            "page_s": "/delayed",
            "list_s": "/api/delayed?limit=100",
            "list_1000_s": "/api/delayed?limit=1000",
            "overview_s": "/api/delayed/overview",
            "forecast_s": "/api/delayed/forecast?span=month",
            "task_s": f"/api/delayed/{rare}",
            "search_in_vain_s": "/api/delayed?search=nobody",
        }.items():
            figures[name] = max(_seconds(lambda path=path: _get(client, path)) for _ in range(5))
        begun = time.perf_counter()
        assert _found(client, "search=rare") == [rare]
        figures["search_all_s"] = time.perf_counter() - begun
    return figures


def _found(client: httpx.Client, query: str) -> list[str]:
    """All pages."""
    ids: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        told = _get(client, f"/api/delayed?{query}&cursor={cursor}").json()
        ids += [one["task_id"] for one in told["entries"]]
        cursor = told["next"]
    return ids


def _get(client: httpx.Client, path: str) -> httpx.Response:
    return client.get(path).raise_for_status()


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _is_up(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/healthcheck").status_code == 200
    return False
