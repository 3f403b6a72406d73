"""Outcomes with PostgreSQL, whose drivers say whether a transaction is open, or has failed."""

from __future__ import annotations

import contextlib
from contextlib import closing
from typing import Any

import psycopg
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.postgresql import Witness
from tests.support.requests_in_threads import one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard

ADD = "INSERT INTO amounts VALUES (1)"
FAILS = "SELECT 1 / 0"

# With autocommit or not; what a request does before it gives back its connection; its outcome; how many rows
# there are then.
OUTCOMES: dict[str, tuple[bool, tuple[str, ...], str, int]] = {
    "committed": (False, (ADD, "commit"), "committed", 1),
    "rolled back": (False, (ADD,), "rolled back", 0),
    "a failure before the commit": (False, (ADD, FAILS, "commit"), "rolled back", 0),
    "a failure before a commit by a statement": (False, (ADD, FAILS, "COMMIT"), "rolled back", 0),
    "a failure behind a savepoint": (
        False,
        (ADD, "SAVEPOINT a", FAILS, "ROLLBACK TO SAVEPOINT a", "commit"),
        "unknown",
        1,
    ),
    "a temporary table": (False, (ADD, "CREATE TEMP TABLE helping (a int)", "rollback"), "rolled back", 0),
    "a table": (False, (ADD, "CREATE TABLE made (a int)", "rollback"), "rolled back", 0),
    "truncated": (False, ("TRUNCATE amounts", "commit"), "committed", 0),
    "truncated, rolled back": (False, ("TRUNCATE amounts",), "rolled back", 0),
    "a constraint that is checked at the commit": (
        False,
        (ADD, "INSERT INTO once VALUES (1), (1)", "commit"),
        "rolled back",
        0,
    ),
    "a query with WITH": (False, ("WITH a AS (SELECT 1 AS b) SELECT b FROM a FOR UPDATE", "commit"), "none", 0),
    "a change in WITH": (False, (f"WITH a AS ({ADD} RETURNING 1) TABLE a", "commit"), "committed", 1),
    "a block": (False, (f"DO $$ BEGIN {ADD}; END $$", "commit"), "unknown", 1),
    "a block, rolled back": (False, (f"DO $$ BEGIN {ADD}; END $$",), "rolled back", 0),
    "several statements": (False, (f"{ADD}; COMMIT",), "unknown", 1),
    "locked": (False, (ADD, "LOCK TABLE amounts", "rollback"), "rolled back", 0),
    "lost": (False, (ADD, "KILL", "SELECT 1", "commit", "commit"), "rolled back", 0),
    "lost at the commit": (False, (ADD, "KILL", "commit", "commit", ADD, "commit"), "unknown", 0),
    "autocommit": (True, (ADD, "rollback"), "committed", 1),
    "autocommit, though begun": (True, ("begin", ADD, "rollback"), "committed", 1),
    "autocommit, begun by a statement": (True, ("BEGIN", ADD, "ROLLBACK"), "rolled back", 0),
    "autocommit, a failure": (True, (FAILS, ADD), "committed", 1),
    "autocommit, a procedure": (True, ("CALL adds()",), "unknown", 1),
    "autocommit, lost": (True, ("KILL", ADD), "unknown", 0),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_outcome_of_changes_is_true(witness: Witness, driver: Any, name: str) -> None:
    autocommit, steps, outcome, count = OUTCOMES[name]
    for sql in (
        "DROP TABLE IF EXISTS amounts, once, made",
        "CREATE TABLE amounts (amount int)",
        "CREATE TABLE once (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        f"CREATE OR REPLACE PROCEDURE adds() LANGUAGE plpgsql AS $$ BEGIN {ADD}; COMMIT; END $$",
    ):
        witness.connection.execute(sql)

    def connect() -> Any:
        made = driver.connect("")
        made.autocommit = autocommit
        return made

    pool = PooledDB(connect, maxconnections=1, failures=driver.Error)
    guard = DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        for step in steps:
            with contextlib.suppress(driver.Error):
                if step == "KILL":
                    witness.connection.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.number,))
                elif " " in step or step.isupper():
                    connection.cursor().execute(step)
                else:
                    getattr(connection, step)()
    guard.close()
    pool.close()
    [(found,)] = witness.connection.execute("SELECT count(*) FROM amounts").fetchall()
    assert (request.statements.outcome, found) == (outcome, count)


def test_a_copy_leaves_the_outcome_unknown(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=1)
    guard = DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        with cursor.copy("COPY notes FROM STDIN") as copied:
            copied.write_row(("copied",))
        connection.commit()
    assert request.statements.outcome == "unknown"
    witness.connection.execute("DELETE FROM notes")
    guard.close()
    pool.close()


def test_changes_on_a_shared_connection_are_committed_by_whoever_commits(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=1, maxshared=1)
    guard = DBUtilsGuard(pool)
    with closing(pool.connection()) as connection:
        with running() as first, closing(pool.connection()) as shared:
            shared.cursor().execute("INSERT INTO notes VALUES ('shared')")
        assert first.statements.outcome == "open"
        with running(), closing(pool.connection()) as shared:
            shared.commit()
        assert first.statements.outcome == "committed"
        connection.cursor().execute("DELETE FROM notes")
        connection.commit()
    guard.close()
    pool.close()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TEMP TABLE orders_of_tests (id int)",
        "SELECT 1 AS id INTO TEMPORARY orders_of_tests",
        "CREATE TABLE pg_temp.orders_of_tests (id int)",
    ],
)
def test_no_request_finds_a_temporary_table_of_another(witness: Witness, sql: str) -> None:
    pool = PooledDB(psycopg, maxconnections=1)
    guard = DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute(sql)
        connection.commit()
    with running(), closing(pool.connection()) as connection:
        count = "SELECT count(*) FROM pg_class WHERE relname = 'orders_of_tests' AND pg_table_is_visible(oid)"
        assert one(connection, count) == 0
    guard.close()
    pool.close()
