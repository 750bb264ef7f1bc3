"""What the demo shows: a live table on a terminal, lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stage.story import Summary, Told

__all__ = ["Screen"]

_COLOURS = {"SUCCEEDED": "green", "CANCELLED": "yellow", "RETRIED": "magenta", "STARTED": "cyan"}
_COLOURS |= {"SCHEDULED": "blue", "DISPATCHED": "cyan"}
#: Lines of the terminal that are not rows of the table.
_FRAME = 9


class Screen(contextlib.AbstractContextManager["Screen"]):
    """Tells what happens, on standard output."""

    def __init__(self, plain: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._live = (
            None
            if plain or not self.console.is_terminal
            else Live(console=self.console, auto_refresh=False, transient=True)
        )
        self._begun = time.monotonic()
        self._shown: dict[str, Told] = {}

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop_table()

    def stop_table(self) -> None:
        """From now on only lines."""
        if self._live:
            self._live.stop()
            self._live = None

    def say(self, text: str, style: str = "bold") -> None:
        """One line that stays."""
        self.console.print(f"{time.monotonic() - self._begun:5.1f} s  ", Text(text, style), sep="")

    def tell(self, told: Mapping[str, Told], labels: Mapping[str, str]) -> None:
        """Show how far each task is."""
        if self._live:
            self._live.update(self._table(told, labels), refresh=True)
            return
        for task_id, one in told.items():
            if self._shown.get(task_id) != one:
                if task_id not in self._shown or self._shown[task_id].task.state != one.task.state:
                    self.say(f"{_label(one, labels):<24} {_trail(one)}", "")
                self._shown[task_id] = one

    def summary(self, summary: Summary) -> None:
        """What SQL says in the end."""
        states = ", ".join(f"{count} {state}" for state, count in summary.states.most_common())
        self.console.print(f"\n[bold]From the audit in SQL[/]: {states}; {summary.runs} runs")
        if lags := summary.lags:
            half, most = lags[len(lags) // 2], lags[-1]
            self.console.print(
                f"  lag, from eta to queue: half of them within {half} ms, the slowest {most} ms"
                " (the leader was killed on the way)"
            )

    def verdict(self, faults: list[str], lateness: list[float], effects: int) -> None:
        """What the ledger says in the end."""
        self.console.print(f"[bold]From the file that the tasks wrote[/]: {effects} effects")
        if lateness:
            late = sorted(lateness)
            self.console.print(
                f"  from due to done: half of them within {late[len(late) // 2] * 1000:.0f} ms,"
                f" the slowest {late[-1] * 1000:.0f} ms; the quickest {late[0] * 1000:.1f} ms"
            )
        for fault in faults:
            self.console.print(Text(f"  WRONG  {fault}", "bold red"))
        if not faults:
            good = "  every effect happened exactly once, never early, with the right result"
            self.console.print(Text(good, "bold green"))

    def _table(self, told: Mapping[str, Told], labels: Mapping[str, str]) -> Any:
        table = Table(expand=True)
        for name in ("task", "SCHEDULED → DISPATCHED → STARTED → …", "lag", "run"):
            table.add_column(name, no_wrap=True, justify="right" if name == "lag" else "left")
        # those that have just moved, and those that are due next
        rows = sorted(told.values(), key=lambda one: one.task.updated_ms)
        for one in rows[-max(3, self.console.height - _FRAME) :]:
            run = one.runs[-1]
            lag = "" if run.lag_ms is None else f"{run.lag_ms} ms"
            table.add_row(_label(one, labels), _trail(one), lag, str(len(one.runs)))
        waiting = sum(one.task.state == "SCHEDULED" for one in told.values())
        over = sum(one.is_over for one in told.values())
        return Group(table, Text(f"{waiting} wait, {over} are over; read from SQL", "dim"))


def _label(one: Told, labels: Mapping[str, str]) -> str:
    return labels.get(one.task.task_id) or (one.task.name or "?").rpartition(".")[2]


def _trail(one: Told) -> Text:
    """SCHEDULED → DISPATCHED +2 → …: ms after the eta."""
    trail = Text()
    for state, after in one.steps:
        if trail:
            trail.append(" → ", "dim")
        trail.append(state, _COLOURS.get(state, "red"))
        if after is not None and state != "SCHEDULED" and state != "CANCELLED":
            trail.append(f" +{after}", "dim")
    if len(one.runs) > 1:
        trail.append(f"  (run {len(one.runs)})", "magenta")
    return trail
