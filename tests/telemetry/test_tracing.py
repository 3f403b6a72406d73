"""Traces of requests, as the SDK's own exporter in memory has them."""

from __future__ import annotations

import itertools
import logging
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.support.databases import connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Lane
from threadbridge.telemetry.tracing import SHORTEST_WAIT, summary_of

TRACE, PARENT = "5bd66ef5095369c7b0d1f8f4bd33716a", "c532cb4098ac3dd2"
WAIT = "wait for a thread"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}


@pytest.fixture(scope="module", name="exported")
def _exported() -> InMemorySpanExporter:
    """The one exporter of this process: OpenTelemetry's provider can be set only once."""
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture(name="spans")
def _spans(exported: InMemorySpanExporter) -> Iterator[Callable[[int], list[ReadableSpan]]]:
    """Waits for so many spans; gives them in the order of their beginnings, without those of waits."""
    exported.clear()
    # Those of the test before may still come. A millisecond, as the spans' times are not read from this clock.
    began = time.time_ns() - 1_000_000

    def ours() -> list[ReadableSpan]:
        # A loaded machine makes requests wait.
        found = [span for span in exported.get_finished_spans() if span.name != WAIT]
        return [span for span in found if (span.start_time or 0) >= began]

    def spans(count: int) -> list[ReadableSpan]:
        wait_until(lambda: len(ours()) >= count, f"{count} spans")
        found = sorted(ours(), key=lambda span: span.start_time or 0)
        assert len(found) == count, [span.name for span in found]
        return found

    yield spans
    exported.clear()


class Application:
    """Does what its paths say."""

    def __init__(self, pool: Any = None) -> None:
        self.pool = pool
        self.entered = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path, body = environ["PATH_INFO"], b""
        if path == "/waits":
            self.entered.release()
            assert self.go_on.wait(30)
        if path == "/fails":
            raise LookupError("as asked")
        if path == "/own":
            with trace.get_tracer("the application").start_as_current_span("own"):
                logging.getLogger("shop").warning("within")
                self.query("SELECT 1")
        if path == "/sql":
            body = self.query(environ["HTTP_X_SQL"]).encode()
        if path == "/thread":
            threads = [threading.Thread(target=self.query, args=["SELECT 1"])]
            threads[0].start()
            threads[0].join()
        start_response("404 Not Found" if path == "/none" else "200 OK", [("Content-Type", "text/plain")])
        return [body]

    def query(self, sql: str) -> str:
        if self.pool is None:
            return ""
        with closing(self.pool.connection()) as connection, closing(connection.cursor()) as cursor:
            try:
                cursor.execute(sql)
                return str(cursor.fetchone())
            except sqlite3.Error as error:
                return repr(error)


@pytest.fixture(name="pool")
def _pool() -> Iterator[Any]:
    pool = PooledDB(sqlite3, maxconnections=2, blocking=True, database="file:shop?mode=memory", uri=True)
    yield pool
    pool.close()


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return int(span.parent.span_id)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_the_span_of_a_request_continues_the_trace_of_a_trusted_proxy(
    spans: Callable[[int], list[ReadableSpan]],
) -> None:
    with BridgeThread(Application(), threads=1, otel=True, xheaders=True) as server:
        headers = {**SAMPLED, "X-Real-IP": "192.0.2.7", "User-Agent": "a b", "X-Request-ID": "d-1"}
        before = time.time_ns()
        server.request(path="/x/y?sig=secret&design=1", headers=headers)
        [request] = spans(1)
    assert request.context is not None and f"{request.context.trace_id:032x}" == TRACE
    assert f"{parent_of(request):016x}" == PARENT
    assert (request.name, request.kind, request.status.status_code) == ("GET", SpanKind.SERVER, StatusCode.UNSET)
    attributes = attributes_of(request)
    assert 0 <= attributes.pop("threadbridge.wait") < 30
    assert attributes == {
        "http.request.method": "GET",
        "url.path": "/x/y",
        "url.query": "sig=REDACTED&design=1",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "client.address": "192.0.2.7",
        "user_agent.original": "a b",
        "threadbridge.request_id": "d-1",
        "threadbridge.lane": "default",
        "threadbridge.ending": "done",
    }
    times = (before, request.start_time, request.end_time, time.time_ns())
    assert all(one <= other for one, other in itertools.pairwise(times)), times  # type: ignore[operator]


