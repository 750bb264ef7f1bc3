"""What the reference pages tell about the code, read from the code itself.

Needs neither Sphinx nor an import of the modules it looks at, so the tests use it too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


@dataclass
class LogEvent:
    """One event name, with all the places that log it."""

    name: str
    levels: set[str] = field(default_factory=set)
    loggers: set[str] = field(default_factory=set)
    facts: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class LuaCommand:
    """The contract at the head of a Lua file."""

    name: str
    sentence: str
    keys: tuple[str, ...]
    #: (name, type, unit) of each argument
    arguments: tuple[tuple[str, str, str], ...]
    #: what the header says beyond the fields, line by line
    notes: tuple[str, ...]
    returns: str
    allow_oom: bool


def modules(package: Path) -> Iterator[tuple[str, ast.Module]]:
    """The package's modules by dotted name, parsed."""
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache  # each event's own directive asks, and the answer takes all of the source
def log_events(package: Path) -> dict[str, LogEvent]:
    """Every ``extra={"event": …}`` of a log call, by name."""
    found: dict[str, LogEvent] = {}
    for module, tree in modules(package):
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            for extra in (one.value for one in call.keywords if one.arg == "extra"):
                if not isinstance(extra, ast.Dict):
                    continue
                pairs = {
                    key.value: value
                    for key, value in zip(extra.keys, extra.values, strict=True)
                    if isinstance(key, ast.Constant)
                }
                event = pairs.pop("event", None)
                for name in _texts(event):
                    one = found.setdefault(name, LogEvent(name))
                    level = call.func.attr
                    one.levels.add({"exception": "error"}.get(level, level))
                    one.loggers.add(module)
                    one.facts.update(map(str, pairs))
    return found


def _texts(node: ast.expr | None) -> Iterator[str]:
    """The texts that an expression may be: a literal, or either side of a conditional."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)


def lua_commands(package: Path) -> list[LuaCommand]:
    """The contracts of the store's Lua files, by name."""
    folder = package / "store" / "lua"
    return [_lua(path) for path in sorted(folder.glob("*.lua"))]


def _lua(path: Path) -> LuaCommand:
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("--"):
            break
        header.append(line)
    sentence = header[0].removeprefix("--- ")
    fields: dict[str, str] = {}
    notes: list[str] = []
    allow_oom, current = False, ""
    for line in header[1:]:
        text = line.removeprefix("--").removeprefix(" ")
        if match := re.match(r"(KEYS|ARGV|RETURNS): ?(.*)", text):
            current = match[1]
            fields[current] = match[2].strip()
        elif text.startswith("@"):
            allow_oom = allow_oom or text.startswith("@allow-oom")
        elif current == "RETURNS" and text.startswith("  |"):
            fields[current] += " " + text.strip()
        else:
            notes.append(text)
    arguments = [(*one.split(":"), "", "")[:3] for one in fields.get("ARGV", "").split()]
    return LuaCommand(
        path.stem,
        sentence,
        tuple(fields.get("KEYS", "").split()),
        tuple((one[0], one[1], one[2]) for one in arguments),
        tuple(notes),
        fields.get("RETURNS", ""),
        allow_oom,
    )


def documented(page: Path, directive: str) -> set[str]:
    """The names that *page* describes with ``.. directive:: name``."""
    text = page.read_text(encoding="utf-8")
    return set(re.findall(rf"^\.\. {re.escape(directive)}:: (\S+)$", text, re.MULTILINE))
