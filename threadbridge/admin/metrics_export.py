"""The metrics over OTLP: those of the operators' port under the same names, and those of OpenTelemetry for HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from threadbridge.admin.health import Health
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.loop.bridge import Bridge
from threadbridge.sockets.certificates import Certificates
from threadbridge.sockets.inheritance import Supervision
from threadbridge.telemetry.http_metrics import HttpDurations, active_requests
from threadbridge.telemetry.otlp import call_within_flush_time, is_exported, process_resource
from threadbridge.telemetry.totals import BOUNDS

try:
    from opentelemetry import metrics as api
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk import metrics as sdk
    from opentelemetry.sdk.metrics import export as otlp
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from prometheus_client.core import Metric as Family

    from threadbridge.admin.metrics import families
except ImportError as error:
    raise ValueError(f"otel: {error}; pip install 'threadbridge[otel]'") from None

logger = logging.getLogger("threadbridge")
Labels = Mapping[str, str | int]

# Seconds that the loop may take to read the metrics: if it is held up, they are left out of an export.
LOOP_TIME = 10.0
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class MetricsExport:
    """Exports the metrics of a bridge and its process, in a thread of the SDK: construct, `start`, `close`.

    If the application has not set a meter provider, the server's becomes the global one, so that the application's own
    metrics are exported too. Raises ``ValueError`` if the environment asks for what is not supported.

    :param supervision: returns what the process's supervisor says; None without one.
    :param certificates: those of the server; None if it does not serve HTTPS.
    """

    def __init__(
        self,
        bridge: Bridge,
        supervision: Callable[[], Supervision] | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._bridge = bridge
        self._supervision = supervision
        self._certificates = certificates
        self._health = Health(bridge)
        self._durations = HttpDurations()
        # By method and scheme: zero for those that were there before.
        self._active: dict[tuple[str, str], int] = {}
        self._failed = RepeatedLog(logger)
        self._began = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._provider: sdk.MeterProvider | None = None
        self._is_wanted = _is_wanted()
        if self._is_wanted:
            bridge.telemetry.subscribe(self._durations.read)

    def start(self) -> None:
        """Begin to export, unless the environment says otherwise. Loop side."""
        if not self._is_wanted:
            return
        self._loop = asyncio.get_running_loop()
        reader = otlp.PeriodicExportingMetricReader(_Exporter(self._read))
        # `close` exports what is left, and does not wait for a collector that does not answer.
        self._provider = sdk.MeterProvider([reader], process_resource(), shutdown_on_exit=False)
        # Without an instrument, the SDK exports nothing. The others are none: synchronous ones would take longer than a
        # whole request, and there are no observable histograms.
        self._provider.get_meter("threadbridge").create_observable_gauge(
            "process.uptime", [self._uptime], "s", "The time the process has been running."
        )
        if not _application_has_provider():
            api.set_meter_provider(self._provider)

    def close(self) -> None:
        """Export what is left, within a few seconds. Main thread, after the loop has ended."""
        if self._provider is not None:
            call_within_flush_time(self._provider.shutdown)

    def _uptime(self, options: CallbackOptions) -> Iterator[Observation]:
        yield Observation(time.monotonic() - self._began)

    def _read(self) -> Iterable[Points]:
        """Read all metrics on the loop; none if it is held up. In the SDK's thread."""
        assert self._loop is not None
        if not self._loop.is_running():
            # It has ended, so no one else uses what it owned.
            return asyncio.run(self._read_on_loop(has_ended=True))
        future = asyncio.run_coroutine_threadsafe(self._read_on_loop(has_ended=False), self._loop)
        try:
            return future.result(LOOP_TIME)
        except TookTooLong:
            future.cancel()
            self._failed.log(logging.WARNING, "metrics are not exported: the loop was held up for %g s", LOOP_TIME)
            return []

    async def _read_on_loop(self, *, has_ended: bool) -> list[Points]:
        found = await self._health.readiness(draining=has_ended, asks_database=False)
        # First, since it hands all records to their readers. To end is no fault.
        supervision = None if self._supervision is None else self._supervision()
        is_ready = found.ready or found.draining
        shown = [_points_of(each) for each in families(self._bridge, is_ready, supervision, self._certificates)]
        self._active = dict.fromkeys(self._active, 0) | active_requests(self._bridge.exchanges.open)
        active = Points("http.server.active_requests", "Number of active HTTP server requests.", "sum", "{request}")
        active.numbers = [
            ({"http.request.method": method, "url.scheme": scheme}, number)
            for (method, scheme), number in self._active.items()
        ]
        return [active, _durations(self._durations), *shown]


def _is_wanted() -> bool:
    try:
        return is_exported("METRICS")
    except ValueError as error:
        if not _application_has_provider():
            raise
        # Started with opentelemetry-instrument, for example, and the application's own metrics go elsewhere.
        logger.warning("the server's metrics are not exported: %s", error)
        return False