def test_a_wait_has_a_span(spans: Callable[[int], list[ReadableSpan]], exported: InMemorySpanExporter) -> None:
    application = Application()
    with BridgeThread(application, threads=1, otel=True) as server:
        lane = server.bridge.lanes[0]
        clients = [server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n") for _ in range(2)]
        assert application.entered.acquire(timeout=30)
        wait_until(lambda: lane.queued == 1, "the second one waits")
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > SHORTEST_WAIT, "it has waited for long enough")
        application.go_on.set()
        for client in clients:
            assert client.recv(100)
            client.close()
        request = max(spans(2), key=lambda span: attributes_of(span)["threadbridge.wait"])
    [wait] = [span for span in exported.get_finished_spans() if span.parent and parent_of(span) == id_of(request)]
    assert wait.name == WAIT and attributes_of(wait) == {"threadbridge.lane": "default"}
    times = (request.start_time, wait.start_time, wait.end_time, request.end_time)
    # The two clocks, and the float in which monotonic times are, allow for microseconds.
    assert all(one - 100_000 <= other for one, other in itertools.pairwise(times)), times  # type: ignore[operator]
    assert wait.start_time is not None and wait.end_time is not None
    assert abs((wait.end_time - wait.start_time) / 1e9 - attributes_of(request)["threadbridge.wait"]) < 1


