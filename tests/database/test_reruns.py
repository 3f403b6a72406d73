"""No statement runs twice, and none outside its transaction; DBUtils alone does both."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any
from wsgiref.types import WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancelling import COUNTED_WAIT, WAITING, Application, assert_all_is_well, query
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


@pytest.fixture
def accounts(witness: Witness) -> Iterator[Callable[[], list[int]]]:
    """Two accounts of 1,000 each; returns their balances."""
    witness.rows("CREATE OR REPLACE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB")
    witness.rows("INSERT INTO accounts VALUES (1, 1000), (2, 1000)")
    yield lambda: [amount for (amount,) in witness.rows("SELECT amount FROM accounts ORDER BY id")]
    witness.rows("DROP TABLE accounts")


def move(cursor: Any, source: int, target: int) -> Iterator[None]:
    """Moves 1 in two statements, and pauses between them."""
    cursor.execute("UPDATE accounts SET amount = amount - 1 WHERE id = %s", (source,))
    yield
    cursor.execute("UPDATE accounts SET amount = amount + 1 WHERE id = %s", (target,))


# Errors of a statement, by the way in which the test provokes them.
STATEMENT_ERRORS = {
    "lock wait timeout": (1205, "CALL fails(1205)"),
    "deadlock": (1213, "CALL fails(1213)"),
    "MariaDB's time limit": (1969, "SET STATEMENT max_statement_time=0.2 FOR " + COUNTED_WAIT),
    "MySQL's time limit": (3024, "CALL fails(3024)"),
    "interrupted": (1317, COUNTED_WAIT),
}


@pytest.mark.parametrize("in_a_request", [True, False])
@pytest.mark.parametrize("name", STATEMENT_ERRORS)
def test_a_statement_that_failed_is_not_run_again(pool: Any, witness: Witness, name: str, in_a_request: bool) -> None:
    number, sql = STATEMENT_ERRORS[name]
    witness.rows(
        "CREATE OR REPLACE PROCEDURE fails(number INT) BEGIN "
        "DO NEXT VALUE FOR executions; SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = number; END"
    )
    DBUtilsGuard(pool)
    worker = in_request(lambda: query(pool, sql))[1] if in_a_request else InThread(lambda: query(pool, sql))
    if number == 1317:
        witness.rows(f"KILL QUERY {witness.wait_for(WAITING)}")
    worker.join()
    assert worker.error is not None and worker.error.args[0] == number
    assert witness.executions == 1


@pytest.mark.parametrize("begins", [False, True])
def test_a_deadlock_costs_one_request_its_transaction_and_the_other_nothing(
    pool: Any, accounts: Callable[[], list[int]], begins: bool
) -> None:
    both_have_one = threading.Barrier(2)

    def transfer(environ: WSGIEnvironment) -> str:
        source = int(environ["QUERY_STRING"])
        with closing(pool.dedicated_connection()) as connection, closing(connection.cursor()) as cursor:
            if begins:
                connection.begin()
            for _ in move(cursor, source, 3 - source):
                both_have_one.wait(10)
            connection.commit()
        return "moved"

    def status(path: str) -> int:
        return server.request(path=path)[0].status

    with BridgeThread(Application(transfer), pool=pool) as server:
        for _ in range(10):
            workers = [InThread(partial(status, f"/?{source}")) for source in (1, 2)]
            for worker in workers:
                worker.join()
            assert sorted(worker.result for worker in workers) == [200, 500]
    assert sum(accounts()) == 2000


@pytest.mark.parametrize("how", ["KILL", "maxusage", "ping=2", "ping=4", "ping=7"])
def test_a_lost_connection_loses_its_whole_transaction(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], list[int]], how: str
) -> None:
    # DBUtils would execute the second half on a new connection, and commit that.
    ping = int(how[5:]) if how.startswith("ping") else 1
    pool = make_pool(maxconnections=1, ping=ping, maxusage=2 if how == "maxusage" else None)
    DBUtilsGuard(pool)
    for _ in range(5):
        with running(), closing(pool.connection()) as connection:
            cursor = connection.cursor()
            number = one(connection, "SELECT CONNECTION_ID()")
            with contextlib.suppress(MySQLdb.OperationalError):
                for _ in move(cursor, 1, 2):
                    if how != "maxusage":
                        witness.rows(f"KILL {number}")
                    cursor = connection.cursor()
                connection.commit()
    moved = 5 if how == "maxusage" else 0
    assert accounts() == [1000 - moved, 1000 + moved]


def test_statements_fail_until_the_end_of_a_transaction_that_was_lost(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], list[int]]
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        cursor = connection.cursor()
        for _ in move(cursor, 1, 2):
            witness.rows(f"KILL {one(connection, 'SELECT CONNECTION_ID()')}")
            # An application that ignores the error must not commit the second half.
            for _ in range(2):
                with pytest.raises(MySQLdb.OperationalError):
                    cursor.execute("SELECT 1")
            with contextlib.suppress(MySQLdb.OperationalError):
                connection.rollback()
            break
        assert one(connection) == 1
        connection.commit()
    assert accounts() == [1000, 1000]


def test_a_commit_that_was_lost_does_not_succeed_the_second_time(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], list[int]]
) -> None:
    # DBUtils would commit on a new connection, which has nothing to commit.
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        connection.cursor().execute("UPDATE accounts SET amount = 0")
        witness.rows(f"KILL {connection.number}")
        for _ in range(2):
            with pytest.raises(MySQLdb.OperationalError):
                connection.commit()
            with pytest.raises(MySQLdb.OperationalError):
                connection.cursor().execute("UPDATE accounts SET amount = 0")
        assert request.statements.outcome == "unknown"
        with contextlib.suppress(MySQLdb.OperationalError):
            connection.rollback()
        connection.cursor().execute("UPDATE accounts SET amount = 5 WHERE id = 1")
        connection.commit()
    assert accounts() == [5, 1000]
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1


def test_a_connection_that_was_lost_at_its_commit_is_replaced_when_it_comes_back(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('lost')")
        witness.rows(f"KILL {connection.number}")
        with pytest.raises(MySQLdb.OperationalError):
            connection.commit()
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('kept')")
        connection.commit()
    assert witness.notes == ["kept"]


def test_connections_are_replaced_after_maxusage_statements(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1, maxusage=3)
    DBUtilsGuard(pool)
    numbers = []
    for _ in range(6):
        with running(), closing(pool.connection()) as connection:
            numbers.append(one(connection, "SELECT CONNECTION_ID()"))
    assert len(set(numbers[:3])) == len(set(numbers[3:])) == 1 and len(set(numbers)) == 2


# What runs again on a new connection, when the old one was lost.
REPEATED = {
    "a plain query": ((), "SELECT COUNT(*) FROM accounts WHERE id IN (1, 2)", True),
    "quoted names": ((), "SELECT COUNT(`id`) FROM `accounts` WHERE `id` IN (1, 2) AND 'a -- b' <> '('", True),
    "after a commit": (("SELECT 1", "commit"), "SELECT COUNT(*) FROM accounts", True),
    "after a rollback": (("UPDATE accounts SET amount = 0", "rollback"), "SELECT COUNT(*) FROM accounts", True),
    "not the first": (("SELECT 1",), "SELECT COUNT(*) FROM accounts", False),
    "in a transaction": (("begin",), "SELECT COUNT(*) FROM accounts", False),
    "a write": ((), "UPDATE accounts SET amount = 5", False),
    "a query that takes locks": ((), "SELECT amount FROM accounts FOR UPDATE", False),
    "a function that may write": ((), "SELECT NEXTVAL(executions)", False),
    "a function of the application's": ((), "SELECT book(5)", False),
    "one with a quoted name": ((), "SELECT `book`(5)", False),
    "one with quotes in another dialect": ((), 'SELECT "book"(5)', False),
    "one of a database with a quoted name": ((), "SELECT `myapplication`.count(5)", False),
    "one of a database": ((), "SELECT myapplication . count(5)", False),
    "one between comments": ((), "SELECT 1 -- don't\n, book(5) -- can't", False),
    "one behind a comment": ((), "SELECT book/**/(5)", False),
    "one with a name that is not ASCII": ((), "SELECT menülower(5)", False),
    "one behind a backslash": ((), "SELECT 'a\\', book(5), 'b'", False),
    "another session's number": ((), "SELECT LAST_INSERT_ID()", False),
    "after something sent by itself": (("raw UPDATE accounts SET amount = 0",), "SELECT COUNT(*) FROM accounts", False),
    "a session that was changed": (("SET @a = 1", "commit"), "SELECT COUNT(*) FROM accounts", False),
}


@pytest.mark.parametrize("name", REPEATED)
def test_only_what_leaves_no_trace_is_run_again(
    make_pool: Callable[..., Any],
    witness: Witness,
    accounts: Callable[[], list[int]],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    before, sql, is_repeated = REPEATED[name]
    pool = make_pool(maxconnections=1)
    guard = DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        cursor = connection.cursor()
        for statement in before:
            if statement.startswith("raw"):
                connection.dbapi_connection.cursor().execute(statement[4:])
            elif " " in statement:
                cursor.execute(statement)
            else:
                getattr(connection, statement)()
        witness.rows(f"KILL {connection.number}")
        if is_repeated:
            cursor.execute(sql)
            assert cursor.fetchall() == ((2,),)
        else:
            with pytest.raises(MySQLdb.OperationalError) as raised:
                cursor.execute(sql)
            assert raised.value.args[0] in (2006, 2013)
    assert guard.reruns == is_repeated
    assert accounts() == [1000, 1000] and witness.executions == 0


def test_each_repetition_is_logged(
    make_pool: Callable[..., Any], witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with caplog.at_level(logging.WARNING, "threadbridge"), running(), closing(pool.connection()) as connection:
        witness.rows(f"KILL {connection.number}")
        assert one(connection) == 1
    assert len(caplog.messages) == 1 and "is run again" in caplog.messages[0]


def test_nothing_is_run_again_if_reruns_are_off(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1)
    guard = DBUtilsGuard(pool, rerun="never")
    with running(), closing(pool.connection()) as connection:
        witness.rows(f"KILL {connection.number}")
        with pytest.raises(MySQLdb.OperationalError):
            one(connection)
    assert guard.reruns == 0


def test_an_application_may_veto_a_repetition(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1, isfatal=lambda error: False)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        witness.rows(f"KILL {connection.number}")
        with pytest.raises(MySQLdb.OperationalError):
            one(connection)


def test_a_connection_that_was_lost_in_the_pool_is_replaced_when_it_is_handed_out(pool: Any, witness: Witness) -> None:
    def write(environ: WSGIEnvironment) -> str:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES ('written')")
            connection.commit()
            return str(connection.number)

    with BridgeThread(Application(write), pool=pool) as server:
        for _ in range(3):
            number = int(server.request("POST")[1])
            witness.rows(f"KILL {number}")
            wait_until(lambda number=number: number not in witness.connections, "it is gone")  # type: ignore[misc]
        assert_all_is_well(pool, witness)
    assert witness.notes == ["written"] * 3


# A server that answers but cannot do its work.

READ_ONLY = "The MariaDB server is running with the --read-only option so it cannot execute this statement"


@pytest.mark.parametrize(
    ("number", "text", "is_outage"),
    [
        (1047, "WSREP has not yet prepared node for application use", True),
        (1180, "Got error 5 during COMMIT", True),
        (1836, "Running in read-only mode", True),
        (1226, "User 'x' has exceeded the 'max_updates_per_hour' resource (current value: 1)", True),
        (1290, READ_ONLY, True),
        (1290, READ_ONLY.replace("read-only", "super_read_only"), True),
        (1290, READ_ONLY.replace("read-only", "secure-file-priv"), False),
    ],
)
def test_a_server_that_cannot_work_is_an_outage_and_its_connection_is_closed(
    make_pool: Callable[..., Any], witness: Witness, number: int, text: str, is_outage: bool
) -> None:
    witness.rows(
        "CREATE OR REPLACE FUNCTION cannot(number INT, reason VARCHAR(100)) RETURNS INT BEGIN "
        "DO NEXT VALUE FOR executions; SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = number, MESSAGE_TEXT = reason; "
        "RETURN 1; END"
    )
    pool = make_pool()
    guard = DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        before = one(connection, "SELECT CONNECTION_ID()")
        cursor.execute("INSERT INTO notes VALUES ('not lost')")
        with pytest.raises(MySQLdb.OperationalError) as raised:
            cursor.execute("UPDATE notes SET note = cannot(%s, %s)", (number, text))
        # The connection was not lost, so neither was the transaction.
        assert (one(connection, "SELECT CONNECTION_ID()"), request.statements.outcome) == (before, "open")
        assert not guard.may_repeat(raised.value, "SELECT 1")
    assert raised.value.args == (number, text)
    assert (witness.executions, witness.notes, guard.reruns) == (1, [], 0)
    assert (guard.last_outage > 0, guard.is_outage(raised.value)) == (is_outage, is_outage)
    assert request.statements.outcome == "rolled back"
    with running(), closing(pool.connection()) as connection:
        assert (one(connection, "SELECT CONNECTION_ID()") != before) == is_outage


@pytest.mark.parametrize(
    ("number", "text", "outcome"),
    [
        (1180, "Got error 5 during COMMIT", "unknown"),
        (1047, "WSREP has not yet prepared node for application use", "unknown"),
        (2013, "Lost connection to server during query", "unknown"),
        # Another node has changed the same rows: Galera's certification.
        (1213, "Deadlock found when trying to get lock; try restarting transaction", "rolled back"),
    ],
)
def test_the_outcome_of_a_failed_commit_is_known_only_if_the_cluster_refused_it(
    make_pool: Callable[..., Any], number: int, text: str, outcome: str
) -> None:
    pool = make_pool()
    guard = DBUtilsGuard(pool)
    error = MySQLdb.OperationalError(number, text)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO notes VALUES ('perhaps')")
        connection.note_failure(request.statements, "COMMIT", error)
        assert request.statements.outcome == outcome
    assert request.statements.outcome == outcome
    # The refusal concerns this transaction alone.
    assert guard.is_outage(error) == (number != 1213)
