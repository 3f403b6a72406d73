"""Metrics in Prometheus' text format: of one process, and the sums of several."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from threadbridge.common.interpreter import is_free_threaded, lock_is_on
from threadbridge.compiled import is_compiled
from threadbridge.loop.bridge import Bridge
from threadbridge.loop.forwarding import Forwarding
from threadbridge.telemetry.totals import BOUNDS, Distribution

if TYPE_CHECKING:
    from threadbridge.database.desk import Desk
    from threadbridge.database.replica import Replica
    from threadbridge.sockets.certificates import Certificates
    from threadbridge.sockets.inheritance import Supervision

# The ends of the names of samples that are not summed over processes.
_SMALLEST = ("_created", "_start_time_seconds", "_expiration_timestamp_seconds", "_last_reload_successful")
_LARGEST = ("_info", "_replica_lag_seconds", "threadbridge_processes", "threadbridge_process_failures_total")
LANE = ("lane",)
POOL = ("pool",)
UPSTREAM = ("lane", "upstream")
# By the attribute of `LaneTotals`.
TIMES = (
    ("before", "threadbridge_request_before_seconds", "How long requests were on their way, as their proxies tell."),
    ("wait", "threadbridge_request_wait_seconds", "How long requests waited for a thread."),
    ("run", "threadbridge_request_run_seconds", "How long requests ran in a thread until their response began."),
    ("database", "threadbridge_request_database_seconds", "Time in the database, for requests with statements."),
)
# By the attribute of `Lane`.
LANES = (
    ("threads", "threadbridge_threads", "Threads of the lane."),
    ("busy", "threadbridge_busy_threads", "Threads of the lane at work."),
    (
        "stuck",
        "threadbridge_stuck_threads",
        "Threads of the lane that have not returned from requests that have ended.",
    ),
    ("queued", "threadbridge_queued_requests", "Requests waiting for a thread."),
    ("queue", "threadbridge_queue_limit", "Requests that may wait for a thread."),
    ("kept", "threadbridge_kept_threads", "Connections, or threads, that long requests leave free for short ones."),
)
# By the attribute of `LaneTotals`, for lanes in which costs matter.
TIMES_BY_CLASS = (
    ("wait_by_class", "threadbridge_request_wait_by_class_seconds", "How long requests of a class waited."),
    (
        "run_by_class",
        "threadbridge_request_run_by_class_seconds",
        "How long requests of a class ran, likewise.",
    ),
)


def exposition(
    bridge: Bridge,
    is_ready: bool,
    supervision: Supervision | None = None,
    certificates: Certificates | None = None,
) -> bytes:
    """See `families`; in Prometheus' text format."""
    return generate_latest(_Families(families(bridge, is_ready, supervision, certificates)))


def families(
    bridge: Bridge, is_ready: bool, supervision: Supervision | None, certificates: Certificates | None
) -> list[Metric]:
    """All metrics of a bridge, its process and its service, including every request that has ended by now.

    :param supervision: what the process's supervisor says; None without one.
    :param certificates: those of the server; None if it does not serve HTTPS.
    """
    bridge.telemetry.flush()
    found = [*_of_requests(bridge), *_of_process(bridge, is_ready), *ProcessCollector(registry=None).collect()]
    if any(bridge.desk):
        found += _of_pools(bridge.desk)
    if bridge.desk.replicas:
        found += _of_replicas(bridge.desk.replicas)
    if bridge.forwarding.upstreams:
        found += _of_hosts(bridge.forwarding)
    return [*found, *_of_service(supervision, certificates)]