@pytest.mark.parametrize("xheaders", [True, False])
def test_who_is_believed(
    spans: Callable[[int], list[ReadableSpan]], xheaders: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    with BridgeThread(Application(), threads=1, otel=True, xheaders=xheaders) as server:
        server.request(headers=NOT_SAMPLED)
        server.request(path="/second", headers={"traceparent": "nonsense"})
        found = spans(1 if xheaders else 2)
    assert all((span.name, span.parent) == ("GET", None) for span in found)
    wait_until(lambda: caplog.text.count(" traceparent=00-") == 2, "both are logged")
    # What others may have recorded can be found by it, and is marked as not recorded here.
    assert bool(re.search(f" traceparent=00-{TRACE}-[0-9a-f]{{16}}-0[02]$", caplog.text, re.MULTILINE)) is xheaders


def test_how_requests_end(spans: Callable[[int], list[ReadableSpan]]) -> None:
    application = Application()
    narrow = Lane("narrow", "/waits", threads=1, queue=1)
    with BridgeThread(application, threads=1, lanes=[narrow], otel=True) as server:
        server.request("PURGE", "/none")
        server.request(path="/fails")
        clients = [server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")]
        assert application.entered.acquire(timeout=30)
        clients.append(server.send(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n"))
        wait_until(lambda: narrow.queued == 1, "it waits")
        clients[1].close()
        wait_until(lambda: narrow.queued == 0, "it has left")
        application.go_on.set()
        assert clients[0].recv(100)
        clients[0].close()
        found = [span for span in spans(4) if span.kind is SpanKind.SERVER]
    how = [(span.name, span.status.status_code.name, attributes_of(span)["threadbridge.ending"]) for span in found]
    done = ("GET", "UNSET", "done")
    assert how == [("HTTP", "UNSET", "done"), ("GET", "ERROR", "failed"), done, ("GET", "UNSET", "abandoned")]
    assert attributes_of(found[0])["http.request.method_original"] == "PURGE"
    assert attributes_of(found[0])["http.request.method"] == "_OTHER"
    assert attributes_of(found[1])["error.type"] == "500"
    assert attributes_of(found[3])["http.response.status_code"] == 499


def test_statements(spans: Callable[[int], list[ReadableSpan]], pool: Any) -> None:
    with BridgeThread(Application(pool), threads=1, pool=pool, otel=True) as server:
        server.request(path="/sql", headers={"X-SQL": "SELECT 'secret' FROM sqlite_master WHERE 1 = 17"})
        [request, statement] = spans(2)
        assert (statement.kind, statement.name) == (SpanKind.CLIENT, "SELECT sqlite_master")
        assert parent_of(statement) == id_of(request)
        assert attributes_of(statement)["db.system.name"] == "sqlite"
        assert attributes_of(statement)["db.namespace"] == "file:shop?mode=memory"
        assert attributes_of(statement)["db.query.text"] == "SELECT ? FROM sqlite_master WHERE ? = ?"
        assert statement.status.status_code is StatusCode.UNSET
        server.request(path="/sql", headers={"X-SQL": "SELECT nonsense"})
        failed = spans(4)[-1]
        assert (failed.name, failed.status.status_code) == ("SELECT", StatusCode.ERROR)
        assert attributes_of(failed)["error.type"] == "OperationalError"


def test_the_applications_own_spans_are_between(spans: Callable[[int], list[ReadableSpan]], pool: Any) -> None:
    with BridgeThread(Application(pool), threads=1, pool=pool, otel=True) as server:
        server.request(path="/own")
        request, own, statement = spans(3)
        assert parent_of(own) == id_of(request) and parent_of(statement) == id_of(own)
        # The context does not stay in the thread.
        server.request(path="/own")
        later = spans(6)[3:]
        assert later[0].parent is None and parent_of(later[1]) == id_of(later[0])


def test_the_comment_in_a_statement_names_its_span(
    spans: Callable[[int], list[ReadableSpan]], mariadb: dict[str, str]
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, blocking=True, **connect_settings(mariadb))
    sql = "SELECT info FROM information_schema.processlist WHERE id = CONNECTION_ID()"
    settings: dict[str, Any] = {"threads": 1, "pool": pool, "otel": True, "tag_queries": True, "xheaders": True}
    with BridgeThread(Application(pool), **settings, server_timing=True) as server:
        response, body = server.request(path="/sql", headers={"X-SQL": sql, "X-Request-ID": "d-1", **SAMPLED})
        _, statement = spans(2)
        traceparent = f"00-{TRACE}-{id_of(statement):016x}-01"
        assert f"/* d-1 */ {sql} /*traceparent='{traceparent}'*/" in body.decode()
        assert attributes_of(statement)["db.system.name"] == "mysql"
        assert attributes_of(statement)["db.namespace"] == mariadb["MYSQL_DATABASE"]
        # As sqlcommenter does, only where there is something to find.
        _, body = server.request(path="/sql", headers={"X-SQL": sql, "X-Request-ID": "d-2", **NOT_SAMPLED})
        assert "/* d-2 */ SELECT info" in body.decode()
    assert float(re.findall(r"database;dur=([\d.]+)", response.headers["Server-Timing"])[0]) > 0
    pool.close()


def test_a_remote_lane_passes_the_trace_on(spans: Callable[[int], list[ReadableSpan]]) -> None:
    with BridgeThread(Application(), threads=1, otel=True, xheaders=True) as far:
        lane = Lane("far", "/*", upstream=[f"http://127.0.0.1:{far.port}"])
        with BridgeThread(Application(), threads=1, lanes=[lane], otel=True, xheaders=True) as near:
            near.request(headers=SAMPLED)
            first, second = [span for span in spans(2) if span.kind is SpanKind.SERVER]
    assert f"{parent_of(first):016x}" == PARENT and parent_of(second) == id_of(first)
    assert attributes_of(first)["threadbridge.upstream"] == f"http://127.0.0.1:{far.port}"


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "threadbridge.telemetry.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ValueError, match=r"otel: .*; pip install 'threadbridge\[otel\]'"):
        BridgeThread(Application(), threads=1, otel=True)


def test_summaries_of_strange_statements_are_quick() -> None:
    joins = " JOIN ".join(f"t{number}" for number in range(999))
    assert summary_of(f"SELECT 1 FROM {joins}").startswith("SELECT t0 t1 ")  # noqa: S608 - it is not executed
    assert len(summary_of(f"SELECT 1 FROM {joins}")) == 255  # noqa: S608 - likewise
    assert summary_of("/* a */" * 1000) == summary_of("(" * 9999) == ""


@pytest.mark.parametrize(
    ("sql", "summary"),
    [
        ("select * from orders", "SELECT orders"),
        ("/* a */ (SELECT 1 FROM `shop`.`a` JOIN b ON ? = ? join b)", "SELECT shop.a b"),
        ('INSERT INTO "t" VALUES (?)', "INSERT t"),
        ("UPDATE t SET a = ?", "UPDATE t"),
        ("-- why\nDELETE FROM t", "DELETE t"),
        ("COMMIT", "COMMIT"),
        ("?", ""),
    ],
)
def test_summaries(sql: str, summary: str) -> None:
    assert summary_of(sql) == summary
