"""Connections of a guarded pool come back: all of them, in good order, and none to the wrong request."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor

from tests.support.databases import Witness, connect_settings, line_to
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.driver_connection import KEEPIDLE, notice_lost_peer
from threadbridge.database.pools.dbutils import DBUtilsGuard


def test_the_pool_caches_no_more_connections_than_its_limit(make_pool: Callable[..., Any], witness: Witness) -> None:
    before = set(witness.connections)
    pool = make_pool(maxconnections=5, maxcached=2)
    DBUtilsGuard(pool)
    with running():
        for connection in [pool.connection() for _ in range(5)]:
            connection.close()
    assert pool._connections == 0 and len(pool._idle_cache) == 2
    # There is also the control connection.
    wait_until(lambda: len(set(witness.connections) - before) == 3, "the others are closed")


def test_a_failed_connect_frees_its_slot_in_the_pool(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1, password="wrong")
    DBUtilsGuard(pool)
    with running():
        for _ in range(3):
            with pytest.raises(MySQLdb.OperationalError, match="Access denied"):
                pool.connection()
    assert pool._connections == 0


def test_a_transaction_is_rolled_back_when_its_connection_comes_back(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('not committed')")
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT COUNT(*) FROM notes") == 0
        connection.commit()
    assert witness.notes == []


def test_a_transaction_is_rolled_back_even_if_the_pool_does_not_reset(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1, reset=False)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('not committed')")
    assert request.statements.outcome == "rolled back"
    with running(), closing(pool.connection()) as connection:
        # This begins a snapshot, which the next request must not see.
        assert one(connection, "SELECT COUNT(*) FROM notes") == 0
    witness.rows("INSERT INTO notes VALUES ('new')")
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT COUNT(*) FROM notes") == 1
        connection.commit()
    assert witness.notes == ["new"]


def test_without_reset_a_query_on_the_drivers_own_connection_leaves_no_snapshot(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1, reset=False)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.dbapi_connection.cursor().execute("SELECT COUNT(*) FROM notes")
    witness.rows("INSERT INTO notes VALUES ('new')")
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT COUNT(*) FROM notes") == 1


def test_without_reset_no_rollback_is_sent_if_nothing_is_open(make_pool: Callable[..., Any], witness: Witness) -> None:
    def rollbacks() -> int:
        return int(witness.rows("SHOW GLOBAL STATUS LIKE 'Com_rollback'")[0][1])

    pool = make_pool(maxconnections=1, reset=False, autocommit=True)
    DBUtilsGuard(pool)
    before = rollbacks()
    for _ in range(3):
        with running(), closing(pool.connection()) as connection:
            assert one(connection) == 1
    assert rollbacks() == before


@pytest.mark.parametrize("what", ["connection", "cursor"])
def test_a_forgotten_connection_does_not_block_the_loop(mariadb: dict[str, str], witness: Witness, what: str) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        DBUtilsGuard(pool)
        held: list[Any] = []
        kept: list[Any] = []

        def forget() -> None:
            # A reference cycle, like those of exceptions and frames, which only the collector finds.
            cycle: list[Any] = [pool.connection()]
            cycle.append(cycle)
            if what == "connection":
                # The connection in the pool is not garbage, so it must be rolled back.
                kept.append(cycle[0]._con)
                cycle[0].cursor().execute("INSERT INTO notes VALUES ('to be rolled back')")
            else:
                held.append(cycle[0])
                cycle[0] = cycle[0].cursor(SSCursor)
                cycle[0].execute("SELECT REPEAT('x', 100000) FROM seq_1_to_1000")

        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        gc.disable()
        try:
            in_request(forget)[1].join()
            line.swallow()
            thread.start()
            turned = threading.Event()
            loop.call_soon_threadsafe(gc.collect)
            loop.call_soon_threadsafe(turned.set)
            assert turned.wait(5)
            line.mend()
            wait_until(lambda: witness.running == [], "all rows are fetched")
            for connection in held:
                connection.close()
            wait_until(lambda: pool._connections == 0, "the connection is back")
            with running(), closing(pool.connection()) as connection:
                assert one(connection) == 1
        finally:
            gc.enable()
            line.mend()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
        pool.close()


@pytest.mark.parametrize("serving", [True, False])
def test_a_forgotten_connection_does_not_block_a_thread_that_holds_a_lock(
    mariadb: dict[str, str], witness: Witness, serving: bool
) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        DBUtilsGuard(pool)
        kept: list[Any] = []

        def forget() -> None:
            cycle: list[Any] = [pool.connection()]
            cycle.append(cycle)
            # The connection in the pool is not garbage, so it must be rolled back.
            kept.append(cycle[0]._con)
            cycle[0].cursor().execute("INSERT INTO notes VALUES ('to be rolled back')")

        def collect() -> None:
            with pool._lock:
                gc.collect()

        gc.disable()
        try:
            in_request(forget)[1].join()
            line.swallow()
            (in_request(collect)[1] if serving else InThread(collect)).join()
            line.mend()
            wait_until(lambda: pool._connections == 0, "the connection is back")
        finally:
            gc.enable()
        pool.close()


def test_a_connection_held_beyond_its_request_is_not_stopped_for_that_request(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool()
    DBUtilsGuard(pool)
    kept: list[Any] = []
    leave, left = threading.Event(), threading.Event()
    first = TrackedRequest("first", None)

    def serve_two() -> Any:
        first.enter()
        kept.append(pool.connection())
        assert leave.wait(30)
        first.leave()
        left.set()
        with running():
            return one(kept[0], "SELECT SLEEP(0.5)")

    worker = InThread(serve_two)
    wait_until(lambda: bool(kept), "the first request has a connection")
    [borrow] = kept[0].borrows
    leave.set()
    assert left.wait(30)
    witness.wait_for("SLEEP(0.5)")
    first.cancel()
    # The stopper may have got the borrow before the first request ended.
    assert borrow.is_over and not borrow.stop_query().was_running
    worker.join()
    assert (worker.error, worker.result) == (None, 0)


def test_a_connection_does_not_come_back_before_a_kill_under_way(mariadb: dict[str, str], witness: Witness) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        DBUtilsGuard(pool)
        closing_now = threading.Event()

        def hold() -> None:
            connection = pool.connection()
            held.append(connection)
            borrow = held[0].borrows[0]
            wait_until(lambda: [each.is_set() for each in borrow._attempts] == [False], "the kill is under way")
            closing_now.set()
            connection.close()

        held: list[Any] = []
        request, worker = in_request(hold)
        wait_until(lambda: bool(held), "the request has a connection")
        line.swallow()
        request.cancel()
        assert closing_now.wait(30)
        wait_until(lambda: "end" in functions_of(worker.thread), "the hand-back waits")
        assert pool._connections == 1
        line.mend()
        worker.join()
        assert (worker.error, pool._connections, pool._idle_cache) == (None, 0, [])
        pool.close()


def test_a_connection_does_not_come_back_before_the_first_of_two_kills_under_way(
    mariadb: dict[str, str], witness: Witness
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))
    guard = DBUtilsGuard(pool)
    with running() as request:
        connection = pool.connection()
        [borrow] = connection.borrows
        release = threading.Event()
        [driver_connection] = connection._con.driver_connections()
        stop = driver_connection.stop_query
        stopping = threading.Event()

        def stop_late(**kwargs: bool) -> bool:
            stopping.set()
            assert release.wait(30)
            return bool(stop(**kwargs))

        driver_connection.stop_query = stop_late
        request.cancel()
        assert stopping.wait(30)
        driver_connection.stop_query = stop
        borrow.stop_query()
        ended = InThread(connection.close)
        wait_until(lambda: "end" in functions_of(ended.thread), "the hand-back waits")
        release.set()
        ended.join()
    assert pool._connections == 0
    guard.close()
    pool.close()


def functions_of(thread: threading.Thread) -> list[str]:
    """The functions that a thread is in."""
    frame = sys._current_frames()[thread.ident or 0]
    return [entry.f_code.co_name for entry, _ in traceback.walk_stack(frame)]


def test_a_cursor_closed_late_leaves_the_connections_next_user_alone(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running():
        connection = pool.connection()
        cursor = connection.cursor()
        cursor.execute("SELECT 42")
        connection.close()
        _, worker = in_request(lambda: one(pool.connection(), "SELECT SLEEP(0.3)"))
        witness.wait_for("SLEEP(0.3)")
        cursor.close()
        # If the driver's cursor had been closed, which reads the connection's remaining results, no rows would be left.
        assert cursor.fetchone() == (42,)
        worker.join()
        assert (worker.error, worker.result) == (None, 0)
    assert pool._connections == 0


@pytest.mark.parametrize("what", ["rows that nobody fetched", "closed by the application"])
def test_a_broken_connection_does_not_go_back_to_the_pool(
    make_pool: Callable[..., Any], witness: Witness, what: str
) -> None:
    pool = make_pool(maxconnections=1, ping=0)
    DBUtilsGuard(pool)
    with running():
        connection = pool.connection()
        cursor = connection.cursor(SSCursor)
        cursor.execute("SELECT seq FROM seq_1_to_100000")
        if what == "closed by the application":
            cursor.connection.close()
        connection.close()
        assert (pool._connections, pool._idle_cache) == (0, [])
        with closing(pool.connection()) as connection:
            assert one(connection) == 1


def test_connections_of_a_thread_that_does_not_come_back_are_abandoned(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    guard = DBUtilsGuard(pool)
    in_the_middle, go_on = threading.Event(), threading.Event()

    def be_stuck() -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES ('by a thread that is stuck')")
            in_the_middle.set()
            assert go_on.wait(30)
            cursor.execute("INSERT INTO notes VALUES ('later')")

    stuck, worker = in_request(be_stuck)
    assert in_the_middle.wait(30)
    assert (guard.abandon(stuck), guard.abandon(stuck)) == ((1, 0), (0, 0))
    # Another request gets a connection, and the first one's locks do not block it for longer than their rollback takes.
    with running(), closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("DELETE FROM notes")
        connection.commit()
        assert pool._connections == 1
    go_on.set()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError)
    assert (pool._connections, witness.notes) == (0, [])
    assert len(pool._idle_cache) == 1


def test_the_kernel_detects_a_lost_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        notice_lost_peer(client.fileno())
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPIDLE
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        # Times that the application has set are not changed.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 7)
        notice_lost_peer(client.fileno())
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
