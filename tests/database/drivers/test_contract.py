"""The promises that the guard keeps with every driver."""

from __future__ import annotations

import contextlib
from contextlib import closing
from typing import Any

import pytest

from tests.database.drivers.stacks import ALL, MYSQL, POSTGRESQL, Stack
from tests.support.cancelling import kept_controls
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard

WITH_SERVER = [name for name in ALL if name != "sqlite3"]


def driver_connection(connection: Any) -> Any:
    return connection._con._con


def execute(connection: Any, sql: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        if cursor.description:
            cursor.fetchall()


def compute(stack: Stack, pool: Any, before: str = "") -> tuple[TrackedRequest, InThread]:
    """A request whose query runs in the database."""

    def run() -> None:
        with closing(pool.connection()) as connection:
            if before:
                execute(connection, before)
            stack.run_compute(connection)

    request, worker = in_request(run)
    wait_until(lambda: stack.is_computing, "the query runs")
    return request, worker


def assert_refused(guard: DBUtilsGuard, error: BaseException | None) -> None:
    expected = guard.cancelled()
    assert type(error) is type(expected), error
    assert guard._database is not None and error is not None and guard._database.is_statement_error(error)
    assert not (guard.is_outage(error) or guard.is_lost(error))


# Cancelled requests.


def test_a_running_query_is_stopped(stack: Stack) -> None:
    pool, guard = stack.pool()
    request, worker = compute(stack, pool, "INSERT INTO notes VALUES ('half')")
    request.cancel()
    worker.join()
    assert_refused(guard, worker.error)
    wait_until(lambda: not stack.is_computing, "the database has stopped it")
    wait_until(lambda: guard.stopper.stops == 1, "it is counted")
    assert (guard.stopper.severed, guard.stopper.failures) == (0, 0)
    assert (pool._connections, stack.notes, request.statements.outcome) == (0, [], "rolled back")
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1


def test_a_cancelled_request_can_neither_query_nor_commit(stack: Stack) -> None:
    pool, guard = stack.pool()
    with running() as request, closing(pool.connection()) as connection:
        execute(connection, "INSERT INTO notes VALUES ('too late')")
        request.cancel()
        for refused in (lambda: one(connection), connection.commit, pool.connection):
            with pytest.raises(Exception) as raised:
                refused()
            assert_refused(guard, raised.value)
        connection.rollback()
    assert (pool._connections, stack.notes, request.statements.outcome) == (0, [], "rolled back")


# Hand-back and reuse.


def test_a_connection_comes_back_clean_and_is_used_again(stack: Stack) -> None:
    pool, _ = stack.pool()
    seen = set()
    for _ in range(3):
        with running(), closing(pool.connection()) as connection:
            seen.add(id(driver_connection(connection)))
            assert one(connection, "SELECT COUNT(*) FROM notes") == 0
            execute(connection, "INSERT INTO notes VALUES ('not committed')")
    assert (len(seen), len(pool._idle_cache), stack.notes) == (1, 1, [])


def test_a_connection_whose_session_was_changed_is_closed(stack: Stack) -> None:
    pool, _ = stack.pool()
    with running(), closing(pool.connection()) as connection:
        first = driver_connection(connection)
        execute(connection, stack.change)
    assert pool._idle_cache == []
    with running(), closing(pool.connection()) as connection:
        assert driver_connection(connection) is not first


@pytest.mark.parametrize("stack", [name for name in MYSQL if name != "mariadb"], indirect=True)
def test_statements_on_the_drivers_own_connection_are_seen(stack: Stack) -> None:
    pool, _ = stack.pool()
    with running(), closing(pool.connection()) as connection:
        execute(driver_connection(connection), stack.change)
    assert pool._idle_cache == []


@pytest.mark.parametrize("stack", [name for name in MYSQL if name != "mariadb"], indirect=True)
def test_the_databases_process_list_names_the_request(stack: Stack) -> None:
    pool, guard = stack.pool()
    guard.tags_queries = True
    with running(), closing(pool.connection()) as connection:
        info = one(connection, "SELECT info FROM information_schema.processlist WHERE id = CONNECTION_ID()")
    assert info.startswith("/* test */ SELECT info FROM")


@pytest.mark.parametrize("stack", MYSQL, indirect=True)
def test_autocommit_is_known_without_a_round_trip(stack: Stack) -> None:
    pool, guard = stack.pool()
    with running(), closing(pool.connection()) as connection:
        database: Any = guard._database
        raw = driver_connection(connection)

        def questions() -> int:
            with closing(connection.cursor()) as cursor:
                cursor.execute("SHOW SESSION STATUS LIKE 'Questions'")
                return int(cursor.fetchall()[0][1])

        assert not database._driver.autocommits(raw)
        execute(connection, "SET autocommit = 1")
        before = questions()
        assert database._driver.autocommits(raw) and database._driver.escapes(raw)
        assert questions() == before + 1
        execute(connection, "SET autocommit = 0")
        assert not database._driver.autocommits(raw)


# What became of changes.


@pytest.mark.parametrize(
    ("statements", "outcome", "notes"),
    [
        (("insert", "commit"), "committed", ["1"]),
        (("insert", "rollback"), "rolled back", []),
        (("insert",), "rolled back", []),
        (("insert", "COMMIT"), "committed", ["1"]),
        (("insert", "ROLLBACK"), "rolled back", []),
        (("insert", "wrong", "rollback"), "rolled back", []),
        (("insert", "commit", "insert"), "partly committed", ["1"]),
        (("insert", "SAVEPOINT a", "insert", "ROLLBACK TO SAVEPOINT a", "commit"), "committed", ["1"]),
        (("SELECT COUNT(*) FROM notes", "commit"), "none", []),
    ],
)
def test_the_outcome_of_a_request_is_known(
    stack: Stack, statements: tuple[str, ...], outcome: str, notes: list[str]
) -> None:
    pool, _ = stack.pool()
    inserted = 0
    with running() as request, closing(pool.connection()) as connection:
        for statement in statements:
            if statement in ("commit", "rollback"):
                getattr(connection, statement)()
            elif statement == "wrong":
                with contextlib.suppress(stack.creator.Error):
                    execute(connection, stack.wrong)
            elif statement == "insert":
                inserted += 1
                execute(connection, f"INSERT INTO notes VALUES ('{inserted}')")  # noqa: S608
            else:
                execute(connection, statement)
    found = request.statements.outcome
    # After a savepoint, the open changes may all be gone.
    assert found == outcome or ("SAVEPOINT a" in statements and found == "unknown")
    assert stack.notes == notes


def test_each_statement_commits_itself_in_autocommit_mode(stack: Stack) -> None:
    parameters: dict[str, Any] = {} if stack.number else {"isolation_level": None}
    pool, _ = stack.pool(**parameters)
    with running() as request, closing(pool.connection()) as connection:
        if stack.autocommit:
            execute(connection, stack.autocommit)
        elif stack.number:
            driver_connection(connection).autocommit = True
        execute(connection, "INSERT INTO notes VALUES ('a')")
    assert (request.statements.outcome, stack.notes) == ("committed", ["a"])


# Outages.


@pytest.mark.parametrize("stack", WITH_SERVER, indirect=True)
def test_a_connection_that_the_server_ends_is_lost_and_replaced(stack: Stack) -> None:
    pool, guard = stack.pool()
    with running() as request, closing(pool.connection()) as connection:
        execute(connection, "INSERT INTO notes VALUES ('lost')")
        stack.end(one(connection, stack.number))
        errors = []
        for _ in range(2):
            with pytest.raises(stack.creator.Error) as raised:
                execute(connection, "INSERT INTO notes VALUES ('lost, too')")
            errors.append(raised.value)
    # psycopg's second error only says that the connection is closed.
    for error in errors[:1] if stack.creator.__name__ in POSTGRESQL else errors:
        assert guard.is_lost(error) and guard.is_outage(error), error
    assert (pool._connections, request.statements.outcome, stack.notes) == (0, "rolled back", [])
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1


@pytest.mark.parametrize("stack", WITH_SERVER, indirect=True)
def test_a_lone_query_lost_with_its_connection_runs_again(stack: Stack) -> None:
    pool, guard = stack.pool()
    with running(), closing(pool.connection()) as connection:
        number = one(connection, stack.number)
        connection.rollback()
        stack.end(number)
        assert one(connection, "SELECT COUNT(*) FROM notes") == 0
        assert one(connection, stack.number) != number
    # mysql-connector pings whenever it makes a cursor, so that the connection is replaced before.
    assert guard.reruns == (0 if stack.creator.__name__ == "mysql.connector" else 1)


@pytest.mark.parametrize("stack", [*MYSQL, "sqlite3"], indirect=True)
def test_a_database_that_is_not_there_is_an_outage(stack: Stack) -> None:
    if stack.number:
        pool, guard = stack.pool(unix_socket="/nowhere.sock")
    else:
        pool, guard = stack.pool(database="/nowhere/notes.sqlite")
    with running(), pytest.raises(stack.creator.Error) as raised:
        pool.connection()
    assert guard.is_outage(raised.value), raised.value
    assert pool._connections == 0


# The control connection, and connections that cannot be stopped.


def idle_control(guard: DBUtilsGuard) -> Any:
    return next(iter(kept_controls(guard)), None)


@pytest.mark.parametrize("stack", [*MYSQL, "psycopg2"], indirect=True)
def test_a_control_connection_is_kept_and_replaced_if_it_is_lost(stack: Stack) -> None:
    pool, guard = stack.pool()
    request, worker = compute(stack, pool)
    wait_until(lambda: idle_control(guard) is not None, "there is one")
    stack.end(one(idle_control(guard).connection, stack.number))
    request.cancel()
    worker.join()
    assert_refused(guard, worker.error)
    wait_until(lambda: idle_control(guard) is not None, "there is another")
    assert (guard.stopper.failures, guard.stopper.severed) == (0, 0)


@pytest.mark.parametrize("stack", WITH_SERVER, indirect=True)
def test_a_connection_that_is_given_up_is_ended_and_frees_its_thread(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    pool, guard = stack.pool()
    request, worker = compute(stack, pool, "INSERT INTO notes VALUES ('half')")
    assert guard.abandon(request) == (1, 0)
    worker.join()
    assert worker.error is not None
    # Where the lost connection is replaced before its error is raised, that is refused.
    assert guard.is_lost(worker.error) or "the request was cancelled" in str(worker.error), worker.error
    wait_until(lambda: guard.stopper.running == 0, "it has ended in the database")
    wait_until(lambda: not stack.is_computing, "the database has stopped it")
    assert pool._connections == 0
    # Unless the database has noticed before that its client is gone.
    assert guard.stopper.killed == 1 or "has ended in" in caplog.text