def merged(texts: Sequence[bytes]) -> bytes:
    """The sums of samples with the same name and labels; raises ``ValueError`` for texts not in Prometheus' format."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            families.setdefault(family.name, family)
            of_family = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                value = sample.value
                of_family[key] = _joined(sample.name, of_family[key], value) if key in of_family else value
    for name, family in families.items():
        family.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in values[name].items()]
    return generate_latest(_Families(families.values()))


class _Families(list[Metric], Collector):
    """Metric families for `generate_latest`."""

    def collect(self) -> Iterable[Metric]:
        return self


def _joined(name: str, one: float, other: float) -> float:
    if name.endswith(_SMALLEST):
        return min(one, other)
    return max(one, other) if name.endswith(_LARGEST) else one + other


def _of_requests(bridge: Bridge) -> list[Metric]:
    lanes, totals = bridge.lanes, bridge.totals.lanes
    ended = Counter(
        "threadbridge_requests",
        "Requests that have ended, by lane, ending and class of status; no lane if its head was never complete.",
        labels=("lane", "ending", "status"),
    )
    for labels, count in bridge.totals.requests.items():
        ended.add_metric(labels, count)
    refused = Counter(
        "threadbridge_requests_refused_early", "Requests refused because they would have waited too long.", labels=LANE
    )
    outgrown = Counter("threadbridge_requests_outgrown", "Requests that ran for longer than expected.", labels=LANE)
    overestimated = Counter(
        "threadbridge_requests_overestimated", "Requests that were expected to be long and were short.", labels=LANE
    )
    statements = Counter("threadbridge_statements", "SQL statements of requests that have ended.", labels=LANE)
    by_cost = [lane.name for lane in lanes if lane.short_below]
    return [
        ended,
        Gauge("threadbridge_open_requests", "Requests that have not ended.", len(bridge.exchanges.open)),
        _by_label(statements, {name: lane.statements for name, lane in totals.items()}),
        *(
            _histogram(metric, meaning, {(name,): getattr(lane, attribute) for name, lane in totals.items()}, LANE)
            for attribute, metric, meaning in TIMES
        ),
        *(
            _histogram(
                metric,
                meaning,
                {
                    (name, each): found
                    for name in by_cost
                    for each, found in getattr(totals[name], attribute).items()
                    if each
                },
                labels=("lane", "class"),
            )
            for attribute, metric, meaning in TIMES_BY_CLASS
        ),
        _by_label(refused, {lane.name: lane.refused_early for lane in lanes}),
        _by_label(outgrown, {lane.name: lane.outgrown for lane in lanes}),
        _by_label(overestimated, {name: lane.overestimated for name, lane in totals.items()}),
        *(
            _by_label(
                Gauge(metric, meaning, labels=LANE),
                {lane.name: getattr(lane, name) for lane in lanes if not lane.upstream},
            )
            for name, metric, meaning in LANES
        ),
    ]


def _of_hosts(forwarding: Forwarding) -> list[Metric]:
    """For the other hosts of remote lanes."""
    ended = Counter(
        "threadbridge_upstream_requests",
        "Requests sent to another host, by result: answered, refused (not run there) or failed.",
        labels=(*UPSTREAM, "result"),
    )
    running = Gauge("threadbridge_upstream_running_requests", "Requests that are at another host.", labels=UPSTREAM)
    connections = Gauge("threadbridge_upstream_connections", "Open connections to another host.", labels=UPSTREAM)
    up = Gauge(
        "threadbridge_upstream_up",
        "Processes for which another host is up; for others it is left out.",
        labels=UPSTREAM,
    )
    for lane, upstream in forwarding.upstreams.items():
        for host in upstream.hosts:
            labels = (lane.name, host.name)
            ended.add_metric((*labels, "answered"), host.answered)
            ended.add_metric((*labels, "refused"), host.refused)
            ended.add_metric((*labels, "failed"), host.failed)
            running.add_metric(labels, host.running)
            connections.add_metric(labels, host.connections)
            up.add_metric(labels, host.is_up)
    return [ended, running, connections, up]


def _of_pools(desk: Desk) -> list[Metric]:
    guards, stopper = list(desk), desk.stopper
    size = Gauge("threadbridge_pool_connections", "Size of the pool; 0 if unlimited.", labels=POOL)
    in_use = Gauge("threadbridge_pool_connections_in_use", "Connections of the pool in use.", labels=POOL)
    stops = stopper.stops
    failures = stopper.failures
    severed = stopper.severed
    return [
        _by_label(size, {guard.key: guard.size for guard in guards}),
        _by_label(in_use, {guard.key: guard.in_use for guard in guards}),
        Counter("threadbridge_query_stops", "Requests whose query was stopped in the database.", stops),
        Counter("threadbridge_query_stop_failures", "Failed attempts to stop a query.", failures),
        Counter("threadbridge_connections_severed", "Connections cut because a query did not stop.", severed),
        Counter(
            "threadbridge_connections_killed",
            "Connections killed in the database, including those of dead processes.",
            stopper.killed,
        ),
        Gauge(
            "threadbridge_connections_not_ended",
            "Connections cut, or left by dead processes, that have not yet ended in the database.",
            stopper.running,
        ),
        Counter(
            "threadbridge_query_reruns",
            "Queries run again because their connection was lost.",
            sum(guard.reruns for guard in guards),
        ),
    ]


def _of_replicas(replicas: Sequence[Replica]) -> list[Metric]:
    lag = Gauge(
        "threadbridge_replica_lag_seconds",
        "How far the replica is behind at most, as far as is known; the largest of all processes.",
        labels=LANE,
    )
    requests = Counter(
        "threadbridge_replica_requests",
        "Requests that have asked for a connection to the replica, by the server from which they read.",
        labels=("lane", "server"),
    )
    for replica in replicas:
        lag.add_metric((replica.lane,), replica.lag)
        requests.add_metric((replica.lane, "replica"), replica.read_here)
        requests.add_metric((replica.lane, "primary"), replica.read_on_primary)
    return [lag, requests]


def _of_process(bridge: Bridge, is_ready: bool) -> list[Metric]:
    servers, spool = bridge.servers, bridge.spool
    connections = sum(len(server.connections) for server in servers)
    most_connections = sum(server.connections.max_connections for server in servers)
    displaced = sum(server.connections.displaced for server in servers)
    refused = Counter("threadbridge_connections_refused", "Connections answered 503, by reason.", labels=("reason",))
    for reason in ("descriptors", "connections", "client"):
        refused.add_metric((reason,), sum(server.refused_connections[reason] for server in servers))
    build = Gauge(
        "threadbridge_build_info",
        "Always 1; the labels are versions, whether the hot path is compiled, and the kind of Python and its lock.",
        labels=("version", "python", "tornado", "compiled", "free_threaded", "lock"),
    )
    versions = (version("threadbridge"), platform.python_version(), version("tornado"))
    traits = (str(is_compiled()).lower(), str(is_free_threaded()).lower(), "on" if lock_is_on() else "off")
    build.add_metric((*versions, *traits), 1)
    return [
        Gauge("threadbridge_ready", "Processes that are ready, as /readyz says, or stopping.", is_ready),
        _histogram(
            "threadbridge_loop_lag_seconds", "How late the loop was, four times a second.", {(): bridge.lag.seen}
        ),
        Gauge("threadbridge_spool_bytes", "Bytes of large bodies and unread responses on the disk.", spool.taken),
        Gauge("threadbridge_spool_limit_bytes", "Maximum of threadbridge_spool_bytes.", spool.size),
        Gauge("threadbridge_open_connections", "Client connections, including idle ones.", connections),
        Gauge("threadbridge_connection_limit", "Maximum of client connections.", most_connections),
        refused,
        Counter("threadbridge_connections_displaced", "Idle or slow connections closed for others.", displaced),
        build,
    ]


def _of_service(supervision: Supervision | None, certificates: Certificates | None) -> list[Metric]:
    """What is the same in all processes of a supervisor, and what the last orders to read something again led to."""
    count = supervision.processes if supervision is not None else 1
    families: list[Metric] = [Gauge("threadbridge_processes", "Processes that should be ready.", count)]
    reloaded = Gauge(
        "threadbridge_last_reload_successful",
        "1 or 0: whether the application (SIGUSR2), or the certificates (SIGHUP), could be loaded when told to.",
        labels=("subject",),
    )
    if supervision is not None:
        failures = "Processes that the supervisor had to replace: they crashed, or hung and were killed."
        families.append(Counter("threadbridge_process_failures", failures, supervision.failures))
        reloaded.add_metric(("application",), supervision.reloaded)
    if certificates is not None:
        expirations = Gauge(
            "threadbridge_certificate_expiration_timestamp_seconds",
            "When the certificate in use expires, in seconds since 1970.",
            labels=("certfile",),
        )
        families.append(_by_label(expirations, certificates.expirations))
        reloaded.add_metric(("certificates",), certificates.reloaded)
    return [*families, reloaded]


def _by_label(family: Counter | Gauge, values: Mapping[str, float]) -> Metric:
    """The family with a value for each value of its only label."""
    for label, value in values.items():
        family.add_metric((label,), value)
    return family


def _histogram(
    name: str, meaning: str, found: Mapping[tuple[str, ...], Distribution], labels: tuple[str, ...] = ()
) -> Metric:
    """The family with a distribution for each combination of the labels' values."""
    family = HistogramMetricFamily(name, meaning, labels=labels)
    bounds = [*map(str, BOUNDS), "+Inf"]
    for values, distribution in found.items():
        buckets = list(zip(bounds, accumulate(distribution.counts), strict=True))
        family.add_metric(values, buckets, distribution.sum)
    return family
