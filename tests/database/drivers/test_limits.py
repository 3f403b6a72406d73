"""The limits that threadbridge sets with each driver for MySQL: of statements, and of waiting for the network."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import MySQLdb.cursors
import pymysql.cursors
import pytest

from tests.database.drivers.stacks import MYSQL, Stack
from tests.support.requests_in_threads import one, running
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import database_of
from threadbridge.database.drivers.mysql import CONNECT_TIMEOUT, CONTROL_TIMEOUT, NETWORK_MARGIN

LIMIT = "SELECT @@max_statement_time"


def cursor(stack: Stack, connection: Any, *, buffered: bool) -> Any:
    """A cursor that downloads all rows at once, or as they are fetched."""
    classes = {
        "MySQLdb": (MySQLdb.cursors.SSCursor, MySQLdb.cursors.Cursor),
        "pymysql": (pymysql.cursors.SSCursor, pymysql.cursors.Cursor),
    }.get(stack.creator.__name__)
    return connection.cursor(classes[buffered]) if classes else connection.cursor(buffered=buffered)


@pytest.mark.parametrize("stack", MYSQL, indirect=True)
def test_the_server_ends_a_statement_at_the_limit(stack: Stack) -> None:
    pool, guard = stack.pool(statement_limit=1)
    with running(), closing(pool.connection()) as connection:
        number = one(connection, stack.number)
        with pytest.raises(stack.creator.Error) as raised, closing(cursor(stack, connection, buffered=True)) as slow:
            slow.execute(stack.compute)
        assert guard._database is not None and guard._database.is_statement_error(raised.value)
        assert one(connection, stack.number) == number


@pytest.mark.parametrize("stack", MYSQL, indirect=True)
def test_rows_may_arrive_for_longer_if_the_driver_lets_the_statement_be_changed(stack: Stack) -> None:
    pool, _ = stack.pool(statement_limit=7)
    with running(), closing(pool.connection()) as connection:
        found = []
        for buffered in (True, False):
            with closing(cursor(stack, connection, buffered=buffered)) as reading:
                reading.execute(LIMIT)
                found += [float(limit) for (limit,) in reading.fetchall()]
    assert found == [7.0, 0.0 if stack.sees_all else 7.0]


@pytest.mark.parametrize(
    ("driver", "connecting"),
    [
        ("MySQLdb", "connect_timeout"),
        ("pymysql", "connect_timeout"),
        ("mysql.connector", "connection_timeout"),
        ("mariadb", "connect_timeout"),
    ],
)
def test_the_drivers_timeouts_follow_from_the_statement_limit(driver: str, connecting: str) -> None:
    network = ("read_timeout", "write_timeout")
    for limit, expected in ((0.0, {}), (209.5, dict.fromkeys(network, math.ceil(209.5 + NETWORK_MARGIN)))):
        database = database_of([driver], ConnectionSettings(lambda: None, (), {}, statement_limit=limit))
        assert database is not None
        assert database.defaults == {connecting: CONNECT_TIMEOUT, **expected}
        assert database.timeouts == dict.fromkeys((connecting, *network), CONTROL_TIMEOUT)
