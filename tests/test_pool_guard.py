"""The guard around a live PooledDB: who gets a connection, who waits, and that every one comes back."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import MySQLdb
import pytest
from dbutils import pooled_db
from dbutils.pooled_db import PooledDB, TooManyConnectionsError
from dbutils.steady_db import SteadyDBConnection
from MySQLdb.cursors import SSCursor

from tests.databases import Witness, connect_settings, line_to
from tests.inprocess import wait_until
from tests.processes import ROOT
from threadbridge import Bridge
from threadbridge.current import RunningRequest, current
from threadbridge.pool import PoolGuard, pool_size


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    witness = Witness(mariadb)
    yield witness
    witness.connection.close()


@pytest.fixture
def make_pool(mariadb: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Makes pools of connections to the server, which are closed after the test."""
    pools = []

    def make(creator: Any = MySQLdb, **parameters: Any) -> Any:
        pools.append(PooledDB(creator, **{"maxconnections": 2, **connect_settings(mariadb), **parameters}))
        return pools[-1]

    yield make
    for pool in pools:
        guard = getattr(pool.connection, "__self__", None)
        if isinstance(guard, PoolGuard):
            guard.close()
        pool.close()


@contextmanager
def running(deadline: float | None = None) -> Iterator[RunningRequest]:
    """A request that this thread serves."""
    request = RunningRequest("test", deadline)
    request.enter()
    try:
        yield request
    finally:
        request.leave()


