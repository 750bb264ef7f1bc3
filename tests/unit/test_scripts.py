"""The Lua files and their loader, without a server: headers, syntax, globals, names."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from importlib.resources import files

import pytest
from lupa.lua51 import LuaRuntime

from celery_delay.store import scripts
from celery_delay.store.keys import ShardKeys

LUA = files("celery_delay.store").joinpath("lua")
NAMES = sorted(one.name[:-4] for one in LUA.iterdir() if one.name.endswith(".lua"))
INCLUDES = sorted(one.name[:-4] for one in LUA.joinpath("include").iterdir())
#: What Redis offers to a script, as far as ours may use it.
GLOBALS = {
    "ARGV", "KEYS", "cjson", "ipairs", "math", "next", "pairs", "pcall", "redis", "string", "table",
    "tonumber", "type", "unpack",
}  # fmt: skip
KINDS = {"int", "str"}
KEYS = ShardKeys("test:", 0)


def source(name: str) -> str:
    return LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")


def body(name: str) -> str:
    """The file without its comments."""
    return "\n".join(line.split("--")[0] for line in source(name).splitlines())


each_file = pytest.mark.parametrize("name", NAMES)


def test_there_are_files() -> None:
    assert {"add", "cancel", "move", "elect", "release"} <= set(NAMES)
    assert {"clock", "journal", "records", "tombstones"} <= set(INCLUDES)


# --- headers -------------------------------------------------------------------------------


@each_file
def test_a_header_is_complete(name: str) -> None:
    lines = source(name).splitlines()

    assert re.fullmatch(r"--- [A-Z].*[.:]", lines[0])
    for field in ("KEYS", "ARGV", "RETURNS"):
        assert len([one for one in lines if one.startswith(f"-- {field}: ")]) == 1, field


@each_file
def test_each_argument_has_a_name_a_type_and_integers_their_unit_or_are_numbers(name: str) -> None:
    [header] = re.findall(r"^-- ARGV: (.*)$", source(name), re.MULTILINE)

    for one in header.split():
        argument, kind, *unit = one.split(":")
        assert re.fullmatch(r"[a-z][a-z_]*", argument)
        if one == "rest:*":
            assert header.endswith("rest:*"), "rest comes last"
            continue
        assert kind in KINDS
        assert len(unit) <= 1
        if argument.endswith("_ms") or argument == "now":
            assert unit == ["ms"]


@each_file
def test_each_key_is_one_of_the_shards(name: str) -> None:
    script = scripts.load(name)

    assert len(set(script.keys)) == len(script.keys)
    for key in script.keys:
        assert getattr(KEYS, key) in KEYS.all()


@each_file
def test_each_declared_name_is_used_and_each_key_by_name(name: str) -> None:
    script = scripts.load(name)
    text = "\n".join([body(name), *(body(f"include/{one}") for one in _included(name))])

    assert "KEYS[" not in body(name)
    assert "ARGV[" not in body(name)
    for declared in (*script.keys, *script.arguments):
        assert re.search(rf"\b{declared}\b", text), f"{declared} is declared and not used"


def _included(name: str) -> list[str]:
    found = re.search(r"^-- @include (.*)$", source(name), re.MULTILINE)
    return found[1].split() if found else []


@pytest.mark.parametrize("name", INCLUDES)
def test_an_include_is_used_and_mentions_no_position(name: str) -> None:
    assert any(name in _included(one) for one in NAMES)
    assert "KEYS[" not in body(f"include/{name}")
    assert "ARGV[" not in body(f"include/{name}")


def test_all_but_what_stores_more_run_on_a_full_redis() -> None:
    refused = {name for name in NAMES if not scripts.load(name).allow_oom}

    assert refused == {"add", "backfill", "import", "put_schedule", "replace"}


@each_file
def test_the_first_key_is_a_hash(name: str) -> None:
    # Redis 6.2's way around a full memory begins with an HDEL on it
    first = scripts.load(name).keys[0]

    documented = getattr(type(KEYS), first).__doc__
    assert documented.startswith("hash"), f"{first}: {documented}"


@each_file
def test_no_script_looks_for_keys(name: str) -> None:
    assert not re.search(r"'(KEYS|SCAN|[HSZ]SCAN|FLUSH\w*)'", body(name))


# --- syntax and globals ----------------------------------------------------------------------


@pytest.mark.parametrize("version", [(6, 2), (7, 0), (8, 0)])
@each_file
def test_a_file_compiles_and_touches_no_global_of_its_own(
    name: str, version: tuple[int, int]
) -> None:
    text = re.sub(r"^#!lua.*", "", scripts.load(name).text(version))

    read, written = globals_of(text)

    assert written == set()
    assert read <= GLOBALS


def test_a_global_would_be_seen() -> None:
    assert globals_of("local a = b; c = 1; return function() d = e end") == (
        {"b", "e"},
        {"c", "d"},
    )


_compile = LuaRuntime(encoding=None).eval(
    b"function(text) local f, e = loadstring(text); if not f then error(e) end "
    b"return string.dump(f) end"
)


def globals_of(text: str) -> tuple[set[str], set[str]]:
    """The names of the globals that a script reads, and that it writes."""
    dump = io.BytesIO(_compile(text.encode()))
    head = dump.read(12)
    assert head[:5] == b"\x1bLua\x51"
    read: set[str] = set()
    written: set[str] = set()
    for opcode, name in _global_instructions(dump, size_of_size=head[8]):
        (read if opcode == 5 else written).add(name)
    return read, written


def _global_instructions(dump: io.BytesIO, size_of_size: int) -> Iterator[tuple[int, str]]:
    """GETGLOBAL (5) and SETGLOBAL (7) of a Lua 5.1 function, and of those within it."""

    def integer() -> int:
        return int(struct.unpack("<i", dump.read(4))[0])

    def string() -> str:
        length = int.from_bytes(dump.read(size_of_size), "little")
        return dump.read(length)[:-1].decode(errors="replace")

    string()
    dump.read(8 + 4)  # lines; numbers of upvalues, parameters and registers
    code = [int(struct.unpack("<I", dump.read(4))[0]) for _ in range(integer())]
    constants = []
    for _ in range(integer()):
        kind = dump.read(1)[0]
        if kind == 4:
            constants.append(string())
        else:
            dump.read({0: 0, 1: 1, 3: 8}[kind])
            constants.append("")
    for instruction in code:
        if instruction & 0x3F in (5, 7):
            yield instruction & 0x3F, constants[instruction >> 14]
    for _ in range(integer()):
        yield from _global_instructions(dump, size_of_size)
    dump.read(4 * integer())
    for _ in range(integer()):
        string()
        dump.read(8)
    for _ in range(integer()):
        string()


# --- the loader ------------------------------------------------------------------------------


def test_flags_are_for_servers_that_know_them() -> None:
    move, add = scripts.load("move"), scripts.load("add")

    assert move.text((7, 0)).startswith("#!lua flags=allow-oom\n")
    assert add.text((7, 4)).startswith("#!lua\n")
    assert move.text((6, 2)).startswith("redis.call('HDEL', KEYS[1], '')\n")
    assert add.text((6, 2)).startswith("local mark = KEYS[1]\n")


def test_arguments_are_put_in_order_and_checked() -> None:
    release = scripts.load("release")

    assert release.argv({"term": 7, "holder": "me"}) == ["me", 7]
    with pytest.raises(TypeError, match="holder"):
        release.argv({"term": 7})
    with pytest.raises(TypeError, match="oops"):
        release.argv({"term": 7, "holder": "me", "oops": 1})


def test_integers_become_numbers_and_the_rest_a_list() -> None:
    text = scripts.load("add").body

    assert "local now = tonumber(ARGV[1])" in text
    assert "rest[#rest + 1] = ARGV[i]" in text
    assert scripts.load("cancel").takes_rest is False


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("--- It does.\n-- RETURNS: 1\nreturn 1", "KEYS"),
        ("--- It does.\n-- KEYS: \n-- RETURNS: 1\nreturn 1", "declares no KEYS"),
        ("--- It does.\n-- KEYS: mark\n-- ARGV: a:float\n", "unknown type float"),
    ],
)
def test_a_bad_header_is_told(
    text: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("lua")
    folder.joinpath("bad.lua").write_text(text)
    monkeypatch.setattr(scripts, "_LUA", folder)
    scripts.load.cache_clear()

    with pytest.raises(ValueError, match=why):
        scripts.load("bad")
