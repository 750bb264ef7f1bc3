"""Directives that write the reference pages from the code.

``delay-settings``, ``delay-keys``, ``delay-lua``, ``delay-states``, ``delay-cli``, ``delay-beat``,
``delay-json`` and ``delay-flower-json`` fill whole pages; ``delay-event`` adds to a hand-written
meaning what the code says about the event, and the build warns of an event that no page describes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from source_facts import documented, log_events, lua_commands
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import celery_delay
from celery_delay.domain.settings import PREFIX, Settings
from celery_delay.domain.states import LEGAL, State
from celery_delay.store.keys import ShardKeys

PACKAGE = Path(celery_delay.__file__).parent
logger = logging.getLogger(__name__)


class Written(SphinxDirective):
    """Parses the lines that :meth:`lines` makes in place of the directive."""

    def lines(self) -> Iterable[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        source = f"<{self.name}>"
        text = StringList([line for part in self.lines() for line in part.split("\n")], source)
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(text, self.content_offset, node, match_titles=True)
        return node.children


class SettingsTable(Written):
    def lines(self) -> Iterable[str]:
        for one in fields(Settings):
            yield f".. setting:: {PREFIX}{one.name}\n"
            yield f"   Default: ``{one.default!r}``. In Django:"
            yield f"   ``CELERY_{(PREFIX + one.name).upper()}``.\n"
            yield f"   {one.metadata['doc']}\n"


class KeysTable(Written):
    def lines(self) -> Iterable[str]:
        keys = ShardKeys("celery-delay:", 0)
        yield ".. list-table::\n   :header-rows: 1\n   :widths: 38 62\n"
        yield "   * - key\n     - type and contents"
        for name, value in vars(ShardKeys).items():
            if isinstance(value, property):
                yield f"   * - ``{getattr(keys, name)}``\n     - {_flat(value.__doc__)}"
        yield ""


class LuaTable(Written):
    def lines(self) -> Iterable[str]:
        for command in lua_commands(PACKAGE):
            title = f"``{command.name}.lua``"
            yield f"{title}\n{'-' * len(title)}\n"
            yield f"{command.sentence}\n"
            yield f":keys: {', '.join(f'``{one}``' for one in command.keys)}"
            arguments = [
                f"``{name}``" + (f" ({unit})" if unit and unit != "flag" else "")
                for name, kind, unit in command.arguments
                if name not in ("now", "rest")
            ]
            if arguments:
                yield f":arguments: {', '.join(arguments)}"
            if command.returns:
                yield f":returns: ``{command.returns}``"
            yield f":on a full Redis: {'runs' if command.allow_oom else 'is refused'}\n"
            if command.notes:
                yield "::\n"
                yield from (f"   {line}" for line in command.notes)
                yield ""


class StatesTable(Written):
    def lines(self) -> Iterable[str]:
        yield ".. list-table::\n   :header-rows: 1\n   :widths: 20 60 20\n"
        yield "   * - state\n     - may be followed by\n     - ends the entry"
        for state in State:
            after = sorted(one.value for one in LEGAL[state])
            yield f"   * - {state.value}\n     - {', '.join(after) or 'none'}"
            yield f"     - {'yes' if state.is_final else ''}"
        yield ""


class CommandLine(Written):
    def lines(self) -> Iterable[str]:
        try:
            from celery_delay.cli import delay  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            yield "*The command line is not part of this build.*"
            return
        yield from self._verbs(delay, "celery -A proj delay", "")

    def _verbs(self, group: Any, command_line: str, path: str) -> Iterable[str]:
        import click

        context = click.Context(group, info_name=command_line)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            yield f".. verb:: {path}{name}\n"
            yield from _help(command, f"{command_line} {name}", indent=3)
            if isinstance(command, click.Group):
                yield from self._verbs(command, f"{command_line} {name}", f"{path}{name} ")


class BeatCommand(Written):
    def lines(self) -> Iterable[str]:
        from celery_delay.__main__ import main

        yield from _help(main, "python -m celery_delay", indent=0)


def _help(command: Any, command_line: str, indent: int) -> Iterator[str]:
    import click

    context = click.Context(
        command, info_name=command_line, terminal_width=80, max_content_width=80
    )
    yield f"{' ' * indent}::\n"
    for line in command.get_help(context).splitlines():
        yield f"{' ' * indent}   {line}"
    yield ""


class JSONDocuments(Written):
    room = "cli"

    def title(self, path: Path, schema: Mapping[str, Any]) -> str:
        title = f"``{path.stem}``"
        return f"{title}\n{'-' * len(title)}\n"

    def lines(self) -> Iterable[str]:
        for path in sorted((PACKAGE / self.room / "schemas").glob("*.json")):
            schema = json.loads(path.read_text(encoding="utf-8"))
            yield self.title(path, schema)
            where = path.relative_to(PACKAGE.parent)
            yield f"{schema['description']} Schema: ``{where}``.\n"
            for form in schema.get("oneOf", [schema]):
                if form is not schema:
                    yield f"{form['description']}\n"
                yield ".. list-table::\n   :header-rows: 1\n   :widths: 28 17 55\n"
                yield "   * - field\n     - type\n     - meaning"
                for name, one in _fields(form):
                    yield f"   * - ``{name}``\n     - {_kind(one)}\n     - {_plain(one)}"
                yield ""


class FlowerDocuments(JSONDocuments):
    room = "flower"

    def title(self, path: Path, schema: Mapping[str, Any]) -> str:
        return f".. rubric:: ``{schema['title']}``\n"


def _fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields of a document and of what is in it: ``tasks[].eta``."""
    for name, one in schema.get("properties", {}).items():
        yield f"{path}{name}", one
        inner = one.get("items", one)
        yield from _fields(inner, f"{path}{name}{'[]' * (inner is not one)}.")


