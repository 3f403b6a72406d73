"""The statements of a request are recorded, and can name the request to the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import DictCursor, SSCursor

from tests.support.cancelling import WAIT, WAITING, query
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import in_request, running
from threadbridge import current
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.sql.statements import MAX_LATEST, MAX_TEXT

CHANGE = "INSERT INTO notes VALUES ('changed')"


@pytest.fixture
def request_of(mariadb: dict[str, str]) -> Iterator[Callable[..., TrackedRequest]]:
    """Makes a function use a cursor in a request; returns the request when it has ended."""
    guards: list[DBUtilsGuard] = []

    def run(use: Callable[[Any], object], request_id: str = "7f-00002a", **parameters: Any) -> TrackedRequest:
        pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))
        guards.append(DBUtilsGuard(pool, **parameters))
        request = TrackedRequest(request_id, None)
        request.enter()
        try:
            with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                use(cursor)
        finally:
            request.leave()
            pool.close()
        return request

    yield run
    for guard in guards:
        guard.close()


def test_statements_are_recorded_in_order(request_of: Callable[..., TrackedRequest], witness: Witness) -> None:
    witness.rows("CREATE OR REPLACE PROCEDURE gives_two() SELECT 1 UNION SELECT 2")
    numbers: list[int] = []

    def use(cursor: Any) -> None:
        cursor.execute("SELECT CONNECTION_ID()")
        numbers.extend(cursor.fetchone())
        cursor.execute(b"SELECT %s, SLEEP(0.1)", ("secret",))
        cursor.executemany(query="INSERT INTO notes VALUES (%s)", args=[("a",), ("b",), ("c",)])
        with pytest.raises(MySQLdb.ProgrammingError):
            cursor.execute("SELECT missing FROM nowhere")
        cursor.callproc("gives_two")

    statements = request_of(use).statements
    assert [(each.sql, each.rows, each.error) for each in statements.latest] == [
        ("SELECT CONNECTION_ID()", 1, ""),
        ("SELECT %s, SLEEP(0.1)", 1, ""),
        ("INSERT INTO notes VALUES (%s)", 3, ""),
        ("SELECT missing FROM nowhere", -1, "ProgrammingError"),
        ("CALL gives_two", 2, ""),
    ]
    assert {each.connection_id for each in statements.latest} == set(numbers)
    times = [time for each in statements.latest for time in (each.started, each.ended)]
    assert times == sorted(times) and times[3] - times[2] >= 0.1
    assert statements.count == 5
    assert statements.seconds == pytest.approx(sum(each.ended - each.started for each in statements.latest))


def test_a_statement_is_recorded_while_it_runs(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))

    def application(environ: Any, start_response: Any) -> list[bytes]:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(WAIT)
        return []

    with BridgeThread(application, pool=pool) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        number = witness.wait_for(WAITING)
        [exchange] = server.bridge.exchanges.open
        [statement] = exchange.running.statements.latest
        assert (statement.sql, statement.connection_id, statement.ended) == (WAIT, number, 0.0)
        client.close()
    pool.close()


def test_the_record_of_a_request_is_bounded(request_of: Callable[..., TrackedRequest]) -> None:
    def use(cursor: Any) -> None:
        for number in range(MAX_LATEST + 10):
            cursor.execute(f"SELECT {number}, '{'x' * 2 * MAX_TEXT}'")

    statements = request_of(use).statements
    assert statements.count == MAX_LATEST + 10
    assert [each.sql[:10] for each in statements.latest] == [
        f"SELECT {number}," for number in range(10, MAX_LATEST + 10)
    ]
    assert {len(each.sql) for each in statements.latest} == {MAX_TEXT}


@pytest.mark.parametrize("kind", [SSCursor, DictCursor])
def test_other_cursors_of_the_driver_work(mariadb: dict[str, str], kind: Any) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, cursorclass=kind, **connect_settings(mariadb))
    guard = DBUtilsGuard(pool, tags_queries=True)
    request = TrackedRequest("test", None)
    request.enter()
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT 1 AS one UNION SELECT 2")
        assert len(cursor.fetchall()) == 2
    request.leave()
    # Only the driver knows how many rows are still to be fetched.
    assert [each.rows for each in request.statements.latest] == [-1 if kind is SSCursor else 2]
    guard.close()
    pool.close()


# The comment that names the request.


def test_the_databases_process_list_names_the_request(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))
    ids: list[str] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        ids.append(current().id)
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT GET_LOCK(%s, %s) FROM seq_1_to_2", ("held", 20))
        return []

    with BridgeThread(application, pool=pool, tag_queries=True) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        witness.wait_for(WAITING)
        # Meanwhile, the control connection is made.
        wait_until(lambda: witness.running == [f"/* {ids[0]} */ {WAIT}"], "it runs alone")
        client.close()
    pool.close()


def current_statement(cursor: Any) -> str:
    """The text of this very statement, as the database has it."""
    cursor.execute("SELECT info, %s, '100%%' FROM information_schema.processlist WHERE id = CONNECTION_ID()", (1,))
    return str(cursor.fetchone()[0])


def test_a_tag_cannot_be_more_than_a_comment(request_of: Callable[..., TrackedRequest]) -> None:
    found: list[str] = []
    request_of(lambda cursor: found.append(current_statement(cursor)), "a*/;%s -- '\\\nb", tags_queries=True)
    assert found[0].startswith("/* as--b */ SELECT info, 1, '100%'")


def test_statements_without_a_request_are_not_tagged(mariadb: dict[str, str]) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))
    guard = DBUtilsGuard(pool, tags_queries=True)
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        assert current_statement(cursor).startswith("SELECT info")
    guard.close()
    pool.close()


def test_a_tag_does_not_change_what_a_statement_is(
    mariadb: dict[str, str], request_of: Callable[..., TrackedRequest], witness: Witness
) -> None:
    witness.rows("CREATE OR REPLACE PROCEDURE gives(value INT) SELECT value")

    def inserts(cursor: Any) -> int:
        cursor.execute("SHOW SESSION STATUS LIKE 'Com_insert'")
        return int(cursor.fetchone()[1])

    def use(cursor: Any) -> None:
        cursor.executemany("INSERT INTO notes VALUES (%s)", [("a",), ("b",), ("c",)])
        assert inserts(cursor) == 1, "the driver makes one statement of many"
        with pytest.raises(MySQLdb.OperationalError):
            cursor.execute("SET STATEMENT max_statement_time=0.1 FOR SELECT SLEEP(20)")
        cursor.execute("SELECT 1; SELECT 2")
        assert cursor.fetchall() == ((1,),) and cursor.nextset() and cursor.fetchall() == ((2,),)
        cursor.callproc("gives", (5,))
        assert cursor.fetchall() == ((5,),)
        cursor.nextset()
        cursor.connection.commit()

    request_of(use, tags_queries=True)
    assert witness.notes == ["a", "b", "c"]


# What a request does, by statements and by methods of the connection, and the outcome.
OUTCOMES: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "none"),
    "queries": (("SELECT 1", "SELECT note FROM notes FOR UPDATE", "commit"), "none"),
    "a change": ((CHANGE,), "open"),
    "a change, committed": ((CHANGE, "commit"), "committed"),
    "a change, committed by a statement": ((CHANGE, "COMMIT"), "committed"),
    "a change, rolled back": ((CHANGE, "rollback"), "rolled back"),
    "two transactions": ((CHANGE, "commit", CHANGE, "rollback"), "partly committed"),
    "a change after a commit": ((CHANGE, "commit", "SELECT 1", CHANGE), "partly committed"),
    "a table that was made": ((CHANGE, "CREATE TABLE IF NOT EXISTS made (a INT)"), "committed"),
    "autocommit": (("SET autocommit = 1", CHANGE), "committed"),
    "a transaction with autocommit": (("SET autocommit = 1", "begin", CHANGE), "open"),
    "one begun by a statement": (("SET autocommit = 1", "START TRANSACTION", CHANGE, "ROLLBACK"), "rolled back"),
    "lost": ((CHANGE, "KILL", "SELECT 1"), "rolled back"),
    "lost while it was committed": ((CHANGE, "KILL", "commit"), "unknown"),
    "lost with autocommit": (("SET autocommit = 1", "KILL", CHANGE), "unknown"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_outcome_of_a_requests_changes_is_known(make_pool: Callable[..., Any], witness: Witness, name: str) -> None:
    steps, outcome = OUTCOMES[name]
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        for step in steps:
            if step == "KILL":
                witness.rows(f"KILL {connection.number}")
                continue
            with contextlib.suppress(MySQLdb.OperationalError):
                if " " in step or step.isupper():
                    connection.cursor().execute(step)
                else:
                    getattr(connection, step)()
        assert request.statements.outcome == outcome
    # The open transaction has been rolled back with the connection.
    assert request.statements.outcome == {"open": "rolled back"}.get(outcome, outcome)


def test_a_change_that_is_still_running_is_open(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    witness.rows("SELECT GET_LOCK('held by the witness', 0)")
    request, worker = in_request(lambda: query(pool, "INSERT INTO notes SELECT GET_LOCK('held by the witness', 20)"))
    wait_until(lambda: request.statements.outcome == "open", "it runs")
    witness.rows("DO RELEASE_ALL_LOCKS()")
    worker.join()
    assert request.statements.outcome == "rolled back"
