"""None of the answers that a Lua command can give is left out by the suites of this folder."""

from __future__ import annotations

import re

from tests.contract import (
    test_backed,
    test_claims,
    test_digests,
    test_gates,
    test_guard,
    test_importing,
    test_paging,
    test_replacing,
    test_revoking,
    test_rights,
    test_schedules,
    test_steering,
    test_store,
    test_uniques,
)
from tests.contract.bench import LUA, shown

#: Loaded here, so that this test says the same when it is run alone.
SUITES = (
    test_guard,
    test_importing,
    test_store,
    test_backed,
    test_digests,
    test_claims,
    test_gates,
    test_paging,
    test_revoking,
    test_rights,
    test_steering,
    test_replacing,
    test_schedules,
    test_gates,
    test_uniques,
)


def test_each_alternative_of_each_file_is_shown() -> None:
    declared = {
        (path.name.removesuffix(".lua"), alternative)
        for path in LUA.iterdir()
        if path.name.endswith(".lua")
        for alternative in _alternatives(path.read_text(encoding="utf-8"))
    }

    unshown = {
        one for one in declared if not any(s == one[0] and one[1].startswith(a) for s, a in shown)
    }
    unknown = {
        (s, a) for s, a in shown if not any(s == name and d.startswith(a) for name, d in declared)
    }

    assert unshown == set()
    assert unknown == set()


def _alternatives(source: str) -> list[str]:
    found = re.search(r"^-- RETURNS: (.*(?:\n--   \|.*)*)", source, re.MULTILINE)
    assert found
    text = re.sub(r"\n--   ", " ", found[1])
    return [one.strip() for one in text.split("|")]
