"""The verdict: did every effect happen exactly once, on time, with the right result?

It counts the lines that the tasks wrote, and asks neither Celery nor celery-delay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Effect", "Expected", "Verdict", "judge", "judge_nights", "read_ledger"]


class Effect(NamedTuple):
    """A line of the ledger; ``at`` is seconds since the epoch."""

    at: float
    task: str
    what: str


class Expected(NamedTuple):
    """An effect that must come.

    Attributes:
        due: seconds since the epoch; None if it follows another effect.
        after, seconds: it is due so many seconds after that effect.
    """

    task: str
    what: str
    due: float | None = None
    after: str = ""
    seconds: float = 0.0


class Verdict(NamedTuple):
    """``lateness``: in seconds, one number per effect that was expected and came."""

    faults: list[str]
    lateness: list[float]


def read_ledger(path: Path) -> list[Effect]:
    """All effects so far, in the order in which they happened."""
    effects = []
    for line in path.read_text().splitlines() if path.exists() else []:
        at, task, what = line.split("\t")
        effects.append(Effect(float(at), task, what))
    return effects


def judge(expected: Iterable[Expected], effects: Sequence[Effect], bound: float) -> Verdict:
    """Compare what happened with what had to.

    Arguments:
        bound: how late an effect may be, in seconds.  None may be early.
    """
    happened: dict[tuple[str, str], list[float]] = {}
    for effect in effects:
        happened.setdefault((effect.task, effect.what), []).append(effect.at)
    faults, lateness = [], []
    for one in expected:
        times = happened.pop((one.task, one.what), [])
        if len(times) != 1:
            faults.append(f"{one.what}: happened {len(times)} times instead of once")
            continue
        due = one.due
        if due is None:
            before = [effect.at for effect in effects if effect.what == one.after]
            if not before:
                faults.append(f"{one.what}: happened without {one.after!r}")
                continue
            due = min(before) + one.seconds
        late = times[0] - due
        lateness.append(late)
        if late < 0:
            faults.append(f"{one.what}: {-late:.3f} s early")
        elif late > bound:
            faults.append(f"{one.what}: {late:.3f} s late")
    faults += [f"{what}: nobody had asked for it" for _, what in happened]
    return Verdict(faults, lateness)


def judge_nights(effects: Sequence[Effect], fired: float, every: float, bound: float) -> Verdict:
    """Did each night's clean-up happen once?

    Arguments:
        effects: the clean-ups, and nothing else.
        fired: the instant of one of the nights, in seconds since the epoch.
        every: seconds from night to night.
        bound: as for :func:`judge`.
    """
    faults, lateness, nights = [], [], []
    for effect in effects:
        night, late = divmod(effect.at - fired, every)
        nights.append(int(night))
        lateness.append(late)
        if late > bound:
            # or early for the next one, which is no better
            faults.append(f"clean-up: {late:.3f} s late")
    if not nights:
        faults.append("clean-up: no night at all")
    elif sorted(nights) != list(range(min(nights), max(nights) + 1)):
        faults.append(f"clean-up: nights {sorted(nights)} instead of each of them once")
    return Verdict(faults, lateness)
