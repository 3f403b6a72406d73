"""Connecting to the database fails or hangs: the waiting request is known, and its slot in the pool comes back."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.connections import Connection

import tests.support.admin_site
from tests.database.test_control_connection import no_connection_left, number_of_control
from tests.faults.line import FaultyLine
from tests.support.admin_site import SqlSite, answer
from tests.support.cancelling import Application
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.driver_connection import KEEPIDLE
from threadbridge.database.drivers.mysql import CONNECT_TIMEOUT, NETWORK_MARGIN, MySQL
from threadbridge.database.drivers.postgresql import PostgreSQL
from threadbridge.database.pools.dbutils import DBUtilsGuard


@pytest.fixture
def line(mariadb: dict[str, str]) -> Iterator[FaultyLine]:
    """A line to the database."""
    with closing(FaultyLine(mariadb["MYSQL_UNIX_SOCKET"])) as line:
        yield line


Make = Callable[..., tuple[Any, DBUtilsGuard]]


@pytest.fixture
def make(make_pool: Callable[..., Any], line: FaultyLine) -> Make:
    """Makes guarded pools of one connection over the line."""

    def make(creator: Any = MySQLdb, statement_limit: float = 0.0, **parameters: Any) -> tuple[Any, DBUtilsGuard]:
        pool = make_pool(creator, **{"maxconnections": 1, "unix_socket": line.path, **parameters})
        return pool, DBUtilsGuard(pool, statement_limit=statement_limit)

    return make


def without_timeouts(**settings: Any) -> Any:
    """Connects like an application's own function, to which no timeouts can be passed."""
    return MySQLdb.connect(**settings)


# The slot in the pool of a request whose connection is never made.


def test_a_request_that_connects_forever_is_counted_and_abandoned(
    make: Make, line: FaultyLine, witness: Witness
) -> None:
    pool, guard = make(without_timeouts)
    before = set(witness.connections)
    line.swallow(new=True)
    request, worker = in_request(pool.connection)
    wait_until(lambda: line.swallowed == 1, "it connects")
    assert guard.overdue() == 0
    request.cancel()
    assert guard.overdue() == 1
    assert (guard.abandon(request), guard.abandon(request)) == ((1, 0), (0, 0))
    assert (pool._connections, guard.overdue()) == (0, 0)
    line.swallow(new=False)
    # Another request has the slot while the first goes on waiting; a connection that comes late is only closed.
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1 and worker.thread.is_alive()
        line.mend()
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
        assert pool._connections == 1
    assert (pool._connections, len(pool._idle_cache)) == (0, 1)
    # The pool's own, and the control connection.
    wait_until(lambda: len(set(witness.connections) - before) == 2, "the late one is closed")


def test_a_connection_made_after_its_request_was_cancelled_is_closed_and_not_counted(
    make: Make, line: FaultyLine
) -> None:
    pool, guard = make(without_timeouts)
    line.swallow(new=True)
    request, worker = in_request(pool.connection)
    wait_until(lambda: line.swallowed == 1, "it connects")
    request.cancel()
    line.mend()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    assert (pool._connections, pool._idle_cache) == (0, [])
    assert guard.abandon(request) == (0, 0)


@pytest.mark.usefixtures("severed_early")
def test_a_new_connection_that_does_not_answer_is_cut(
    make: Make, line: FaultyLine, caplog: pytest.LogCaptureFixture
) -> None:
    """The network is lost between connecting and the first statement."""

    swallowed = threading.Event()

    class Silent(Connection):  # type: ignore[misc]
        def query(self, query: Any) -> Any:
            line.swallow(new=False)
            swallowed.set()
            return super().query(query)

    # The guard treats this like an application's function, and passes no timeouts.
    pool, _ = make(lambda **settings: Silent(**settings))
    request, worker = in_request(pool.connection)
    assert swallowed.wait(30)
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] in (2006, 2013)
    assert pool._connections == 0
    message = "cancelled 2 s ago but still waiting for a new connection to the database"
    wait_until(lambda: message in caplog.text, "that is logged")


@pytest.mark.usefixtures("severed_early")
@pytest.mark.parametrize("creator", [MySQLdb, without_timeouts], ids=["driver", "function"])
def test_a_connection_that_falls_silent_while_it_is_made_is_cut(make: Make, line: FaultyLine, creator: Any) -> None:
    """The network is lost between the handshake, which has a time limit, and the driver's own first statement."""
    pool, _ = make(creator)
    line.swallow_at(b"SET NAMES")
    request, worker = in_request(pool.connection)
    wait_until(lambda: line.swallowed == 1, "it has been greeted")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] in (2006, 2013)
    assert (pool._connections, pool._idle_cache) == (0, [])
    line.mend()


