"""Spans of OpenTelemetry for requests, their waits and their SQL statements, by its conventions for HTTP and databases.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and https://opentelemetry.io/docs/specs/semconv/db/
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any, cast

from tornado.httputil import HTTPHeaders

from threadbridge.crossing.current import names_for_logs
from threadbridge.crossing.exchange import Exchange
from threadbridge.sql.mask import masked
from threadbridge.sql.statements import Statement
from threadbridge.telemetry.http_metrics import METHODS, known_method
from threadbridge.telemetry.sampling import Sampling

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON, TraceIdRatioBased
    from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError as error:
    raise ValueError(f"otel: {error}; pip install 'threadbridge[otel]'") from None

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context

# Seconds from which on a wait has a span. For shorter ones the attribute is enough: a span costs as much as the
# request's own.
SHORTEST_WAIT = 0.001

# Parts of URLs that give access to whoever knows them, by the conventions.
_SECRET = re.compile(r"(?<![^&;])(AWSAccessKeyId|Signature|sig|X-Goog-Signature)=[^&]*")
# The samplers by the names that they have for operators, with the ratio.
_RATIO = re.compile(
    r"(?:ParentBased\{root:)?TraceIdRatioBased\{([0-9.e-]+)\}(?:,remoteParentSampled:AlwaysOnSampler,"
    r"remoteParentNotSampled:AlwaysOffSampler,localParentSampled:AlwaysOnSampler,"
    r"localParentNotSampled:AlwaysOffSampler\})?"
).fullmatch
# What a statement does, and to which tables: words are enough, as this is only a name.
_VERB = re.compile(r"(?:\s|\(|(?>/\*.*?\*/)|--[^\n]*\n)*+([A-Za-z]+)", re.DOTALL).match
_TABLES = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE)\s+([\w.`\"$]+)", re.IGNORECASE).findall
_LONGEST_SUMMARY = 255


class Tracing:
    """Makes a span for each request of a bridge.

    The application may have set OpenTelemetry's tracer provider; otherwise the environment configures one. Raises
    ``ValueError`` if a package is missing, or the environment asks for what is not supported.
    """

    def __init__(self) -> None:
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            # Not above: the application may use another one.
            from threadbridge.telemetry.otlp import provider_of_environment

            trace.set_tracer_provider(provider_of_environment())
        provider = trace.get_tracer_provider()
        self._tracer = trace.get_tracer("threadbridge", schema_url="https://opentelemetry.io/schemas/1.37.0")
        # The SDK takes 10 µs to find that a request is not recorded, a third of what such a request may take in all. So
        # for its usual sampler, which records a share of the requests without a parent, that is decided here.
        description = getattr(provider, "sampler", None) and provider.sampler.get_description()  # type: ignore[attr-defined]
        ratio = _RATIO(description or "")
        self.sampling = Sampling(float(ratio[1]) if ratio else 1.0)
        self._recording = _recording(self._tracer, float(ratio[1])) if ratio else self._tracer
        # What the application's own instrumentation sees in requests that are not recorded and have no parent. Never
        # detached: each request attaches its own.
        unrecorded = trace.set_span_in_context(_UnrecordedSpan(), contexts.Context())
        self.enter_unrecorded: Callable[[], object] = partial(contexts.attach, unrecorded)
        # ``traceparent`` and others, unless OTEL_PROPAGATORS names other formats.
        self._fields = [name for name in propagate.get_global_textmap().fields if name != "tracestate"]
        self._none = contexts.Context()

    def has_parent(self, headers: HTTPHeaders) -> bool:
        """Return whether a request's headers name the trace that it belongs to. Loop side."""
        return any(name in headers for name in self._fields)

    def begin(self, exchange: Exchange, *, has_parent: bool) -> Trace:
        """Begin the span of a request whose head has come, and that is to be recorded or has a parent. Loop side."""
        line = exchange.start_line
        parent, tracer = self._none, self._recording
        if has_parent:
            carrier = {name.lower(): value for name, value in exchange.headers.get_all()}
            parent, tracer = propagate.extract(carrier, self._none), self._tracer
        method = known_method(line.method)
        # Samplers see only these.
        attributes = {
            "http.request.method": method,
            "url.path": line.path.partition("?")[0],
            "url.scheme": exchange.peer.scheme,
        }
        name = method if method != "_OTHER" else "HTTP"
        span = tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        return Trace(self._tracer, span, trace.set_span_in_context(span, parent), has_parent)

    def pass_on(self, exchange: Exchange) -> None:
        """Let another host continue the trace of a request that is forwarded to it. Loop side."""
        request = exchange.running.trace
        if not isinstance(request, Trace):
            return
        fields: dict[str, str] = {}
        propagate.inject(fields, request.context)
        for name, value in fields.items():
            exchange.headers[name] = value

    def finish(self, exchange: Exchange) -> None:
        """End the span of a request that has ended. Loop side."""
        request = exchange.running.trace
        if not isinstance(request, Trace) or not request.span.is_recording():
            return
        span = request.span
        if exchange.queued_at and not exchange.run_at:
            request.note_wait(exchange.queued_at, exchange.lane.name)
        span.set_attributes(_attributes(exchange))
        if exchange.status >= 500:
            span.set_attribute("error.type", str(exchange.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def flush(self) -> None:
        """Export what has ended, within a few seconds. Any thread but the loop's."""
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            from threadbridge.telemetry.otlp import call_within_flush_time

            call_within_flush_time(flush)


def _attributes(exchange: Exchange) -> dict[str, str | int | float]:
    headers, line, peer = exchange.headers, exchange.start_line, exchange.peer
    found: dict[str, str | int | float] = {
        "http.response.status_code": exchange.status,
        "network.protocol.version": line.version.partition("/")[2],
        "threadbridge.request_id": exchange.id,
        "threadbridge.lane": exchange.lane.name,
        "threadbridge.ending": str(exchange.state),
    }
    if line.method not in METHODS:
        found["http.request.method_original"] = line.method
    query = line.path.partition("?")[2]
    if query:
        found["url.query"] = _SECRET.sub(r"\1=REDACTED", query)
    host, _, port = headers.get("Host", "").rpartition(":")
    if not port.isdigit():
        host, port = headers.get("Host", ""), ""
    if host:
        found["server.address"] = host
    if port:
        found["server.port"] = int(port)
    if peer.address:
        found["client.address"] = peer.address
    if "User-Agent" in headers:
        found["user_agent.original"] = headers["User-Agent"]
    if exchange.upstream:
        found["threadbridge.upstream"] = exchange.upstream
    if exchange.queued_at:
        found["threadbridge.wait"] = (exchange.run_at or exchange.ended_at) - exchange.queued_at
    if exchange.before >= 0.0:
        found["threadbridge.before"] = exchange.before
    return found


class Trace:
    """The trace of one request: a `threadbridge.crossing.trace.RequestTrace`.

    The loop begins and ends the span; the worker owns the rest.
    """

    def __init__(self, tracer: trace.Tracer, span: Span, context: Context, is_continued: bool) -> None:
        self.span = span
        self.context = context
        self._tracer = tracer
        # Whether logs may name a trace that is not recorded here: others may have recorded theirs.
        self._is_continued = is_continued
        self._token: Token[Context] | None = None

    @property
    def traceparent(self) -> str:
        own = self.span.get_span_context()
        return _traceparent(own) if own.trace_flags.sampled or self._is_continued else ""

    @property
    def current_traceparent(self) -> str:
        current = trace.get_current_span().get_span_context()
        return _traceparent(current) if current.trace_flags.sampled else ""

    def note_wait(self, queued_at: float, lane: str) -> None:
        """Add a span for the wait in the lane, until now, unless it was short. Either side."""
        wait = time.monotonic() - queued_at
        if wait < SHORTEST_WAIT:
            return
        began = time.time_ns() - int(1e9 * wait)
        attributes = {"threadbridge.lane": lane}
        self._tracer.start_span("wait for a thread", self.context, attributes=attributes, start_time=began).end()

    def enter(self, queued_at: float, lane: str) -> None:
        if self.span.is_recording():
            self.note_wait(queued_at, lane)
        self._token = contexts.attach(self.context)

    def leave(self) -> None:
        if self._token is not None:
            contexts.detach(self._token)

    def begin_statement(
        self, statement: Statement, database: Mapping[str, str | int]
    ) -> tuple[Span, Token[Context]] | None:
        if not self.span.is_recording():
            return None
        current = trace.get_current_span()
        # The application's own span, if there is one. Its own threads have no context.
        parent = contexts.get_current() if current.get_span_context().is_valid else self.context
        text = masked(statement.sql)
        summary = summary_of(text)
        attributes: dict[str, str | int] = {**database, "db.query.text": text, "db.query.summary": summary}
        name = summary or str(database["db.system.name"])
        span = self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes)
        return span, contexts.attach(trace.set_span_in_context(span, parent))

    def end_statement(self, begun: object, statement: Statement) -> None:
        if not isinstance(begun, tuple):
            return
        span, token = begun
        contexts.detach(token)
        if statement.error:
            span.set_attribute("error.type", statement.error)
            span.set_status(Status(StatusCode.ERROR))
        elif statement.rows >= 0:
            span.set_attribute("threadbridge.rows", statement.rows)
        span.end()


class _UnrecordedSpan(NonRecordingSpan):
    """The span of whichever request this code runs for, which the application's own spans see: not recorded."""

    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)

    def get_span_context(self) -> SpanContext:
        # Few ask. It is the same for all who do, also in the application's threads, and no other request's.
        request_id, _ = names_for_logs()
        if not request_id:
            return trace.INVALID_SPAN_CONTEXT
        digest = blake2b(request_id.encode(), digest_size=24).digest()
        ids = int.from_bytes(digest[:16]), int.from_bytes(digest[16:])
        return SpanContext(*ids, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))


class _SampledIds(RandomIdGenerator):
    """Trace ids that a sampler of this ratio records, so that others with the same ratio record them too."""

    def __init__(self, ratio: float) -> None:
        self._random = Random()
        # At least 1, for ids other than 0.
        self._bound = max(2, TraceIdRatioBased.get_bound_for_rate(ratio))

    def generate_trace_id(self) -> int:
        return (self._random.getrandbits(64) << 64) + self._random.randrange(1, self._bound)


def _recording(tracer: trace.Tracer, ratio: float) -> trace.Tracer:
    """A tracer like this one, which records every span that has no parent."""
    recording: Any = copy(tracer)
    recording.sampler, recording.id_generator = ALWAYS_ON, _SampledIds(ratio)
    return cast(trace.Tracer, recording)


def _traceparent(context: SpanContext) -> str:
    """See W3C Trace Context, section 3.2."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def summary_of(sql: str) -> str:
    """What a statement does, and the tables, such as ``SELECT orders customers``: few different ones. Any thread."""
    verb = _VERB(sql)
    if verb is None:
        return ""
    tables = dict.fromkeys(name.replace("`", "").replace('"', "") for name in _TABLES(sql))
    return " ".join([verb[1].upper(), *tables])[:_LONGEST_SUMMARY]
