"""The slow log: which requests are in it, with which statements of theirs, and without whose data."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.databases import connect_settings
from tests.support.inprocess import BridgeThread
from threadbridge.process.logs import JSONFormatter

STATEMENTS = ["SELECT SLEEP(0.3), 'secret'", "SELECT 1 UNION SELECT %s"]


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[PooledDB]:
    pool = PooledDB(MySQLdb, maxconnections=1, blocking=True, **connect_settings(mariadb))
    yield pool
    pool.close()


@pytest.fixture
def application(pool: PooledDB) -> Any:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            if environ["PATH_INFO"] == "/slow":
                cursor.execute(STATEMENTS[0])
                cursor.execute(STATEMENTS[1], ("password",))
            else:
                cursor.execute("SELECT 'quick'")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return []

    return app


def slow(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "threadbridge.slow"]


def test_a_slow_request_is_logged_with_its_statements(
    pool: PooledDB, application: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with BridgeThread(application, pool=pool, slow_log=0.25, xheaders=True) as server:
        server.request(path="/quick")
        server.request(path="/slow?x=1", headers={"X-Request-ID": "r-1", "X-Real-IP": "192.0.2.1"})
    [record] = slow(caplog)
    assert record.levelno == logging.WARNING
    head, first, second = record.getMessage().splitlines()
    # Routes that were never seen before try the lane of those that need no connection.
    assert head.startswith("slow request r-1: GET /slow?x=1 from 192.0.2.1 in quick: 200 done, waited ")
    assert head.endswith(" in the database, 2 statements, class unknown, outgrown")
    match = re.fullmatch(r"(\d+\.\d) ms, 1 rows: SELECT SLEEP\(\?\), \?", first)
    assert match is not None and float(match[1]) >= 300
    assert re.fullmatch(r"\d+\.\d ms, 2 rows: SELECT \? UNION SELECT %s", second)

    logged = json.loads(JSONFormatter().format(record))
    assert (logged["message"], logged["request_id"], logged["level"]) == ("slow request", "r-1", "warning")
    assert [(each["sql"], each["rows"]) for each in logged["statements"]] == [
        ("SELECT SLEEP(?), ?", 1),
        ("SELECT ? UNION SELECT %s", 2),
    ]
    assert logged["statements"][0]["ms"] >= 300 and logged["database_ms"] >= 300
    assert (logged["class"], logged["outgrown"]) == ("unknown", True)


def test_the_values_in_the_text_are_shown_when_wanted(
    pool: PooledDB, application: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with BridgeThread(application, pool=pool, slow_log=0.25, slow_log_parameters=True) as server:
        server.request(path="/slow")
    [record] = slow(caplog)
    assert "SELECT SLEEP(0.3), 'secret'" in record.getMessage()
    # It was given to the driver apart from the text.
    assert "password" not in record.getMessage()


def test_no_request_is_slow_with_0(pool: PooledDB, application: Any, caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(application, pool=pool, slow_log=0) as server:
        server.request(path="/slow")
    assert slow(caplog) == []


def test_waiting_makes_slow_and_a_slow_client_does_not(caplog: pytest.LogCaptureFixture) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            entered.set()
            assert go_on.wait(30)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read()]

    with BridgeThread(app, threads=1, slow_log=0.2) as server:
        first = server.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n")
        assert entered.wait(30)
        second = server.send(b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n")
        third = server.send(b"POST /third HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n.")
        threading.Timer(0.3, go_on.set).start()
        for client in (first, second):
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        # It has taken longer than the others by now, all of it its client's doing.
        third.sendall(b".")
        assert third.recv(1000).startswith(b"HTTP/1.1 200 ")
        for client in (first, second, third):
            client.close()
    assert [re.findall(r"[A-Z]+ /\w+", record.getMessage())[0] for record in slow(caplog)] == [
        "GET /first",
        "GET /second",
    ]
