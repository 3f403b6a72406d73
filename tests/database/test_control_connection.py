"""Queries are stopped from a control connection, which may fail like any other."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from MySQLdb.cursors import SSCursor

from tests.support.cancelling import (
    COUNTED_WAIT,
    WAITING,
    Application,
    assert_all_is_well,
    get,
    kept_controls,
    own_messages,
    query,
)
from tests.support.databases import Witness, connect_settings, line_to
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.mysql import MySQL
from threadbridge.database.drivers.mysql_identity import Identity
from threadbridge.database.stopper import Orphan, Stopper

NOWHERE = ConnectionSettings(MySQLdb.connect, (), {})


@pytest.fixture
def pool(mariadb: dict[str, str]) -> Iterator[Any]:
    pool = PooledDB(MySQLdb, maxconnections=3, **connect_settings(mariadb))
    yield pool
    pool.close()


def name_in_log(witness: Witness) -> str:
    return f"database {witness.settings['database']!r} at {witness.settings['unix_socket']}"


def set_password(witness: Witness, password: str) -> None:
    witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (password,))


def number_of_control(pool: Any) -> int:
    """The number of the control connection, once there is one."""
    guard = pool.connection.__self__
    wait_until(lambda: kept_controls(guard) != [], "there is a control connection")
    number: int = kept_controls(guard)[0].connection.thread_id()
    return number


def lose(number: int, witness: Witness) -> None:
    """End a connection, as an administrator may."""
    witness.rows(f"KILL {number}")
    wait_until(lambda: number not in witness.connections, "it is gone")


def test_a_control_connection_that_is_refused_is_tried_again(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, COUNTED_WAIT))
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        control = number_of_control(pool)
        set_password(witness, "another")
        try:
            lose(control, witness)
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
    assert first.startswith(f"cannot stop cancelled queries in {name_in_log(witness)}; trying again: (1045, ")
    assert second == f"cancelled queries can be stopped again in {name_in_log(witness)}"


@contextlib.contextmanager
def no_connection_left(witness: Witness) -> Iterator[None]:
    others: list[Any] = []
    with contextlib.suppress(MySQLdb.OperationalError):
        while True:
            others.append(MySQLdb.connect(**witness.settings))
    try:
        yield
    finally:
        for other in others:
            other.close()


def test_queries_are_stopped_even_if_the_database_has_no_connection_left(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, COUNTED_WAIT))
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        number_of_control(pool)
        with no_connection_left(witness):
            for client in clients:
                client.close()
            wait_until(lambda: application.ended == 3, "the application is free")
            wait_until(lambda: witness.running == [], "nothing runs")
        assert [error.args[0] for error in application.errors] == [1317] * 3
        assert_all_is_well(pool, witness)
        assert witness.executions == 3
        stopper = server.bridge.desk.stopper
        wait_until(lambda: stopper.stops == 3, "they are counted")
        assert (stopper.failures, stopper.severed, stopper.killed, stopper.running) == (0, 0, 0, 0)
    assert own_messages(caplog) == []


@pytest.mark.usefixtures("severed_early")
def test_a_query_that_cannot_be_stopped_is_remembered_until_it_is(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application(lambda environ: query(pool, COUNTED_WAIT))
    with BridgeThread(application, pool=pool) as server:
        clients = [server.send(get()) for _ in range(3)]
        wait_until(lambda: len(witness.running) == 3, "three statements run")
        lose(number_of_control(pool), witness)
        stopper = server.bridge.desk.stopper
        with no_connection_left(witness):
            for client in clients:
                client.close()
            # The statements themselves go on, but no thread waits for them.
            wait_until(lambda: application.ended == 3, "the application is free")
            assert len(witness.running) == 3
            assert {error.args[0] for error in application.errors} == {2013}
            assert pool._connections == 0
            wait_until(lambda: (stopper.severed, stopper.running) == (3, 3), "they are remembered")
        wait_until(lambda: stopper.running == 0, "they have ended")
        assert_all_is_well(pool, witness)
        assert (witness.executions, stopper.killed, stopper.stops) == (3, 3, 0)
    first, *rest = own_messages(caplog)
    assert first.startswith(f"cannot stop cancelled queries in {name_in_log(witness)}; trying again: (1040, ")
    assert "cancelled 2 s ago but still holds connection" in rest[0]
    assert f"has ended in {name_in_log(witness)}, killed on request" in rest[-1]


def test_a_lost_control_connection_is_replaced(pool: Any, witness: Witness) -> None:
    application = Application(lambda environ: query(pool, COUNTED_WAIT))
    with BridgeThread(application, pool=pool) as server:
        for count in (1, 2):
            client = server.send(get())
            witness.wait_for(WAITING)
            lose(number_of_control(pool), witness)
            client.close()
            wait_until(lambda count=count: application.ended == count, "the application is free")  # type: ignore[misc]
            server.bridge.desk.first[0]._control_checked_at = -math.inf
        assert_all_is_well(pool, witness)
        assert witness.executions == 2


@pytest.mark.parametrize("path", ["/between", "/short", "/rows"])
def test_only_what_ran_when_it_was_stopped_is_counted(
    mariadb: dict[str, str], pool: Any, witness: Witness, path: str
) -> None:
    holds, goes_on = threading.Event(), threading.Event()

    def run(environ: Any) -> None:
        with contextlib.closing(pool.connection()) as connection:
            if path == "/rows":
                with contextlib.closing(connection.cursor(SSCursor)) as cursor:
                    cursor.execute("SELECT BENCHMARK(100000, MD5(seq)), REPEAT('x', 70000) FROM seq_1_to_1000")
                    for _ in cursor:
                        holds.set()
            else:
                with contextlib.closing(connection.cursor()) as cursor:
                    cursor.execute("SELECT 1")
                holds.set()
                if path == "/between":
                    assert goes_on.wait(30)

    application = Application(run)
    kills = witness.kills
    with BridgeThread(application, pool=pool) as server:
        if path == "/short":
            # The client leaves only after the statement has ended, so nothing is stopped.
            assert server.request(path=path)[0].status == 200
        else:
            client = server.send(get(path))
            assert holds.wait(30)
            client.close()
            wait_until(lambda: witness.kills > kills, "a kill is sent")
            goes_on.set()
        wait_until(lambda: application.ended == 1 and pool._connections == 0, "the application is free")
        stopper = server.bridge.desk.stopper
    wait_until(lambda: stopper.thread is None, "the stopper has done all it had to do")
    assert (stopper.stops, stopper.failures, stopper.severed) == (int(path == "/rows"), 0, 0)


# The mark.


@pytest.mark.parametrize("statement", ["SELECT RELEASE_ALL_LOCKS()", "DO RELEASE_ALL_LOCKS()"])
def test_a_query_is_stopped_even_if_the_application_has_released_all_locks(
    pool: Any, witness: Witness, statement: str
) -> None:
    wait_until(lambda: int(witness.rows("SHOW STATUS LIKE 'Uptime'")[0][1]) > 2, "the server is no new one")

    def release_and_wait(environ: Any) -> None:
        with contextlib.closing(pool.connection()) as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(statement)
            cursor.execute(COUNTED_WAIT)

    application = Application(release_and_wait)
    with BridgeThread(application, pool=pool) as server:
        client = server.send(get())
        witness.wait_for(WAITING)
        client.close()
        wait_until(lambda: application.ended == 1, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)


def test_a_connection_that_reuses_the_number_is_not_killed(mariadb: dict[str, str], witness: Witness) -> None:
    before = set(witness.connections)
    database = MySQL("MySQLdb", ConnectionSettings(MySQLdb.connect, (), connect_settings(mariadb)))
    with contextlib.closing(MySQLdb.connect(**connect_settings(mariadb))) as connection:
        identity = database.identify(connection)
        number = witness.connection.thread_id()
        # As on a server that gave the number to another connection: of another name, or of the same one.
        for wrong in (
            identity._replace(number=number),
            identity._replace(number=number, server="another", mark=""),
            identity._replace(number=number, process="another", mark=""),
        ):
            kills = witness.kills
            with pytest.raises(StopFailed):
                database.stop_query(connection, wrong)
            assert witness.kills == kills
        kills = witness.kills
        # A stop is sent although nothing runs.
        assert not database.stop_query(connection, identity)
        assert witness.kills == kills + 1
        # The mark alone proves which connection it is, and so do the name and the server process.
        for right in (identity._replace(server="another"), identity._replace(mark="")):
            database.stop_query(connection, right)
        assert witness.kills == kills + 3
        assert not database.kill(identity)
        wait_until(lambda: database.kill(identity), "it is seen to have ended")
    # If the server has restarted since, it is gone.
    assert database.kill(identity._replace(mark="", made=0, process="an earlier one"))
    database.close()
    wait_until(lambda: set(witness.connections) <= before, "nothing is left")


# A network that loses the existing connections.


@pytest.mark.usefixtures("severed_early")
def test_a_connection_lost_by_the_network_is_cut_and_killed_in_the_database(
    mariadb: dict[str, str], witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    witness.rows("INSERT INTO notes VALUES ('locked')")

    def lock_and_wait(environ: Any) -> None:
        if environ["PATH_INFO"] == "/":
            query(pool, "SELECT 1")
            return
        with contextlib.closing(pool.connection()) as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SELECT * FROM notes FOR UPDATE")
            locked.set()
            cursor.execute("SELECT 1 FROM notes WHERE GET_LOCK('held', 60)")

    locked = threading.Event()
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool: Any = PooledDB(MySQLdb, maxconnections=1, **connect_settings(mariadb, line.path))
        application = Application(lock_and_wait)
        with BridgeThread(application, pool=pool) as server:
            client = server.send(get("/lock"))
            assert locked.wait(30)
            witness.wait_for(WAITING)
            line.swallow_old()
            client.close()
            wait_until(lambda: application.ended == 1, "the worker is free")
            assert [error.args[0] for error in application.errors] == [2013]
            wait_until(lambda: pool._connections == 0, "the connection's place is free")
            assert server.request()[0].status == 200
            stopper = server.bridge.desk.stopper
            wait_until(lambda: (stopper.severed, stopper.running) == (1, 0), "it has ended in the database")
            assert witness.rows("SELECT note FROM notes FOR UPDATE NOWAIT") == (("locked",),)
        pool.close()
    messages = own_messages(caplog)
    assert any("cancelled 2 s ago but still holds connection" in each for each in messages)
    assert f"has ended in database {witness.settings['database']!r} at {line.path}" in messages[-1]


@pytest.mark.usefixtures("severed_early")
def test_a_connect_function_that_does_not_return_delays_others_only_briefly(
    mariadb: dict[str, str], witness: Witness
) -> None:
    """The database accepts and does not answer; the application's function takes no timeouts."""
    with line_to(mariadb["MYSQL_UNIX_SOCKET"]) as line:
        pool = PooledDB(lambda: MySQLdb.connect(**connect_settings(mariadb, line.path)), maxconnections=2)
        application = Application(lambda environ: query(pool, COUNTED_WAIT))
        with BridgeThread(application, pool=pool) as server:
            clients = [server.send(get()) for _ in range(2)]
            wait_until(lambda: len(witness.running) == 2, "the statements run")
            line.swallow()
            for client in clients:
                client.close()
            wait_until(lambda: application.ended == 2, "the workers are free", seconds=20)
            wait_until(lambda: pool._connections == 0, "the connections' places are free")
            stopper = server.bridge.desk.stopper
            assert (stopper.severed, stopper.running) == (2, 2)
            line.mend()
            wait_until(lambda: stopper.running == 0, "they have ended in the database", seconds=20)
            assert_all_is_well(pool, witness)
        pool.close()


