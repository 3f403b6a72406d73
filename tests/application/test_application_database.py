"""The application's connections: settings, errors, and that every one goes back to the pool."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import MySQLdb
import pytest
import requests
from dbutils.pooled_db import TooManyConnections
from flask.testing import FlaskClient

from myapplication import app, views
from myapplication.database import DBConnection, SettingsError, connection_settings
from tests.support.inprocess import reset, wait_until
from tests.support.processes import ROOT, Frontend

BIG_CSV = "/query/?report=journal&from=2025-12-01&format=csv"


@pytest.fixture
def settings(sample_data: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of an application with a pool of two connections; a test may change it."""
    for name, value in sample_data.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MYAPPLICATION_POOL_SIZE", "2")
    return monkeypatch


@pytest.fixture
def db(settings: pytest.MonkeyPatch) -> DBConnection:
    """The application's database, with that environment."""
    db = DBConnection()
    settings.setattr(views, "db", db)
    return db


@pytest.fixture
def client(db: DBConnection) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def watcher(settings: pytest.MonkeyPatch) -> Iterator[DBConnection]:
    """A connection beside the application's own."""
    watcher = DBConnection()
    yield watcher
    watcher.pool.close()


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MYSQL_", "MYAPPLICATION_"))}
    return subprocess.run([sys.executable, "-c", code], env={**clean, **env}, cwd=ROOT, capture_output=True, text=True)


def all_connections_are_free(db: DBConnection) -> bool:
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(closing(db.pool.dedicated_connection()))
        with pytest.raises(TooManyConnections):
            db.pool.dedicated_connection()
    return True


def running_journals(watcher: DBConnection) -> list[str]:
    """What the server does at this moment for each report ``journal``."""
    sql = "SELECT state FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info LIKE %s"
    return [state for (state,) in watcher.query(sql, ("%Of the product so far%",)).rows]


def test_importing_needs_no_database_and_no_server() -> None:
    ended = python(
        "import sys, myapplication; print(sorted({'tornado', 'threadbridge'} & set(sys.modules)))",
        MYSQL_UNIX_SOCKET="/nonexistent",
    )
    assert (ended.returncode, ended.stdout) == (0, "[]\n"), ended.stderr


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"MYSQL_PORT": "mysql"}, "MYSQL_PORT is 'mysql'"),
        ({"MYSQL_PORT": "70000"}, "MYSQL_PORT is '70000'"),
        ({"MYSQL_PASSWORD_FILE": "/nonexistent/password"}, "MYSQL_PASSWORD_FILE cannot be read"),
        ({"MYSQL_PASSWORD_FILE": "/dev/null", "MYSQL_PASSWORD": "secret"}, "set only one of them"),
        ({"MYAPPLICATION_POOL_SIZE": "0"}, "MYAPPLICATION_POOL_SIZE is '0'"),
    ],
)
def test_a_wrong_setting_is_one_line_at_the_start(env: dict[str, str], expected: str) -> None:
    ended = python("import myapplication", **env)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "secret" not in ended.stderr


def test_settings_come_from_the_environment(settings: pytest.MonkeyPatch) -> None:
    for name in ("MYSQL_UNIX_SOCKET", "MYSQL_PASSWORD_FILE"):
        settings.delenv(name)
    values = {"HOST": "db.example", "PORT": "3307", "USER": "u", "PASSWORD": "p", "DATABASE": "d"}
    for name, value in values.items():
        settings.setenv(f"MYSQL_{name}", value)
    found = connection_settings()
    assert [found[name] for name in ("host", "port", "user", "password", "database")] == [
        "db.example",
        3307,
        "u",
        "p",
        "d",
    ]
    assert found["charset"] == "utf8mb4"
    assert found["connect_timeout"] > 0
    settings.setenv("MYSQL_PORT", "³")
    with pytest.raises(SettingsError, match="MYSQL_PORT"):
        connection_settings()


def test_the_pool_has_ten_connections(settings: pytest.MonkeyPatch) -> None:
    settings.delenv("MYAPPLICATION_POOL_SIZE")
    db = DBConnection()
    with ExitStack() as taken:
        for _ in range(10):
            taken.enter_context(closing(db.pool.dedicated_connection()))
        with pytest.raises(TooManyConnections):
            db.query("SELECT 1")
    assert db.query("SELECT %s AS text", ("Kraków 😀",)) == (("text",), (("Kraków 😀",),))


def test_failing_queries_give_their_connections_back(db: DBConnection) -> None:
    for _ in range(30):
        with pytest.raises(MySQLdb.ProgrammingError):
            db.query("SELECT nothing FROM nowhere")
        with pytest.raises(MySQLdb.ProgrammingError):
            next(db.stream("SELECT nothing FROM nowhere"))
    assert all_connections_are_free(db)


