"""The database itself limits how long statements, and idle transactions with locks, may last, without the frontend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor, SSDictCursor

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard

LIMITS = "SELECT CONCAT(@@session.max_statement_time, ' ', @@session.idle_transaction_timeout)"


@pytest.fixture
def make(mariadb: dict[str, str]) -> Iterator[Callable[..., Any]]:
    made: list[tuple[DBUtilsGuard, Any]] = []

    def make(statement_limit: float, **parameters: Any) -> Any:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb), **parameters)
        made.append((DBUtilsGuard(pool, statement_limit=statement_limit), pool))
        return pool

    yield make
    for guard, pool in made:
        guard.close()
        pool.close()


def limits_of(pool: Any) -> str:
    with running(), closing(pool.connection()) as connection:
        return str(one(connection, LIMITS))


def test_a_statement_at_the_limit_fails_once_and_its_connection_stays_intact(
    make: Callable[..., Any], witness: Witness
) -> None:
    pool = make(0.3)
    with running(), closing(pool.connection()) as connection:
        number = one(connection, "SELECT CONNECTION_ID()")
        with pytest.raises(MySQLdb.OperationalError) as raised:
            one(connection, "SELECT NEXT VALUE FOR executions, SLEEP(20)")
        assert raised.value.args[0] == 1969
        assert one(connection, "SELECT CONNECTION_ID()") == number
    assert witness.executions == 1


@pytest.mark.parametrize(
    ("limit", "parameters", "expected"),
    [
        (210.0, {}, "210.000000 210"),
        (0.0, {}, "0.000000 0"),
        (210.0, {"init_command": "SET max_statement_time = 7"}, "7.000000 0"),
        (210.0, {"setsession": ["SET max_statement_time = 3600"]}, "3600.000000 0"),
        (210.0, {"init_command": "SET idle_transaction_timeout = 9"}, "210.000000 9"),
    ],
)
def test_the_applications_own_limit_is_not_changed(
    make: Callable[..., Any], limit: float, parameters: dict[str, Any], expected: str
) -> None:
    assert limits_of(make(limit, **parameters)) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="the server lets root in as its administrator")
def test_the_operator_may_choose_no_limit(make: Callable[..., Any], mariadb: dict[str, str]) -> None:
    root = MySQLdb.connect(unix_socket=mariadb["MYSQL_UNIX_SOCKET"], user="root")
    cursor = root.cursor()
    cursor.execute("SET GLOBAL max_statement_time = 500")
    try:
        assert limits_of(make(210.0)) == "500.000000 0"
        assert limits_of(make(210.0, init_command="SET max_statement_time = 0")) == "0.000000 0"
    finally:
        cursor.execute("SET GLOBAL max_statement_time = 0")
        root.close()


@pytest.mark.parametrize("kind", [SSCursor, SSDictCursor])
def test_rows_that_are_fetched_slowly_have_no_limit(make: Callable[..., Any], kind: type) -> None:
    pool = make(0.3)
    with running(), closing(pool.connection()) as connection, closing(connection.cursor(kind)) as cursor:
        # More than a second, before the first row and between rows.
        cursor.execute(" \n SELECT SLEEP(0.3), REPEAT('x', 70000) AS x FROM seq_1_to_5")
        assert len(cursor.fetchall()) == 5
        # The next is limited again.
        with closing(connection.cursor()) as other, pytest.raises(MySQLdb.OperationalError, match="max_statement_time"):
            other.execute("SELECT SLEEP(20)")
    with running(), closing(pool.connection()) as connection, closing(connection.cursor(kind)) as cursor:
        cursor.execute("SELECT /* comments stay */ %s AS x", ("y",))
        assert [list(row.values() if isinstance(row, dict) else row) for row in cursor] == [["y"]]


def test_a_transaction_that_is_not_continued_releases_its_locks(make: Callable[..., Any], witness: Witness) -> None:
    witness.rows("INSERT INTO notes VALUES ('locked')")
    pool = make(1.0)
    with running(), closing(pool.connection()) as connection:
        one(connection, "SELECT * FROM notes FOR UPDATE")
        with pytest.raises(MySQLdb.OperationalError, match="Lock wait timeout"):
            witness.rows("SELECT * FROM notes FOR UPDATE NOWAIT")

        def is_free() -> bool:
            try:
                return bool(witness.rows("SELECT * FROM notes FOR UPDATE NOWAIT"))
            except MySQLdb.OperationalError:
                return False

        wait_until(is_free, "the database has let go of the lock")