def _kind(one: Mapping[str, Any]) -> str:
    if "enum" in one:
        return "text" + " or null" * (None in one["enum"])
    kinds = [one["type"]] if isinstance(one["type"], str) else one["type"]
    names = {"string": "text", "array": "list"}
    return " or ".join(names.get(kind, kind) for kind in kinds)


def _plain(one: Mapping[str, Any]) -> str:
    """The description, and the values that there are."""
    text = one["description"].replace("*", "\\*").replace("`", "\\`")
    values = [f"``{value}``" for value in one.get("enum", ()) if value is not None]
    return f"{text} {', '.join(values)}".strip()


class Event(SphinxDirective):
    """``.. delay-event:: name`` with the meaning as its body."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        found = log_events(PACKAGE).get(name)
        if found is None:
            raise self.error(f"no log call has the event {name!r}")
        facts = f"; with {', '.join(f'``{one}``' for one in sorted(found.facts))}" * bool(
            found.facts
        )
        lines = [f".. event:: {name}", ""]
        lines += [f"   {line}" for line in self.content]
        lines += [
            "",
            f"   {' or '.join(sorted(one.upper() for one in found.levels))}"
            f" from {', '.join(f'``{one}``' for one in sorted(found.loggers))}{facts}.",
        ]
        node = nodes.section()
        node.document = self.state.document
        self.state.nested_parse(StringList(lines, f"<{name}>"), self.content_offset, node)
        return node.children


def _flat(text: Any) -> str:
    return " ".join(str(text or "").split())


def undescribed(app: Sphinx, env: Any) -> None:
    """Warn about events in the code that the page does not describe."""
    page = Path(app.srcdir) / "reference" / "events.rst"
    for name in sorted(set(log_events(PACKAGE)) - documented(page, "delay-event")):
        logger.warning("reference/events.rst does not describe the log event %r", name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_object_type("setting", "setting", "setting; %s")
    app.add_object_type("event", "event", "log event; %s")
    app.add_object_type("verb", "verb", "celery delay; %s")
    app.add_directive("delay-settings", SettingsTable)
    app.add_directive("delay-keys", KeysTable)
    app.add_directive("delay-lua", LuaTable)
    app.add_directive("delay-states", StatesTable)
    app.add_directive("delay-cli", CommandLine)
    app.add_directive("delay-beat", BeatCommand)
    app.add_directive("delay-json", JSONDocuments)
    app.add_directive("delay-flower-json", FlowerDocuments)
    app.add_directive("delay-event", Event)
    app.connect("env-check-consistency", undescribed)
    return {"parallel_read_safe": True}
