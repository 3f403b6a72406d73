"""The database fails: which requests fail, what is logged, and everything works again once it is back."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
import requests
from dbutils.pooled_db import PooledDB

from tests.support.databases import Witness, connect_settings, kill_server, line_to, start_server
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import Frontend, private_mariadb
from threadbridge import current
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard

CONNECTIONS = 4


@pytest.fixture(scope="module")
def own_mariadb() -> Iterator[dict[str, str]]:
    """A server that the tests of this module may kill, if they start it again."""
    with private_mariadb() as variables:
        yield variables


class Clients:
    """Clients that request a page again and again, each as soon as it has its answer."""

    def __init__(self, url: str, number: int) -> None:
        self.statuses: list[int] = []
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                self.statuses.append(session.get(self._url, timeout=60).status_code)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def use_all_connections(url: str, witness: Witness) -> None:
    """Fail unless the application can use all its connections at the same time."""
    threads = [threading.Thread(target=requests.get, args=(url,), kwargs={"timeout": 30}) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(witness.running) == CONNECTIONS, "all connections are in use")
    for thread in threads:
        thread.join()


def test_a_killed_database_fails_only_what_needs_it_and_only_until_it_is_back(own_mariadb: dict[str, str]) -> None:
    settings = {
        "MYAPPLICATION_POOL_SIZE": str(CONNECTIONS),
        "MYAPPLICATION_DIAGNOSTICS": "1",
        # Otherwise a thread may be kept for the shorter ones.
        "THREADBRIDGE_SCHEDULE": "fair",
    }
    with Frontend(env={**own_mariadb, **settings}) as server:
        report = f"{server.url}/query/?report=wait&format=json&seconds="
        with Clients(f"{report}0.05", 8) as slow, Clients(f"{server.url}/", 2) as quick:
            wait_until(lambda: len(slow.statuses) > 50, "the application is under load")
            assert set(slow.statuses) == {200}
            kill_server(own_mariadb)
            wait_until(lambda: slow.statuses.count(503) > 50, "there are errors")
            answered = len(quick.statuses)
            wait_until(lambda: len(quick.statuses) > answered + 20, "quick pages are served all the while")
            start_server(own_mariadb)
            back = time.monotonic()
            while (answer := requests.get(f"{report}0", timeout=30)).status_code != 200:
                assert time.monotonic() < back + 1, answer.text
        assert set(quick.statuses) == {200}
        assert set(slow.statuses) == {200, 503}
        witness = Witness(own_mariadb)
        use_all_connections(f"{report}1", witness)
        witness.connection.close()
        assert server.stop() == 0
        log = server.output()
    assert "Traceback" not in log
    refused = slow.statuses.count(503)
    lines = [line for line in log.splitlines() if "The database did not answer" in line]
    assert refused <= len(lines) <= refused + 5, "one line for each, and for those asked while it came back"
    assert sum('"GET /query/' in line and '" 503 ' in line for line in log.splitlines()) == len(lines)


class Application:
    """``/db…`` runs a query, anything else does not."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.entered: Counter[str] = Counter()
        self.left: Counter[str] = Counter()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.entered[path] += 1
        try:
            if path.startswith("/db"):
                with closing(self.pool.connection()) as connection, closing(connection.cursor()) as cursor:
                    cursor.execute("SELECT SLEEP(%s)", (environ["QUERY_STRING"] or "0",))
                    cursor.fetchall()
        finally:
            self.left[path] += 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"answered"]


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "threadbridge" and record.levelno >= logging.WARNING]


