"""Measure celery-delay beside its yardsticks: ``tox -e bench``.

Brings its own Redis.  Figures that a claim rests on are ratios of two measurements of the
same run; ``--check`` compares them with half of the goal and asserts no absolute time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
# at the end: what is measured is the celery_delay that is installed
sys.path.append(str(ROOT))

#: measure.figure → (goal, whether more is better).  What is checked is half as good.
GOALS = {
    "schedule.bulk_x_stock": (10.0, True),
    "schedule.single_x_stock": (2.0, True),
    "schedule.receiver_of_stock": (1.2, False),
    "dispatch.of_bare_move": (0.6, True),
    "rabbitmq.of_bare_1": (1.0, True),
    "rabbitmq.of_bare_20": (0.5, True),
    "draining.together_cpu_of_copy": (2.5, False),
    "draining.apart_cpu_of_copy": (3.0, False),
    "worker.of_stock": (1.2, False),
    "memory.of_stock": (0.35, False),
}


@click.command()
@click.option("--quick", is_flag=True, help="Smaller numbers; about a minute.")
@click.option("--only", multiple=True, help="Measure only this; may be repeated.")
@click.option("--check", is_flag=True, help="Fail if a ratio is not even half as good as its goal.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write the figures there as JSON (docs/reports/benchmarks.json is the committed one).",
)
@click.option("--rows", type=int, help="Tasks in the audit, for history (5000000: an hour).")
@click.option("--kind", "kinds", multiple=True, help="Databases, for history; may be repeated.")
def main(
    quick: bool,
    only: tuple[str, ...],
    check: bool,
    report: Path | None,
    rows: int | None,
    kinds: tuple[str, ...],
) -> None:
    """Measure, print, and compare."""
    from celery_delay.embedded import EmbeddedRedis

    with (
        EmbeddedRedis(port=None, options=("--appendonly", "no")) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.environ["BENCH_BROKER"] = server.tcp_url
        from tests.benchmarks import measure

        bench = measure.Bench(server, Path(folder), quick, rows, kinds)
        found: dict[str, dict[str, Any]] = {}
        for name in only or measure.MEASURES:
            begun = time.monotonic()
            figures = measure.MEASURES[name](bench).items()
            found[name] = {k: v if isinstance(v, str) else round(v, 3) for k, v in figures}
            _print(name, found[name], time.monotonic() - begun)
        if report is not None:
            text = json.dumps({"machine": measure.machine(), "figures": found}, indent=2)
            report.write_text(text + "\n")
    if check:
        _check(found)


def _print(name: str, figures: dict[str, Any], seconds: float) -> None:
    table = Table(title=f"{name} ({seconds:.0f} s)", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("goal", justify="right")
    for figure, value in figures.items():
        goal, more = GOALS.get(f"{name}.{figure}", (None, True))
        sign = "≥" if more else "≤"
        table.add_row(
            figure,
            value if isinstance(value, str) else f"{value:,.3f}",
            f"{sign} {goal:g}" if goal else "",
        )
    Console().print(table)


def _check(found: dict[str, dict[str, Any]]) -> None:
    missed = []
    for name, (goal, more) in GOALS.items():
        measure, figure = name.split(".")
        value = found.get(measure, {}).get(figure)
        if value is not None and (value < goal / 2 if more else value > goal * 2):
            missed.append(f"{name} is {value:g}, not even half as good as {goal:g}")
    for line in missed:
        click.echo(line, err=True)
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
