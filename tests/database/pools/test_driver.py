"""The guard of connections that are in no pool."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pymysql
import pytest
from dbutils.pooled_db import PooledDB
from dbutils.steady_db import connect as connect_steadily
from playhouse.pool import PooledMySQLDatabase

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import in_request, one, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.pools.driver import DriverGuard

COMPUTE = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"


@pytest.fixture(params=[MySQLdb, pymysql])
def driver(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def asked() -> list[TrackedRequest]:
    """The requests that have asked the guard for a connection."""
    return []


@pytest.fixture
def guard(driver: Any, asked: list[TrackedRequest]) -> Iterator[DriverGuard]:
    guard = DriverGuard(driver, lambda guard, request: asked.append(request))
    yield guard
    guard.close()


@pytest.fixture
def connect(driver: Any, mariadb: dict[str, str], guard: DriverGuard) -> Callable[..., Any]:
    return lambda **settings: driver.connect(**connect_settings(mariadb), **settings)


def test_statements_are_recorded_without_their_values(
    connect: Callable[..., Any], guard: DriverGuard, asked: list[TrackedRequest], witness: Witness
) -> None:
    with running() as request:
        with closing(connect()) as connection:
            assert guard.in_use == 1
            connection.cursor().execute("INSERT INTO notes VALUES (%s)", ["secret"])
            connection.commit()
        assert guard.in_use == 0
        assert asked == [request]
        [statement] = request.statements.latest
        assert statement.sql == "INSERT INTO notes VALUES (?)"
        assert (statement.rows, request.statements.outcome) == (1, "committed")
        assert statement.connection_id is not None
    assert witness.notes == ["secret"]


def test_a_connection_kept_across_requests_is_lent_to_each(
    connect: Callable[..., Any], guard: DriverGuard, asked: list[TrackedRequest], witness: Witness
) -> None:
    connection = connect()
    numbers = set()
    for _ in range(2):
        with running() as request:
            assert one(connection, "SELECT 42") == 42
            assert (guard.in_use, asked.pop()) == (1, request)
            numbers.add(request.statements.latest[0].connection_id)
        assert guard.in_use == 0
    assert len(numbers) == 1
    request, worker = in_request(lambda: one(connection, COMPUTE))
    witness.wait_for("seq_1_to_1000000")
    request.cancel()
    worker.join()
    assert worker.error is not None and worker.error.args[0] == 1317
    # The next request gets the same connection.
    with running():
        assert one(connection, "SELECT 42") == 42
    connection.close()


def test_what_a_cancelled_request_leaves_open_is_rolled_back(connect: Callable[..., Any], witness: Witness) -> None:
    connection = connect()
    with running() as request:
        connection.cursor().execute("INSERT INTO notes VALUES ('half')")
        request.cancel()
    assert request.statements.outcome == "rolled back"
    with running():
        connection.cursor().execute("INSERT INTO notes VALUES ('whole')")
        connection.commit()
    assert witness.notes == ["whole"]
    connection.close()


def test_a_forgotten_connection_is_closed_at_once(connect: Callable[..., Any], witness: Witness) -> None:
    with running() as request:
        gc.disable()
        try:
            connection = connect()
            one(connection)
            number = request.statements.latest[0].connection_id
            assert number in witness.connections
            del connection
            wait_until(lambda: number not in witness.connections, "it is closed")
        finally:
            gc.enable()


def test_the_applications_own_threads_are_left_alone(
    connect: Callable[..., Any], guard: DriverGuard, asked: list[TrackedRequest]
) -> None:
    with closing(connect()) as connection:
        assert one(connection) == 1
        assert "query" not in vars(connection)
    assert (asked, guard.in_use) == ([], 0)


def test_pools_that_have_a_guard_keep_it(
    driver: Any, guard: DriverGuard, asked: list[TrackedRequest], mariadb: dict[str, str]
) -> None:
    pool = PooledDB(driver, maxconnections=1, **connect_settings(mariadb))
    of_pool = DBUtilsGuard(pool)
    for _ in range(2):
        with running() as request, closing(pool.connection()) as connection:
            assert one(connection, "SELECT 42") == 42
            assert [statement.sql for statement in request.statements.latest] == ["SELECT 42"]
            assert (of_pool.in_use, guard.in_use, asked) == (1, 0, [])
    of_pool.close()
    pool.close()


def test_a_connection_that_the_driver_makes_again_is_followed(guard: DriverGuard, connect: Callable[..., Any]) -> None:
    if guard.name != "connections of pymysql":
        pytest.skip("this driver makes none again")
    connection = connect()
    with running() as request:
        first = one(connection, "SELECT CONNECTION_ID()")
        connection.ping()
        connection.connect()
        second = one(connection, "SELECT CONNECTION_ID()")
        numbers = [statement.connection_id for statement in request.statements.latest]
        assert numbers == [first, second] and first != second
    connection.close()


def test_other_servers_and_other_guards(
    driver: Any, guard: DriverGuard, connect: Callable[..., Any], asked: list[TrackedRequest], mariadb: dict[str, str]
) -> None:
    with running(), closing(connect()) as connection:
        one(connection)
    settings = connect_settings(mariadb)
    with running() as request, closing(driver.connect(**settings, host="localhost")) as connection:
        one(connection)
        assert request.statements.count == 0
    with pytest.raises(ValueError, match="have a guard already"):
        DriverGuard(driver)
    guard.close()
    with running() as request, closing(connect()) as connection:
        assert one(connection) == 1
        assert request.statements.count == 0
    second = DriverGuard(driver)
    second.close()


def test_peewees_pool_and_steady_connections_are_guarded(mariadb: dict[str, str], witness: Witness) -> None:
    # peewee takes PyMySQL if it is installed.
    guards = [DriverGuard(MySQLdb), DriverGuard(pymysql)]
    settings = connect_settings(mariadb)
    database = PooledMySQLDatabase(settings.pop("database"), max_connections=2, **settings)

    def with_peewee() -> None:
        with database.connection_context(), database.atomic():
            database.execute_sql("INSERT INTO notes VALUES ('half')")
            database.execute_sql(COMPUTE)

    def steadily() -> None:
        with closing(connect_steadily(MySQLdb, **connect_settings(mariadb))) as connection:
            connection.begin()
            connection.cursor().execute("INSERT INTO notes VALUES ('half')")
            connection.cursor().execute(COMPUTE)

    for use in (with_peewee, steadily):
        request, worker = in_request(use)
        witness.wait_for("seq_1_to_1000000")
        request.cancel()
        worker.join()
        assert worker.error is not None and worker.error.args[0] == 1317
        wait_until(lambda: not witness.running, "the query has ended")
        assert [guard.in_use for guard in guards] == [0, 0]
    assert witness.notes == []
    database.close_all()
    for guard in guards:
        guard.close()


def test_an_unknown_driver_is_refused() -> None:
    with pytest.raises(ValueError, match="use MySQLdb or pymysql"):
        DriverGuard(sqlite3)
