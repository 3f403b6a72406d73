"""Another process ends what a killed one left running in the database, and nothing else."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend
from tests.support.requests_in_threads import one, running
from tests.support.site_process import ask_on_its_own
from tests.support.supervised import is_gone
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.predecessors import SLOT

# Runs on when its client is gone, unlike SLEEP, which checks for it.
COMPUTE = "SELECT BENCHMARK(1000000000000, MD5('{}'))"
LOCK = "SELECT note FROM notes FOR UPDATE"

# Executes statements on a connection of a guarded pool.
KILLED = """
import importlib, json, sys
from dbutils.pooled_db import PooledDB
from threadbridge.database.pools.dbutils import DBUtilsGuard

driver, directory, settings, *statements = sys.argv[1:]
pool = PooledDB(importlib.import_module(driver), maxconnections=2, **json.loads(settings))
guard = DBUtilsGuard(pool)
guard.connections.begin(directory)
connection = pool.connection()
for sql in statements:
    cursor = connection.cursor()
    cursor.execute(sql)
    cursor.fetchall()
"""

# Only searches for lists of dead processes.
IDLE = KILLED.partition("connection =")[0] + "import time\ntime.sleep(600)\n"

# /compute holds a row lock and computes; /sleep sleeps; /fork leaves a copy of the process that outlives it.
PROGRAM = """
import json, os, sys, time
import MySQLdb
from contextlib import closing
from dbutils.pooled_db import PooledDB
from threadbridge import run

pool = PooledDB(MySQLdb, maxconnections=5, **json.loads(os.environ["CONNECT"]))

def app(environ, start_response):
    with closing(pool.connection()) as connection, closing(connection.cursor()) as cursor:
        if environ["PATH_INFO"] == "/compute":
            cursor.execute("SELECT note FROM notes FOR UPDATE")
            cursor.execute(f"SELECT BENCHMARK(1000000000000, MD5('process {os.getpid()}'))")
        elif environ["PATH_INFO"] == "/fork":
            copy = os.fork()
            if not copy:
                time.sleep(600)
            with open("copy", "w") as file:
                file.write(str(copy))
        else:
            cursor.execute(f"SELECT SLEEP(600), 'process {os.getpid()}'")
    start_response("200 OK", [])
    return [b"done"]

