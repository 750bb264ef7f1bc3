"""Spans of OpenTelemetry for what happens to delayed tasks, where a project traces.

A task that waits for a day must not make a trace of a day: what is scheduled, handed off and
run are traces of their own, *linked* to each other.  So the context of the span that
scheduled (W3C's ``traceparent`` and ``tracestate``) does not stay in the headers of the message,
where the worker's instrumentation would take it for the parent; it waits in ours.

Nothing here needs OpenTelemetry.  A process whose project has not set a tracer provider pays
one look into ``sys.modules``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery_delay.domain.tracing import BatchSpan
from celery_delay.telemetry.headers import CONTEXT

__all__ = ["DISPATCH", "Batches", "context", "is_on", "link", "publishing", "scheduling"]

#: Name in our header: the context of the hand-off.
DISPATCH = "dispatch"

#: The provider that was seen last, and our tracer of it.
_known: tuple[Any, Any] = (None, None)


def is_on() -> bool:
    """Whether this process makes spans."""
    return _tracer() is not None


def context() -> dict[str, str]:
    """The present span's context, as headers; nothing where there is none."""
    carrier: dict[str, str] = {}
    if _tracer() is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return carrier


@contextmanager
def scheduling(task: str, task_id: str) -> Iterator[None]:
    """The span of a call that puts a task into the store."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    facts = {**_facts(task, task_id), "messaging.operation.name": "schedule"}
    with tracer.start_as_current_span(f"schedule {task}", kind=_kind(), attributes=facts):
        yield


@contextmanager
def publishing(task: str, task_id: str, header: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """The span of a beat that publishes a message; yields what is to be added to *header*."""
    tracer = _tracer()
    if tracer is None:
        yield {}
        return
    from opentelemetry import trace
    from opentelemetry.context import Context

    facts = {**_facts(task, task_id), "messaging.operation.name": "dispatch"}
    links = [trace.Link(one) for one in [_context_of(header)] if one is not None]
    with tracer.start_as_current_span(
        f"dispatch {task}", Context(), kind=_kind(), attributes=facts, links=links
    ):
        yield {DISPATCH: context().get("traceparent", "")}


class Batches:
    """Spans of moves; see :class:`celery_delay.domain.tracing.Tracing`."""

    def begin(self) -> BatchSpan | None:
        """A span of a move that begins now; ``None`` where nobody traces."""
        tracer = _tracer()
        if tracer is None:
            return None
        from opentelemetry.context import Context

        return _Batch(tracer.start_span("dispatch", Context(), kind=_kind()))


class _Batch:
    """A move's span.  One that is not ended is never exported."""

    def __init__(self, span: Any) -> None:
        self._span = span
        found = span.get_span_context()
        self.traceparent = f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"

    def end(self, count: int, lag_ms: int) -> None:
        if count:
            facts = {"messaging.batch.message_count": count, "celery_delay.lag_ms": lag_ms}
            self._span.set_attributes({**_SYSTEM, "messaging.operation.name": "dispatch", **facts})
            self._span.end()


def link(header: Mapping[str, Any]) -> bool:
    """Link the present span, if there is one, to those that scheduled and dispatched.

    Returns:
        Whether there was a span to link.
    """
    if _tracer() is None:
        return False
    from opentelemetry import trace

    span = trace.get_current_span()
    if not span.is_recording():
        return False
    for name, told in (("scheduled", header), (DISPATCH, {"traceparent": header.get(DISPATCH)})):
        found = _context_of(told)
        if found is not None:
            span.add_link(found, {"celery_delay.link": name})
    return True


def _tracer() -> Any:
    """Our tracer; ``None`` where no provider was set."""
    global _known
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    if provider is not _known[0]:
        is_off = isinstance(provider, (api.ProxyTracerProvider, api.NoOpTracerProvider))
        _known = (provider, None if is_off else provider.get_tracer("celery_delay"))
    return _known[1]


def _kind() -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind.PRODUCER


def _context_of(header: Mapping[str, Any]) -> Any:
    """The span's context that *header* bears; ``None`` for none, or what cannot be read."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {name: one for name in CONTEXT if isinstance(one := header.get(name), str)}
    found = TraceContextTextMapPropagator().extract(
        carrier, trace.set_span_in_context(trace.INVALID_SPAN)
    )
    span = trace.get_current_span(found).get_span_context()
    return span if span.is_valid else None


_SYSTEM = {"messaging.system": "celery"}


def _facts(task: str, task_id: str) -> dict[str, str]:
    return {**_SYSTEM, "celery.task_name": task, "messaging.message.id": task_id}
