"""JSON texts as values of options."""

from __future__ import annotations

import json
from typing import Any

import click

__all__ = ["LIST", "OBJECT"]


class _JSON(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """JSON text of one kind."""

    def __init__(self, kind: type, name: str) -> None:
        self.kind = kind
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as exc:
            self.fail(f"{value!r} is no JSON: {exc}", param, ctx)
        if not isinstance(found, self.kind):
            self.fail(f"{value!r} is no {self.name}", param, ctx)
        return found


LIST = _JSON(list, "JSON list")
OBJECT = _JSON(dict, "JSON object")
