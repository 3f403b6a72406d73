"""When a client leaves, what runs for it in the database stops: all of it, once, and nothing else."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor

from tests.databases import Witness, connect_settings
from tests.inprocess import BridgeThread, wait_until
from threadbridge import current

COUNTED_SLEEP = "SELECT NEXT VALUE FOR executions, SLEEP(20)"


@pytest.fixture
def witness(mariadb: dict[str, str]) -> Iterator[Witness]:
    witness = Witness(mariadb)
    yield witness
    witness.connection.close()


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


class Application:
    """Calls a function for each request; its return value is the response. Keeps what the functions raised."""

    def __init__(self, function: Callable[[WSGIEnvironment], object]) -> None:
        self.errors: list[Exception] = []
        self.ended = 0
        self._function = function

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        try:
            body = str(self._function(environ)).encode()
        except Exception as error:
            # Without the traceback, which would keep the connection from coming back.
            self.errors.append(error.with_traceback(None))
            raise
        finally:
            self.ended += 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]


def get(path: str = "/", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()


def query(pool: Any, sql: str) -> Any:
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def assert_all_is_well(pool: Any, witness: Witness) -> None:
    """Nothing runs in the database, and all connections of the pool are there and in order."""
    wait_until(lambda: pool._connections == 0, "all connections are back")
    wait_until(lambda: witness.running == [], "nothing runs")
    with contextlib.ExitStack() as stack:
        for _ in range(pool._maxconnections):
            connection = stack.enter_context(closing(pool.connection()))
            cursor = stack.enter_context(closing(connection.cursor()))
            cursor.execute("SELECT 42")
            assert cursor.fetchone() == (42,)
    assert pool._connections == 0


# A statement that runs.


@pytest.mark.parametrize("method", ["connection", "dedicated_connection"])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_statement_is_stopped_and_was_executed_once(
    mariadb: dict[str, str], witness: Witness, method: str, blocking: bool
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=2, blocking=blocking, **connect_settings(mariadb))

    def sleep(environ: WSGIEnvironment) -> None:
        with closing(getattr(pool, method)()) as connection:
            connection.cursor().execute(COUNTED_SLEEP)

    application = Application(sleep)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for("SLEEP(20)")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert witness.executions == 1
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
    pool.close()


def test_nothing_is_run_for_a_client_that_left_while_it_waited(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: query(pool, COUNTED_SLEEP if environ["QUERY_STRING"] else "SELECT 1"))
    with BridgeThread(application, pool=pool) as server:
        # From now on it is known that such requests belong to the pool's lane.
        server.request()
        running = [server.send(get("/?slow")) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "all connections are in use")
        waiting = [server.send(get("/?slow")) for _ in range(5)]
        wait_until(lambda: len(server.bridge.exchanges) == 8, "the others wait")
        for client in (*waiting, *running):
            client.close()
        wait_until(lambda: application.ended == 4, "the application is free")
        assert_all_is_well(pool, witness)
        assert (witness.executions, application.ended) == (3, 4)


def test_the_next_statement_fails_at_once_and_is_not_run(pool: Any, witness: Witness) -> None:
    between = threading.Event()

    def two_statements(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SELECT 1")
            between.set()
            wait_until(lambda: current().cancelled, "the client has left")
            cursor.execute("SELECT NEXT VALUE FOR executions")

    application = Application(two_statements)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert between.wait(10)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert witness.executions == 0
        assert_all_is_well(pool, witness)


def test_nothing_is_committed_once_the_client_has_left(pool: Any, witness: Witness) -> None:
    between = threading.Event()

    def commit(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection:
            connection.cursor().execute("INSERT INTO notes VALUES ('too late')")
            between.set()
            wait_until(lambda: current().cancelled, "the client has left")
            connection.commit()

    application = Application(commit)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert between.wait(10)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
        assert witness.notes == []


@pytest.mark.parametrize("explicitly", [False, True])
def test_a_transaction_is_rolled_back(pool: Any, witness: Witness, explicitly: bool) -> None:
    def insert(environ: WSGIEnvironment) -> None:
        with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
            if explicitly:
                connection.begin()
            cursor.execute("INSERT INTO notes VALUES ('half of it')")
            # An application that carries on regardless.
            with contextlib.suppress(MySQLdb.Error):
                cursor.execute(COUNTED_SLEEP)

    application = Application(insert)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for("SLEEP(20)")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert_all_is_well(pool, witness)
        assert (witness.executions, witness.notes) == (1, [])
        # No lock is left.
        witness.rows("DELETE FROM notes")


def kill_comes_first(witness: Witness) -> Callable[[Any], bool]:
    """A check for PooledDB, made between the guard's look at the request and the statement.

    In a request it lets the client leave, and waits until a KILL has found nothing to kill.
    """

    def check(connection: Any) -> bool:
        with contextlib.suppress(RuntimeError):
            if not current().cancelled:
                before = witness.kills
                threading.Thread(target=current().cancel).start()
                wait_until(lambda: witness.kills > before, "a KILL came too early")
        return True

    return check


def test_a_statement_that_begins_just_after_the_kill_is_stopped(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, ping=(4, kill_comes_first(witness)), **connect_settings(mariadb))
    application = Application(lambda environ: query(pool, COUNTED_SLEEP))
    with BridgeThread(application, pool=pool) as server:
        with server.send(get()):
            wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert witness.executions == 1
        assert_all_is_well(pool, witness)
    pool.close()


def fetch_all(pool: Any) -> int:
    """Some 20 s of rows, one after the other. Each is more than the server keeps back."""
    with closing(pool.connection()) as connection, closing(connection.cursor(SSCursor)) as cursor:
        cursor.execute("SELECT SLEEP(0.02), REPEAT('x', 70000) FROM seq_1_to_1000")
        return sum(1 for _ in cursor)


def test_rows_that_are_still_coming_are_stopped(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: fetch_all(pool))
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for("REPEAT")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)


def test_rows_that_began_to_come_just_after_the_kill_are_stopped(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, ping=(4, kill_comes_first(witness)), **connect_settings(mariadb))
    application = Application(lambda environ: fetch_all(pool))
    with BridgeThread(application, pool=pool) as server:
        with server.send(get()):
            wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
    pool.close()


def test_a_streamed_response_stops_with_its_client(pool: Any, witness: Witness) -> None:
    closed = threading.Event()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/csv")])
        try:
            with closing(pool.dedicated_connection()) as connection:
                cursor = connection.cursor(SSCursor)
                cursor.execute("SELECT REPEAT('x', 1000), SLEEP(0.0001) FROM seq_1_to_1000000")
                while (row := cursor.fetchone()) is not None:
                    yield row[0].encode()
        finally:
            closed.set()

    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        assert client.recv(65536)
        client.close()
        assert closed.wait(10)
        assert_all_is_well(pool, witness)


# DBUtils would run a statement again.


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


# Which requests.


@pytest.mark.parametrize(
    ("cancel", "method", "stops"),
    [
        *((("safe", method, method != "POST")) for method in ("GET", "HEAD", "OPTIONS", "POST")),
        ("all", "POST", True),
        ("none", "GET", False),
    ],
)
def test_what_is_stopped_depends_on_the_method_and_the_setting(
    pool: Any, witness: Witness, cancel: str, method: str, stops: bool
) -> None:
    application = Application(lambda environ: query(pool, "SELECT NEXT VALUE FOR executions, SLEEP(0.5)"))
    with BridgeThread(application, pool=pool, cancel=cancel) as server:
        client = server.send(get(method=method))
        witness.wait_for("SLEEP(0.5)")
        kills = witness.kills
        client.close()
        wait_until(lambda: application.ended == 1, "the application is done")
        assert [error.args[0] for error in application.errors] == ([1317] if stops else [])
        assert (witness.kills > kills) == stops
        assert witness.executions == 1
        assert_all_is_well(pool, witness)


# Waiting for a connection.


@pytest.mark.parametrize("blocking", [False, True])
def test_waiting_for_a_connection_ends_with_the_client(
    mariadb: dict[str, str], witness: Witness, blocking: bool
) -> None:
    pool = PooledDB(MySQLdb, maxconnections=1, blocking=blocking, **connect_settings(mariadb))
    application = Application(lambda environ: query(pool, "SELECT 1"))
    with BridgeThread(application, pool=pool) as server, closing(pool.connection()):
        client = server.send(get())
        wait_until(lambda: len(pool._lock._waiters) == 1, "the request waits for the connection")
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert pool._connections == 1
    assert_all_is_well(pool, witness)
    pool.close()


# The control connection.


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "threadbridge" and record.levelno >= logging.WARNING
    ]


def set_password(witness: Witness, password: str) -> None:
    witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (password,))


def test_a_control_connection_that_is_refused_is_tried_again(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, COUNTED_SLEEP))
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        set_password(witness, "another")
        try:
            for client in clients:
                client.close()
            wait_until(lambda: own_messages(caplog) != [], "the failure is logged")
        finally:
            set_password(witness, witness.settings["password"])
        wait_until(lambda: application.ended == 3, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317] * 3
        assert_all_is_well(pool, witness)
        assert witness.executions == 3
    first, second = own_messages(caplog)
    assert first.startswith("cannot stop queries that nobody waits for; trying again: (1045, ")
    assert second == "queries that nobody waits for can be stopped again"


def test_the_request_is_free_even_if_the_database_has_no_connection_left(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, "SELECT NEXT VALUE FOR executions, SLEEP(8)"))
    others: list[Any] = []
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        with contextlib.suppress(MySQLdb.OperationalError):
            while True:
                others.append(MySQLdb.connect(**witness.settings))
        try:
            for client in clients:
                client.close()
            # The statements themselves go on, but nobody waits for them.
            wait_until(lambda: application.ended == 3, "the application is free")
            assert len(witness.running) == 3
            assert {error.args[0] for error in application.errors} == {2013}
            assert pool._connections == 0
        finally:
            for other in others:
                other.close()
        assert_all_is_well(pool, witness)
        assert witness.executions == 3
    [message] = own_messages(caplog)
    assert message.startswith("cannot stop queries that nobody waits for; trying again: (1040, ")


def test_a_control_connection_that_was_lost_is_made_again(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: query(pool, COUNTED_SLEEP))
    with BridgeThread(application, pool=pool) as server:
        for count in (1, 2):
            client = server.send(get())
            witness.wait_for("SLEEP(20)")
            client.close()
            wait_until(lambda count=count: application.ended == count, "the application is free")  # type: ignore[misc]
            for number in witness.connections:
                with contextlib.suppress(MySQLdb.OperationalError):
                    witness.rows(f"KILL {number}")
        assert_all_is_well(pool, witness)
        assert witness.executions == 2


# What the application is told.


def test_the_application_learns_that_its_client_has_left(pool: Any) -> None:
    told = threading.Event()
    seen: dict[str, Any] = {}

    def tell() -> None:
        seen["thread"] = threading.current_thread().name
        told.set()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        request = current()
        seen["same"] = environ["threadbridge.request"] is request
        seen["before"] = (request.cancelled, environ["waitress.client_disconnected"]())
        seen["deadline"] = request.deadline
        request.on_cancel(tell)
        seen["ready"] = True
        assert told.wait(10)
        seen["after"] = (request.cancelled, environ["waitress.client_disconnected"]())
        seen["done"] = True
        start_response("200 OK", [])
        return []

    with BridgeThread(application, pool=pool, deadline=100) as server:
        started = time.monotonic()
        client = server.send(get())
        wait_until(lambda: "ready" in seen, "the application waits")
        client.close()
        wait_until(lambda: "done" in seen, "the application was told")
    assert seen["same"] and seen["before"] == (False, False) and seen["after"] == (True, True)
    assert started + 90 < seen["deadline"] < time.monotonic() + 100
    assert seen["thread"].startswith("threadbridge-cancel")


# Under load.


def test_thousands_of_cancellations_hit_nobody_else(mariadb: dict[str, str], witness: Witness) -> None:
    pool = PooledDB(MySQLdb, maxconnections=8, **connect_settings(mariadb))
    foreign: list[BaseException] = []
    counts = {"cancelled": 0, "answered": 0}
    lock = threading.Lock()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        [number] = parse_qs(environ["QUERY_STRING"])["n"]
        request = current()
        try:
            for _ in range(3):
                with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
                    cursor.execute("SELECT %s, SLEEP(%s)", (number, random.random() / 200))
                    answer = cursor.fetchone()
                    # An interrupted SLEEP gives 1 where it gives no error.
                    assert answer == (number, 0) or request.cancelled, answer
        except Exception as error:
            if not request.cancelled:
                foreign.append(error.with_traceback(None))
            raise
        finally:
            with lock:
                counts["cancelled"] += request.cancelled
                counts["answered"] += not request.cancelled
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [number.encode()]

    stop = threading.Event()

    def clients(server: BridgeThread, leave: bool, seed: int) -> None:
        chance = random.Random(seed)
        number = 0
        while not stop.is_set():
            number += 1
            path = f"/?n={seed}{number:06}"
            with server.send(get(path)) as client:
                if leave:
                    client.settimeout(chance.random() / 50)
                    with contextlib.suppress(TimeoutError):
                        client.recv(1000)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                else:
                    answer = b"".join(iter(lambda client=client: client.recv(1000), b""))  # type: ignore[misc]
                    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(path[4:].encode()), answer

    with BridgeThread(application, pool=pool) as server:
        threads = [
            threading.Thread(target=clients, args=(server, number < 12, number + 1), daemon=True)
            for number in range(16)
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: counts["cancelled"] >= 2000 or bool(foreign), "2000 cancellations", seconds=60)
        finally:
            stop.set()
        for thread in threads:
            thread.join(20)
        wait_until(lambda: not server.bridge.exchanges, "all requests have ended")
        assert foreign == []
        assert counts["answered"] > 100
        assert_all_is_well(pool, witness)
    pool.close()