sys.exit(run(app, pool=pool))
"""


@pytest.fixture(autouse=True)
def nothing_goes_on(witness: Witness) -> Iterator[None]:
    """Kills what the test left running."""
    yield
    witness.end_others()


@contextmanager
def process(
    directory: Path, settings: dict[str, Any], *statements: str, driver: str = "MySQLdb", program: str = KILLED
) -> Iterator[int]:
    """A process that executes these statements; returns its pid."""
    command = [sys.executable, "-c", program, driver, str(directory), json.dumps(settings), *statements]
    with subprocess.Popen(command, cwd=ROOT) as started:
        try:
            yield started.pid
        finally:
            started.kill()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid), "the process is dead")


@contextmanager
def successor(directory: Path, settings: dict[str, Any], driver: Any = MySQLdb) -> Iterator[tuple[DBUtilsGuard, Any]]:
    """A guard that searches for lists of dead processes."""
    pool = PooledDB(driver, maxconnections=2, **settings)
    guard = DBUtilsGuard(pool)
    guard.connections.begin(str(directory))
    try:
        yield guard, pool
    finally:
        guard.close()
        pool.close()


def counters(guard: DBUtilsGuard) -> tuple[int, int, int, int, int]:
    stopper = guard.stopper
    return stopper.stops, stopper.failures, stopper.severed, stopper.killed, stopper.running


def lists(directory: Path) -> list[Path]:
    return sorted(directory.glob("connections-*"))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Whole servers.


@pytest.mark.parametrize("how", ["the supervisor's", "a fresh start"])
def test_a_successor_kills_the_queries_of_its_killed_predecessor(
    tmp_path: Path, mariadb: dict[str, str], witness: Witness, how: str
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {"CONNECT": json.dumps(connect_settings(mariadb)), "TMPDIR": str(tmp_path)}
    witness.rows("INSERT INTO notes VALUES ('locked')")
    processes = "2" if how == "the supervisor's" else "1"
    frontend = Frontend(
        ("program.py", "--port={port}", f"--processes={processes}", "--deadline=600"), env=env, cwd=tmp_path
    )
    with ExitStack() as stack:
        foreign = stack.enter_context(closing(MySQLdb.connect(**connect_settings(mariadb))))
        stack.callback(lambda: witness.rows(f"KILL {foreign.thread_id()}"))
        foreign.query_sent = foreign.send_query(b"SELECT SLEEP(600), 'foreign'")
        # Not a child of the process, and started first.
        with frontend as server:
            sibling = stack.enter_context(
                Frontend(("program.py", "--port={port}", "--deadline=600"), env=env, cwd=tmp_path)
            )
            clients = [ask_on_its_own(sibling.port, "/sleep")]
            witness.wait_for(f"'process {sibling.process.pid}'")
            wait_until(lambda: any("foreign" in sql for sql in witness.running), "the foreign query runs")
            clients.append(ask_on_its_own(server.port, "/compute"))
            witness.wait_for("BENCHMARK")
            [computes] = [sql for sql in witness.running if "BENCHMARK" in sql]
            pid = int(computes.rpartition("process ")[2].rstrip("')"))
            assert (pid == server.process.pid) == (processes == "1")
            with pytest.raises(MySQLdb.OperationalError):
                witness.rows(LOCK + " NOWAIT")
            if processes == "1":
                # A copy must not be taken for the process.
                clients.append(ask_on_its_own(server.port, "/fork"))
                wait_until(lambda: (tmp_path / "copy").exists() and clients[-1].recv(9) != b"", "there is a copy")
                copy = int((tmp_path / "copy").read_text())
                stack.callback(os.kill, copy, signal.SIGKILL)
                # Otherwise the sibling would do it too.
                os.kill(sibling.process.pid, signal.SIGSTOP)
                kill(pid)
                assert [sql for sql in witness.running if "BENCHMARK" in sql] == [computes]
                server.process.wait()
                server.start()
            else:
                os.kill(sibling.process.pid, signal.SIGSTOP)
                kill(pid)
            wait_until(lambda: [sql for sql in witness.running if "BENCHMARK" in sql] == [], "it has ended", 20)
            wait_until(lambda: f"of dead process {pid} has been killed" in server.output(), "it is logged")
            assert witness.rows(LOCK + " NOWAIT") == (("locked",),)
            os.kill(sibling.process.pid, signal.SIGCONT)
            still = sorted(sql.partition(", ")[2] for sql in witness.running)
            assert still == ["'foreign'", f"'process {sibling.process.pid}'"]
            for client in clients:
                client.close()
            assert server.stop() == 0
        # A process that ends by itself leaves no list.
        assert sibling.stop() == 0
        assert lists(tmp_path / f"threadbridge-{os.geteuid()}") == []


# Their parts.


@pytest.mark.parametrize("first", [[], ["SELECT RELEASE_ALL_LOCKS()"]], ids=["marked", "mark lost"])
def test_killed_connections_are_counted_and_no_others_are_touched(
    tmp_path: Path, mariadb: dict[str, str], witness: Witness, caplog: pytest.LogCaptureFixture, first: list[str]
) -> None:
    settings = connect_settings(mariadb)
    wait_until(lambda: int(witness.rows("SHOW STATUS LIKE 'Uptime'")[0][1]) > 2, "the server is no new one")
    with (
        process(tmp_path, settings, *first, COMPUTE.format("dead")) as dead,
        process(tmp_path, settings, "SELECT SLEEP(600), 'living'") as living,
        # Its pool connects in another way, so it does nothing.
        process(tmp_path, {**settings, "charset": "latin1"}, COMPUTE.format("another")) as other,
    ):
        number = witness.wait_for("MD5('dead')")
        witness.wait_for("'living'")
        witness.wait_for("MD5('another')")
        # Otherwise this guard would find it too.
        os.kill(living, signal.SIGSTOP)
        files = lists(tmp_path)
        assert len(files) == 3
        for pid in (dead, other):
            kill(pid)
        kills = witness.kills
        with successor(tmp_path, settings) as (guard, _):
            wait_until(lambda: guard.stopper.killed == 1, "one is killed")
            wait_until(lambda: guard.stopper.running == 0, "it has ended")
            others = ["another", "living"]
            wait_until(lambda: sorted(sql.split("'")[1] for sql in witness.running) == others, "the others go on")
            assert (counters(guard), witness.kills - kills) == ((0, 0, 0, 1, 0), 1)
            # Its own list is the third, as it may be killed before what it found has ended.
            remaining = lists(tmp_path)
            assert len(remaining) == 3 and len(set(files) & set(remaining)) == 2
            guard.connections._search()
            assert counters(guard) == (0, 0, 0, 1, 0)
            guard.leave()
            assert set(lists(tmp_path)) == set(files) & set(remaining)
        with successor(tmp_path, {**settings, "charset": "latin1"}) as (guard, _):
            wait_until(lambda: guard.stopper.killed == 1, "another successor finds the other")
            wait_until(lambda: guard.stopper.running == 0, "it has ended")
            guard.leave()
    first_line, *_ = messages(caplog)
    assert first_line.startswith(f"connection {number} of dead process {dead} has been killed in database ")


def test_a_successor_that_is_killed_has_a_successor(tmp_path: Path, mariadb: dict[str, str], witness: Witness) -> None:
    settings = connect_settings(mariadb)
    with process(tmp_path, settings, COMPUTE.format("dead")) as dead:
        witness.wait_for("MD5('dead')")
        kill(dead)
        witness.connection.cursor().execute("SET PASSWORD = PASSWORD('another')")
        try:
            [old] = lists(tmp_path)
            with process(tmp_path, settings, program=IDLE) as second:
                wait_until(lambda: not old.exists() and len(lists(tmp_path)) == 1, "it has found the list")
                kill(second)
            with successor(tmp_path, settings) as (guard, _):
                # The database is out of reach when it starts.
                wait_until(lambda: guard.stopper.failures >= 1, "the database cannot be reached")
                assert len(witness.running) == 1
                witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (settings["password"],))
                wait_until(lambda: guard.stopper.running == 0, "it has ended")
                assert (guard.stopper.killed, witness.running) == (1, [])
                guard.leave()
        finally:
            witness.connection.cursor().execute("SET PASSWORD = PASSWORD(%s)", (settings["password"],))
    assert lists(tmp_path) == []


def test_connections_that_have_ended_are_not_counted(
    tmp_path: Path, mariadb: dict[str, str], witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    settings = connect_settings(mariadb)
    with process(tmp_path, settings, "SELECT 1", "SELECT SLEEP(600)") as dead:
        number = witness.wait_for("SLEEP(600)")
        kill(dead)
        witness.rows(f"KILL {number}")
        wait_until(lambda: number not in witness.connections, "its connection has ended")
        kills = witness.kills
        [old] = lists(tmp_path)
        with successor(tmp_path, settings) as (guard, _):
            wait_until(lambda: not old.exists() and guard.stopper.running == 0, "that is seen")
            assert (counters(guard), witness.kills) == ((0, 0, 0, 0, 0), kills)
            guard.leave()
    assert (messages(caplog), lists(tmp_path)) == ([], [])


def test_a_function_of_the_applications_connects(tmp_path: Path, mariadb: dict[str, str], witness: Witness) -> None:
    """The list names the driver, so nothing need have connected before."""
    settings = connect_settings(mariadb)
    of_its_own = (
        "importlib.import_module(driver)",
        "lambda **kwargs: importlib.import_module(driver).connect(**kwargs)",
    )
    with process(tmp_path, settings, COMPUTE.format("dead"), program=KILLED.replace(*of_its_own)) as dead:
        witness.wait_for("MD5('dead')")
        kill(dead)
        with process(tmp_path, settings, program=IDLE.replace(*of_its_own)):
            wait_until(lambda: witness.running == [], "it has ended")


def test_the_list_is_as_long_as_the_most_connections_at_a_time(
    tmp_path: Path, mariadb: dict[str, str], witness: Witness
) -> None:
    with successor(tmp_path, connect_settings(mariadb)) as (guard, pool):
        numbers = set()
        for _ in range(20):
            with running(), closing(pool.connection()) as connection:
                numbers.add(one(connection, "SELECT CONNECTION_ID()"))
                # So that it is closed when it comes back.
                connection.cursor().execute("SET @changed = 1")
        assert len(numbers) == 20
        [file] = lists(tmp_path)
        assert file.stat().st_size <= 4 * SLOT
        # A list that was removed is created again.
        before = file.read_bytes()
        file.unlink()
        guard.connections._search()
        [again] = lists(tmp_path)
        assert again != file and again.read_bytes() == before
        guard.leave()
        assert lists(tmp_path) == []


def test_after_a_full_disk_each_connection_has_its_own_slot(
    tmp_path: Path, mariadb: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    # A log record would keep the exception alive, and with it the frames and their connections.
    caplog.set_level(logging.CRITICAL, "threadbridge")
    with successor(tmp_path, connect_settings(mariadb)) as (_, pool):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The list can be created, but no connection written to it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (SLOT, limits[1]))
        try:
            with running(), closing(pool.connection()) as unlisted:
                # So that it is closed when it comes back.
                unlisted.cursor().execute("SET @changed = 1")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        [file] = lists(tmp_path)
        assert file.stat().st_size == SLOT
        with running(), closing(pool.connection()) as first, closing(pool.connection()) as second:
            numbers = {one(connection, "SELECT CONNECTION_ID()") for connection in (first, second)}
            _, *listed = [json.loads(line) for line in file.read_text().splitlines()]
            assert {thread_id for thread_id, *_ in listed} == numbers


def test_an_unusable_directory_is_logged_and_harms_nothing(
    tmp_path: Path, mariadb: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    with successor(tmp_path, connect_settings(mariadb)) as (_, pool):
        with running(), closing(pool.connection()) as connection:
            assert one(connection) == 1
        wait_until(lambda: len(messages(caplog)) == 1, "it is said")
    assert "other users may write there" in messages(caplog)[0]


def test_an_unreadable_list_is_logged_and_removed(
    tmp_path: Path, mariadb: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with successor(tmp_path, connect_settings(mariadb)) as (guard, _):
        # The last was created and not written to.
        for text in ("no list\n", '{"pid": 1, "driver": "MySQLdb"}\n[1]\n', ""):
            # Renamed, so that it appears complete: the stopper's thread searches too.
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").rename(tmp_path / f"{guard.connections._prefix}0")
            guard.connections._search()
            wait_until(lambda: lists(tmp_path) == [], "it is removed")
    assert ["cannot read a dead process" in message for message in messages(caplog)] == [True, True]
