"""``--preload``: the application is imported once, and the processes that serve are forked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.load import Load
from tests.support.supervised import Supervised, is_gone, said

# Those that take long run on demand.
on_demand = pytest.mark.skipif("RENEWING" not in os.environ, reason="takes long: set RENEWING=1")

IMPORTED = """
import os
with open("imports", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""


class Preloaded(Supervised):
    """Serves with two processes, and writes the number of each process that has imported the application to a file."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory, "--preload", *arguments)
        self._directory = directory
        with (directory / "site_app.py").open("a") as file:
            file.write(IMPORTED)

    def importers(self) -> list[int]:
        """The processes that have imported the application, in order."""
        return [int(line) for line in (self._directory / "imports").read_text().split()]

    def serving(self) -> set[int]:
        """The children of those."""
        found: set[int] = set()
        for pid in self.pids():
            children = Path(f"/proc/{pid}/task/{pid}/children")
            found |= {int(child) for child in children.read_text().split()} if children.exists() else set()
        return found


def title(pid: int) -> str:
    """What lists of processes show."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()


def test_the_application_is_imported_once_and_again_by_a_reload(tmp_path: Path) -> None:
    with Preloaded(tmp_path, f"--log_file_prefix={tmp_path / 'app.log'}") as server:
        first = server.wait_for_both()
        [preloader] = server.importers()
        assert server.pids() == {preloader} and server.serving() == first
        assert title(server.process.pid).startswith("threadbridge: supervisor: ")
        assert title(preloader).startswith("threadbridge: preloaded application: ")
        assert {title(pid)[:23] for pid in first} == {"threadbridge: process 1", "threadbridge: process 2"}
        # The command line follows.
        assert all(" site_app:app " in title(pid) for pid in (server.process.pid, preloader, *first))
        with Load(server.port) as load:
            victim = min(first)
            os.kill(victim, signal.SIGTERM)
            wait_until(lambda: len(server.serving() - {victim}) == 2, "another one is forked", 30)
            wait_until(lambda: set(load.answers[-50:]) == server.serving(), "it answers", 30)
            assert server.importers() == [preloader]
            second = server.serving()
            # To all, as a service manager may send it.
            for pid in (preloader, server.process.pid):
                os.kill(pid, signal.SIGUSR2)
            wait_until(lambda: len(server.pids()) == 1 and server.pids() != {preloader}, "the old ones end", 30)
            wait_until(lambda: set(load.answers[-50:]) == server.serving(), "the new ones answer", 30)
        assert load.failures == []
        assert not server.serving() & second
        assert server.importers() == [preloader, *server.pids()]
        # Each has its log files.
        names = {"app.log", "app-1.log", "app-1.access.log", "app-2.log", "app-2.access.log"}
        assert {path.name for path in tmp_path.glob("app*")} == names
        assert "stopped, every request is answered" in (tmp_path / "app-1.log").read_text()
        assert '"GET / ' in (tmp_path / "app-2.access.log").read_text()
        assert server.stop() == 0
        assert "Traceback" not in server.output() + (tmp_path / "app.log").read_text()


@on_demand
def test_a_version_that_cannot_be_imported_changes_nothing(tmp_path: Path) -> None:
    with Preloaded(tmp_path) as server:
        first, [preloader] = server.wait_for_both(), server.importers()
        (tmp_path / "site_app.py").write_text("raise RuntimeError('a bad version')\n")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "a new process could not be started: the old ones stay"), "the reload fails", 30)
        assert server.wait_for_both() == first
        # What has been imported is still there to be forked.
        os.kill(min(first), signal.SIGKILL)
        wait_until(lambda: len(server.serving() - {min(first)}) == 2, "another one is forked", 30)
        assert server.pids() == {preloader}
        assert said(server, f"(pid {min(first)}) ended: killed by SIGKILL")()
        assert server.stop() == 0


@on_demand
def test_the_processes_survive_the_one_that_has_forked_them(tmp_path: Path) -> None:
    with Preloaded(tmp_path) as server:
        first, [preloader] = server.wait_for_both(), server.importers()
        os.kill(preloader, signal.SIGKILL)
        wait_until(said(server, f"(pid {preloader}) ended: killed by SIGKILL"), "its end is noticed")
        assert server.wait_for_both() == first
        os.kill(min(first), signal.SIGKILL)
        wait_until(lambda: len(server.importers()) == 2, "the application is imported again", 30)
        wait_until(lambda: len(server.serving()) == 1, "a process is forked", 30)
        [new] = server.serving()
        assert server.wait_for_both() == {max(first), new}
        # Also of those that no process waits for any more.
        assert server.stop() in (0, 1)
        assert all(is_gone(pid) for pid in (*first, new))


