"""What those that hand entries off need of a tracer."""

from __future__ import annotations

from typing import Protocol

__all__ = ["BatchSpan", "Tracing"]


class BatchSpan(Protocol):
    """A tracer's span of one batch that is handed off.

    ``traceparent`` is its context, as W3C writes it; :meth:`end` is told how many entries were
    handed off, and the lag of the latest.
    """

    traceparent: str

    def end(self, count: int, lag_ms: int) -> None: ...


class Tracing(Protocol):
    """Makes spans."""

    def begin(self) -> BatchSpan | None:
        """A span that begins now; ``None`` where nobody traces."""
        ...
