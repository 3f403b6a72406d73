"""The metrics: Prometheus' own parser reads them, and they agree exactly with the access log."""

from __future__ import annotations

import http.client
import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from prometheus_client.parser import text_string_to_metric_families

from tests.support.cancelling import COUNTED_WAIT
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Lane
from threadbridge.admin.metrics import exposition
from threadbridge.common.interpreter import is_free_threaded, lock_is_on
from threadbridge.loop.watch import INTERVAL
from threadbridge.telemetry.totals import BOUNDS, Distribution

REQUEST = b"%b %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Samples:
    """The samples of one exposition."""

    def __init__(self, text: bytes) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text.decode()):
            assert family.documentation and family.type != "unknown", family.name
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.values
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[f"threadbridge_{name}", frozenset(labels.items())]

    def all(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples with this name."""
        return ((dict(labels), value) for (found, labels), value in self.values.items() if found == name)


def metrics_of(server: BridgeThread) -> Samples:
    """Collect the metrics on the loop, as the operators' port does."""
    seen: list[bytes] = []
    server.loop.call_soon_threadsafe(lambda: seen.append(exposition(server.bridge, is_ready=True)))
    wait_until(lambda: bool(seen), "the loop gives the metrics")
    return Samples(seen[0])


def total(samples: Samples) -> float:
    return sum(value for _, value in samples.all("threadbridge_requests_total"))


def test_they_agree_with_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "threadbridge")
    caplog.set_level(logging.INFO, "tornado.access")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path == "/fails":
            raise LookupError("as asked")
        if path == "/late":
            threading.Event().wait(0.02)
        start_response("404 Not Found" if path == "/missing" else "200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    def leave(server: BridgeThread) -> None:
        server.send(REQUEST % (b"GET", b"/late")).close()

    def ask(server: BridgeThread, path: str) -> None:
        server.request(path=path)

    def send(server: BridgeThread, request: bytes) -> None:
        server.exchange(request)

    kinds: list[tuple[Callable[..., None], *tuple[Any, ...]]] = [
        (ask, "/"),
        (ask, "/missing"),
        (ask, "/fails"),
        (ask, "/narrow"),
        (leave,),
        (send, b"nonsense\r\n\r\n"),
        (send, b"GET / HTTP/1.1\r\n\r\n"),
        (send, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nno\r\n"),
    ]
    lanes = [Lane("narrow", "/narrow", threads=1, queue=0), Lane("late", "/late", threads=1, deadline=0.05)]
    with BridgeThread(app, threads=2, lanes=lanes) as server:
        with ThreadPoolExecutor(8) as clients:
            done = [clients.submit(kinds[n % len(kinds)][0], server, *kinds[n % len(kinds)][1:]) for n in range(400)]
        for each in done:
            each.result()
        wait_until(lambda: total(metrics_of(server)) == 400, "all have ended")
        samples = metrics_of(server)
    lines = "\n".join(record.getMessage() for record in caplog.records if record.name == "tornado.access")
    logged = Counter(re.findall(r'" (\d)\d\d \d+ ".* lane=(\S+) .* ending=(\S+)', lines, re.MULTILINE))
    assert logged.total() == 400
    assert {ending for _, _, ending in logged} >= {"done", "failed", "refused", "abandoned"}
    counted = {
        (labels["status"][0], labels["lane"] or "-", labels["ending"]): value
        for labels, value in samples.all("threadbridge_requests_total")
        if value
    }
    assert counted == dict(logged)
    for lane in ("narrow", "late", "default"):
        ran = sum(value for (_, name, ending), value in logged.items() if name == lane and ending in ("done", "failed"))
        assert samples("request_run_seconds_count", lane=lane) >= ran
        assert samples("request_wait_seconds_count", lane=lane) >= samples("request_run_seconds_count", lane=lane)
        assert samples("request_database_seconds_count", lane=lane) == 0


def test_gauges_show_the_present(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=2, blocking=True, **connect_settings(mariadb))

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(COUNTED_WAIT if "slow" in environ["PATH_INFO"] else "DO 1")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, pool=pool, lanes=[Lane("l", "/*", threads=2)]) as server:
        assert server.request(path="/")[0].status == 200
        wait_until(lambda: server.bridge.lanes[0].busy == 0, "its thread is free")
        before = metrics_of(server)
        assert (before("busy_threads", lane="l"), before("open_requests"), before("query_stops_total")) == (0, 0, 0)
        assert (before("statements_total", lane="l"), before("pool_connections_in_use", pool="1")) == (1, 0)
        assert before("request_database_seconds_count", lane="l") == 1

        clients = [server.send(REQUEST % (b"GET", b"/slow")) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 2, "two queries run")
        wait_until(lambda: server.bridge.lanes[0].queued == 1, "one request waits")
        now = metrics_of(server)
        assert (now("threads", lane="l"), now("busy_threads", lane="l"), now("queued_requests", lane="l")) == (2, 2, 1)
        assert (now("open_requests"), now("open_connections"), now("queue_limit", lane="l")) == (3, 3, 1000)
        assert (now("pool_connections", pool="1"), now("pool_connections_in_use", pool="1")) == (2, 2)

        for client in clients:
            client.close()
        wait_until(lambda: not witness.running, "the queries are stopped")
        wait_until(lambda: metrics_of(server)("query_stops_total") >= 2, "they are counted")
        wait_until(lambda: metrics_of(server)("pool_connections_in_use", pool="1") == 0, "the connections are back")
        after = metrics_of(server)
        assert after("requests_total", lane="l", ending="abandoned", status="4xx") == 3
        assert (after("open_requests"), after("open_connections"), after("query_stop_failures_total")) == (0, 0, 0)
        assert after("request_wait_seconds_count", lane="l") == 4
        assert after("request_run_seconds_count", lane="l") in (3, 4)
    pool.close()


def test_each_pool_has_its_connections_and_all_have_one_count_of_stops(make_pool: Callable[..., Any]) -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return []

    pools = [make_pool(maxconnections=7), make_pool(maxconnections=3)]
    with BridgeThread(app, pool=pools) as server:
        for guard, stops in zip(server.bridge.desk, (2, 3), strict=True):
            guard.reruns = 1
            guard.stopper.stops = stops
        expected = server.bridge.desk.stopper.stops
        with closing(pools[1].connection()):
            samples = metrics_of(server)
        assert [samples("pool_connections", pool=pool) for pool in "12"] == [7, 3]
        assert [samples("pool_connections_in_use", pool=pool) for pool in "12"] == [0, 1]
        assert (samples("query_reruns_total"), samples("query_stops_total")) == (2, expected)
        assert samples("threads", lane="pool-2") == 3


def test_a_blocked_loop_is_measured() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, threads=1) as server:
        server.request()
        wait_until(lambda: metrics_of(server)("loop_lag_seconds_count") > 0, "it is looked at")
        server.loop.call_soon_threadsafe(lambda: threading.Event().wait(INTERVAL + 0.5))
        wait_until(lambda: metrics_of(server)("loop_lag_seconds_sum") >= 0.5, "the lag is seen")


