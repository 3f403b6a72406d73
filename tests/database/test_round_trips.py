"""A connection's way out of the pool and back: no needless round trips, and no harm from saving them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.connections import Connection

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import wait_until
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools import dbutils_connection
from threadbridge.database.pools.dbutils import DBUtilsGuard


class Requests:
    """Sequential requests to an application with a pool of one connection."""

    def __init__(self, mariadb: dict[str, str], **parameters: Any) -> None:
        self.pool = PooledDB(MySQLdb, maxconnections=1, **{**connect_settings(mariadb), **parameters})
        self.guard = DBUtilsGuard(self.pool)

    def serve(self, use: Callable[[Any], Any]) -> Any:
        """Call the function with a connection, in a request, and return its result."""
        request = TrackedRequest("test", None)
        request.enter()
        try:
            with closing(self.pool.connection()) as connection:
                return use(connection)
        finally:
            request.leave()


@pytest.fixture
def make(mariadb: dict[str, str]) -> Iterator[Callable[..., Requests]]:
    made: list[Requests] = []

    def make(**parameters: Any) -> Requests:
        made.append(Requests(mariadb, **parameters))
        return made[-1]

    yield make
    for requests in made:
        requests.guard.close()
        requests.pool.close()


def query(sql: str) -> Callable[[Any], Any]:
    def use(connection: Any) -> Any:
        with closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return cursor.fetchone()

    return use


def counter(witness: Witness, name: str) -> int:
    return int(witness.rows(f"SHOW GLOBAL STATUS LIKE '{name}'")[0][1])


NUMBER = query("SELECT CONNECTION_ID()")


@pytest.mark.parametrize(("fresh", "pings"), [(1000.0, 0), (0.0, 5)])
def test_a_connection_used_just_now_is_not_pinged(
    make: Callable[..., Requests], witness: Witness, monkeypatch: pytest.MonkeyPatch, fresh: float, pings: int
) -> None:
    monkeypatch.setattr(dbutils_connection, "FRESH", fresh)
    requests = make()
    numbers = {requests.serve(NUMBER)}
    before = counter(witness, "Com_admin_commands"), counter(witness, "Com_rollback")
    numbers |= {requests.serve(NUMBER) for _ in range(5)}
    assert len(numbers) == 1
    # Each is rolled back all the same, as a snapshot belongs to one request.
    wait_until(lambda: counter(witness, "Com_rollback") - before[1] == 5, "the last answer, which nobody awaits")
    assert counter(witness, "Com_admin_commands") - before[0] == pings


def test_the_applications_own_ping_is_always_called(make: Callable[..., Requests]) -> None:
    checked: list[Any] = []
    requests = make(ping=checked.append)
    for _ in range(3):
        requests.serve(NUMBER)
    assert len(checked) == 2


def begin(connection: Any) -> Any:
    connection.begin()
    answer = NUMBER(connection)
    connection.commit()
    return answer


def raw(connection: Any) -> Any:
    cursor = connection.dbapi_connection.cursor()
    cursor.execute("SELECT CONNECTION_ID()")
    return cursor.fetchone()


# Without its pings, DBUtils would hand out such a connection, and replace it only for a statement.
@pytest.mark.parametrize(("use", "ping"), [(NUMBER, 0), (NUMBER, 1), (begin, 1), (raw, 1)])
def test_a_connection_that_was_killed_between_two_requests_is_replaced_unnoticed(
    make: Callable[..., Requests], witness: Witness, use: Callable[[Any], Any], ping: int
) -> None:
    requests = make(ping=ping, isfatal=None if ping == 0 else lambda error: False)
    for _ in range(5):
        [number] = requests.serve(NUMBER)
        witness.rows(f"KILL {number}")
        wait_until(lambda number=number: number not in witness.connections, "it is gone")  # type: ignore[misc]
        [other] = requests.serve(use)
        assert other != number
    assert requests.pool._connections == 0


def test_a_connection_whose_rollback_failed_is_replaced(
    make: Callable[..., Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: Connection) -> None:
        raise MySQLdb.OperationalError(2013, "Lost connection to server during query")

    requests = make(ping=0)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "read_query_result", fail)
        # Its rollback is sent when its connection comes back; the next request reads the answer.
        [number] = requests.serve(NUMBER)
    [other] = requests.serve(NUMBER)
    assert other != number
    assert requests.serve(NUMBER) == (other,)
    assert requests.pool._connections == 0


def test_no_snapshot_outlives_its_request(make: Callable[..., Requests], witness: Witness) -> None:
    requests = make()
    count = query("SELECT COUNT(*) FROM notes")
    for number in range(50):
        assert requests.serve(count) == (number,)
        witness.rows("INSERT INTO notes VALUES ('new')")


@pytest.mark.parametrize(
    "statement", ["INSERT INTO notes VALUES ('x')", "SELECT * FROM notes FOR UPDATE", "SELECT 1; DELETE FROM notes"]
)
def test_no_lock_outlives_the_hand_back(make: Callable[..., Requests], witness: Witness, statement: str) -> None:
    requests = make()
    witness.rows("INSERT INTO notes VALUES ('locked')")

    def lock(connection: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(statement)
            while cursor.nextset():
                pass

    for _ in range(50):
        requests.serve(lock)
        assert witness.rows("SELECT note FROM notes FOR UPDATE NOWAIT") == (("locked",),)


@pytest.mark.parametrize("begun_by", ["begin()", "BEGIN", "START TRANSACTION", "SET autocommit=0"])
def test_a_transaction_begun_in_spite_of_autocommit_is_rolled_back(
    make: Callable[..., Requests], witness: Witness, begun_by: str
) -> None:
    requests = make(autocommit=True)

    def use(connection: Any) -> None:
        with closing(connection.cursor()) as cursor:
            if begun_by == "begin()":
                connection.begin()
            else:
                cursor.execute(begun_by)
            cursor.execute("INSERT INTO notes VALUES ('half of it')")

    requests.serve(use)
    assert requests.serve(query("SELECT COUNT(*) FROM notes")) == (0,)
    assert witness.notes == []


def test_a_connection_is_still_known_after_errors_that_look_like_a_lost_one(
    make: Callable[..., Requests], witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    witness.rows("CREATE OR REPLACE PROCEDURE times_out() SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205")
    requests = make()

    def use(connection: Any) -> Any:
        for _ in range(3):
            # DBUtils makes another connection, tries the statement there too, and closes it again.
            with closing(connection.cursor()) as cursor, pytest.raises(MySQLdb.OperationalError):
                cursor.execute("CALL times_out()")
        [number] = NUMBER(connection)
        assert connection.number == number
        kills = witness.kills
        for each in connection.driver_connections():
            each.stop_query()
        return witness.kills - kills

    assert requests.serve(use) >= 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_cursor_may_outlive_its_connection(make: Callable[..., Requests]) -> None:
    requests = make()
    request = TrackedRequest("test", None)
    request.enter()
    for number in range(3):
        # Nothing refers to the connection, so it is back in the pool at once.
        cursor = requests.pool.connection().cursor()
        assert requests.pool._connections == 0
        for _ in range(2):
            cursor.execute("SELECT %s", (number,))
            assert cursor.fetchone() == (number,)
    request.leave()
