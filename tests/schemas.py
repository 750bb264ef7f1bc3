"""The JSON Schemas of ``celery delay … --json``, and a watch over what the verbs print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import click
import jsonschema
import pytest

from celery_delay.cli import delay
from celery_delay.cli.output import Output

__all__ = ["DRAFT", "FOLDER", "errors", "schema", "verbs", "watched"]

#: Verbs that print no document: a server.
SERVERS = {"flower"}
DRAFT = jsonschema.Draft202012Validator
FOLDER = files("celery_delay.cli").joinpath("schemas")


def verbs() -> Iterator[str]:
    """Every verb, and every verb of a verb: ``list``, ``schedule list``."""
    return (one for one in _leaves(delay, ()) if one not in SERVERS)


def _leaves(command: click.Command, names: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield " ".join(names)
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None, name
        yield from _leaves(inner, (*names, name))


@cache
def schema(verb: str) -> Mapping[str, Any]:
    """The schema of what *verb* prints."""
    text = FOLDER.joinpath(f"{verb.replace(' ', '-')}.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text)
    return found


def errors(verb: str, document: object) -> list[str]:
    """In what *document* is not what the schema of *verb* says."""
    try:
        wanted = schema(verb)
    except FileNotFoundError:
        return [f"celery_delay/cli/schemas has no schema of `{verb} --json`"]
    return [
        f"`{verb} --json` prints what its schema does not allow, at {one.json_path}: {one.message}"
        for one in DRAFT(wanted).iter_errors(document)
    ]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Compare each document that a verb prints with the verb's schema.

    Yields:
        What was wrong so far.
    """
    wrong: list[str] = []
    document = Output.document

    def compared(self: Output, value: Mapping[str, object]) -> None:
        document(self, value)
        if verb := _running():
            wrong.extend(errors(verb, json.loads(json.dumps(value))))

    monkeypatch.setattr(Output, "document", compared)
    yield wrong


def _running() -> str:
    """The verb that is being run; "" for none."""
    names: list[str] = []
    context = click.get_current_context(silent=True)
    while context is not None and context.command is not delay:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(names) if context is not None else ""
