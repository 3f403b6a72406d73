"""The guard of mysql-connector-python's pool: what is not the same for all pools."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import mysql.connector
import pytest
from mysql.connector.errors import PoolError
from mysql.connector.pooling import MySQLConnectionPool

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import in_request, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import nobody_asked
from threadbridge.database.pools.mysql_connector import MySQLConnectorGuard

MakePool = Callable[..., tuple[Any, MySQLConnectorGuard]]

COMPUTE = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"


@pytest.fixture
def make(mariadb: dict[str, str]) -> Iterator[MakePool]:
    """Makes pools with their guards, which are closed after the test."""
    made: list[tuple[Any, MySQLConnectorGuard]] = []

    def make(size: int = 1, on_ask: Any = nobody_asked, limit: float = 0.0, **parameters: Any) -> Any:
        settings = {**connect_settings(mariadb), **parameters}
        pool = MySQLConnectionPool(pool_size=size, pool_name=f"test{len(made)}", **settings)
        made.append((pool, MySQLConnectorGuard(pool, on_ask, statement_limit=limit)))
        return made[-1]

    yield make
    for pool, guard in made:
        guard.close()
        pool._remove_connections()


def one(connection: Any, sql: str = "SELECT 1") -> Any:
    # Buffered, as only these cursors' queries are limited in time.
    with connection.cursor(buffered=True) as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def test_a_request_waits_and_others_get_the_pools_error(make: MakePool) -> None:
    asked: list[TrackedRequest] = []
    pool, guard = make(on_ask=lambda guard, request: asked.append(request))
    held = pool.get_connection()
    with pytest.raises(PoolError, match="exhausted"):
        pool.get_connection()
    with running(deadline=time.monotonic() + 0.2), pytest.raises(PoolError, match="exhausted"):
        pool.get_connection()

    def use() -> Any:
        with pool.get_connection() as connection:
            with pytest.raises(PoolError, match="exhausted"):
                # It would wait for itself.
                pool.get_connection()
            return one(connection)

    request, worker = in_request(use)
    wait_until(lambda: len(guard._line) == 1, "it waits")
    assert asked[-1] is request
    held.close()
    worker.join()
    assert (worker.error, worker.result, guard.in_use) == (None, 1, 0)


def test_the_reset_is_never_refused(make: MakePool, witness: Witness) -> None:
    pool, guard = make()
    with running() as request, pool.get_connection() as connection:
        connection.cursor().execute("SET @left = 1")
        connection.cursor().execute("SET autocommit = 1")
        request.cancel()
    assert guard.in_use == 0
    with running(), pool.get_connection() as connection:
        assert one(connection, "SELECT @left IS NULL AND @@autocommit = 0") == 1


def test_a_cancelled_request_neither_commits_nor_keeps_its_query(make: MakePool, witness: Witness) -> None:
    pool, guard = make()

    def use() -> None:
        with pool.get_connection() as connection:
            connection.start_transaction()
            connection.cursor().execute("INSERT INTO notes VALUES (%s)", ["half"])
            one(connection, COMPUTE)

    request, worker = in_request(use)
    witness.wait_for("seq_1_to_1000000")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, mysql.connector.Error) and worker.error.errno == 1317
    with running() as request, pool.get_connection() as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('half')")
        request.cancel()
        with pytest.raises(mysql.connector.Error):
            connection.commit()
    assert (witness.notes, guard.in_use) == ([], 0)


def test_each_call_of_the_application_is_one_statement(make: MakePool, witness: Witness) -> None:
    witness.rows("CREATE OR REPLACE PROCEDURE answer(OUT result INT) SET result = 42")
    pool, _ = make()
    with running() as request, pool.get_connection() as connection:
        with connection.cursor(dictionary=True) as cursor:
            cursor.executemany("INSERT INTO notes VALUES (%s)", [("a",), ("b",)])
            assert cursor.callproc("answer", (0,)) == {"answer_arg1": 42}
        with connection.cursor(prepared=True) as cursor:
            cursor.execute("SELECT note FROM notes WHERE note = %s", ("a",))
            assert cursor.fetchall() == [("a",)]
        connection.commit()
        assert [statement.sql for statement in request.statements.latest] == [
            "INSERT INTO notes VALUES (%s)",
            "CALL answer",
            "SELECT note FROM notes WHERE note = %s",
        ]
        assert request.statements.latest[0].rows == 2
    assert witness.notes == ["a", "b"]


def test_lost_connections_and_new_settings_lead_to_new_connections(make: MakePool, witness: Witness) -> None:
    pool, _ = make()

    def number() -> int:
        with running() as request, pool.get_connection() as connection:
            number = int(one(connection, "SELECT CONNECTION_ID()"))
            assert request.statements.latest[0].connection_id == number
            return number

    first = number()
    assert number() == first
    witness.rows(f"KILL {first}")
    second = number()
    assert second != first
    pool.set_config(**{**pool._cnx_config, "autocommit": True})
    assert number() != second


def test_the_limit_outlives_the_pools_reset(make: MakePool) -> None:
    pool, _ = make(limit=7.0)
    for _ in range(2):
        with running(), pool.get_connection() as connection:
            assert one(connection, "SELECT @@max_statement_time") == 7


def test_after_a_stuck_thread_has_come_back_the_pool_has_its_size(make: MakePool) -> None:
    pool, guard = make()
    for _ in range(2):
        with running() as request:
            connection = pool.get_connection()
            one(connection)
            request.cancel()
            assert guard.abandon(request) == (1, 0)
            assert guard.in_use == 0
        with running(), pool.get_connection() as other:
            assert one(other) == 1
            # Meanwhile, the thread comes back.
            connection.close()
            assert guard.in_use == 1
    assert (guard.in_use, pool._cnx_queue.qsize()) == (0, 1)


def test_a_forked_process_leaves_its_parents_connections_alone(make: MakePool) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    pool, _ = make(size=2)
    numbers = {connection.connection_id for connection in pool._cnx_queue.queue}
    with BridgeThread(application, threads=1) as server:
        # From its first request on, a server takes care of forked processes.
        assert server.request()[0].status == 204
        with running(), pool.get_connection() as connection:
            # The other connection has never been handed out.
            before = one(connection, "SELECT CONNECTION_ID()")
        child = os.fork()
        if child == 0:
            # Ends the child if it waits, and shows where.
            faulthandler.dump_traceback_later(60, exit=True, file=2)
            try:
                with pool.get_connection() as connection:
                    os._exit(42 if one(connection, "SELECT CONNECTION_ID()") != before else 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        with pool.get_connection() as first, pool.get_connection() as second:
            after = {one(connection, "SELECT CONNECTION_ID()") for connection in (first, second)}
        # None has been made again.
        assert after == numbers and before in after


def test_a_pool_has_one_guard(make: MakePool) -> None:
    pool, guard = make()
    with pytest.raises(ValueError, match="another Bridge"):
        MySQLConnectorGuard(pool)
    guard.close()
    with running(), pool.get_connection() as connection:
        assert one(connection) == 1


def test_a_pool_of_an_unknown_version_is_refused(make: MakePool) -> None:
    pool, guard = make()
    guard.close()
    config = pool._cnx_config
    del pool._cnx_config
    with pytest.raises(ValueError, match="no _cnx_config; threadbridge supports versions 9 to 26"):
        MySQLConnectorGuard(pool)
    pool._cnx_config = config
