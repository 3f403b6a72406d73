"""When a client leaves, its queries in the database stop: all of them, and no others."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor

from tests.support.cancelling import COUNTED_WAIT, WAITING, Application, assert_all_is_well, get, query
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import current
from threadbridge.crossing.current import current_or_none
from threadbridge.loop import watch


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


# Stopping a running statement.


@pytest.mark.parametrize("method", ["connection", "dedicated_connection"])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_statement_is_stopped_and_was_executed_once(
    mariadb: dict[str, str], witness: Witness, method: str, blocking: bool
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=2, blocking=blocking, **connect_settings(mariadb))

    def wait(environ: WSGIEnvironment) -> None:
        with closing(getattr(pool, method)()) as connection:
            connection.cursor().execute(COUNTED_WAIT)

    application = Application(wait)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for(WAITING)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert witness.executions == 1
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
    pool.close()


def test_a_queued_request_does_not_run_once_its_client_has_left(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: query(pool, COUNTED_WAIT if environ["QUERY_STRING"] else "SELECT 1"))
    with BridgeThread(application, pool=pool) as server:
        # From now on, such requests are known to use the pool, and go to its lane.
        server.request()
        running = [server.send(get("/?slow")) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "all connections are in use")
        waiting = [server.send(get("/?slow")) for _ in range(5)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 8, "the others wait")
        for client in (*waiting, *running):
            client.close()
        wait_until(lambda: application.ended == 4, "the application is free")
        assert_all_is_well(pool, witness)
        assert (witness.executions, application.ended) == (3, 4)


def test_the_next_statement_fails_at_once_and_is_not_run(pool: Any, witness: Witness) -> None:
    between = threading.Event()

    def two_statements(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT 1")
            between.set()
            wait_until(lambda: current().cancelled, "the client has left")
            cursor.execute("SELECT NEXT VALUE FOR executions")

    application = Application(two_statements)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert between.wait(30)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert witness.executions == 0
        assert_all_is_well(pool, witness)


def test_nothing_is_committed_once_the_client_has_left(pool: Any, witness: Witness) -> None:
    between = threading.Event()

    def commit(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection:
            connection.cursor().execute("INSERT INTO notes VALUES ('too late')")
            between.set()
            wait_until(lambda: current().cancelled, "the client has left")
            connection.commit()

    application = Application(commit)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert between.wait(30)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
        assert witness.notes == []


@pytest.mark.parametrize("explicitly", [False, True])
def test_a_transaction_is_rolled_back(pool: Any, witness: Witness, explicitly: bool) -> None:
    def insert(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            if explicitly:
                connection.begin()
            cursor.execute("INSERT INTO notes VALUES ('half of it')")
            # An application that ignores the error.
            with contextlib.suppress(MySQLdb.Error):
                cursor.execute(COUNTED_WAIT)

    application = Application(insert)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for(WAITING)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert_all_is_well(pool, witness)
        assert (witness.executions, witness.notes) == (1, [])
        # No lock remains.
        witness.rows("DELETE FROM notes")


def kill_comes_first(witness: Witness) -> Callable[[Any], bool]:
    """A ping for PooledDB, called after the guard has checked the request and before the statement.

    In a request it lets the client leave, and waits until a KILL has found nothing to kill.
    """

    def check(connection: Any) -> bool:
        request = current_or_none()
        if request is not None and not request.cancelled:
            before = witness.kills
            threading.Thread(target=request.cancel).start()
            wait_until(lambda: witness.kills > before, "a KILL came too early")
        return True

    return check


def test_a_statement_that_begins_just_after_the_kill_is_stopped(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, ping=(4, kill_comes_first(witness)), **connect_settings(mariadb))
    application = Application(lambda environ: query(pool, COUNTED_WAIT))
    with BridgeThread(application, pool=pool) as server:
        with server.send(get()):
            wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        # None if the next KILL met it as it began.
        assert witness.executions <= 1
        assert_all_is_well(pool, witness)
    pool.close()


def fetch_all(pool: Any) -> int:
    """Rows for about 20 s, each larger than the server's buffer."""
    with closing(pool.connection()) as connection, closing(connection.cursor(SSCursor)) as cursor:
        cursor.execute("SELECT BENCHMARK(100000, MD5(seq)), REPEAT('x', 70000) FROM seq_1_to_1000")
        return sum(1 for _ in cursor)


def test_a_query_is_stopped_while_its_rows_arrive(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: fetch_all(pool))
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for("REPEAT")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)


def test_a_query_whose_rows_arrive_just_after_the_kill_is_stopped(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, ping=(4, kill_comes_first(witness)), **connect_settings(mariadb))
    application = Application(lambda environ: fetch_all(pool))
    with BridgeThread(application, pool=pool) as server:
        with server.send(get()):
            wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
    pool.close()


