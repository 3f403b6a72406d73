"""Connections that the application uses beyond a request, in its own threads, or after giving them back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import MySQLdb
import pytest

from tests.support.cancelling import COUNTED_WAIT, WAITING
from tests.support.databases import Witness
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running
from threadbridge.database.pools.dbutils import DBUtilsGuard


@pytest.fixture
def pool(make_pool: Callable[..., Any]) -> Any:
    return make_pool(maxconnections=1)


def keep(pool: Any) -> Any:
    """A connection that an earlier request got from the pool."""
    with running():
        return pool.connection()


@pytest.mark.parametrize("asked_for", ["in an earlier request", "in no request"])
def test_statements_on_a_held_connection_are_recorded(pool: Any, witness: Witness, asked_for: str) -> None:
    DBUtilsGuard(pool)
    kept = keep(pool) if asked_for == "in an earlier request" else pool.connection()
    for note in ("first", "second"):
        with running() as request:
            kept.cursor().execute("INSERT INTO notes VALUES (%s)", (note,))
            assert request.statements.outcome == "open"
            kept.commit()
        assert (request.statements.outcome, request.statements.count) == ("committed", 1)
    assert witness.notes == ["first", "second"]
    kept.close()
    assert pool._connections == 0 and len(pool._idle_cache) == 1


def test_a_query_on_a_held_connection_is_stopped(pool: Any, witness: Witness) -> None:
    DBUtilsGuard(pool)
    kept = keep(pool)
    request, worker = in_request(lambda: kept.cursor().execute(COUNTED_WAIT))
    witness.wait_for(WAITING)
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    # The next request's query is not stopped.
    with running():
        assert one(kept, "SELECT SLEEP(0.1)") == 0
    kept.close()
    assert pool._connections == 0


def test_a_held_connection_works_again_after_its_thread_was_abandoned(pool: Any, witness: Witness) -> None:
    guard = DBUtilsGuard(pool)
    kept = keep(pool)
    in_the_middle, go_on = threading.Event(), threading.Event()

    def be_stuck() -> None:
        kept.cursor().execute("INSERT INTO notes VALUES ('by a thread that is stuck')")
        in_the_middle.set()
        assert go_on.wait(30)

    stuck, worker = in_request(be_stuck)
    assert in_the_middle.wait(30)
    assert guard.abandon(stuck) == (1, 0)
    assert pool._connections == 0
    go_on.set()
    worker.join()
    with running():
        with pytest.raises(MySQLdb.OperationalError):
            one(kept)
        with pytest.raises(MySQLdb.OperationalError):
            kept.rollback()
        assert pool._connections == 1
        assert one(kept) == 1
    kept.close()
    assert (pool._connections, witness.notes) == (0, [])


def test_other_threads_statements_on_a_requests_connection_count_as_its_own(pool: Any, witness: Witness) -> None:
    DBUtilsGuard(pool)

    def work() -> InThread:
        with closing(pool.connection()) as connection:
            other = InThread(lambda: connection.cursor().execute("INSERT INTO notes VALUES ('by another thread')"))
            other.join()
            connection.commit()
            other = InThread(lambda: connection.cursor().execute(COUNTED_WAIT))
            other.join()
            return other

    request, worker = in_request(work)
    witness.wait_for(WAITING)
    request.cancel()
    worker.join()
    stopped = worker.result.error
    assert isinstance(stopped, MySQLdb.OperationalError) and stopped.args[0] == 1317
    assert (request.statements.count, request.statements.outcome) == (2, "committed")
    assert witness.notes == ["by another thread"]


def test_another_thread_executes_no_statement_for_a_cancelled_request(pool: Any, witness: Witness) -> None:
    DBUtilsGuard(pool)
    with running() as request:
        connection = pool.connection()
        cursor = connection.cursor()
        request.cancel()
        other = InThread(lambda: cursor.execute(COUNTED_WAIT))
        other.join()
        connection.close()
    assert isinstance(other.error, MySQLdb.OperationalError)
    assert witness.executions == 0


def test_statements_on_a_cursor_whose_connection_was_given_back_are_recorded(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1, autocommit=True)
    DBUtilsGuard(pool)
    with running() as request:
        # The connection goes back to the pool at once.
        cursor = pool.connection().cursor()
        assert len(pool._idle_cache) == 1
        cursor.execute("INSERT INTO notes VALUES ('late')")
    assert (request.statements.outcome, request.statements.count) == ("committed", 1)
    assert witness.notes == ["late"] and pool._connections == 0


def test_a_held_connection_with_autocommit_is_replaced_once_it_is_lost(
    make_pool: Callable[..., Any], witness: Witness
) -> None:
    pool = make_pool(maxconnections=1, autocommit=True)
    DBUtilsGuard(pool)
    kept = keep(pool)
    with running():
        number = one(kept, "SELECT CONNECTION_ID()")
        witness.rows(f"KILL {number}")
        wait_until(lambda: number not in witness.connections, "it has ended")
        with pytest.raises(MySQLdb.OperationalError):
            kept.cursor().execute("INSERT INTO notes VALUES ('lost')")
        kept.cursor().execute("INSERT INTO notes VALUES ('kept')")
    assert witness.notes == ["kept"]


def test_a_held_connection_in_a_transaction_is_not_replaced(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1, autocommit=True)
    DBUtilsGuard(pool)
    kept = keep(pool)
    with running():
        number = one(kept, "SELECT CONNECTION_ID()")
        kept.cursor().execute("BEGIN")
        kept.cursor().execute("INSERT INTO notes VALUES ('first')")
        witness.rows(f"KILL {number}")
        wait_until(lambda: number not in witness.connections, "it has ended")
        for _ in range(2):
            with pytest.raises(MySQLdb.OperationalError):
                kept.cursor().execute("INSERT INTO notes VALUES ('second')")
        with pytest.raises(MySQLdb.OperationalError):
            kept.rollback()
        kept.cursor().execute("INSERT INTO notes VALUES ('third')")
    assert witness.notes == ["third"]