@on_demand
def test_when_the_supervisor_is_killed_all_end(tmp_path: Path) -> None:
    with Preloaded(tmp_path) as server:
        first, [preloader] = server.wait_for_both(), server.importers()
        # Also if it has not read what it was told.
        server.process.send_signal(signal.SIGSTOP)
        os.kill(min(first), signal.SIGKILL)
        children = Path(f"/proc/{preloader}/task/{preloader}/children")
        wait_until(lambda: len(children.read_text().split()) == 1, "its end is told")
        server.process.kill()
        wait_until(lambda: all(is_gone(pid) for pid in (*first, preloader)), "no process is left", 30)
        assert "Traceback" not in server.output()


THREAD = (
    "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='refresher', daemon=True).start()\n"
)
CONNECTION = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            THREAD,
            "preload: the application has started threads when it was imported, which forked processes lack: refresher",
        ),
        pytest.param(
            CONNECTION, "preload: the application has opened connections when it was imported", marks=on_demand
        ),
    ],
)
def test_what_forked_processes_could_not_use_is_refused(tmp_path: Path, code: str, message: str) -> None:
    server = Preloaded(tmp_path)
    with (tmp_path / "site_app.py").open("a") as file:
        file.write(code)
    ended = server.run_to_its_end()
    assert ended.returncode == 2
    assert ended.stderr.count(message) == 1


@on_demand
def test_a_program_that_calls_serve_preloads_itself(tmp_path: Path) -> None:
    program = """
        import os, sys
        from threadbridge import serve

        open("imports", "a").write(f"{os.getpid()}\\n")

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str(os.getpid()).encode()]

        sys.exit(serve(app, threads=1, processes=2, preload=True, port={port}))
    """
    server = Preloaded(tmp_path)
    (tmp_path / "program.py").write_text(program.replace("\n        ", "\n").replace("{port}", str(server.port)))
    server.command = [server.command[0], "program.py"]
    with server:
        # The supervisor runs the program too.
        supervisor, preloader = server.importers()
        assert (supervisor, {preloader}) == (server.process.pid, server.pids())
        assert server.wait_for_both() == server.serving()
        assert server.stop() == 0


POOLS = {
    "SQLAlchemy": """
import sqlalchemy
import urllib.parse
url = f"mysql+mysqldb://{user}:{urllib.parse.quote(password)}@localhost/?unix_socket={path}"
engine = sqlalchemy.create_engine(url, pool_size=2, max_overflow=0)
engine.connect().close()

def identity():
    with engine.connect() as connection:
        return connection.execute(sqlalchemy.text("SELECT CONNECTION_ID()")).scalar()
""",
    "mysql-connector": """
from mysql.connector.pooling import MySQLConnectionPool
pool = MySQLConnectionPool(pool_size=2, user=user, password=password, unix_socket=path)

def identity():
    connection = pool.get_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT CONNECTION_ID()")
        return cursor.fetchone()[0]
    finally:
        connection.close()
""",
}
WITH_POOL = """
import os
from pathlib import Path
user, path = os.environ["MYSQL_USER"], os.environ["MYSQL_UNIX_SOCKET"]
password = Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text().strip()
{}
imported = identity()

def app(environ, start_response):
    start_response("200 OK", [])
    return [f"{{imported}} {{identity()}} {{os.getpid()}}".encode()]
"""


@on_demand
@pytest.mark.parametrize("kind", POOLS)
def test_connections_that_a_pool_has_made_at_import_are_made_again_in_each_process(
    kind: str, tmp_path: Path, mariadb: dict[str, str]
) -> None:
    server = Supervised(tmp_path, "--preload", env=mariadb)
    (tmp_path / "site_app.py").write_text(WITH_POOL.format(POOLS[kind]))
    with server:
        answers: dict[int, int] = {}
        while len(answers) < 2:
            imported, used, pid = map(int, requests.get(server.url, timeout=30).text.split())
            answers[pid] = used
            assert used != imported
        assert len(set(answers.values())) == 2
        assert said(server, "pool: ", "2 connections")()
        assert server.stop() == 0
