"""Instants and spans for people and for programs.

People read local time with its offset (an hour may come twice in autumn); programs get
ISO 8601 in UTC.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import click

from celery_delay.domain.clock import from_ms, to_ms
from celery_delay.domain.documents import fields, iso
from celery_delay.domain.entries import Due
from celery_delay.domain.spans import span

__all__ = ["DATETIME", "INSTANT", "SECONDS", "fields", "iso", "local", "relative", "span"]

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPAN = re.compile(r"([+-]?)(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def local(ms: int | None, timespec: str = "seconds") -> str:
    """The instant in this machine's time zone for people."""
    if ms is None:
        return "-"
    try:
        return from_ms(ms).astimezone().isoformat(sep=" ", timespec=timespec)
    except (OverflowError, ValueError):
        return f"{ms} ms"


def relative(ms: int | None, now_ms: int) -> str:
    """How far the instant is from now: ``in 5m 03s``, ``2.0 s ago``."""
    if ms is None:
        return "-"
    return f"in {span(ms - now_ms)}" if ms >= now_ms else f"{span(now_ms - ms)} ago"


class _Instant(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """An ISO 8601 instant, or a span from now such as ``30m`` or ``-2h``."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Due:
        if isinstance(value, Due):
            return value
        text = str(value).strip()
        if found := _SPAN.fullmatch(text):
            sign, number, unit = found.groups()
            return Due(round(float(sign + number) * _UNITS[unit]), True)
        try:
            # fromisoformat() knows "Z" only since Python 3.11
            instant = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
            # without an offset it is local time, as the tables show it
            return Due(to_ms(instant.astimezone()), False)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither an instant such as 2030-01-31T09:00 (local time) or"
                " 2030-01-31T09:00:00Z, nor a span from now such as 30m, 2h or -1d",
                param,
                ctx,
            )


INSTANT = _Instant()


class _Datetime(click.ParamType):  # type: ignore[type-arg]
    """An ISO 8601 instant."""

    name = "instant"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        due = INSTANT.convert(value, param, ctx)
        if due.is_delay:
            self.fail(f"{value!r} is a span, not an instant: say --countdown or --by", param, ctx)
        return from_ms(due.ms)


DATETIME = _Datetime()


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    """A number of seconds, or a span such as ``30m`` or ``-2h``."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        text = str(value).strip()
        try:
            if found := _SPAN.fullmatch(text):
                sign, number, unit = found.groups()
                return timedelta(milliseconds=round(float(sign + number) * _UNITS[unit]))
            return timedelta(seconds=float(text))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither a number of seconds nor a span such as 30m, 2h or -1d",
                param,
                ctx,
            )


SECONDS = _Seconds()
