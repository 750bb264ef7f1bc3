"""The rules of the house, as tests.

Each rule is about the source and needs no server.  Exceptions are written down here, with what
would have to happen for them to go; the lists may only shrink, and a test says when one can.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import celery_delay

PACKAGE = Path(celery_delay.__file__).parent
TESTS = Path(__file__).parents[1]

#: "About 300": beyond this, ask whether it is still one idea.
MODULE_LINES = 320
#: module → lines that it may have at most.
LONG_MODULES = {
    # a list of settings; the checks of their values can move out
    "domain/settings.py": 410,
}
FUNCTION_LINES = 50
#: "module:function" → lines that it may have at most, its docstring aside.
LONG_FUNCTIONS: dict[str, int] = {}
LUA_LINES = 200
#: Lua file → lines that it may have at most.
LONG_LUA: dict[str, int] = {}

#: What reads a clock or waits, by module.  ``time.strftime`` and the like only format.
CLOCKS = {
    "time": {
        "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
        "clock_gettime", "clock_gettime_ns", "process_time", "sleep", "localtime", "gmtime",
    },
    "datetime": {"now", "utcnow", "today"},
}  # fmt: skip

#: Public names without a docstring of their own.
UNDOCUMENTED: set[str] = set()


def modules(folder: Path) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(folder.rglob("*.py")):
        yield str(path.relative_to(folder)), ast.parse(path.read_text(encoding="utf-8"))


OURS = list(modules(PACKAGE))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{node.name}", node  # type: ignore[misc]
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, prefix)


def clock_reads(tree: ast.Module) -> Iterator[str]:
    """Uses of a clock: ``time.monotonic``, ``from time import sleep``, ``datetime.now``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"from time import {one.name}" for one in node.names
                        if one.name in CLOCKS["time"])  # fmt: skip
        elif isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if name == "time" and isinstance(owner, ast.Name) and node.attr in CLOCKS["time"]:
                yield f"time.{node.attr}"
            elif name in ("datetime", "date") and node.attr in CLOCKS["datetime"]:
                yield f"{name}.{node.attr}"


# --- time --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tree"), [pytest.param(n, t, id=n) for n, t in OURS])
def test_only_clock_py_reads_a_clock(name: str, tree: ast.Module) -> None:
    found = list(clock_reads(tree))

    if name == "domain/clock.py":
        assert found, "this test looks past the clock: it proves nothing"
    else:
        assert found == [], f"{name}: ask the Clock that was passed in"


def test_unit_tests_do_not_sleep() -> None:
    found = {
        name: sleeps
        for name, tree in modules(TESTS / "unit")
        if (sleeps := [one for one in clock_reads(tree) if one.endswith("sleep")])
    }

    assert found == {}


# --- sizes -------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    lines = {name: (PACKAGE / name).read_text().count("\n") for name, _ in OURS}

    assert _too_long(lines, MODULE_LINES, LONG_MODULES) == {}


def test_functions_are_short() -> None:
    lines = {
        f"{name}:{function}": _body_lines(node)
        for name, tree in OURS
        if "migrations" not in name  # never edited again
        for function, node in functions(tree)
    }

    assert _too_long(lines, FUNCTION_LINES, LONG_FUNCTIONS) == {}


def test_lua_files_are_short() -> None:
    folder = PACKAGE / "store" / "lua"
    lines = {
        str(path.relative_to(folder)): path.read_text().count("\n")
        for path in folder.rglob("*.lua")
    }

    assert lines
    assert _too_long(lines, LUA_LINES, LONG_LUA) == {}


def _body_lines(node: ast.FunctionDef) -> int:
    """Lines of a function, without its docstring: to explain is no fault."""
    first = node.body[0]
    described = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    doc = (first.end_lineno or 0) - first.lineno + 1 if described else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def _too_long(lines: dict[str, int], bound: int, exceptions: dict[str, int]) -> dict[str, str]:
    """What is longer than it may be, and exceptions that are needed no more."""
    wrong = {
        name: f"{count} lines, {exceptions.get(name, bound)} at most"
        for name, count in lines.items()
        if count > exceptions.get(name, bound)
    }
    for name in exceptions:
        if lines.get(name, 0) <= bound:
            wrong[name] = "not long any more: take it off the list"
    return wrong


# --- names and words ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tree"), [pytest.param(n, t, id=n) for n, t in OURS])
def test_all_is_there_sorted_and_true(name: str, tree: ast.Module) -> None:
    exported = None
    defined = set()
    for node in tree.body:
        targets = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            defined.update(one.asname or one.name for one in node.names)
        elif isinstance(node, ast.If):  # if TYPE_CHECKING
            inner = [one for one in node.body if isinstance(one, ast.ImportFrom)]
            defined.update(one.asname or one.name for part in inner for one in part.names)
        for target in (name for one in targets for name in ast.walk(one)):
            if isinstance(target, ast.Name):
                defined.add(target.id)
                if target.id == "__all__":
                    exported = ast.literal_eval(node.value)  # type: ignore[arg-type,union-attr]

    if "migrations" in name:
        return  # Alembic calls these files by their path
    if exported is None:
        public = [
            one.name for one in tree.body
            if isinstance(one, (ast.FunctionDef, ast.ClassDef)) and not one.name.startswith("_")
        ]  # fmt: skip
        assert public == [], f"{name} has public names and no __all__"
        return
    assert exported == sorted(exported, key=_constants_classes_functions), name
    assert set(exported) <= defined, name


def _constants_classes_functions(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), not name[0].isupper(), name


@pytest.mark.parametrize(("name", "tree"), [pytest.param(n, t, id=n) for n, t in OURS])
def test_modules_say_what_they_are_for(name: str, tree: ast.Module) -> None:
    if "migrations/versions" in name:
        return
    assert ast.get_docstring(tree), name


def test_public_things_are_documented() -> None:
    without = {
        f"{name}:{path}"
        for name, tree in OURS
        if "migrations" not in name
        for path, node in _public(tree)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    }

    assert without - UNDOCUMENTED == set()
    assert UNDOCUMENTED - without == set(), "documented by now: take them off the list"


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions, and classes with their public methods.

    A Protocol's methods are explained by its class, and a method that a Protocol of the same
    module explains needs no second explanation.
    """
    explained: set[str] = set()
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        yield node.name, node
        if not isinstance(node, ast.ClassDef):
            continue
        methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            explained.update(one.name for one in methods)
            continue
        for one in methods:
            if not one.name.startswith("_") and one.name not in explained:
                yield f"{node.name}.{one.name}", one


# --- the rules themselves ----------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.sleep(1)",
        "import time\nwhen = time.monotonic",
        "from time import time",
        "from datetime import datetime\ndatetime.now()",
        "import datetime\ndatetime.datetime.utcnow()",
        "from datetime import date\ndate.today()",
    ],
)
def test_a_clock_is_found(source: str) -> None:
    assert list(clock_reads(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["clock.sleep(1)", "self._clock.monotonic()", "plan.now()", "store.time_ms()"]
)
def test_a_clock_that_was_passed_in_is_none(source: str) -> None:
    assert not list(clock_reads(ast.parse(source)))
