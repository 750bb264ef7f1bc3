"""Every verb says what its ``--json`` prints; that it is true, ``tests/conftest.py`` watches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
import pytest

from celery_delay.cli import delay
from celery_delay.cli.output import Output
from celery_delay.domain.states import State
from tests.schemas import DRAFT, FOLDER, errors, schema, verbs

VERBS = list(verbs())
FILES = sorted(one.name for one in FOLDER.iterdir())
HOW = "see docs/contributing.rst, A new verb"


def test_every_verb_has_a_schema_and_every_schema_is_of_a_verb() -> None:
    assert sorted(f"{one.replace(' ', '-')}.json" for one in VERBS) == FILES, HOW


@pytest.mark.parametrize("verb", VERBS)
def test_a_schema_is_valid_and_names_its_verb(verb: str) -> None:
    found = schema(verb)
    DRAFT.check_schema(found)
    assert found["title"] == f"celery delay {verb} --json"
    assert found["description"].endswith(".")


@pytest.mark.parametrize("verb", VERBS)
def test_a_schema_is_closed_and_explains_each_of_its_fields(verb: str) -> None:
    for path, one in parts(schema(verb)):
        if "properties" in one:
            assert one["additionalProperties"] is False, f"{path}: {HOW}"
            assert sorted(one["required"]) == sorted(one["properties"]), f"{path}: {HOW}"
        elif "object" in one.get("type", ()):
            assert "additionalProperties" in one, f"{path} may have anything: {HOW}"
        for name, field in one.get("properties", {}).items():
            assert field.get("description", "").endswith("."), f"{path}.{name}: {HOW}"


@pytest.mark.parametrize("verb", VERBS)
def test_a_schema_knows_all_states(verb: str) -> None:
    for path, one in parts(schema(verb)):
        if State.SCHEDULED.value in one.get("enum", ()):
            missing = {state.value for state in State} - set(one["enum"])
            assert missing in (set(), {"RETRIED"}), path


def parts(found: Mapping[str, Any], path: str = "$") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schema and all in it."""
    yield path, found
    for one in found.get("oneOf", ()):
        yield from parts(one, path)
    for name, one in found.get("properties", {}).items():
        yield from parts(one, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(found.get(name), Mapping):
            yield from parts(found[name], f"{path}[]")


# --- the watch itself --------------------------------------------------------------------

GOOD: dict[str, Any] = {"task_id": "a", "audit_lag_ms": None, "events": []}


def test_what_is_missing_surplus_or_of_another_type_is_seen() -> None:
    assert errors("history", GOOD) == []
    assert "more" in errors("history", {**GOOD, "more": 1})[0]
    assert "events" in errors("history", {"task_id": "a", "audit_lag_ms": 1})[0]
    assert "$.task_id" in errors("history", {**GOOD, "task_id": 7})[0]
    assert "no schema" in errors("explode", GOOD)[0]


def test_every_verb_is_watched(
    documents_fit_their_schemas: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    verb = delay.get_command(click.Context(delay), "history")
    assert verb is not None
    with click.Context(verb, parent=click.Context(delay, info_name="delay"), info_name="history"):
        Output(as_json=True).document(GOOD)
        assert documents_fit_their_schemas == []
        Output(as_json=True).document({**GOOD, "more": 1})

    assert len(documents_fit_their_schemas) == 1
    documents_fit_their_schemas.clear()
