"""The outcome given for a request's changes agrees with the table, or is "unknown"."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support import unknown_driver
from tests.support.databases import Witness, connect_settings
from tests.support.requests_in_threads import InThread, one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard

FIRST, SECOND, THIRD = (f"UPDATE accounts SET amount = 1 WHERE id = {number}" for number in (1, 2, 3))  # noqa: S608


@pytest.fixture
def accounts(witness: Witness) -> Iterator[Callable[[], set[int]]]:
    """Three accounts with a balance of 0; returns those that were paid into."""
    # A failed test may leave locks.
    witness.rows("SET lock_wait_timeout = 5")
    witness.rows("CREATE OR REPLACE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB")
    witness.rows("INSERT INTO accounts VALUES (1, 0), (2, 0), (3, 0)")
    witness.rows(f"CREATE OR REPLACE PROCEDURE pay() BEGIN {FIRST}; COMMIT; END")
    witness.rows("CREATE OR REPLACE TABLE emptied (a INT)")
    yield lambda: {number for (number,) in witness.rows("SELECT id FROM accounts WHERE amount <> 0")}
    witness.rows("DROP TABLE accounts, emptied")
    witness.rows("DROP PROCEDURE pay")


# What a request does before it gives back its connection; its outcome; which accounts were paid into.
OUTCOMES: dict[str, tuple[tuple[str, ...], str, set[int]]] = {
    "a procedure": (("CALL pay()",), "unknown", {1}),
    "a block": ((f"BEGIN NOT ATOMIC {FIRST}; COMMIT; END",), "unknown", {1}),
    "several statements": ((f"{FIRST}; COMMIT",), "unknown", {1}),
    "several, though rolled back": ((f"{FIRST}; COMMIT", "rollback"), "unknown", {1}),
    "a semicolon in a string": (("INSERT INTO notes VALUES ('; COMMIT')", "rollback"), "rolled back", set()),
    "an executed comment": ((f"/*!50000 {FIRST} */", "commit"), "unknown", {1}),
    "with a setting": ((f"SET STATEMENT max_statement_time=5 FOR {FIRST}", "commit"), "committed", {1}),
    "begun anew": ((FIRST, "begin", SECOND, "rollback"), "partly committed", {1}),
    "begun anew by a statement": ((FIRST, "START TRANSACTION", SECOND, "ROLLBACK"), "partly committed", {1}),
    "autocommit switched on": ((FIRST, "SET autocommit=1"), "committed", {1}),
    "autocommit switched on by the driver": ((FIRST, "raw autocommit"), "committed", {1}),
    "autocommit switched off": (("SET autocommit=0", FIRST, "rollback"), "rolled back", set()),
    "autocommit, many that fail": (
        ("SET autocommit=1", "many UPDATE accounts SET amount = 1 WHERE id = IF(%s, %s, (SELECT 1 UNION SELECT 2))"),
        "unknown",
        {1},
    ),
    "many that fail": (
        ("many UPDATE accounts SET amount = 1 WHERE id = IF(%s, %s, (SELECT 1 UNION SELECT 2))", "commit"),
        "unknown",
        {1},
    ),
    "locked tables": ((FIRST, "LOCK TABLES accounts WRITE", "UNLOCK TABLES"), "committed", {1}),
    "unlocked tables": ((FIRST, "UNLOCK TABLES"), "unknown", set()),
    "truncated": (("TRUNCATE emptied",), "committed", set()),
    "a table that cannot be made": ((FIRST, "CREATE TABLE accounts (a INT)"), "unknown", {1}),
    "a temporary table": ((FIRST, "CREATE TEMPORARY TABLE helping (a INT)"), "rolled back", set()),
    "a temporary sequence": ((FIRST, "CREATE TEMPORARY SEQUENCE helping", "rollback"), "committed", {1}),
    "a default role": ((FIRST, "SET DEFAULT ROLE NONE", "rollback"), "unknown", {1}),
    "a query with WITH": (("WITH a AS (SELECT 1 AS b) SELECT b FROM a", "commit"), "none", set()),
    "to a savepoint": ((FIRST, "SAVEPOINT a", SECOND, "ROLLBACK WORK TO SAVEPOINT a", "commit"), "unknown", {1}),
    "to a savepoint, rolled back": ((FIRST, "SAVEPOINT a", "ROLLBACK TO a", "rollback"), "rolled back", set()),
    "chained": ((FIRST, "COMMIT AND CHAIN", SECOND, "rollback"), "partly committed", {1}),
    "chained with autocommit": (
        ("SET autocommit=1", "BEGIN", FIRST, "COMMIT AND CHAIN", SECOND, "ROLLBACK"),
        "partly committed",
        {1},
    ),
    "autocommit after a table was made": (
        ("SET autocommit=1", "BEGIN", FIRST, "CREATE TABLE IF NOT EXISTS emptied (a INT)", SECOND, "rollback"),
        "committed",
        {1, 2},
    ),
    "a failure that is no loss": ((FIRST, "SELECT nothing FROM nowhere", "commit"), "committed", {1}),
    "lost twice": ((FIRST, "KILL", "commit", "commit", SECOND, "commit"), "unknown", set()),
    "lost, rolled back, repeated": ((FIRST, "KILL", "SELECT 1", "rollback", FIRST, "commit"), "partly committed", {1}),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_outcome_of_changes_is_true(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], set[int]], name: str
) -> None:
    steps, outcome, paid = OUTCOMES[name]
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        for step in steps:
            with contextlib.suppress(MySQLdb.Error):
                if step == "KILL":
                    witness.rows(f"KILL {connection.number}")
                elif step == "raw autocommit":
                    connection.dbapi_connection.autocommit(True)
                elif step.startswith("many "):
                    connection.cursor().executemany(step[5:], [(1, 1), (0, 0)])
                elif " " in step or step.isupper():
                    connection.cursor().execute(step)
                else:
                    getattr(connection, step)()
    assert (request.statements.outcome, accounts()) == (outcome, paid)


def deadlock(cursor: Any, mariadb: dict[str, str], witness: Witness) -> None:
    """End the transaction in which the cursor has executed `FIRST` by a deadlock."""
    other = MySQLdb.connect(**connect_settings(mariadb))
    # The database rolls back the transaction that has changed less.
    other.cursor().execute("INSERT INTO accounts SELECT seq + 10, 0 FROM seq_1_to_50")
    other.cursor().execute(SECOND)
    blocked = InThread(lambda: other.cursor().execute(f"/* blocked */ {FIRST}"))
    witness.wait_for("/* blocked */")
    with pytest.raises(MySQLdb.OperationalError) as raised:
        cursor.execute(SECOND)
    assert raised.value.args[0] == 1213
    blocked.join()
    other.rollback()
    other.close()


def test_a_deadlock_rolls_back_the_whole_transaction(
    mariadb: dict[str, str], make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], set[int]]
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(FIRST)
        deadlock(cursor, mariadb, witness)
        assert request.statements.outcome == "rolled back"
        cursor.execute(THIRD)
        connection.commit()
    assert (request.statements.outcome, accounts()) == ("partly committed", {3})


def test_after_a_deadlock_statements_commit_themselves_again(
    mariadb: dict[str, str], make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], set[int]]
) -> None:
    pool = make_pool(maxconnections=1, autocommit=True)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        connection.begin()
        cursor.execute(FIRST)
        deadlock(cursor, mariadb, witness)
        cursor.execute(THIRD)
        connection.rollback()
    assert (request.statements.outcome, accounts()) == ("partly committed", {3})


@pytest.mark.parametrize("autocommit", [True, False])
def test_of_many_statements_that_time_out_on_a_lock_some_may_have_succeeded(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], set[int]], autocommit: bool
) -> None:
    pool = make_pool(maxconnections=1, autocommit=autocommit)
    DBUtilsGuard(pool)
    witness.rows("START TRANSACTION")
    witness.rows(SECOND)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SET innodb_lock_wait_timeout = 1")
        with pytest.raises(MySQLdb.OperationalError) as raised:
            cursor.executemany("UPDATE accounts SET amount = amount + %s WHERE id = %s", [(1, 1), (1, 2)])
        assert raised.value.args[0] == 1205
        connection.commit()
    witness.rows("ROLLBACK")
    assert (request.statements.outcome, accounts()) == ("unknown", {1})


@pytest.mark.parametrize(("ends", "outcome"), [("commit", "unknown"), ("rollback", "rolled back")])
def test_whether_a_lock_wait_timeout_rolls_back_is_a_setting_of_the_servers(
    make_pool: Callable[..., Any], witness: Witness, accounts: Callable[[], set[int]], ends: str, outcome: str
) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    witness.rows("START TRANSACTION")
    witness.rows(SECOND)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(FIRST)
        with pytest.raises(MySQLdb.OperationalError) as raised:
            cursor.execute("SELECT amount FROM accounts WHERE id = 2 FOR UPDATE NOWAIT")
        assert raised.value.args[0] == 1205
        getattr(connection, ends)()
    witness.rows("ROLLBACK")
    assert request.statements.outcome == outcome


def test_changes_on_one_connection_are_not_committed_by_another(
    make_pool: Callable[..., Any], accounts: Callable[[], set[int]]
) -> None:
    pool = make_pool(maxconnections=2)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as one_of_them, closing(pool.connection()) as other:
        one_of_them.cursor().execute(FIRST)
        other.cursor().execute(SECOND)
        other.commit()
        assert request.statements.outcome == "partly committed"
        one_of_them.rollback()
    assert (request.statements.outcome, accounts()) == ("partly committed", {2})


def test_a_rollback_that_was_not_sent_rolls_nothing_back(
    make_pool: Callable[..., Any], accounts: Callable[[], set[int]]
) -> None:
    """The driver refuses to send a rollback before all rows are fetched."""
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        connection.cursor().execute(FIRST)
        rows = connection.cursor(MySQLdb.cursors.SSCursor)
        rows.execute("SELECT seq FROM seq_1_to_10000")
        with pytest.raises(MySQLdb.ProgrammingError):
            connection.rollback()
        # The error was recorded first.
        with contextlib.suppress(MySQLdb.ProgrammingError):
            rows.fetchall()
        rows.close()
        connection.commit()
    assert (request.statements.outcome, accounts()) == ("committed", {1})


def test_statements_of_an_unknown_driver_leave_the_outcome_unknown() -> None:
    pool = PooledDB(unknown_driver, maxconnections=1, database=":memory:")
    guard = DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        assert one(connection) == 1
        assert request.statements.outcome == "none"
        connection.cursor().execute("CREATE TABLE notes (note TEXT)")
    assert request.statements.outcome == "unknown"
    guard.close()
    pool.close()


def test_a_refused_statement_has_changed_nothing(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    notified = threading.Event()
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        request.on_cancel(notified.set)
        request.cancel()
        with pytest.raises(MySQLdb.OperationalError):
            cursor.execute("CALL pay()")
    assert notified.is_set() and request.statements.outcome == "none"