def _application_has_provider() -> bool:
    return isinstance(api.get_meter_provider(), (sdk.MeterProvider, api.NoOpMeterProvider))


class Points:
    """A metric, and its values by their labels: numbers, or pairs of a sum and the counts of a histogram's buckets."""

    def __init__(self, name: str, meaning: str, kind: str, unit: str = "") -> None:
        self.name = name
        self.meaning = meaning
        self.kind = kind
        self.unit = unit
        self.numbers: list[tuple[Labels, float]] = []
        self.histograms: list[tuple[Labels, float, list[int]]] = []


def _durations(durations: HttpDurations) -> Points:
    found = Points("http.server.request.duration", "Duration of HTTP server requests.", "histogram", "s")
    for (method, scheme, status), distribution in durations.found.items():
        labels: dict[str, str | int] = {"http.request.method": method, "url.scheme": scheme}
        labels["http.response.status_code"] = status
        if status >= 500:
            labels["error.type"] = str(status)
        found.histograms.append((labels, distribution.sum, list(distribution.counts)))
    return found


def _points_of(family: Family) -> Points:
    """A metric as Prometheus would read it, under the name that it gets there."""
    found = Points(family.name, family.documentation, family.type)
    if family.type != "histogram":
        found.numbers = [(each.labels, each.value) for each in family.samples]
        return found
    # Their buckets are sums of those before them, and come in order.
    buckets: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for each in family.samples:
        labels = {name: value for name, value in each.labels.items() if name != "le"}
        key = tuple(labels.items())
        if each.name.endswith("_bucket"):
            buckets.setdefault(key, [0]).append(int(each.value))
        elif each.name.endswith("_sum"):
            counts = [after - before for before, after in pairwise(buckets[key])]
            found.histograms.append((labels, each.value, counts))
    return found


class _Exporter(OTLPMetricExporter):
    """Adds the server's metrics to those of the SDK. In the SDK's thread."""

    def __init__(self, read: Callable[[], Iterable[Points]]) -> None:
        super().__init__()
        self._read = read
        self._since = time.time_ns()
        # Some backends want only what has been added since the last export. Then these are the last values.
        preference = os.environ.get(TEMPORALITY, "").strip().lower()
        self._last: dict[object, float] | None = {} if preference in ("delta", "lowmemory") else None

    def export(
        self, metrics_data: otlp.MetricsData, timeout_millis: float | None = 10_000, **keywords: Any
    ) -> otlp.MetricExportResult:
        """See `MetricExporter`."""
        now = time.time_ns()
        scope = InstrumentationScope("threadbridge", version("threadbridge"))
        own = otlp.ScopeMetrics(scope, [self._metric(points, now) for points in self._read()], "")
        if self._last is not None:
            self._since = now
        resources = [replace(each, scope_metrics=[*each.scope_metrics, own]) for each in metrics_data.resource_metrics]
        return super().export(otlp.MetricsData(resources), timeout_millis, **keywords)

    def _metric(self, points: Points, now: int) -> otlp.Metric:
        temporality = otlp.AggregationTemporality.CUMULATIVE
        if self._last is not None:
            temporality = otlp.AggregationTemporality.DELTA
        data: otlp.DataT
        if points.kind == "histogram":
            histograms = [
                self._histogram(points.name, labels, total, counts, now) for labels, total, counts in points.histograms
            ]
            data = otlp.Histogram(histograms, temporality)
        elif points.kind == "counter":
            added = [(labels, self._added((points.name, *labels.items()), number)) for labels, number in points.numbers]
            data = otlp.Sum([self._number(labels, number, now) for labels, number in added], temporality, True)
        elif points.kind == "sum":
            numbers = [self._number(labels, number, now) for labels, number in points.numbers]
            data = otlp.Sum(numbers, otlp.AggregationTemporality.CUMULATIVE, False)
        else:
            data = otlp.Gauge([self._number(labels, number, now) for labels, number in points.numbers])
        return otlp.Metric(points.name, points.meaning, points.unit, data)

    def _number(self, labels: Labels, number: float, now: int) -> otlp.NumberDataPoint:
        # As in Prometheus: some are whole numbers or truth values now and then.
        return otlp.NumberDataPoint(labels, self._since, now, float(number))

    def _histogram(
        self, name: str, labels: Labels, total: float, counts: list[int], now: int
    ) -> otlp.HistogramDataPoint:
        key = (name, *labels.items())
        total = self._added((*key, "sum"), total)
        counts = [int(self._added((*key, index), count)) for index, count in enumerate(counts)]
        # The least and the largest value are not known; OTLP does not need them.
        none: Any = None
        return otlp.HistogramDataPoint(labels, self._since, now, sum(counts), total, counts, BOUNDS, none, none)

    def _added(self, key: object, value: float) -> float:
        """The value, or what has been added to it since the last export."""
        if self._last is None:
            return value
        before = self._last.get(key, 0)
        self._last[key] = value
        return value - before