class InThread:
    """Runs a function in a thread of its own; has what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def in_request(function: Callable[[], Any]) -> tuple[RunningRequest, InThread]:
    """Runs a function in a thread that serves a request."""
    request = RunningRequest("test", None)

    def run() -> Any:
        request.enter()
        try:
            return function()
        finally:
            request.leave()

    return request, InThread(run)


def waits(pool: Any, number: int = 1) -> Callable[[], bool]:
    return lambda: len(pool._lock._waiters) == number


def one(connection: Any, sql: str = "SELECT 1") -> Any:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


# What it is made for.


@pytest.mark.parametrize("pool", [MySQLdb, "db.pool", object()])
def test_anything_but_a_pool_is_refused_with_advice(pool: object) -> None:
    with pytest.raises(ValueError, match="is not a PooledDB of DBUtils; give the pool object itself"):
        Bridge(lambda environ, start_response: [], pool=pool)


def test_the_parts_of_dbutils_that_the_guard_leans_on_are_there(make_pool: Callable[..., Any]) -> None:
    pool = make_pool()
    assert pool_size(pool) == 2
    assert isinstance(pool._lock, threading.Condition)
    with pool._lock:
        # Re-entrant: garbage that is collected under it may be a connection that comes back.
        assert pool._lock.acquire(blocking=False)
        pool._lock.release()
    assert list(inspect.signature(PooledDB.connection).parameters) == ["self", "shareable"]
    assert [list(inspect.signature(method).parameters) for method in (PooledDB.cache, PooledDB.unshare)] == [
        ["self", "con"]
    ] * 2


@pytest.mark.parametrize(
    ("owner", "name"),
    [(SteadyDBConnection, "_fatal_check"), (SteadyDBConnection, "_create"), (pooled_db, "TooManyConnectionsError")],
)
def test_a_dbutils_that_differs_is_refused_with_advice(
    make_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    pool = make_pool()
    monkeypatch.delattr(owner, name)
    with pytest.raises(ValueError, match=f"has no {name}; this version of threadbridge was made for DBUtils 3.2"):
        Bridge(lambda environ, start_response: [], pool=pool)


def test_a_pool_that_differs_is_refused_with_advice(make_pool: Callable[..., Any]) -> None:
    pool = make_pool()
    del pool._isfatal
    with pytest.raises(ValueError, match="has no _isfatal; this version"):
        Bridge(lambda environ, start_response: [], pool=pool)


def test_an_unlimited_pool_needs_a_number_of_threads(make_pool: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"the pool is unlimited .*; say with threads="):
        Bridge(lambda environ, start_response: [], pool=make_pool(maxconnections=0))


def test_dbutils_is_needed_only_with_a_pool() -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['dbutils'] = None\n"
        "sys.argv = ['threadbridge', 'wsgiref.simple_server:demo_app', '--threads=4', '--check']\n"
        "runpy.run_module('threadbridge', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_a_pool_has_one_guard_at_a_time(make_pool: Callable[..., Any]) -> None:
    pool = make_pool()
    first = PoolGuard(pool)
    with pytest.raises(ValueError, match="belongs to another Bridge already"):
        PoolGuard(pool)
    with running() as request:
        held = pool.connection()
        with closing(pool.connection()):
            pass
        first.close()
        PoolGuard(pool)
        assert (pool._connections, pool._idle_cache) == (1, [])
        held.close()
        assert (pool._connections, pool._idle_cache) == (0, [])
        with closing(pool.connection()) as connection:
            assert one(connection) == 1 and connection.borrows[0].request is request
    assert pool._connections == 0


# What was there before it.


def test_connections_made_before_the_guard_are_replaced(make_pool: Callable[..., Any], witness: Witness) -> None:
    before = set(witness.connections)
    pool = make_pool(mincached=2)
    held = pool.connection()
    assert one(held) == 1 and len(set(witness.connections) - before) == 2
    PoolGuard(pool)
    wait_until(lambda: len(set(witness.connections) - before) == 1, "the idle connection is closed")
    # The one in use goes on, counts, and is let go when it comes back.
    assert one(held) == 1
    with running(), closing(pool.connection()), pytest.raises(TooManyConnectionsError):
        pool.connection()
    held.close()
    assert pool._connections == 0 and len(pool._idle_cache) == 1


# Waiting for a connection.


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("method", ["connection", "dedicated_connection"])
def test_a_request_waits_for_a_connection(make_pool: Callable[..., Any], blocking: bool, method: str) -> None:
    pool = make_pool(maxconnections=1, blocking=blocking)
    PoolGuard(pool)
    held = pool.connection()

    def use() -> Any:
        with closing(getattr(pool, method)()) as connection:
            return one(connection, "SELECT 42")

    workers = [in_request(use)[1] for _ in range(3)]
    wait_until(waits(pool, 3), "three requests wait")
    held.close()
    for worker in workers:
        worker.join()
    assert [worker.result for worker in workers] == [42, 42, 42]
    assert pool._connections == 0 and len(pool._idle_cache) == 1


@pytest.mark.parametrize("blocking", [False, True])
def test_waiting_for_a_connection_ends_when_the_request_is_cancelled(
    make_pool: Callable[..., Any], blocking: bool
) -> None:
    pool = make_pool(maxconnections=1, blocking=blocking)
    PoolGuard(pool)
    with closing(pool.connection()):
        request, worker = in_request(pool.connection)
        wait_until(waits(pool), "the request waits")
        request.cancel()
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    assert pool._connections == 0
    with closing(pool.connection()) as connection:
        assert one(connection) == 1


def test_who_is_cancelled_passes_the_connection_on(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    held = pool.connection()
    first, first_worker = in_request(pool.connection)
    wait_until(waits(pool), "the first waits")
    _, second_worker = in_request(lambda: one(pool.connection()))
    wait_until(waits(pool, 2), "the second waits")
    with pool._lock:
        # The notice goes to the first, which cannot look before it is cancelled.
        held.close()
        first.cancelled = True
    for worker in (first_worker, second_worker):
        worker.join()
    assert isinstance(first_worker.error, MySQLdb.OperationalError) and second_worker.result == 1


def test_a_request_does_not_wait_for_itself(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    with running(), closing(pool.connection()) as connection:
        with pytest.raises(TooManyConnectionsError):
            pool.connection()
        assert one(connection) == 1
    assert pool._connections == 0


def test_a_pool_that_does_not_block_makes_nobody_wait_beyond_the_deadline(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    with closing(pool.connection()), running(deadline=time.monotonic() + 0.2), pytest.raises(TooManyConnectionsError):
        pool.connection()
    assert pool._connections == 0


def test_the_applications_own_threads_are_left_alone(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    request = RunningRequest("other", None)
    with closing(pool.connection()) as connection:
        with pytest.raises(TooManyConnectionsError):
            pool.connection()
        request.cancel()
        assert one(connection, "SELECT 42") == 42
    blocking = make_pool(maxconnections=1, blocking=True)
    PoolGuard(blocking)
    held = blocking.connection()
    worker = InThread(blocking.connection)
    wait_until(waits(blocking), "the thread waits")
    held.close()
    worker.join()
    assert one(worker.result) == 1


# Connections come back.


def test_no_more_connections_are_kept_than_the_pool_says(make_pool: Callable[..., Any], witness: Witness) -> None:
    before = set(witness.connections)
    pool = make_pool(maxconnections=5, maxcached=2)
    PoolGuard(pool)
    with running():
        for connection in [pool.connection() for _ in range(5)]:
            connection.close()
    assert pool._connections == 0 and len(pool._idle_cache) == 2
    wait_until(lambda: len(set(witness.connections) - before) == 2, "the others are closed")


def test_a_connection_that_cannot_be_made_leaves_its_place_free(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1, password="wrong")
    PoolGuard(pool)
    with running():
        for _ in range(3):
            with pytest.raises(MySQLdb.OperationalError, match="Access denied"):
                pool.connection()
    assert pool._connections == 0


def test_what_was_begun_is_rolled_back_when_a_connection_comes_back(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('not committed')")
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT COUNT(*) FROM notes") == 0
        connection.commit()
    assert witness.notes == []


@pytest.mark.parametrize("what", ["connection", "cursor"])
def test_what_was_forgotten_does_not_block_the_loop(mariadb: dict[str, str], witness: Witness, what: str) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        PoolGuard(pool)
        held: list[Any] = []
        kept: list[Any] = []

        def forget() -> None:
            # A cycle, as exceptions and frames make them: only the collector finds it.
            cycle: list[Any] = [pool.connection()]
            cycle.append(cycle)
            if what == "connection":
                # What stands behind it is not garbage, and so has to be rolled back.
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


def test_a_connection_kept_beyond_its_request_is_not_stopped_for_it(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool()
    PoolGuard(pool)
    kept: list[Any] = []
    leave, left = threading.Event(), threading.Event()
    first = RunningRequest("first", None)

    def serve_two() -> Any:
        first.enter()
        kept.append(pool.connection())
        assert leave.wait(10)
        first.leave()
        left.set()
        with running():
            return one(kept[0], "SELECT SLEEP(0.5)")

    worker = InThread(serve_two)
    wait_until(lambda: bool(kept), "the first request has a connection")
    [borrow] = kept[0].borrows
    leave.set()
    assert left.wait(10)
    witness.wait_for("SLEEP(0.5)")
    first.cancel()
    # The stopper may have been told of it before the first request ended.
    assert borrow.stop() is None
    worker.join()
    assert (worker.error, worker.result) == (None, 0)


def test_a_connection_does_not_come_back_before_a_kill_under_way(mariadb: dict[str, str], witness: Witness) -> None:
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        PoolGuard(pool)
        closing_now = threading.Event()

        def hold() -> None:
            connection = pool.connection()
            held.append(connection)
            wait_until(lambda: current().cancelled and held[0].borrows[0]._lock.locked(), "the kill is under way")
            closing_now.set()
            connection.close()

        held: list[Any] = []
        request, worker = in_request(hold)
        wait_until(lambda: bool(held), "the request has a connection")
        line.swallow()
        request.cancel()
        assert closing_now.wait(10)
        wait_until(lambda: "end" in functions_of(worker.thread), "the hand-back waits")
        assert pool._connections == 1
        line.mend()
        worker.join()
        assert (worker.error, pool._connections, pool._idle_cache) == (None, 0, [])
        pool.close()


def functions_of(thread: threading.Thread) -> list[str]:
    """The functions that a thread is in."""
    frame = sys._current_frames()[thread.ident or 0]
    return [entry.f_code.co_name for entry, _ in traceback.walk_stack(frame)]


def test_a_cursor_closed_late_leaves_the_connections_next_user_alone(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    PoolGuard(pool)
    with running():
        connection = pool.connection()
        cursor = connection.cursor()
        cursor.execute("SELECT 42")
        connection.close()
        _, worker = in_request(lambda: one(pool.connection(), "SELECT SLEEP(0.3)"))
        witness.wait_for("SLEEP(0.3)")
        cursor.close()
        # Had the driver's cursor been closed, which asks the connection for more results, there were no rows any more.
        assert cursor.fetchone() == (42,)
        worker.join()
        assert (worker.error, worker.result) == (None, 0)
    assert pool._connections == 0


@pytest.mark.parametrize("what", ["rows that nobody fetched", "closed by the application"])
def test_a_connection_that_is_not_in_order_is_not_kept(
    make_pool: Callable[..., Any], witness: Witness, what: str
) -> None:
    pool = make_pool(maxconnections=1, ping=0)
    PoolGuard(pool)
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


# Kinds of databases.


def test_a_function_that_makes_connections_is_as_good_as_a_driver(
    mariadb: dict[str, str], make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = PooledDB(lambda: MySQLdb.connect(**connect_settings(mariadb)), maxconnections=1)
    PoolGuard(pool)

    def sleep() -> None:
        with closing(pool.connection()) as connection:
            one(connection, "SELECT NEXT VALUE FOR executions, SLEEP(20)")

    request, worker = in_request(sleep)
    witness.wait_for("SLEEP(20)")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    assert witness.executions == 1
    pool.close()


def test_an_unknown_driver_works_and_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = PooledDB(sqlite3, maxconnections=1, database=":memory:")
    PoolGuard(pool)
    with running() as request:
        for _ in range(2):
            connection = pool.connection()
            assert one(connection) == 1
            connection.close()
        request.cancel()
        with pytest.raises(ConnectionAbortedError):
            pool.connection()
    assert pool._connections == 0
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == "queries on connections of sqlite3 cannot be stopped: unknown to threadbridge"


# What the application may ask.


def test_there_is_a_current_request_only_where_one_is_served() -> None:
    with pytest.raises(RuntimeError, match="no request runs in this thread"):
        current()
    with running() as request:
        assert current() is request
        worker = InThread(current)
        worker.join()
        assert isinstance(worker.error, RuntimeError)
    with pytest.raises(RuntimeError):
        current()


def test_callbacks_are_called_once_and_errors_in_them_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def fail() -> None:
        called.append("failed")
        raise LookupError("of the application")

    with running() as request:
        request.on_cancel(fail)
        request.on_cancel(lambda: called.append("other"))
        take_back = request.on_cancel(lambda: called.append("taken back"))
        take_back()
        request.cancel()
        request.cancel()
        assert called == ["failed", "other"] and request.cancelled
        # It is too late to wait for that: now.
        request.on_cancel(lambda: called.append("late"))
        assert called == ["failed", "other", "late"]
    [record] = caplog.records
    assert record.getMessage() == "request test: a callback of on_cancel failed"


def test_the_same_callback_may_be_given_twice() -> None:
    called: list[int] = []

    def callback() -> None:
        called.append(1)

    with running() as request:
        take_back = request.on_cancel(callback)
        request.on_cancel(callback)
        take_back()
        request.cancel()
    assert called == [1]


def test_no_callback_is_called_after_the_end() -> None:
    called: list[str] = []
    with running() as request:
        request.on_cancel(lambda: called.append("early"))
    request.on_cancel(lambda: called.append("late"))
    request.cancel()
    assert called == []


@pytest.mark.parametrize("way", ["taking it back", "the end"])
def test_a_callback_under_way_is_waited_for(way: str) -> None:
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def callback() -> None:
        entered.set()
        assert go_on.wait(10)
        ended.set()

    request = RunningRequest("test", None)
    request.enter()
    take_back = request.on_cancel(callback)
    canceller = InThread(request.cancel)
    assert entered.wait(10)
    threading.Timer(0.1, go_on.set).start()
    if way == "taking it back":
        take_back()
        assert ended.is_set()
    request.leave()
    assert ended.is_set()
    canceller.join()


def test_no_request_waits_for_anothers_lock() -> None:
    # Garbage that is collected under it may wait for the pool's lock, whose holder may be asking for its own request's.
    first, second = RunningRequest("first", None), RunningRequest("second", None)
    with first._lock:
        worker = InThread(lambda: second.on_cancel(lambda: None))
        worker.join()
    assert worker.error is None
