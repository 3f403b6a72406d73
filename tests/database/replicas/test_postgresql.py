"""A hot standby of PostgreSQL, with the pools that hand out its connections."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import psycopg
import psycopg2
import pytest
import sqlalchemy
from dbutils.pooled_db import PooledDB
from psycopg_pool import ConnectionPool

from tests.database.replicas.conftest import usable
from tests.database.replicas.test_stale_reads import Client
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.postgresql import private_postgresql, private_standby
from threadbridge import Lane
from threadbridge.database.drivers.postgresql_replication import PostgreSQLReplication, end_of_last_record

_notes = itertools.count(1)
WHERE = "CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'primary' END"
STATEMENTS = {
    ("notes", "POST"): "INSERT INTO notes VALUES (0)",
    ("notes", "GET"): f"SELECT COUNT(*), {WHERE} FROM notes WHERE note = 0",  # noqa: S608
    ("reports", "GET"): f"SELECT {WHERE}",
    ("", "GET"): f"SELECT {WHERE}",
}


def parameters(variables: dict[str, str]) -> dict[str, Any]:
    return {"host": variables["PGHOST"], "user": "test", "dbname": "postgres", "sslmode": "disable"}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The parameters for connecting to a primary and its standby."""
    with private_postgresql() as primary, private_standby(primary) as standby:
        with psycopg.connect(autocommit=True, **parameters(primary)) as connection:
            connection.execute("CREATE TABLE notes (note bigint)")
        yield parameters(primary), parameters(standby)


class Application:
    """Below /reports/ and elsewhere: /server says which server was asked; /notes/N counts, or adds with POST."""

    def __init__(self, kind: str, both: Sequence[dict[str, Any]]) -> None:
        self._kind = kind
        pools: list[Any]
        if kind == "psycopg_pool":
            pools = [ConnectionPool(kwargs=each, min_size=1, max_size=3, open=True) for each in both]
        elif kind == "sqlalchemy":
            pools = [sqlalchemy.create_engine("postgresql+psycopg://", connect_args=each) for each in both]
        else:
            pools = [PooledDB(psycopg2, maxconnections=3, **each) for each in both]
        self.pools = pools

    def _execute(self, sql: str) -> Any:
        primary = self.pools[0]
        if self._kind == "sqlalchemy":
            with primary.begin() as connection:
                result = connection.exec_driver_sql(sql)
                return result.fetchone() if result.returns_rows else None
        if self._kind == "psycopg_pool":
            with primary.connection() as connection:
                cursor = connection.execute(sql)
                return cursor.fetchone() if cursor.description else None
        connection = primary.connection()
        try:
            cursor = connection.cursor()
            cursor.execute(sql)
            row = cursor.fetchone() if cursor.description else None
            connection.commit()
            return row
        finally:
            connection.close()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        what, last = f"/{environ['PATH_INFO']}".split("/")[-2:]
        row = self._execute(STATEMENTS[what, environ["REQUEST_METHOD"]].replace("0", last))
        start_response("200 OK", [])
        return [" ".join(map(str, row or ["done"])).encode()]

    def close(self) -> None:
        for pool in self.pools:
            pool.dispose() if self._kind == "sqlalchemy" else pool.close()


@pytest.mark.parametrize("kind", ["sqlalchemy", "psycopg_pool", "psycopg2"])
def test_reports_read_from_the_standby_and_miss_nothing(
    kind: str,
    both: tuple[dict[str, Any], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("threadbridge.database.replica.INTERVAL", 0.05)
    application, note = Application(kind, both), next(_notes)
    lane = Lane("reports", "/reports/*", threads=3, pool=application.pools[1])
    administrator = psycopg.connect(autocommit=True, **both[1])
    try:
        with BridgeThread(application, pool=application.pools[0], threads=3, lanes=[lane], replica_lag=60) as server:
            server.bridge.desk.watch_replicas()
            usable(server)
            client = Client(server.port)
            assert client.ask("/reports/server") == (200, "standby")
            assert client.ask("/server") == (200, "primary")
            administrator.execute("SELECT pg_wal_replay_pause()")
            assert client.ask(f"/notes/{note}", "POST") == (200, "done")
            assert client.ask(f"/reports/notes/{note}") == (200, "1 primary")
            assert Client(server.port).ask(f"/reports/notes/{note}") == (200, "0 standby")
            administrator.execute("SELECT pg_wal_replay_resume()")
            wait_until(lambda: client.ask(f"/reports/notes/{note}") == (200, "1 standby"), "the standby has it")
            assert client.ask(f"/reports/notes/{note}", "POST") == (200, "done")
    finally:
        administrator.execute("SELECT pg_wal_replay_resume()")
        administrator.close()
        application.close()


def test_a_standby_is_not_behind_after_the_end_of_a_segment(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    primary, standby = (psycopg.connect(autocommit=True, **each) for each in both)
    with primary, standby:
        replication = PostgreSQLReplication()

        # So that it writes nothing by itself soon.
        primary.execute("CHECKPOINT")
        primary.execute("SELECT pg_switch_wal()")
        _, position = replication.position(primary)
        assert replication.has_reached(standby, position, 10)


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        # A segment's first page has a longer header, which a record never ends in.
        ("1/5000028", "1/5000000"),
        ("1/5000018", "1/5000018"),
        ("0/5002018", "0/5002000"),
        # A record that began on the page before ends here.
        ("0/5002020", "0/5002020"),
        ("0/5002028", "0/5002028"),
        ("0/5002000", "0/5002000"),
    ],
)
def test_a_position_after_a_header_is_the_end_of_the_record_before_it(position: str, expected: str) -> None:
    assert end_of_last_record(position, 8192, 16 * 2**20) == expected


def test_a_change_on_the_standby_is_refused(
    both: tuple[dict[str, Any], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    engines = [sqlalchemy.create_engine("postgresql+psycopg://", connect_args=each) for each in both]

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with engines[0].begin() as connection:
            connection.exec_driver_sql("INSERT INTO notes VALUES (0)")
        start_response("200 OK", [])
        return [b"done"]

    lane = Lane("reports", "/reports/*", threads=3, pool=engines[1])
    with BridgeThread(application, pool=engines[0], threads=3, lanes=[lane]) as server:
        server.bridge.desk.watch_replicas()
        usable(server)
        assert Client(server.port).ask("/reports/notes")[0] == 500
        assert "a change was refused, because the pool of the lane reports leads to a replica" in caplog.text
        assert Client(server.port).ask("/notes") == (200, "done")
    for engine in engines:
        engine.dispose()


def test_two_primaries_are_no_primary_and_standby(
    both: tuple[dict[str, Any], dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "threadbridge")
    for pair, expected in (
        ((both[0], both[0]), "the replica is a primary itself"),
        ((both[1], both[1]), "the application's own pool leads to a standby"),
    ):
        application = Application("psycopg2", pair)
        lane = Lane("reports", "/reports/*", threads=3, pool=application.pools[1])
        with BridgeThread(application, pool=application.pools[0], lanes=[lane]) as server:
            server.bridge.desk.watch_replicas()
            wait_until(lambda expected=expected: expected in caplog.text, "the log says why")  # type: ignore[misc]
        application.close()
