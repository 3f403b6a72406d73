"""The export of traces over OTLP, as OpenTelemetry's environment variables configure it: in a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ValueError(f"otel: {error}; pip install 'threadbridge[otel]'") from None

# The variables for all signals, each with the one for traces, which takes precedence.
_PROTOCOL = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def provider_of_environment(environment: Mapping[str, str] = os.environ) -> TracerProvider:
    """Return a tracer provider as the environment configures it, with the exporter. Raises ``ValueError``.

    The packages themselves read all variables but two: how many spans are recorded (``OTEL_TRACES_SAMPLER``), where
    they are sent (``OTEL_EXPORTER_OTLP_ENDPOINT``), and others.
    """
    # The bridge exports what is left, and does not wait for a collector that does not answer.
    provider = TracerProvider(shutdown_on_exit=False)
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp") or "otlp"
    if exporter == "none":
        return provider
    protocol = next((environment[name] for name in _PROTOCOL if environment.get(name)), "http/protobuf")
    if exporter != "otlp" or protocol != "http/protobuf":
        raise ValueError(
            f"otel: OTEL_TRACES_EXPORTER={exporter} with the protocol {protocol}: the server itself exports only by "
            "otlp with http/protobuf; for others, start it with opentelemetry-instrument, or set a tracer provider in "
            "the application"
        )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
