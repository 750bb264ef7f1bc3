"""A project whose processes trace: with OpenTelemetry, or with Sentry.

``celery -A traced`` reads variables: ``URL``, ``CONF`` (settings as JSON), ``SPANS`` (a file that
gets each finished span as a line of JSON), ``INSTRUMENT`` ("before" or "after" celery-delay is
installed), ``ENVELOPES`` (a file that gets what Sentry would send).
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from celery_delay import CeleryDelay


def trace_with_opentelemetry(path: str) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

    exporter = ConsoleSpanExporter(
        out=open(path, "a", buffering=1),  # noqa: SIM115
        formatter=lambda span: span.to_json(indent=None) + "\n",
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def instrument() -> None:
    from opentelemetry.instrumentation.celery import CeleryInstrumentor

    CeleryInstrumentor().instrument()


def trace_with_sentry(path: str) -> None:
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration
    from sentry_sdk.transport import Transport

    class ToFile(Transport):
        """In place of the network."""

        def capture_envelope(self, envelope: Any) -> None:
            with open(path, "a") as file:
                for item in envelope.items:
                    file.write(json.dumps([item.type, item.payload.json]) + "\n")

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:1/1",
        transport=ToFile,
        traces_sample_rate=1.0,
        auto_enabling_integrations=False,
        integrations=[CeleryIntegration(monitor_beat_tasks=True)],
    )


if "SPANS" in os.environ:
    trace_with_opentelemetry(os.environ["SPANS"])
if os.environ.get("INSTRUMENT") == "before":
    instrument()
if "ENVELOPES" in os.environ:
    trace_with_sentry(os.environ["ENVELOPES"])

app = Celery("traced", broker=os.environ["URL"], backend=os.environ["URL"], set_as_current=False)
app.conf.update(
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
    **json.loads(os.environ.get("CONF", "{}")),
)
CeleryDelay(app)
if os.environ.get("INSTRUMENT") == "after":
    instrument()


@app.task(name="note", bind=True, shared=False)
def note(self: Any) -> dict[str, Any]:
    """What stands in the headers of the message."""
    names = ("traceparent", "tracestate", "celery_delay")
    return {name: self.request.get(name) for name in names}
