"""What the doctor knows without a server: all commands, all findings, and how to give up."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from threading import Event

import pytest

from celery_delay import store
from celery_delay.delayed import findings
from celery_delay.doctor.checks import NoAnswer, within
from celery_delay.doctor.store import _AREAS, _ELSEWHERE
from celery_delay.store.rights import COMMANDS

LUA = files("celery_delay.store").joinpath("lua")


def test_every_command_of_our_scripts_and_of_the_store_is_tried() -> None:
    scripts = {
        command
        for path in Path(str(LUA)).rglob("*.lua")
        for command in re.findall(r"redis\.p?call\('(\w+)'", path.read_text(encoding="utf-8"))
    }
    sent = {
        command
        for path in Path(store.__file__).parent.glob("*.py")
        for command in re.findall(r"_read\(\s*(?:link, )?\"([A-Z]+)\"", path.read_text())
    }

    assert len(scripts) > 20
    assert len(sent) > 10
    # MEMORY is asked by `stats` alone, which does without
    assert (scripts | sent) - {"MEMORY"} - COMMANDS == set(), (
        "celery_delay/store/rights.py: give the new command its arguments"
    )


def test_every_finding_belongs_to_a_check() -> None:
    source = Path(findings.__file__).read_text(encoding="utf-8")
    codes = set(re.findall(r'"(?:problem|note)"[^\n]*,\s*f?"(\w+)"', source))
    known = set().union(*_AREAS.values()) | _ELSEWHERE

    assert len(codes) > 8
    assert {one for one in codes if "_{" not in one and one != "schema_"} - known == set()


def test_who_does_not_answer_is_left_behind() -> None:
    never = Event()

    with pytest.raises(NoAnswer, match=r"within 0\.01 s"):
        within(0.01, never.wait)
    never.set()

    assert within(10, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)
