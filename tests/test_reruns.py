"""DBUtils runs failed statements again; those that were stopped are not run again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.types import WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.cancelling import COUNTED_SLEEP, Application, assert_all_is_well, get, query
from tests.databases import Witness, connect_settings
from tests.inprocess import BridgeThread, wait_until


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


def test_a_statement_that_dbutils_runs_again_is_not_run_a_third_time(mariadb: dict[str, str], witness: Witness) -> None:
    witness.rows(
        "CREATE OR REPLACE PROCEDURE fails_late() BEGIN "
        "DO NEXT VALUE FOR executions; DO SLEEP(0.3); SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1205; END"
    )
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))
    first_failed = threading.Event()

    def is_fatal(error: Exception) -> bool:
        first_failed.set()
        return True

    pool._isfatal = is_fatal
    application = Application(lambda environ: query(pool, "CALL fails_late()"))
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert first_failed.wait(10)
        witness.wait_for("SLEEP(0.3)")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert witness.executions == 2
        assert_all_is_well(pool, witness)
    pool.close()


STATEMENT_ERRORS = {
    "MariaDB's time limit": (1969, "SET STATEMENT max_statement_time=0.2 FOR " + COUNTED_SLEEP),
    "MySQL's time limit": (3024, "CALL exceeds_the_time()"),
    "interrupted by somebody": (1317, COUNTED_SLEEP),
}


@pytest.mark.parametrize("in_request", [True, False])
@pytest.mark.parametrize("name", STATEMENT_ERRORS)
def test_a_statement_that_was_stopped_is_not_run_again(
    pool: Any, witness: Witness, name: str, in_request: bool
) -> None:
    number, sql = STATEMENT_ERRORS[name]
    witness.rows(
        "CREATE OR REPLACE PROCEDURE exceeds_the_time() BEGIN "
        "DO NEXT VALUE FOR executions; SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 3024; END"
    )

    def run(environ: WSGIEnvironment) -> None:
        if in_request:
            query(pool, sql)
            return
        thread = threading.Thread(target=lambda: query_and_keep_the_error(environ))
        thread.start()
        thread.join()

    def query_and_keep_the_error(environ: WSGIEnvironment) -> None:
        with contextlib.suppress(MySQLdb.Error):
            Application(lambda environ: query(pool, sql))(environ, lambda *arguments: lambda data: None)

    application = Application(run)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        if number == 1317:
            victim = witness.wait_for("SLEEP(20)")
            witness.rows(f"KILL QUERY {victim}")
        wait_until(lambda: application.ended == 1, "the application is done")
        client.close()
        assert [error.args[0] for error in application.errors] == ([number] if in_request else [])
        assert witness.executions == 1
        assert_all_is_well(pool, witness)


def test_a_broken_connection_is_replaced_as_ever(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb))

    def two_statements(environ: WSGIEnvironment) -> object:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            witness.rows(f"KILL {cursor.fetchone()[0]}")
            cursor.execute("SELECT 42")
            return cursor.fetchone()[0]

    with BridgeThread(Application(two_statements), pool=pool) as server:
        assert server.request()[1] == b"42"
        assert_all_is_well(pool, witness)
    pool.close()
