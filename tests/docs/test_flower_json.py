"""The page of Flower's JSON is compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

from celery_delay.flower import acting, listing, pausing
from celery_delay.flower.asking import FILTERS
from celery_delay.flower.guarding import TOKEN_HEADER
from celery_delay.flower.routes import ROUTES
from celery_delay.flower.schedules import SCHEDULE_VERBS

PAGE = (Path(__file__).parents[2] / "docs/reference/flower-json.rst").read_text(encoding="utf-8")


def test_each_address_is_told() -> None:
    verbs = {
        "/".join(acting.VERBS): "VERB",
        "/".join(SCHEDULE_VERBS): "VERB",
        "/".join(pausing.PAUSE_VERBS): "pause",
    }
    for one in ROUTES:
        path = one.regex.pattern.rstrip("$")
        if not path.startswith("/api/"):
            continue
        path = re.sub(r"\(([a-z|-]+)\)", lambda found: verbs[found[1].replace("|", "/")], path)
        name = "NAME" if "/schedules/" in path else "ID"
        assert f" {path.replace('([^/]+)', name)}``" in PAGE, path


def test_each_argument_is_told() -> None:
    fields = {*acting.FIELDS, *(name for names in pausing.FIELDS.values() for name in names)}
    names = {*FILTERS, *listing.ARGUMENTS, *fields, *acting.VERBS, *SCHEDULE_VERBS}

    assert [one for one in sorted(names) if f"``{one}``" not in PAGE] == []
    assert TOKEN_HEADER in PAGE
    assert f"{listing.MOST_LOOKED_AT:,}".replace(",", " ") in PAGE
