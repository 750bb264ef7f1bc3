"""What tracers write into a message is no part of its template, and comes out where it should."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from celery_delay.domain.entries import Record, Template
from celery_delay.message.shape import HEADER, Place, shape_of
from celery_delay.telemetry import tracing
from celery_delay.worker.links import RunLinks

SPAN = "00-{:032x}-{:016x}-01"
PLACE = Place(0, "celery", "celery")


def envelope(number: int) -> dict[str, Any]:
    """A message as OpenTelemetry and Sentry leave it."""
    told = {"sentry-trace": f"trace-{number}", "sentry-task-enqueued-time": 1.5 + number}
    headers = {
        "id": "the-id",
        "task": "shop.mail",
        "traceparent": SPAN.format(number, number),
        "tracestate": f"vendor={number}",
        "baggage": f"item={number}",
        **told,
        "headers": {**told, "baggage": f"item={number}", "mine": 1},
    }
    return {"body": "e30=", "headers": headers, "properties": {"delivery_tag": "", "priority": 0}}


def filled(number: int, eta_ms: int = 1_700_000_000_123) -> dict[str, Any]:
    shape = shape_of(envelope(number), PLACE, labelled=False)
    values = shape.values(envelope(number))
    slots = Record(7, 1, 0, 0, "", values).slots("the-id", eta_ms)
    message: dict[str, Any] = json.loads(Template.decode(shape.template).fill(slots))
    return message


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def test_messages_that_differ_only_in_their_spans_share_a_template() -> None:
    one, other = (shape_of(envelope(n), PLACE, labelled=False).template for n in (1, 2))

    assert one == other


def test_the_context_waits_in_our_header_and_all_else_stays() -> None:
    headers = filled(5)["headers"]

    assert headers[HEADER] == {
        "task_id": "the-id",
        "run": 7,
        "eta_ms": 1_700_000_000_123,
        "traceparent": SPAN.format(5, 5),
        "tracestate": "vendor=5",
    }
    assert not {"traceparent", "tracestate"} & set(headers)
    assert headers["baggage"] == headers["headers"]["baggage"] == "item=5"
    assert headers["sentry-trace"] == headers["headers"]["sentry-trace"] == "trace-5"
    assert headers["headers"]["mine"] == 1


def test_the_time_on_the_queue_begins_with_the_hand_off() -> None:
    headers = filled(5)["headers"]

    assert headers["sentry-task-enqueued-time"] == 1_700_000_000.123
    assert headers["headers"]["sentry-task-enqueued-time"] == 1_700_000_000.123


def test_without_a_provider_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tracing.is_on()
    assert tracing.context() == {}
    assert tracing.Batches().begin() is None
    with tracing.publishing("shop.mail", "the-id", {}) as added:
        assert added == {}

    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert not tracing.is_on()
    assert "opentelemetry.trace" not in sys.modules


def test_a_batch_that_moved_nothing_leaves_no_span(spans: InMemorySpanExporter) -> None:
    for count in (0, 3):
        batch = tracing.Batches().begin()
        assert batch is not None
        batch.end(count, 12)

    [span] = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 3
    assert span.attributes["celery_delay.lag_ms"] == 12


def test_a_call_that_fails_has_a_span_that_says_so(spans: InMemorySpanExporter) -> None:
    with pytest.raises(OSError, match="no Redis"), tracing.scheduling("shop.mail", "the-id"):
        raise OSError("no Redis")

    [span] = spans.get_finished_spans()
    assert span.name == "schedule shop.mail"
    assert not span.status.is_ok


@pytest.mark.parametrize("header", [{}, {"traceparent": "damaged", "dispatch": 7}])
def test_a_header_without_a_readable_context_links_nothing(
    spans: InMemorySpanExporter, header: dict[str, Any]
) -> None:
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("run"):
        assert tracing.link(header)

    [span] = spans.get_finished_spans()
    assert not span.links


def test_a_run_is_linked_once_and_only_where_there_is_a_span(spans: InMemorySpanExporter) -> None:
    app = Celery("linked", set_as_current=False)
    links = RunLinks(app)

    @app.task(shared=False)
    def task() -> None: ...

    header = {"task_id": "the-id", "run": 1, "traceparent": SPAN.format(4, 4)}
    task.push_request(id="the-id", **{HEADER: header})
    links.on_prerun(task=task)  # the instrumentation comes later
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("run"):
        links.on_postrun(task=task)
    with trace.get_tracer_provider().get_tracer("test").start_as_current_span("again"):
        links.on_prerun(task=task)
        links.on_postrun(task=task)

    for span in spans.get_finished_spans():
        [link] = span.links
        assert link.context.trace_id == 4
