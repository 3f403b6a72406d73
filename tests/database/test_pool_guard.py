"""The guard of a live PooledDB: which pools it accepts, and connections that were made before it."""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils import pooled_db
from dbutils.pooled_db import PooledDB, TooManyConnectionsError
from dbutils.steady_db import SteadyDBConnection, SteadyDBCursor

from tests.support import unknown_driver
from tests.support.cancelling import COUNTED_WAIT, WAITING
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from tests.support.requests_in_threads import in_request, one, running
from threadbridge import Bridge
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.pools.dbutils_check import pool_size


def test_dbutils_has_what_the_guard_needs(make_pool: Callable[..., Any]) -> None:
    pool = make_pool()
    assert pool_size(pool) == 2
    assert isinstance(pool._lock, threading.Condition)
    with pool._lock:
        # Re-entrant, as a connection that is collected under it comes back.
        assert pool._lock.acquire(blocking=False)
        pool._lock.release()
    assert list(inspect.signature(PooledDB.connection).parameters) == ["self", "shareable"]
    assert [list(inspect.signature(method).parameters) for method in (PooledDB.cache, PooledDB.unshare)] == [
        ["self", "con"]
    ] * 2


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SteadyDBConnection, "_ping_check"),
        (SteadyDBConnection, "_create"),
        (SteadyDBCursor, "_setsizes"),
        (pooled_db, "TooManyConnectionsError"),
    ],
)
def test_a_dbutils_that_differs_is_refused_with_advice(
    make_pool: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    pool = make_pool()
    monkeypatch.delattr(owner, name)
    with pytest.raises(ValueError, match=f"has no {name}; threadbridge supports DBUtils 3.2 and later, below 4"):
        Bridge(lambda environ, start_response: [], pool=pool)


def test_a_pool_that_differs_is_refused_with_advice(make_pool: Callable[..., Any]) -> None:
    pool = make_pool()
    del pool._isfatal
    with pytest.raises(ValueError, match="has no _isfatal; threadbridge supports"):
        Bridge(lambda environ, start_response: [], pool=pool)


def test_an_unlimited_pool_needs_a_number_of_threads(make_pool: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"the pool is unlimited .PooledDB of MySQLdb.; give threads="):
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
    first = DBUtilsGuard(pool)
    with pytest.raises(ValueError, match="belongs to another Bridge already"):
        DBUtilsGuard(pool)
    with running() as request:
        held = pool.connection()
        with closing(pool.connection()):
            pass
        first.close()
        DBUtilsGuard(pool)
        assert (pool._connections, pool._idle_cache) == (1, [])
        held.close()
        assert (pool._connections, pool._idle_cache) == (0, [])
        with closing(pool.connection()) as connection:
            assert one(connection) == 1 and connection.borrows[0].request is request
    assert pool._connections == 0


# Connections made before the guard.


def test_connections_made_before_the_guard_are_replaced(make_pool: Callable[..., Any], witness: Witness) -> None:
    before = set(witness.connections)
    pool = make_pool(mincached=2)
    held = pool.connection()
    assert one(held) == 1 and len(set(witness.connections) - before) == 2
    DBUtilsGuard(pool)
    wait_until(lambda: len(set(witness.connections) - before) == 1, "the idle connection is closed")
    # The one in use goes on working, counts, and is closed when it comes back.
    assert one(held) == 1
    with running(), closing(pool.connection()), pytest.raises(TooManyConnectionsError):
        pool.connection()
    held.close()
    assert pool._connections == 0 and len(pool._idle_cache) == 1


# Kinds of databases.


def test_a_function_may_make_the_connections(
    mariadb: dict[str, str], make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = PooledDB(lambda: MySQLdb.connect(**connect_settings(mariadb)), maxconnections=1)
    DBUtilsGuard(pool)

    def wait() -> None:
        with closing(pool.connection()) as connection:
            one(connection, COUNTED_WAIT)

    request, worker = in_request(wait)
    witness.wait_for(WAITING)
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    assert witness.executions == 1
    pool.close()


# The application's function makes the pool's connections, all at the same time.
PROGRAM = """
import json, sys, threading
import MySQLdb
from concurrent.futures import ThreadPoolExecutor
from dbutils.pooled_db import PooledDB
from threadbridge.database.pools.dbutils import DBUtilsGuard

together = threading.Barrier(5)

def make():
    made = MySQLdb.connect(**json.loads(sys.argv[1]))
    together.wait(30)
    return made

pool = PooledDB(make, maxconnections=5)
guard = DBUtilsGuard(pool)
with ThreadPoolExecutor(5) as threads:
    connections = list(threads.map(lambda _: pool.connection(), range(5)))
print(sum(connection._con.number is not None for connection in connections))
guard.close()
"""


def test_first_connections_made_at_the_same_time_are_all_guarded(mariadb: dict[str, str]) -> None:
    # In a process of its own, as recognising the driver takes longest the first time.
    command = [sys.executable, "-c", PROGRAM, json.dumps(connect_settings(mariadb))]
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == "5\n"


def test_an_unknown_driver_works_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    pool = PooledDB(unknown_driver, maxconnections=1, database=":memory:")
    DBUtilsGuard(pool)
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
    driver = "tests.support.unknown_driver"
    assert record.getMessage() == f"queries cannot be stopped: threadbridge does not support the driver {driver}"
