"""The pages tell the truth about the code: what they name exists, and what exists is named."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest

import celery_delay
from celery_delay.domain.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(celery_delay.__file__).parent
PAGES = sorted(DOCS.rglob("*.rst"))
README = ROOT / "README.md"
GUARANTEES = DOCS / "explanation" / "guarantees.rst"


def _source_facts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("source_facts", DOCS / "_ext/source_facts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FACTS = _source_facts()


# --- the reference -----------------------------------------------------------------------


def test_every_setting_has_a_meaning() -> None:
    without = [one.name for one in fields(Settings) if len(one.metadata["doc"]) < 20]

    assert without == []
    assert ".. delay-settings::" in (DOCS / "reference/settings.rst").read_text()


def test_every_log_event_is_described_and_every_description_is_of_an_event() -> None:
    logged = set(FACTS.log_events(PACKAGE))

    assert logged
    assert FACTS.documented(DOCS / "reference/events.rst", "delay-event") == logged


def test_every_public_error_is_on_the_page_of_errors() -> None:
    # the page is made by automodule: what it shows are the docstrings
    from celery_delay import exceptions

    without = [name for name in exceptions.__all__ if not getattr(exceptions, name).__doc__]

    assert without == []


@pytest.mark.parametrize("command", FACTS.lua_commands(PACKAGE), ids=lambda one: one.name)
def test_every_lua_file_says_what_it_does(command: object) -> None:
    assert command.sentence.endswith(".")  # type: ignore[attr-defined]
    assert command.keys  # type: ignore[attr-defined]
    assert command.returns  # type: ignore[attr-defined]


def test_every_verb_of_the_command_line_says_what_it_does() -> None:
    import click

    from celery_delay.cli import delay

    context = click.Context(delay)
    verbs = {name: delay.get_command(context, name) for name in delay.list_commands(context)}

    assert {"list", "show", "history", "cancel", "status", "leader", "migrate"} <= set(verbs)
    assert [name for name, verb in verbs.items() if "celery -A proj delay" not in verb.help] == []
    assert ".. delay-cli::" in (DOCS / "reference/cli.rst").read_text()


def test_every_verb_that_a_page_names_exists() -> None:
    import click

    from celery_delay.cli import delay

    known = set(delay.list_commands(click.Context(delay)))
    named = {
        verb
        for page in [*PAGES, README]
        for verb in re.findall(r"celery -A \w+ delay ([a-z][a-z-]*)", page.read_text())
    }

    assert named
    assert named - known == set()


def test_every_setting_that_a_page_names_exists() -> None:
    known = {f"delay_{one.name}" for one in fields(Settings)}
    named = {
        name.lower()
        for page in [*PAGES, README]
        for name in re.findall(
            r":setting:`(delay_\w+)`|CELERY_(DELAY_\w+)|\bconf\.(delay_\w+)", page.read_text()
        )
        for name in name
        if name
    }

    assert named
    assert named - known == set()


# --- links -------------------------------------------------------------------------------


def test_the_readme_s_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text())

    assert links
    assert [one for one in links if not urlsplit(one).scheme and not (ROOT / one).exists()] == []


def test_the_readme_has_the_two_commands_word_for_word() -> None:
    text = README.read_text()

    for command in ("sh example_project/demo.sh", "sh tests/run.sh"):
        assert f"\n{command}" in text
        assert (ROOT / command.split()[1]).exists()


def test_every_decision_has_context_choice_and_price() -> None:
    decisions = sorted((DOCS / "adr").glob("0*.rst"))
    numbers = [int(page.name[:4]) for page in decisions]

    assert len(set(numbers)) == len(numbers)
    for page in decisions:
        text = page.read_text()
        assert text.startswith(f"{page.name[:4]}: "), page
        for heading in ("Context\n---", "Choice\n---", "Price\n---"):
            assert heading in text, (page, heading)


# --- guarantees --------------------------------------------------------------------------

NODE = re.compile(r"``(tests/[\w/]+\.py)::(\w+)(?:\[[^`]*\])?``")


def test_every_test_that_a_guarantee_leans_on_exists() -> None:
    named = NODE.findall(GUARANTEES.read_text())

    assert len(named) >= 10
    for path, test in named:
        file = ROOT / path
        assert file.exists(), f"guarantees.rst names {path}"
        functions = {
            node.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        assert test in functions, f"guarantees.rst names {path}::{test}"


MARK = re.compile(r"\b([a-z][a-z-]*)_\b(?!`)")


def test_every_cell_of_the_faults_table_is_a_test_or_not_promised() -> None:
    rows = re.split(r"\n   \* - ", faults_table())[2:]

    assert len(rows) >= 10
    for row in rows:
        fault, *cells = re.split(r"\n     - ", row)
        assert len(cells) == 4, fault
        for cell in cells:
            assert MARK.search(cell) or "not promised" in cell, (fault, cell)


def test_every_mark_in_the_faults_table_stands_for_tests() -> None:
    text = GUARANTEES.read_text()
    defined = dict(re.findall(r"^\.\. _([a-z-]+):\n\n.*\n((?:   .*\n)+)", text, re.MULTILINE))

    assert set(MARK.findall(faults_table())) == set(defined)
    assert [mark for mark, tests in defined.items() if not NODE.search(tests)] == []


def faults_table() -> str:
    text = GUARANTEES.read_text()
    return text[text.index(".. list-table:: Fault by fault") : text.index(".. end of the table")]