def test_an_outage_is_one_line_for_all_requests(own_mariadb: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    pool = PooledDB(MySQLdb, maxconnections=CONNECTIONS, **connect_settings(own_mariadb))
    application = Application(pool)
    with BridgeThread(application, pool=pool) as server:
        assert server.request(path="/db")[0].status == 200
        running = [server.send(b"GET /db?20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") for _ in range(3)]
        wait_until(lambda: application.entered["/db"] == 4, "three queries run")
        kill_server(own_mariadb)
        for client in running:
            with client:
                assert client.recv(100).startswith(b"HTTP/1.1 503 ")
        for _ in range(3):
            response, _ = server.request(path="/db")
            assert response.status == 503 and int(response.headers["Retry-After"]) >= 1
        [record] = own_records(caplog)
        assert record.getMessage().partition(": (")[0].split(" failed: ")[1][:7] == "GET /db"
        assert record.exc_info is None
        start_server(own_mariadb)
        assert server.request(path="/db")[0].status == 200
        assert pool._connections == 0
    pool.close()


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize(
    ("before", "statement", "status", "changes"),
    [
        # The transaction is rolled back.
        ("INSERT INTO notes VALUES ('begun')", "SELECT 1", 503, "rolled back"),
        # It cannot be known.
        ("INSERT INTO notes VALUES ('begun')", "COMMIT", 500, "unknown"),
        ("COMMIT", "SELECT 1", 500, "committed"),
    ],
)
def test_a_503_for_an_outage_means_that_nothing_was_changed(
    own_mariadb: dict[str, str],
    caplog: pytest.LogCaptureFixture,
    before: str,
    statement: str,
    status: int,
    changes: str,
    wraps: bool,
) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    witness = Witness(own_mariadb)
    pool: Any = PooledDB(MySQLdb, maxconnections=1, **connect_settings(own_mariadb))

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            number = cursor.fetchone()[0]
            cursor.execute("INSERT INTO notes VALUES ('first')")
            cursor.execute(before)
            witness.rows(f"KILL {number}")
            wait_until(lambda: number not in witness.connections, "the connection is lost")
            cursor.execute(statement)
        raise AssertionError

    def wrapping(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        try:
            return application(environ, start_response)
        except MySQLdb.OperationalError as error:
            raise ServiceError from error

    with BridgeThread(wrapping if wraps else application, pool=pool) as server:
        assert server.request("POST")[0].status == status
        wait_until(lambda: "ending=" in caplog.text, "it is logged")
    [line] = [record.getMessage() for record in caplog.records if record.name == "tornado.access"]
    assert f" {status} " in line and "ending=failed" in line and f"changes={changes.replace(' ', '-')}" in line, line
    witness.connection.close()
    pool.close()


def test_a_request_that_failed_in_an_outage_may_be_repeated_with_its_key(
    own_mariadb: dict[str, str], tmp_path: Path
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(own_mariadb))
    application = Application(pool)
    key = {"Idempotency-Key": "key"}
    store = str(tmp_path / "store")
    with BridgeThread(application, pool=pool, idempotent_paths=["*"], idempotency_store=store) as server:
        kill_server(own_mariadb)
        for _ in range(2):
            assert server.request("POST", "/db", headers=key)[0].status == 503
        start_server(own_mariadb)
        for _ in range(2):
            assert server.request("POST", "/db", headers=key)[0].status == 200
        assert application.entered["/db"] == 3
    pool.close()


class ServiceError(Exception):
    """An application's own exception."""


def wrap(error: Exception, how: str) -> Exception:
    """An exception that the application raises in place of another."""
    try:
        try:
            raise error
        except (MySQLdb.OperationalError, ServiceError):
            wrapped = ServiceError()
            if how == "explicit":
                raise wrapped from error
            if how == "hidden":
                raise wrapped from None
            if how == "circular":
                wrapped.__cause__ = ServiceError()
                wrapped.__cause__.__cause__ = wrapped
            raise wrapped  # noqa: B904  as many applications do
    except ServiceError as raised:
        return raised


@pytest.mark.parametrize(
    ("how", "status"),
    [("explicit", 503), ("implicit", 503), ("implicit explicit implicit", 503), ("hidden", 500), ("circular", 500)],
)
def test_an_outage_is_recognised_behind_the_applications_own_exceptions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, status: int
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, unix_socket=str(tmp_path / "nobody"))
    runs: list[str] = []

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        runs.append(how)
        failure: Exception
        try:
            pool.connection()
        except MySQLdb.OperationalError as error:
            failure = error
        for each in how.split():
            failure = wrap(failure, each)
        raise failure

    keys: dict[str, Any] = {"idempotent_paths": ["*"], "idempotency_store": str(tmp_path / "store")}
    with BridgeThread(application, pool=pool, **keys) as server:
        for _ in range(2):
            response, _ = server.request("POST", headers={"Idempotency-Key": "key"})
            assert response.status == status and ("Retry-After" in response.headers) == (status == 503)
        # Without an outage, the answer is kept for repetitions, errors too.
        assert len(runs) == (2 if status == 503 else 1)
        # Only the driver's own exceptions say whether the connection was lost.
        guard = server.bridge.desk.first[0]
        error = MySQLdb.OperationalError(2006, "gone away")
        assert guard.is_outage(error)
        assert not guard.is_outage(wrap(error, "explicit")) and not guard.is_lost(wrap(error, "explicit"))
    for record in own_records(caplog):
        if status == 503:
            assert "ServiceError() after OperationalError(2002, " in record.getMessage() and not record.exc_info
        else:
            assert record.exc_info


def test_a_request_cancelled_during_an_outage_is_free_at_once(
    own_mariadb: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=2, **connect_settings(own_mariadb))
    holding = threading.Event()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with closing(pool.connection()) as connection:
            holding.set()
            wait_until(lambda: current().cancelled, "the client has left")
            connection.cursor().execute("SELECT 1")
        return []

    with BridgeThread(application, pool=pool) as server:
        client = server.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert holding.wait(30)
        kill_server(own_mariadb)
        client.close()
        wait_until(lambda: pool._connections == 0, "the connection is back")
        start_server(own_mariadb)
        assert [record.getMessage() for record in own_records(caplog)][1:] == []
    pool.close()


@pytest.mark.parametrize("marks", [True, False])
def test_a_kill_for_a_server_that_is_gone_hits_no_query_on_its_successor(
    own_mariadb: dict[str, str], monkeypatch: pytest.MonkeyPatch, marks: bool
) -> None:
    witness = Witness(own_mariadb)
    if not marks:
        monkeypatch.setattr(secrets, "token_hex", lambda size: "taken")
        witness.rows("SELECT GET_LOCK('threadbridge-taken', 0)")
    pool = PooledDB(MySQLdb, maxconnections=1, **connect_settings(own_mariadb))
    guard = DBUtilsGuard(pool)
    request = TrackedRequest("test", None)
    request.enter()
    connection = pool.connection()
    number = connection.number
    made = time.monotonic()
    wait_until(lambda: time.monotonic() > made + 2, "seconds tell the servers apart")
    kill_server(own_mariadb)
    start_server(own_mariadb)
    others: list[Any] = []
    while not others or others[-1].thread_id() < number:
        others.append(MySQLdb.connect(**connect_settings(own_mariadb)))
    assert others[-1].thread_id() == number, "another connection has the same thread id"
    answers: list[Any] = []

    def sleep() -> None:
        cursor = others[-1].cursor()
        cursor.execute("SELECT SLEEP(0.5)")
        answers.append(cursor.fetchone())

    thread = threading.Thread(target=sleep)
    thread.start()
    witness = Witness(own_mariadb)
    witness.wait_for("SLEEP(0.5)")
    request.cancelled = True
    assert connection.borrows[0].stop_query() == (False, False)
    thread.join()
    assert answers == [(0,)]
    assert witness.kills == 0
    connection.close()
    request.leave()
    guard.close()
    for other in (*others, witness.connection):
        other.close()


# A network that swallows everything.


def test_a_silent_database_holds_up_only_its_own_requests_and_not_forever(
    own_mariadb: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    witness = Witness(own_mariadb)
    with line_to(own_mariadb["MYSQL_UNIX_SOCKET"]) as line:
        settings = {**connect_settings(own_mariadb, line.path), "connect_timeout": 3}
        pool = PooledDB(MySQLdb, maxconnections=CONNECTIONS, **settings)
        application = Application(pool)
        with BridgeThread(application, pool=pool, deadline=2, schedule="fair") as server:
            # Two connections are ready, one is in the middle of a query.
            connections = [pool.connection(), pool.connection()]
            for connection in connections:
                connection.close()
            for path in ("/db", "/quick"):
                assert server.request(path=path)[0].status == 200
            clients = [server.send(b"GET /db?20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")]
            witness.wait_for("SLEEP('20')")
            line.swallow()
            swallowed = time.monotonic()
            for _ in range(CONNECTIONS + 2):
                clients.append(server.send(b"GET /db HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            wait_until(
                lambda: application.entered["/db"] == 1 + 1 + CONNECTIONS - 1, "all threads wait for the database"
            )
            for client in clients:
                assert server.request(path="/quick")[0].status == 200
                with client:
                    assert client.recv(100).startswith(b"HTTP/1.1 504 ")
            # Each takes at most its deadline, which is checked four times a second.
            assert time.monotonic() - swallowed < 4
            # The threads and the pool's slots are free again, though the network still swallows everything.
            wait_until(lambda: pool._connections == 0, "all connections are given up", seconds=20)
            wait_until(lambda: sum(application.left.values()) == sum(application.entered.values()), "threads are free")
            line.mend()
            for _ in range(CONNECTIONS + 2):
                assert server.request(path="/db")[0].status == 200
            assert pool._connections == 0
        pool.close()
    messages = [record.getMessage() for record in own_records(caplog)]
    # Each once, however many requests, except those that the last message about connections leaves out.
    assert [message[:19] for message in messages[:2]] == ["cannot stop cancell", messages[1][:19]]
    assert "cancelled 5 s ago but still holds connection" in messages[1]
    assert all("cancelled" in each or "ended in database" in each for each in messages) and len(messages) < 6
    witness.connection.close()
