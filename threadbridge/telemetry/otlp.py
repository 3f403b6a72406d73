"""The export over OTLP, as OpenTelemetry's environment variables configure it: in threads of its own."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from typing import Literal

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import PROCESS_PID, SERVICE_INSTANCE_ID, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise ValueError(f"otel: {error}; pip install 'threadbridge[otel]'") from None

# Seconds that the export of what is left may take when the process ends.
FLUSH_TIME = 3.0


def provider_of_environment(environment: Mapping[str, str] = os.environ) -> TracerProvider:
    """Return a tracer provider as the environment configures it, with the exporter. Raises ``ValueError``.

    The packages themselves read all variables but two: how many spans are recorded (``OTEL_TRACES_SAMPLER``), where
    they are sent (``OTEL_EXPORTER_OTLP_ENDPOINT``), and others.
    """
    # The bridge exports what is left, and does not wait for a collector that does not answer.
    provider = TracerProvider(shutdown_on_exit=False, resource=process_resource())
    if is_exported("TRACES", environment):
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def is_exported(signal: Literal["TRACES", "METRICS"], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment wants this signal exported. Raises ``ValueError`` if not by OTLP over HTTP."""
    exporter = environment.get(f"OTEL_{signal}_EXPORTER", "otlp") or "otlp"
    if exporter == "none":
        return False
    # The variable for all signals, and the one for this, which takes precedence.
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name] for name in names if environment.get(name)), "http/protobuf")
    if exporter != "otlp" or protocol != "http/protobuf":
        raise ValueError(
            f"otel: OTEL_{signal}_EXPORTER={exporter} with the protocol {protocol}: the server itself exports only by "
            "otlp with http/protobuf; for others, start it with opentelemetry-instrument, or set a provider in "
            "the application"
        )
    return True


def process_resource() -> Resource:
    """The resource that the environment describes, and what tells this process from others of the same service."""
    resource = Resource.create({PROCESS_PID: os.getpid()})
    if SERVICE_INSTANCE_ID in resource.attributes:
        return resource
    return resource.merge(Resource({SERVICE_INSTANCE_ID: _instance_id(os.getpid())}))


@cache
def _instance_id(pid: int) -> str:
    return str(uuid.uuid4())


def call_within_flush_time(function: Callable[[], object]) -> None:
    """Call a function that exports what is left; wait for no longer than `FLUSH_TIME`. Any thread but the loop's."""
    # The SDK's own time limits do not hold while the collector does not answer.
    flushing = threading.Thread(target=function, name="threadbridge-otlp", daemon=True)
    flushing.start()
    flushing.join(FLUSH_TIME)