def test_a_streamed_response_stops_with_its_client(pool: Any, witness: Witness) -> None:
    closed = threading.Event()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/csv")])
        try:
            with closing(pool.dedicated_connection()) as connection:
                cursor = connection.cursor(SSCursor)
                cursor.execute("SELECT REPEAT('x', 1000) FROM seq_1_to_1000000")
                while (row := cursor.fetchone()) is not None:
                    yield row[0].encode()
        finally:
            closed.set()

    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert client.recv(65536)
        client.close()
        assert closed.wait(30)
        assert_all_is_well(pool, witness)


# Which requests are cancelled.


@pytest.mark.parametrize(
    ("cancel", "method", "stops"),
    [
        *((("safe", method, method != "POST")) for method in ("GET", "HEAD", "OPTIONS", "POST")),
        ("all", "POST", True),
        ("none", "GET", False),
    ],
)
def test_what_is_stopped_depends_on_the_method_and_the_setting(
    pool: Any, witness: Witness, cancel: str, method: str, stops: bool
) -> None:
    sql = "SELECT NEXT VALUE FOR executions, GET_LOCK('held', 0.3) FROM seq_1_to_2"
    application = Application(lambda environ: query(pool, sql))
    with BridgeThread(application, pool=pool, cancel=cancel) as server:
        client = server.send(get(method=method))
        witness.wait_for(WAITING)
        kills = witness.kills
        client.close()
        wait_until(lambda: application.ended == 1, "the application is done")
        assert [error.args[0] for error in application.errors] == ([1317] if stops else [])
        assert (witness.kills > kills) == stops
        # One for each row.
        assert witness.executions == (1 if stops else 2)
        assert_all_is_well(pool, witness)


# Waiting for a connection.


@pytest.mark.parametrize("blocking", [False, True])
def test_waiting_for_a_connection_ends_with_the_client(
    mariadb: dict[str, str], witness: Witness, blocking: bool
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, blocking=blocking, **connect_settings(mariadb))
    application = Application(lambda environ: query(pool, "SELECT 1"))
    with BridgeThread(application, pool=pool) as server, closing(pool.connection()):
        client = server.send(get())
        wait_until(lambda: len(pool._lock._waiters) == 1, "the request waits for the connection")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert pool._connections == 1
    assert_all_is_well(pool, witness)
    pool.close()


# Telling the application.


def test_the_application_learns_that_its_client_has_left(pool: Any) -> None:
    called = threading.Event()
    seen: dict[str, Any] = {}

    def tell() -> None:
        seen["thread"] = threading.current_thread().name
        called.set()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        request = current()
        seen["same"] = environ["threadbridge.request"] is request
        seen["before"] = (request.cancelled, environ["waitress.client_disconnected"]())
        seen["deadline"] = request.deadline
        request.on_cancel(tell)
        seen["ready"] = True
        assert called.wait(30)
        seen["after"] = (request.cancelled, environ["waitress.client_disconnected"]())
        seen["done"] = True
        start_response("200 OK", [])
        return []

    with BridgeThread(application, pool=pool, deadline=100) as server:
        started = time.monotonic()
        client = server.send(get())
        wait_until(lambda: "ready" in seen, "the application waits")
        client.close()
        wait_until(lambda: "done" in seen, "the application was told")
    assert seen["same"] and seen["before"] == (False, False) and seen["after"] == (True, True)
    assert started + 90 < seen["deadline"] < time.monotonic() + 100
    assert seen["thread"].startswith("threadbridge-cancel")


# Requests whose method protects them are stopped after their deadline; stuck threads lose their connection.


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)
    monkeypatch.setattr(watch, "STUCK_AFTER", 0.2)


@pytest.mark.usefixtures("_soon")
def test_a_post_far_past_its_deadline_is_stopped_and_leaves_no_lock(pool: Any, witness: Witness) -> None:
    def update(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES ('half')")
            cursor.execute(COUNTED_WAIT)
            connection.commit()

    application = Application(update)
    with BridgeThread(application, pool=pool, deadline=0.3) as server:
        assert server.request("POST")[0].status == 504
        wait_until(lambda: application.ended == 1, "its thread is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
        assert query(pool, "SELECT COUNT(*) FROM notes WHERE note = 'half'") == (0,)


@pytest.mark.usefixtures("_soon")
def test_a_stuck_thread_is_replaced_together_with_its_connection(pool: Any, witness: Witness) -> None:
    go_on = threading.Event()

    def hold(environ: WSGIEnvironment) -> object:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT 1")
            if environ["PATH_INFO"] == "/stuck":
                assert go_on.wait(20)
            return "served"

    application = Application(hold)
    with BridgeThread(application, pool=pool, deadline=2.0) as server:
        server.request()
        clients = [server.send(get("/stuck", "POST")) for _ in range(3)]
        wait_until(lambda: pool._connections == 3, "all connections are in use")
        for client in clients:
            client.close()
        try:
            wait_until(lambda: pool._connections == 0, "their connections are given up")
            assert server.request()[0].status == 200
        finally:
            go_on.set()
        wait_until(lambda: application.ended == 5, "the threads have come back")
        assert_all_is_well(pool, witness)
