"""``--processes`` and what is around: systemd, log files, the database, the check."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import requests

from tests.support.databases import Witness
from tests.support.doctor_report import check
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend
from tests.support.supervised import Supervised

# systemd.


def test_the_service_manager_hears_from_the_supervisor_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        # So that the sender of each message is known.
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with Supervised(tmp_path, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as server:
            expected = (
                f"READY=1\nSTATUS=Serving on {server.url}/ with 2 processes",
                "STOPPING=1\nSTATUS=Stopping 2 processes",
            )
            for text in expected:
                message, [(_, _, credentials)], _, _ = manager.recvmsg(4096, 4096)
                assert message.decode() == text
                assert int.from_bytes(credentials[:4], "little") == server.process.pid
                if text == expected[0]:
                    server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
        manager.setblocking(False)
        assert not readable(manager)


def readable(manager: socket.socket) -> bool:
    try:
        return bool(manager.recv(4096))
    except BlockingIOError:
        return False


def test_the_supervisor_feeds_the_watchdog_of_the_service_manager(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with Supervised(tmp_path, env=env) as server:
            assert manager.recv(4096).startswith(b"WATCHDOG=1")
            assert server.stop() == 0


# Log files.


def test_each_process_has_a_log_file_and_all_are_opened_anew(tmp_path: Path) -> None:
    names = ("app.log", "app-1.log", "app-1.access.log", "app-2.log", "app-2.access.log")
    logs = [tmp_path / name for name in names]
    with Supervised(tmp_path, f"--log_file_prefix={logs[0]}") as server:
        server.wait_for_both()
        for log in logs:
            subprocess.run(["mv", log, f"{log}.1"], check=True)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: all(log.exists() for log in logs), "new log files")
        server.wait_for_both()
        wait_until(lambda: all('"GET / ' in log.read_text() for log in logs[2::2]), "each logs what it answers")
        assert server.stop() == 0
    assert "all processes have ended" in logs[0].read_text()
    assert {path.name for path in tmp_path.glob("app*")} == {*names, *(f"{name}.1" for name in names)}


# The operators' port.


def test_operators_see_all_processes_and_find_new_ones(tmp_path: Path) -> None:
    # The path of a Unix socket may have only 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="t-") as directory,
        Supervised(tmp_path, "--admin_port=0", env={"TMPDIR": directory}) as server,
    ):
        [(line, url)] = re.findall(r"(Serving on .*, operators: (http://[0-9.:]+/)\))", server.output())
        assert line == f"Serving on {server.url}/ (pid {server.process.pid}, 2 processes, operators: {url})"

        def seen() -> set[int]:
            # A connection of its own, which any process may take.
            shown = requests.get(f"{url}requests.json", timeout=10).json()
            return {process["pid"] for process in shown["processes"]}

        wait_until(lambda: seen() == server.pids(), "both are shown")
        victim = min(server.pids())
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(seen()) == 2 and victim not in seen(), "the new one is shown", 30)
        assert seen() == server.pids()
        assert server.stop() == 0
        # Where they found each other is removed; what they have learned is not.
        assert os.listdir(directory) == [f"threadbridge-{os.geteuid()}"]


# The database.

PROGRAM = """
import os, sys
from pathlib import Path
import MySQLdb
from dbutils.pooled_db import PooledDB
from threadbridge import run

pool = PooledDB(
    MySQLdb, mincached=3, maxconnections=4, host="localhost", user=os.environ["MYSQL_USER"],
    password=Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text().strip(), unix_socket=os.environ["MYSQL_UNIX_SOCKET"],
)

def app(environ, start_response):
    connection = pool.connection()
    connection.cursor().execute("SELECT 1")
    connection.close()
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

if __name__ == "__main__":
    sys.exit(run(app, pool=pool))
"""


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_connections_made_by_importing_the_application_are_kept_neither_in_the_supervisor_nor_by_forks(
    options: tuple[str, ...], tmp_path: Path, mariadb: dict[str, str]
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    witness = Witness(mariadb)
    with closing(witness.connection):
        before = set(witness.connections)
        with Frontend(("program.py", "--port={port}", "--processes=2", *options), env=mariadb, cwd=tmp_path) as server:
            wait_until(lambda: "Serving on" in server.output(), "ready", 30)
            # A bridge makes its own anew when they are needed, so that the processes have none yet.
            wait_until(lambda: set(witness.connections) <= before, "all that the imports have made are closed")
            assert requests.get(server.url, timeout=10).status_code == 200
            # One that the request was served on, and that by which queries are stopped.
            wait_until(lambda: len(set(witness.connections) - before) == 2, "one process has connections")
            assert server.stop() == 0


def test_the_check_counts_all_processes(mariadb: dict[str, str]) -> None:
    report = check(mariadb, "--processes=3", "--frontends=2")
    assert report.message("connections").startswith("66 are needed (processes: 6, each with 10 in its pool")