@pytest.mark.parametrize("result_format", ["html", "json", "csv"])
def test_a_database_that_is_down_is_a_503(
    settings: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result_format: str,
) -> None:
    settings.setenv("MYSQL_UNIX_SOCKET", "/nonexistent/mariadb.sock")
    settings.setattr(views, "db", DBConnection())
    answer = app.test_client().get(f"/query/?report=products&format={result_format}")
    assert answer.status_code == 503
    assert "The database cannot answer at present" in answer.text
    assert "/nonexistent/mariadb.sock" in caplog.text
    assert "/nonexistent/mariadb.sock" not in answer.text


def test_more_searches_than_connections_is_a_503(client: FlaskClient, db: DBConnection) -> None:
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(closing(db.pool.dedicated_connection()))
        answer = client.get("/query/?report=orders&customer=1")
        assert answer.status_code == 503
        assert "Too many searches" in answer.text
    assert client.get("/query/?report=orders&customer=1").status_code == 200


def test_csv_is_sent_while_the_database_still_sends_rows(
    client: FlaskClient, db: DBConnection, watcher: DBConnection
) -> None:
    answer = client.get(BIG_CSV, buffered=False)
    body = answer.iter_encoded()
    assert next(body).startswith(b"Ordered at,")
    assert next(body).startswith(b"2025-12-01 07:")
    wait_until(lambda: running_journals(watcher) == ["Writing to net"], "the database waits for the reader")

    # The client leaves: the rest is not read, and the connection is free at once.
    answer.close()
    assert all_connections_are_free(db)
    deadline = time.monotonic() + 30
    while running_journals(watcher):
        assert time.monotonic() < deadline, "the database still sends rows that nobody reads"
        time.sleep(0.02)
    assert db.query("SELECT 1 AS one").rows == ((1,),)


def test_csv_gives_its_connection_back_in_every_ending(client: FlaskClient, db: DBConnection) -> None:
    for _ in range(3):
        assert client.get("/query/?report=orders&customer=1&format=csv").status_code == 200
        assert client.head(BIG_CSV).status_code == 200
        client.get(BIG_CSV, buffered=False).close()
        assert all_connections_are_free(db)


def test_csv_whose_query_is_killed_gives_its_connection_back(
    client: FlaskClient, db: DBConnection, watcher: DBConnection
) -> None:
    body = client.get(BIG_CSV, buffered=False).iter_encoded()
    next(body)
    sql = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info LIKE %s"
    [(thread,)] = watcher.query(sql, ("%Of the product so far%",)).rows
    with closing(watcher.pool.dedicated_connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("KILL %s", (thread,))
    with pytest.raises(MySQLdb.OperationalError):
        list(body)
    assert all_connections_are_free(db)


WAIT = (
    "from myapplication import app; client = app.test_client()\n"
    "for seconds in ('0.2', '0', '60.1', ''):\n"
    "    answer = client.get(f'/query/?report=wait&seconds={seconds}&format=json')\n"
    "    print(answer.status_code, (answer.json.get('error') or answer.json).get('parameter'), end=' ')"
)


def test_the_diagnostic_report_exists_when_it_is_switched_on(sample_data: dict[str, str]) -> None:
    on = python(WAIT, MYAPPLICATION_DIAGNOSTICS="1", **sample_data)
    assert on.stdout == "200 None 200 None 400 seconds 400 seconds ", on.stderr
    for setting in ({}, {"MYAPPLICATION_DIAGNOSTICS": "0"}):
        off = python(WAIT, **setting, **sample_data)
        assert off.stdout == "400 report 400 report 400 report 400 report ", off.stderr


def waiting_queries(watcher: DBConnection) -> list[int]:
    """The connections on which the report ``wait`` runs at this moment."""
    sql = "SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND info LIKE %s"
    return [connection for (connection,) in watcher.query(sql, ("%SLEEP(%",)).rows]


def test_clients_that_leave_and_queries_that_are_killed_are_not_taken_for_an_outage(
    settings: pytest.MonkeyPatch, watcher: DBConnection
) -> None:
    with Frontend(env={"MYAPPLICATION_DIAGNOSTICS": "1"}) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
                client.sendall(b"GET /query/?report=wait&seconds=60 HTTP/1.1\r\nHost: a\r\n\r\n")
                wait_until(lambda: len(waiting_queries(watcher)) == 1, "the query runs")
                reset(client)
            wait_until(lambda: not waiting_queries(watcher), "the query is stopped")
        with ThreadPoolExecutor(1) as asking:
            killed = asking.submit(requests.get, f"{server.url}/query/?report=wait&seconds=60&format=json", timeout=60)
            wait_until(lambda: len(waiting_queries(watcher)) == 1, "the query runs")
            with closing(watcher.pool.dedicated_connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("KILL QUERY %s", (*waiting_queries(watcher),))
            answer = killed.result()
        assert (answer.status_code, answer.json()["error"]["message"][:23]) == (503, "The search was stopped ")
        assert server.stop() == 0
        lines = server.output().splitlines()
    assert sum("The query was stopped: /query/?report=wait&seconds=60" in line for line in lines) == 4
    assert not any(line.startswith(("[E", "[W")) or "did not answer" in line for line in lines)
