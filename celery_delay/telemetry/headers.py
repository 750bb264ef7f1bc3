"""Headers of messages in which others' tools note what they measure."""

from __future__ import annotations

__all__ = ["CONTEXT", "ENQUEUED", "SPANS"]

#: The context of a span, as W3C and OpenTelemetry write it.
CONTEXT = ("traceparent", "tracestate")
#: All that note a span; Sentry writes them once more into a header named "headers".
SPANS = (*CONTEXT, "baggage", "sentry-trace")
#: Where Sentry notes when a task came onto its queue, in seconds, to tell how long it lay there.
#: Paths into an envelope.
ENQUEUED = (
    ("headers", "sentry-task-enqueued-time"),
    ("headers", "headers", "sentry-task-enqueued-time"),
)
