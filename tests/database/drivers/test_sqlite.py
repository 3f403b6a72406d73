"""What is particular to SQLite: files, locks and threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.database.drivers.stacks import SQLiteStack
from tests.database.drivers.test_contract import execute
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[SQLiteStack]:
    with closing(SQLiteStack(tmp_path / "notes.sqlite")) as stack:
        yield stack


def test_connections_go_from_thread_to_thread(stack: SQLiteStack) -> None:
    pool, _ = stack.pool()

    def insert() -> int:
        with closing(pool.connection()) as connection:
            execute(connection, "INSERT INTO notes VALUES ('a')")
            connection.commit()
            return id(connection._con._con)

    seen = set()
    for _ in range(3):
        worker = InThread(insert)
        worker.join()
        assert worker.error is None
        seen.add(worker.result)
    assert (len(seen), stack.notes) == (1, ["a"] * 3)


def test_the_applications_own_thread_check_is_kept(stack: SQLiteStack) -> None:
    pool, _ = stack.pool(check_same_thread=True)
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1
        with closing(connection.cursor()) as cursor:
            worker = InThread(lambda: cursor.execute("SELECT 1"))
            worker.join()
    assert isinstance(worker.error, sqlite3.ProgrammingError)


def test_a_locked_database_is_no_outage_and_the_wait_is_not_cut_short(stack: SQLiteStack) -> None:
    pool, guard = stack.pool(timeout=0.5)
    stack.rows("BEGIN IMMEDIATE")

    def insert() -> None:
        with closing(pool.connection()) as connection:
            execute(connection, "INSERT INTO notes VALUES ('waits')")

    request, worker = in_request(insert)
    wait_until(lambda: pool._connections == 1, "it waits for the lock")
    request.cancel()
    worker.join()
    stack.rows("ROLLBACK")
    error: Any = worker.error
    # It was refused if it was cancelled before it could wait.
    assert error.sqlite_errorname in ("SQLITE_BUSY", "SQLITE_INTERRUPT")
    assert not guard.is_outage(error) and (pool._connections, stack.notes) == (0, [])


def test_there_is_nothing_to_cut_or_to_end_elsewhere(stack: SQLiteStack) -> None:
    pool, guard = stack.pool()
    with running() as request, closing(pool.connection()) as connection:
        assert connection.number is None
        assert guard.abandon(request) == (1, 0)
    assert (guard.stopper.running, guard.stopper.killed, pool._connections) == (0, 0, 0)


@pytest.mark.parametrize(
    ("script", "outcome", "notes"),
    [
        # It commits what is open first.
        ("SELECT 1", "committed", ["first"]),
        ("INSERT INTO notes VALUES ('second')", "unknown", ["first", "second"]),
        ("INSERT INTO notes VALUES ('second'); ROLLBACK", "unknown", []),
    ],
)
def test_scripts_commit_what_is_open(stack: SQLiteStack, script: str, outcome: str, notes: list[str]) -> None:
    pool, _ = stack.pool()
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO notes VALUES ('first')")
        try:
            cursor.executescript(script)
        except sqlite3.OperationalError:
            assert "ROLLBACK" in script
    assert request.statements.outcome == outcome
    assert notes == [] or stack.notes == notes


def test_a_savepoint_alone_is_a_transaction(stack: SQLiteStack) -> None:
    pool, _ = stack.pool(isolation_level=None)
    with running() as request, closing(pool.connection()) as connection:
        execute(connection, "SAVEPOINT a")
        execute(connection, "INSERT INTO notes VALUES ('a')")
        assert request.statements.outcome == "open"
        execute(connection, "RELEASE a")
        assert request.statements.outcome == "committed"
    assert stack.notes == ["a"]
