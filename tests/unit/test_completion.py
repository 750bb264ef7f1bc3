"""What can be completed is; what the shell is told, tests/integration/test_completion.py says."""

from __future__ import annotations

from collections.abc import Iterator

import click

from celery_delay.cli import delay
from celery_delay.cli.completion import words

#: Names that are not there yet.
NEW = {"delay schedule add name"}


def arguments(command: click.Command, name: str) -> Iterator[tuple[str, click.Parameter]]:
    """The arguments of all verbs, each with its place."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for verb in command.list_commands(context):
            inner = command.get_command(context, verb)
            assert inner is not None
            yield from arguments(inner, f"{name} {verb}")
    for param in command.params:
        if isinstance(param, click.Argument):
            yield f"{name} {param.name}", param


def test_every_id_and_name_can_be_completed() -> None:
    named = [
        (place, param)
        for place, param in arguments(delay, "delay")
        if param.name in ("task_id", "task_ids", "name", "names", "task")
    ]

    without = {place for place, param in named if param._custom_shell_complete is None}

    assert len(named) > 10
    assert without - NEW == set(), "see celery_delay/cli/completion.py"


def test_words_are_completed_in_capitals_or_small_letters() -> None:
    complete = words(["HELD", "HIGH", "LOW"])

    def offered(begun: str) -> list[str]:
        context = click.Context(delay)
        return [one.value for one in complete(context, click.Argument(["x"]), begun)]

    assert offered("H") == ["HELD", "HIGH"]
    assert offered("he") == ["held"]
    assert offered("") == ["HELD", "HIGH", "LOW"]
    assert offered("x") == []