def test_large_bodies_and_the_process_are_measured() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert go_on.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    with BridgeThread(app, threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("POST", "/", body=bytes(5_000_000))
        assert entered.wait(30)
        samples = metrics_of(server)
        go_on.set()
        assert connection.getresponse().status == 200
        connection.close()
        assert 4_000_000 < samples("spool_bytes") <= samples("spool_limit_bytes")
        wait_until(lambda: metrics_of(server)("spool_bytes") == 0, "the disk is free again")
    assert samples.values["process_resident_memory_bytes", frozenset()] > 10_000_000
    [(versions, one)] = samples.all("threadbridge_build_info")
    assert one == 1 and all(versions.values())
    assert set(versions) == {"version", "python", "tornado", "compiled", "free_threaded", "lock"}
    assert versions["free_threaded"] == str(is_free_threaded()).lower()
    assert versions["lock"] == ("on" if lock_is_on() else "off")


def test_a_value_equal_to_a_bound_counts_below_it() -> None:
    distribution = Distribution()
    for value in (0.0, BOUNDS[0], BOUNDS[1], BOUNDS[-1], BOUNDS[-1] + 1):
        distribution.add(value)
    assert (distribution.counts[:3], distribution.counts[-2:]) == ([2, 1, 0], [1, 1])
