"""The metrics of one process, in Prometheus' text format."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from threadbridge.compiled import is_compiled
from threadbridge.crossing.lanes import Lane
from threadbridge.loop.bridge import Bridge
from threadbridge.telemetry.totals import Distribution


def exposition(bridge: Bridge, is_ready: bool) -> bytes:
    """All metrics of a bridge and its process, including every request that has ended by now.

    :param is_ready: whether this process is free of faults that keep it from serving.
    """
    bridge.telemetry.flush()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_BridgeCollector(bridge, is_ready))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _BridgeCollector(Collector):
    """Makes the metric families when they are collected."""

    def __init__(self, bridge: Bridge, is_ready: bool) -> None:
        self._bridge = bridge
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield from self._requests()
        yield from self._lanes(self._bridge.lanes)
        yield from self._pool()
        yield from self._process()

    def _requests(self) -> Iterator[Metric]:
        totals = self._bridge.totals
        requests = CounterMetricFamily(
            "threadbridge_requests",
            "Requests that have ended, by lane, ending and class of status; no lane if its head was never complete.",
            labels=("lane", "ending", "status"),
        )
        for labels, count in totals.requests.items():
            requests.add_metric(labels, count)
        yield requests
        of_lanes = totals.lanes
        yield _histogram(
            "threadbridge_request_wait_seconds",
            "How long requests waited for a thread.",
            {name: lane.wait for name, lane in of_lanes.items()},
        )
        yield _histogram(
            "threadbridge_request_run_seconds",
            "How long requests ran in a thread until their response began.",
            {name: lane.run for name, lane in of_lanes.items()},
        )
        yield _histogram(
            "threadbridge_request_database_seconds",
            "Time in the database, for requests with statements.",
            {name: lane.database for name, lane in of_lanes.items()},
        )
        statements = CounterMetricFamily(
            "threadbridge_statements", "SQL statements of requests that have ended.", labels=("lane",)
        )
        for name, lane in of_lanes.items():
            statements.add_metric((name,), lane.statements)
        yield statements
        yield _gauge("threadbridge_open_requests", "Requests that have not ended.", len(self._bridge.exchanges.open))

    def _lanes(self, lanes: Sequence[Lane]) -> Iterator[Metric]:
        yield _by_lane("threadbridge_threads", "Threads of the lane.", lanes, [lane.threads for lane in lanes])
        yield _by_lane(
            "threadbridge_busy_threads", "Threads of the lane at work.", lanes, [lane.busy for lane in lanes]
        )
        yield _by_lane(
            "threadbridge_queued_requests", "Requests waiting for a thread.", lanes, [lane.queued for lane in lanes]
        )
        yield _by_lane(
            "threadbridge_queue_limit", "Requests that may wait for a thread.", lanes, [lane.queue for lane in lanes]
        )

    def _pool(self) -> Iterator[Metric]:
        guard = self._bridge.guard
        if guard is None:
            return
        yield _gauge("threadbridge_pool_connections", "Size of the pool; 0 if unlimited.", guard.size)
        yield _gauge("threadbridge_pool_connections_in_use", "Connections of the pool in use.", guard.in_use)
        stopper = guard.stopper
        yield _counter(
            "threadbridge_query_stops",
            "Requests whose running query was stopped in the database.",
            stopper.stops,
        )
        yield _counter(
            "threadbridge_query_stop_failures",
            "Attempts to stop a query or end a connection that failed.",
            stopper.failures,
        )
        yield _counter(
            "threadbridge_connections_severed",
            "Connections cut because their query did not stop.",
            stopper.severed,
        )
        yield _counter(
            "threadbridge_connections_killed",
            "Connections killed in the database, including those of dead processes.",
            stopper.killed,
        )
        yield _gauge(
            "threadbridge_connections_not_ended",
            "Connections cut, or left by dead processes, that have not yet ended in the database.",
            stopper.running,
        )
        yield _counter(
            "threadbridge_query_reruns",
            "Queries run again on a new connection because the old one was lost.",
            guard.reruns,
        )

    def _process(self) -> Iterator[Metric]:
        bridge = self._bridge
        yield _gauge(
            "threadbridge_ready",
            "Processes that are ready, as /readyz says, or stopping; 1 or 0 for a single process.",
            self._is_ready,
        )
        yield _histogram(
            "threadbridge_loop_lag_seconds",
            "How late the event loop was, sampled four times a second.",
            {"": bridge.lag.seen},
        )
        yield _gauge(
            "threadbridge_spool_bytes", "Bytes of large bodies and unread responses on the disk.", bridge.spool.taken
        )
        yield _gauge("threadbridge_spool_limit_bytes", "Maximum of threadbridge_spool_bytes.", bridge.spool.size)
        yield _gauge(
            "threadbridge_open_connections",
            "Client connections, including idle ones.",
            sum(server.connections for server in bridge.servers),
        )
        yield _gauge(
            "threadbridge_connection_limit",
            "Maximum of client connections.",
            sum(server.max_connections for server in bridge.servers),
        )
        refused = CounterMetricFamily(
            "threadbridge_connections_refused",
            "Connections answered 503, by reason.",
            labels=("reason",),
        )
        for reason in ("descriptors", "connections", "client"):
            refused.add_metric((reason,), sum(server.refused_connections[reason] for server in bridge.servers))
        yield refused
        yield _counter(
            "threadbridge_connections_displaced",
            "Idle or slow connections closed to make room for others.",
            sum(server.displaced_connections for server in bridge.servers),
        )
        build = GaugeMetricFamily(
            "threadbridge_build_info",
            "Always 1; the versions, and whether the hot path is compiled, are labels.",
            labels=("version", "python", "tornado", "compiled"),
        )
        compiled = str(is_compiled()).lower()
        build.add_metric((version("threadbridge"), platform.python_version(), version("tornado"), compiled), 1)
        yield build


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(name, meaning, value=value)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _by_lane(name: str, meaning: str, lanes: Iterable[Lane], values: Iterable[int]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=("lane",))
    for lane, value in zip(lanes, values, strict=True):
        family.add_metric((lane.name,), value)
    return family


def _histogram(name: str, meaning: str, by_lane: dict[str, Distribution]) -> Metric:
    family = HistogramMetricFamily(name, meaning, labels=() if "" in by_lane else ("lane",))
    for lane, distribution in by_lane.items():
        bounds = [*(str(bound) for bound in distribution.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(distribution.counts), strict=True))
        family.add_metric((lane,) if lane else (), buckets, distribution.sum)
    return family
