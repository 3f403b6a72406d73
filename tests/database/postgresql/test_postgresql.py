"""The guard with PostgreSQL: queries stop."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from dbutils.pooled_db import PooledDB

from tests.database.test_predecessors import kill, process, successor
from tests.support.cancelling import Application, get
from tests.support.databases import line_to
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.postgresql import COUNTED_SLEEP, Witness
from tests.support.processes import Frontend
from tests.support.requests_in_threads import in_request, one, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database import predecessors
from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.driver_connection import DriverConnection
from threadbridge.database.drivers.postgresql import PostgreSQL
from threadbridge.database.pools import dbutils_connection
from threadbridge.database.pools.dbutils import DBUtilsGuard


@pytest.mark.parametrize("path", ["/pool/20", "/own/20"])
def test_the_example_stops_its_query_when_the_client_leaves(
    postgresql: dict[str, str], witness: Witness, path: str
) -> None:
    with Frontend(("docs/examples/postgresql.py", "{port}"), env=postgresql) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(get(path))
            wait_until(lambda: witness.running == ["SELECT pg_sleep($1)"], "the query runs")
        wait_until(lambda: witness.running == [], "the query is stopped")
        assert requests.get(server.url + path.replace("20", "0"), timeout=10).text == "slept for 0 s\n"


@pytest.mark.parametrize("maxshared", [0, 2])
@pytest.mark.parametrize("method", ["connection", "dedicated_connection"])
def test_a_statement_is_stopped_and_was_executed_once(witness: Witness, maxshared: int, method: str) -> None:
    pool = PooledDB(psycopg, maxconnections=2, maxshared=maxshared)

    def sleep(environ: Any) -> None:
        with closing(getattr(pool, method)()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("INSERT INTO notes VALUES ('half of it')")
            cursor.execute(COUNTED_SLEEP)

    application = Application(sleep)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        wait_until(lambda: COUNTED_SLEEP in witness.sleeping, "the statement runs")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [type(error) for error in application.errors] == [psycopg.errors.QueryCanceled]
        assert (witness.executions, witness.running) == (1, [])
        assert witness.connection.execute("SELECT * FROM notes").fetchall() == []
        assert (pool._connections, pool._idle_cache) == (0, [])
    pool.close()


def test_a_statement_that_hits_its_time_limit_is_not_run_again(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=1, options="-c statement_timeout=200")
    DBUtilsGuard(pool)
    with closing(pool.connection()) as connection, pytest.raises(psycopg.errors.QueryCanceled):
        connection.cursor().execute(COUNTED_SLEEP)
    assert (witness.executions, pool._connections) == (1, 0)
    pool.close()


def test_a_connection_closed_by_the_server_is_not_handed_out(witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if some time had passed.
    monkeypatch.setattr(dbutils_connection, "FRESH", 0.0)
    pool = PooledDB(psycopg, maxconnections=1)
    guard = DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        number = one(connection, "SELECT pg_backend_pid()")
    witness.connection.execute("SELECT pg_terminate_backend(%s, 10000)", (number,))
    with running(), closing(pool.connection()) as connection:
        connection.cursor().execute("INSERT INTO notes VALUES ('new')")
        assert one(connection, "SELECT pg_backend_pid()") != number
    guard.close()
    pool.close()


def test_the_databases_process_list_names_the_request(witness: Witness) -> None:
    pool = PooledDB(psycopg, maxconnections=1)
    guard = DBUtilsGuard(pool, tags_queries=True)
    request = TrackedRequest("7f-00002a", None)
    request.enter()
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("SELECT query, pg_backend_pid() FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        query, number = cursor.fetchone()
    request.leave()
    assert query.startswith("/* 7f-00002a */ SELECT query")
    [statement] = request.statements.latest
    assert (statement.connection_id, statement.rows) == (number, 1)
    guard.close()
    pool.close()


# Limits, and queries that do not stop.


def test_the_server_ends_a_statement_at_the_limit(witness: Witness, driver: Any) -> None:
    pool = PooledDB(driver, maxconnections=1, dbname="postgres")
    guard = DBUtilsGuard(pool, statement_limit=0.2)
    with running(), closing(pool.connection()) as connection:
        # The setting survives a rollback.
        connection.rollback()
        with pytest.raises(driver.Error) as raised:
            one(connection, COUNTED_SLEEP)
        assert isinstance(raised.value, driver.errors.QueryCanceled)
        connection.rollback()
        assert one(connection, "SELECT current_setting('idle_in_transaction_session_timeout')") == "200ms"
    assert (witness.executions, pool._connections) == (1, 0)
    guard.close()
    pool.close()


def test_the_applications_own_limit_is_not_changed(witness: Witness, driver: Any) -> None:
    pool = PooledDB(driver, maxconnections=1, dbname="postgres", options="-c statement_timeout=7000")
    guard = DBUtilsGuard(pool, statement_limit=100)
    with running(), closing(pool.connection()) as connection:
        assert one(connection, "SELECT current_setting('statement_timeout')") == "7s"
    guard.close()
    pool.close()


def test_a_statement_is_stopped_with_either_driver(witness: Witness, driver: Any) -> None:
    pool = PooledDB(driver, maxconnections=1, dbname="postgres")
    guard = DBUtilsGuard(pool)

    def sleep() -> None:
        with closing(pool.connection()) as connection:
            one(connection, COUNTED_SLEEP)

    request, worker = in_request(sleep)
    wait_until(lambda: COUNTED_SLEEP in witness.sleeping, "the statement runs")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, driver.errors.QueryCanceled)
    wait_until(lambda: guard.stopper.stops == 1, "it is counted")
    assert (witness.executions, witness.running) == (1, [])
    guard.close()
    pool.close()


@pytest.mark.usefixtures("severed_early")
def test_a_connection_lost_by_the_network_is_cut_and_killed(witness: Witness, driver: Any) -> None:
    """The cancel request is lost with it, as it takes the same line; another connection gets through."""
    witness.connection.execute("TRUNCATE notes")
    witness.connection.execute("INSERT INTO notes VALUES ('locked')")
    with (
        tempfile.TemporaryDirectory(prefix="line-") as directory,
        line_to(f"{os.environ['PGHOST']}/.s.PGSQL.5432") as line,
    ):
        os.symlink(line.path, f"{directory}/.s.PGSQL.5432")
        pool = PooledDB(driver, maxconnections=1, host=directory, dbname="postgres")
        guard = DBUtilsGuard(pool)

        def lock_and_sleep() -> None:
            with closing(pool.connection()) as connection:
                one(connection, "SELECT * FROM notes FOR UPDATE")
                one(connection, "SELECT pg_sleep(60)")

        request, worker = in_request(lock_and_sleep)
        wait_until(lambda: witness.running == ["SELECT pg_sleep(60)"], "it sleeps")
        line.swallow_old()
        request.cancel()
        worker.join()
        assert isinstance(worker.error, driver.Error)
        wait_until(lambda: (guard.stopper.severed, guard.stopper.running) == (1, 0), "it has ended in the server")
        assert witness.connection.execute("SELECT * FROM notes FOR UPDATE NOWAIT").fetchall() == [("locked",)]
        guard.close()
        pool.close()


def test_a_server_process_that_reuses_the_number_is_not_killed(witness: Witness, driver: Any) -> None:
    settings = ConnectionSettings(driver.connect, (), {"dbname": "postgres"})
    database = PostgreSQL(driver.__name__, settings)
    with closing(driver.connect(dbname="postgres")) as connection:
        identity = database.identify(connection)
        number = witness.connection.info.backend_pid
        assert database.kill(identity._replace(number=number))
        assert witness.connection.execute("SELECT 42").fetchall() == [(42,)]
        with pytest.raises(StopFailed, match="goes through a proxy"):
            database.kill(identity._replace(started=""))
        assert not database.kill(identity)
        wait_until(lambda: database.kill(identity), "it is seen to have ended")
    database.close()


def test_a_successor_kills_the_queries_of_a_killed_process(
    witness: Witness, driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predecessors, "INTERVAL", 0.2)
    settings = {"dbname": "postgres"}
    witness.connection.execute("TRUNCATE notes")
    witness.connection.execute("INSERT INTO notes VALUES ('locked')")
    # Neither checks whether its client is still there.
    compute = "SELECT count(*) FROM generate_series(1, 1000000000000)"
    with (
        process(tmp_path, settings, "SELECT * FROM notes FOR UPDATE", compute, driver=driver.__name__) as dead,
        process(tmp_path, settings, "SELECT pg_sleep(600)", driver=driver.__name__) as living,
    ):
        wait_until(lambda: sorted(witness.running) == [compute, "SELECT pg_sleep(600)"], "both run")
        # Otherwise this guard would find it too.
        os.kill(living, signal.SIGSTOP)
        kill(dead)
        with successor(tmp_path, settings, driver) as (guard, _):
            wait_until(lambda: guard.stopper.killed == 1, "the server is asked to end it")
            wait_until(lambda: guard.stopper.running == 0, "it has ended")
            assert witness.running == ["SELECT pg_sleep(600)"]
            assert witness.connection.execute("SELECT * FROM notes FOR UPDATE NOWAIT").fetchall() == [("locked",)]
            kill(living)
            wait_until(lambda: guard.stopper.killed == 2, "the other one is found when it is dead")
            wait_until(lambda: guard.stopper.running == 0 and witness.running == [], "it has ended")
            assert (guard.stopper.stops, guard.stopper.failures, guard.stopper.severed) == (0, 0, 0)
            guard.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_stop_that_finds_no_statement_is_not_counted(
    witness: Witness, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = PooledDB(driver, maxconnections=1, dbname="postgres")
    guard = DBUtilsGuard(pool)
    executed, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(pool.connection()) as connection:
            one(connection, "SELECT 1")
            executed.set()
            assert goes_on.wait(30)

    request, worker = in_request(hold)
    assert executed.wait(30)
    stop, answers = DriverConnection.stop_query, []

    def noted(connection: DriverConnection, *, waits: bool = False) -> bool:
        answers.append(stop(connection, waits=waits))
        return answers[-1]

    monkeypatch.setattr(DriverConnection, "stop_query", noted)
    request.cancel()
    wait_until(lambda: answers == [False], "a stop is sent to the server")
    goes_on.set()
    worker.join()
    guard.close()
    wait_until(lambda: guard.stopper.thread is None, "the stopper has done all it had to do")
    assert (worker.error, guard.stopper.stops, guard.stopper.failures) == (None, 0, 0)
    pool.close()
