"""This installation and this project's settings; asks no server."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from celery_delay.delayed.steering import Parts
from celery_delay.doctor.checks import NOTE, OK, PROBLEM, Check
from celery_delay.exceptions import DelayError

__all__ = ["settings", "versions"]

_TOLD = ("celery", "kombu", "redis", "sqlalchemy")


def versions(_: Parts) -> Iterator[Check]:
    """What is installed here, against what this release was made for."""
    told = [f"Python {platform.python_version()}", f"celery-delay {_installed('celery-delay')}"]
    told += [f"{name} {_installed(name)}" for name in _TOLD]
    wrong = []
    for one in map(Requirement, _requirements()):
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        found = _installed(one.name)
        if found and not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found}, and it needs {one.name}{one.specifier}")
    if wrong:
        yield Check(
            "versions", PROBLEM,
            f"celery-delay was not made for what is installed here: {'; '.join(wrong)}",
            "pip install --upgrade celery-delay, which installs what fits",
        )  # fmt: skip
    else:
        yield Check("versions", OK, ", ".join(told))


def settings(delayed: Parts) -> Iterator[Check]:
    """The ``delay_*`` settings, and Celery's where they contradict."""
    try:
        known = delayed.settings
        delayed.check()
    except DelayError as exc:
        yield Check("settings", PROBLEM, f"the settings are wrong: {exc}",
                    "mend them: beats, producers and this command refuse them")  # fmt: skip
        return
    conf = delayed.app.conf
    contradictions = list(_contradictions(delayed))
    yield from contradictions
    if not contradictions:
        changed = sum(1 for name in known.names() if name in conf)
        yield Check("settings", OK, f"nothing contradicts; delay_* settings given: {changed}")


def _contradictions(delayed: Parts) -> Iterator[Check]:
    known, conf = delayed.settings, delayed.app.conf
    if conf.task_protocol != 2:
        yield Check(
            "task_protocol", PROBLEM,
            f"task_protocol is {conf.task_protocol}: delayed tasks are refused when they are"
            " scheduled",
            "take the setting out; 2 is Celery's default",
        )  # fmt: skip
    if conf.task_always_eager:
        yield Check(
            "settings", PROBLEM, "task_always_eager is set: tasks run at once, and nothing waits",
            "set it in tests only",
        )  # fmt: skip
    if known.audit == "off" and known.has_database:
        yield Check(
            "settings", NOTE,
            'delay_audit is "off" and an audit database is named: it is read, and never written',
            'set delay_audit = "async", or leave the database out',
        )  # fmt: skip
    if known.journal_full == "refuse" and not known.audited:
        yield Check(
            "settings", NOTE,
            'delay_journal_full = "refuse" has no effect, for without an audit there is no journal',
            "set delay_database_url, or leave it out",
        )  # fmt: skip
    if known.leader_grace < 2 * known.lease:
        yield Check(
            "settings", NOTE,
            f"delay_leader_grace ({known.leader_grace:g} s) is hardly longer than delay_lease"
            f" ({known.lease:g} s): each change of the leader is warned of, and intercepted calls"
            " may go native",
            "raise delay_leader_grace to several times delay_lease",
        )  # fmt: skip


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _requirements() -> list[str]:
    try:
        return requires("celery-delay") or []
    except PackageNotFoundError:
        return []  # a work tree that nobody has installed