def test_a_request_that_reconnects_forever_is_abandoned(make: Make, line: FaultyLine, witness: Witness) -> None:
    pool, guard = make(without_timeouts)
    with running(), closing(pool.connection()) as connection:
        number = one(connection, "SELECT CONNECTION_ID()")
    witness.rows(f"KILL {number}")
    wait_until(lambda: not pool._idle_cache[0]._current.is_quiet(), "its end has come through")
    # No other connection is made meanwhile.
    number_of_control(pool)
    line.swallow(new=True)
    before = line.swallowed
    request, worker = in_request(pool.connection)
    wait_until(lambda: line.swallowed > before, "it connects")
    request.cancel()
    assert guard.abandon(request) == (1, 0)
    line.mend()
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError)
    assert pool._connections == 0
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1


def test_a_failed_connect_does_not_affect_a_transaction_on_another_connection(make: Make, witness: Witness) -> None:
    pool, _ = make(maxconnections=2)
    with running() as request, closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO notes VALUES ('begun')")
        with no_connection_left(witness), pytest.raises(MySQLdb.OperationalError, match="Too many connections"):
            pool.connection()
        assert request.statements.outcome == "open"
        connection.commit()
        assert request.statements.outcome == "committed"


def test_readyz_is_true_while_the_network_swallows_new_connections(
    tmp_path: Path, mariadb: dict[str, str], line: FaultyLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = tests.support.admin_site.SQL_APPLICATION.replace(
        "MySQLdb, maxc", "lambda **k: MySQLdb.connect(**k), maxc"
    )
    application += "import threadbridge.loop.watch\nthreadbridge.loop.watch.STUCK_AFTER = 5.0\n"
    monkeypatch.setattr(tests.support.admin_site, "SQL_APPLICATION", application)

    def database() -> tuple[int, str]:
        answered = site.admin("/readyz")
        return answered.status_code, answered.text.splitlines()[-1]

    with SqlSite(tmp_path, {**mariadb, "MYSQL_UNIX_SOCKET": line.path}, "--deadline=2") as site, ExitStack() as stack:
        # Its session was changed, so the connection is closed when it comes back.
        with site.send("/sql?SET%20%40a%3D1") as client:
            answer(client)
        line.swallow(new=True)
        clients = [stack.enter_context(site.send("/sql?SELECT%201")) for _ in range(3)]
        assert [answer(client)[9:12] for client in clients] == [b"504"] * 3
        expected = "database: all 3 connections are held by requests that are cancelled or past their deadline"
        wait_until(lambda: database() == (503, expected), "all places are taken")
        said = "cut 1 connections of the pool that its stuck thread held or waited for; the pool can open others"
        wait_until(lambda: site.output().count(said) == 3, "they are given up", seconds=30)
        # Nothing uses the pool now, and the network works again.
        assert database() == (503, "database: no answer to a new connection within 2 s")
        # Connections that were being made are lost for good.
        line.swallow(new=False)
        wait_until(lambda: database() == (200, "database: ok"), "it is ready")
        clients = [stack.enter_context(site.send("/sql?SELECT%201")) for _ in range(3)]
        assert [answer(client)[9:12] for client in clients] == [b"200"] * 3
        line.mend()


def test_a_stuck_thread_that_shares_its_connection_keeps_it_and_the_log_says_so(
    mariadb: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("threadbridge.loop.watch.STUCK_AFTER", 0.05)
    monkeypatch.setattr(MySQLdb, "threadsafety", 2)
    pool: Any = PooledDB(MySQLdb, maxconnections=2, maxshared=1, **connect_settings(mariadb))
    have_it, go_on = threading.Barrier(3), threading.Event()

    def be_stuck(environ: Any) -> None:
        with closing(pool.connection()):
            have_it.wait(10)
            assert go_on.wait(20)

    with BridgeThread(Application(be_stuck), pool=pool, lanes=()) as server:
        lane = server.bridge.lanes[-1]
        assert lane.threads == 2
        clients = [server.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        have_it.wait(10)
        clients[0].close()
        said = "its stuck thread keeps 1 connections of the pool as long as other requests use them"
        wait_until(lambda: said in caplog.text, "it is said")
        go_on.set()
        clients[1].close()
    pool.close()


# The driver's timeouts.


def test_the_drivers_timeouts_follow_from_the_statement_limit() -> None:
    def defaults(limit: float) -> Any:
        return MySQL("MySQLdb", ConnectionSettings(MySQLdb.connect, (), {}, statement_limit=limit)).defaults

    patience = math.ceil(209.5 + NETWORK_MARGIN)
    assert defaults(0) == {"connect_timeout": CONNECT_TIMEOUT}
    assert defaults(209.5) == {
        "connect_timeout": CONNECT_TIMEOUT,
        "read_timeout": patience,
        "write_timeout": patience,
    }


def test_a_silent_network_ends_a_statement_some_time_after_the_deadline(
    mariadb: dict[str, str], line: FaultyLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threadbridge.loop.bridge.STATEMENT_MARGIN", 0.2)
    monkeypatch.setattr("threadbridge.database.drivers.mysql.NETWORK_MARGIN", 0.2)
    pool: Any = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))

    def lose_network(environ: Any) -> None:
        with closing(pool.connection()) as connection:
            one(connection)
            line.swallow(new=True)
            # Not the first statement, which would run again on another connection.
            one(connection)

    application = Application(lose_network)
    with BridgeThread(application, pool=pool, deadline=0.5) as server, ExitStack() as stack:
        stack.callback(line.mend)
        began = time.monotonic()
        # Not cancelled, as it is too early for that.
        assert server.request("POST")[0].status == 504
        wait_until(lambda: application.ended == 1, "the driver has given up")
        assert time.monotonic() - began < 4
        assert [error.args[0] for error in application.errors] == [2013]
    pool.close()


@pytest.mark.parametrize("name", ["read_timeout", "write_timeout"])
@pytest.mark.parametrize("is_the_application_s", [False, True])
def test_network_timeouts_are_given_to_the_driver_unless_the_application_has_its_own(
    make: Make, line: FaultyLine, monkeypatch: pytest.MonkeyPatch, name: str, is_the_application_s: bool
) -> None:
    # The other timeout must not end the waiting.
    own: dict[str, Any] = {"read_timeout": 600, "write_timeout": 600}
    limit = 600.0
    if is_the_application_s:
        own[name] = 1
    else:
        del own[name]
        limit = 0.5
        monkeypatch.setattr("threadbridge.database.drivers.mysql.NETWORK_MARGIN", 0.5)
    pool, _ = make(MySQLdb, limit, **own)
    connection = pool.connection()
    # Statements after it do not run again on another connection.
    one(connection)
    line.swallow(new=True)
    # A thread of the application's own, which is never cancelled. The statement fills all buffers, or is short.
    sql = "SELECT '" + 16_000_000 * "x" + "'" if name == "write_timeout" else "SELECT 1"
    worker = InThread(lambda: one(connection, sql))
    worker.join()
    assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] in (2006, 2013)


def test_connecting_to_a_silent_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadbridge.database.drivers.mysql.CONNECT_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pool: Any = PooledDB(MySQLdb, maxconnections=2, host="127.0.0.1", port=silent.getsockname()[1], user="x")
        application = Application(lambda environ: pool.connection())
        with BridgeThread(application, pool=pool) as server:
            assert server.request()[0].status == 503
            assert (pool._connections, application.ended) == (0, 1)


def test_the_applications_own_connect_timeout_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threadbridge.database.drivers.mysql.CONNECT_TIMEOUT", 600)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"host": "127.0.0.1", "port": silent.getsockname()[1], "user": "x"}
        pool: Any = PooledDB(MySQLdb, connect_timeout=1, **address)
        guard = DBUtilsGuard(pool)
        worker = InThread(pool.connection)
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and pool._connections == 0
        guard.close()


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("psycopg", None),
        ("psycopg", "argument"),
        ("psycopg", "URI"),
        ("psycopg2", None),
        ("psycopg2", "string"),
        ("psycopg2", "environment"),
    ],
)
def test_connecting_to_a_silent_postgresql_server_times_out(
    monkeypatch: pytest.MonkeyPatch, name: str, own: str | None
) -> None:
    driver = pytest.importorskip(name)
    # libpq waits for at least 2 s.
    monkeypatch.setattr("threadbridge.database.drivers.postgresql.CONNECT_TIMEOUT", 600 if own else 2)
    kwargs: dict[str, Any] = {"connect_timeout": 2} if own == "argument" else {}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = f"host=127.0.0.1 port={port} user=x sslmode=disable gssencmode=disable"
        if own == "string":
            address += " connect_timeout = 2"
        elif own == "URI":
            address = f"postgresql://x@127.0.0.1:{port}/?sslmode=disable&gssencmode=disable&connect_timeout=2"
        elif own == "environment":
            monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
        pool: Any = PooledDB(driver, 0, 0, 0, 0, False, None, None, True, None, 1, None, address, **kwargs)
        guard = DBUtilsGuard(pool)
        worker = InThread(pool.connection)
        worker.join()
        assert isinstance(worker.error, driver.OperationalError) and "expired" in str(worker.error), worker.error
        assert pool._connections == 0
        guard.close()


def test_a_service_file_may_set_the_connect_timeout_of_postgresql() -> None:
    def defaults(*args: Any, **kwargs: Any) -> Any:
        return PostgreSQL("psycopg", ConnectionSettings(lambda: None, args, kwargs)).defaults

    assert defaults("dbname=customer_service") == defaults(dbname="service=") == {"connect_timeout": 10}
    assert defaults("service=mine") == defaults(service="mine") == defaults(conninfo="postgresql:///?service=a") == {}


def test_the_kernel_detects_a_lost_peer_of_a_pool_connection(make: Make, line: FaultyLine) -> None:
    pool, _ = make(MySQLdb, unix_socket="", host="127.0.0.1", port=line.port)
    with (
        closing(pool.connection()) as connection,
        socket.fromfd(connection._con._con.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same,
    ):
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPIDLE
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
