"""How long something takes, in words."""

from __future__ import annotations

__all__ = ["span"]


def span(ms: int | None) -> str:
    """A duration in its two largest units: ``340 ms``, ``5m 03s``, ``2d 04h``."""
    if ms is None:
        return "-"
    if ms < 0:
        return f"-{span(-ms)}"
    if ms < 1_000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    seconds = ms // 1000
    if seconds < 3_600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{seconds // 3_600}h {seconds % 3_600 // 60:02d}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3_600:02d}h"