# Threads that cannot be started.


def test_a_thread_that_could_not_start_starts_with_the_next_request(
    pool: Any, witness: Witness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith(("threadbridge-stopper", "threadbridge-background")):
            raise RuntimeError("can't start new thread")
        start(thread)

    def run(environ: Any) -> Any:
        return query(pool, COUNTED_WAIT if environ["PATH_INFO"] == "/slow" else "SELECT 1")

    application = Application(run)
    with BridgeThread(application, pool=pool) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            client = server.send(get("/slow"))
            witness.wait_for(WAITING)
            client.close()
            stopper = server.bridge.desk.stopper
            wait_until(lambda: stopper.lacks_thread, "the stop waits")
        assert server.request()[0].status == 200
        wait_until(lambda: application.ended == 2, "the application is free")
        assert [error.args[0] for error in application.errors] == [1317]
        assert_all_is_well(pool, witness)
    background, stopping = own_messages(caplog)
    assert (
        "cannot be returned to the pool now, because no thread could be started: can't start new thread" in background
    )
    assert "cannot be stopped now, because no thread could be started: can't start new thread" in stopping


def test_the_search_for_a_connection_that_cannot_be_found_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("threadbridge.database.stopper.LONGEST_SEARCH", 0.2)

    class Elsewhere(MySQL):
        """A server that another has replaced."""

        def kill(self, identity: Identity) -> bool:
            raise StopFailed("the control connection came to b, not to a")

    stopper = Stopper()
    stopper.start()
    stopper.kill([Orphan(Elsewhere("MySQLdb", NOWHERE), Identity(7, "a", 0, ""))])
    wait_until(lambda: stopper.running == 0, "it is given up")
    assert stopper.failures >= 2
    assert own_messages(caplog) == [
        "connection 7 may still be running a query in the MySQLdb database, and is no longer checked: it was not found "
        "for 0.2 s: the control connection came to b, not to a"
    ]
    stopper.close()


def test_a_connection_may_end_after_the_full_list_has_dropped_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("threadbridge.database.stopper.MAX_ORPHANS", 1)
    stopper = Stopper()
    ended = []

    class Ending(MySQL):
        """A server where a connection ends at once; another is added meanwhile."""

        def kill(self, identity: Identity) -> bool:
            if identity.number:
                stopper.kill([Orphan(self, identity._replace(number=identity.number - 1))])
            ended.append(identity.number)
            return True

    stopper.start()
    stopper.kill([Orphan(Ending("MySQLdb", NOWHERE), Identity(1, "a", 0, ""))])
    wait_until(lambda: (ended, stopper.running) == ([1, 0], 0), "the other has ended too")
    assert "KeyError" not in caplog.text
    stopper.close()
