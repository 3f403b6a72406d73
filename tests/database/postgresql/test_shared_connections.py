"""Connections that requests share, with PostgreSQL, whose driver allows it: statements stop only if nobody waits."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from typing import Any

import psycopg
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancelling import get
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.postgresql import Witness
from tests.support.requests_in_threads import in_request, one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard


class Meeting:
    """An application whose requests hold one shared connection until the test lets each continue."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.holding: list[Any] = []
        self.go_on = {path: threading.Event() for path in ("/leaves", "/stays")}
        self.results: dict[str, Any] = {}

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        with closing(self.pool.connection()) as connection:
            self.holding.append(connection._con)
            assert self.go_on[path].wait(30)
            with closing(connection.cursor()) as cursor:
                try:
                    cursor.execute(f"SELECT nextval('executions'), pg_sleep({20 if path == '/leaves' else 0.5})")
                    self.results[path] = cursor.fetchone()
                except psycopg.Error as error:
                    self.results[path] = type(error)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"answered"]


def test_a_statement_of_another_request_on_a_shared_connection_is_not_stopped(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=2, maxshared=1)
    application = Meeting(pool)
    with BridgeThread(application, pool=pool) as server:
        leaves, stays = server.send(get("/leaves")), server.send(get("/stays"))
        wait_until(lambda: len(application.holding) == 2, "both have a connection")
        first, second = application.holding
        assert first is second
        application.go_on["/stays"].set()
        wait_until(lambda: len(witness.running) == 1, "the other's statement runs")
        leaves.close()
        with stays:
            assert stays.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert application.results["/stays"] is not None and isinstance(application.results["/stays"], tuple)
        application.go_on["/leaves"].set()
        wait_until(lambda: "/leaves" in application.results, "the first has ended")
        assert application.results["/leaves"] is psycopg.errors.QueryCanceled
        wait_until(lambda: pool._connections == 0, "the connection is back")
        assert (witness.executions, pool._shared_cache) == (1, [])
    pool.close()


def test_a_shared_connection_is_stopped_when_nobody_waits_for_any_of_its_requests(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=2, maxshared=1)
    application = Meeting(pool)
    with BridgeThread(application, pool=pool) as server:
        leaves, stays = server.send(get("/leaves")), server.send(get("/stays"))
        wait_until(lambda: len(application.holding) == 2, "both have a connection")
        application.go_on["/leaves"].set()
        wait_until(lambda: len(witness.running) == 1, "the statement runs")
        application.go_on["/stays"].set()
        leaves.close()
        stays.close()
        wait_until(lambda: len(application.results) == 2, "both have ended")
        assert application.results["/leaves"] is psycopg.errors.QueryCanceled
        assert issubclass(application.results["/stays"], psycopg.Error)
        wait_until(lambda: pool._connections == 0, "the connection is back")
        assert (witness.executions, pool._shared_cache) == (1, [])
    pool.close()


@pytest.mark.parametrize("last", ["is given up", "comes back"])
def test_a_shared_connection_is_abandoned_with_its_last_request(witness: Witness, last: str) -> None:
    pool = PooledDB(psycopg, maxconnections=1, maxshared=1)
    guard = DBUtilsGuard(pool)
    go_on = [threading.Event() for _ in range(3)]
    holding = []

    def hold(event: threading.Event) -> None:
        with closing(pool.connection()) as connection:
            holding.append(connection._con)
            assert event.wait(30)

    (first, stuck), (second, other), (third, healthy) = [in_request(partial(hold, event)) for event in go_on]
    wait_until(lambda: len(holding) == 3, "all share a connection")
    assert len(set(map(id, holding))) == 1 and pool._connections == 1
    assert (guard.abandon(first), guard.abandon(second)) == ((0, 1), (0, 1))
    if last == "is given up":
        assert guard.abandon(third) == (1, 0)
    else:
        go_on[2].set()
        healthy.join()
        assert healthy.error is None
    assert (pool._connections, pool._shared_cache) == (0, [])
    # The slot is free, and nothing of the other requests is left in it.
    with running(), closing(pool.connection()) as connection:
        assert connection._con is not holding[0] and pool._connections == 1
        for event, worker in zip(go_on, (stuck, other, healthy), strict=True):
            event.set()
            worker.join()
        assert one(connection) == 1 and pool._connections == 1
    assert (pool._connections, len(pool._idle_cache)) == (0, 1)
    guard.close()
    pool.close()


def test_a_connection_on_which_a_request_waits_is_shared_as_it_is(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=1, maxshared=1)
    guard = DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        number = one(connection, "SELECT pg_backend_pid()")
        # An answer that is still to be read; judged by its socket alone, the connection looks closed.
        sender = connection._con.dbapi_connection
        sender.pgconn.send_query(b"SELECT 42")
        wait_until(lambda: not connection._con._current.is_quiet(), "the answer is there")
        _, worker = in_request(pool.connection)
        worker.join()
        shared = worker.result
        assert shared._con.dbapi_connection is sender
        while sender.pgconn.get_result() is not None:
            pass
        assert one(shared, "SELECT pg_backend_pid()") == number
        shared.close()
    guard.close()
    pool.close()


def test_shared_connections_made_before_the_guard_are_counted_in_once(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=3, maxshared=2)
    held: list[Any] = [pool.connection(), pool.connection(), pool.connection()]
    assert pool._connections == 2
    DBUtilsGuard(pool)
    new = pool.connection()
    assert new._con not in [connection._con for connection in held]
    for connection in (*held, new):
        connection.close()
    assert (pool._connections, pool._shared_cache, len(pool._idle_cache)) == (0, [], 1)
    pool.close()
