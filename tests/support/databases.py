"""What tests need beside a database: a witness of what it does, a server to kill, a line to it that can be cut."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import MySQLdb

from tests.support.inprocess import wait_until
from tests.support.processes import MARIADB_SCRIPT


def connect_settings(mariadb: dict[str, str], unix_socket: str | None = None) -> dict[str, Any]:
    """The arguments for ``MySQLdb.connect``."""
    return {
        "user": mariadb["MYSQL_USER"],
        "database": mariadb["MYSQL_DATABASE"],
        "password": Path(mariadb["MYSQL_PASSWORD_FILE"]).read_text().strip(),
        "unix_socket": unix_socket or mariadb["MYSQL_UNIX_SOCKET"],
    }


class Witness:
    """A connection beside those of the pool under test. Counts in the database what is executed there.

    A statement is counted by having ``NEXT VALUE FOR executions`` in it: a sequence knows no transactions.
    """

    def __init__(self, mariadb: dict[str, str]) -> None:
        self.settings = connect_settings(mariadb)
        self.connection = MySQLdb.connect(autocommit=True, **self.settings)
        self.rows("CREATE SEQUENCE IF NOT EXISTS executions")
        self.rows("CREATE TABLE IF NOT EXISTS notes (note VARCHAR(100)) ENGINE=InnoDB")
        self.rows("DELETE FROM notes")
        self._executions = self._next_value

    def rows(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        """What the statement gives."""
        cursor = self.connection.cursor()
        cursor.execute(sql)
        return tuple(cursor.fetchall())

    @property
    def _next_value(self) -> int:
        return int(self.rows("SELECT NEXT VALUE FOR executions")[0][0])

    @property
    def executions(self) -> int:
        """How often ``NEXT VALUE FOR executions`` was executed since the last look."""
        before, self._executions = self._executions, self._next_value
        return self._executions - before - 1

    @property
    def notes(self) -> list[str]:
        """The committed rows of the table ``notes``."""
        return [note for (note,) in self.rows("SELECT note FROM notes")]

    @property
    def running(self) -> list[str]:
        """The statements that run at this moment, but for the witness's own."""
        return [
            info
            for (info,) in self.rows(
                "SELECT info FROM information_schema.processlist "
                "WHERE id <> CONNECTION_ID() AND info IS NOT NULL AND command <> 'Sleep'"
            )
        ]

    @property
    def connections(self) -> list[int]:
        """The thread ids of all other connections."""
        return [
            number
            for (number,) in self.rows("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
        ]

    @property
    def kills(self) -> int:
        """How many KILL statements the server has executed."""
        return int(self.rows("SHOW GLOBAL STATUS LIKE 'Com_kill'")[0][1])

    def end_others(self) -> None:
        """End the connections on which statements still run.

        MariaDB notices only after some seconds that the client of ``SLEEP`` is gone.
        """
        for (number,) in self.rows(
            "SELECT id FROM information_schema.processlist "
            "WHERE id <> CONNECTION_ID() AND user = SUBSTRING_INDEX(USER(), '@', 1) "
            "AND info IS NOT NULL AND command <> 'Sleep'"
        ):
            # It may have ended meanwhile.
            with suppress(MySQLdb.OperationalError):
                self.rows(f"KILL {number}")
        wait_until(lambda: self.running == [], "nothing runs")

    def wait_for(self, part: str) -> int:
        """Wait until a statement with this text runs; the thread id of its connection."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [
                number
                for number, info in self.rows(
                    "SELECT id, info FROM information_schema.processlist WHERE id <> CONNECTION_ID()"
                )
                if part in (info or "")
            ]
            return bool(found)

        wait_until(look, f"{part} runs")
        return found[0]


def kill_server(mariadb: dict[str, str]) -> None:
    """End the server with SIGKILL."""
    pid = int((Path(mariadb["MYSQL_UNIX_SOCKET"]).parent / "mariadb.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    # It is no child of this process.
    wait_until(lambda: not _is_alive(pid), "the server is gone")


def start_server(mariadb: dict[str, str]) -> None:
    """Start it again; returns when it answers."""
    subprocess.run([MARIADB_SCRIPT, "start", Path(mariadb["MYSQL_UNIX_SOCKET"]).parent], check=True)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Line:
    """A Unix socket that leads to another one, like a network: it can swallow all that is sent, in both directions.

    It can also swallow what is sent on the connections that there are, and let new ones pass.

    While it swallows, new connections are accepted by nobody but the kernel.
    """

    def __init__(self, target: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="line-"))
        self.path = str(self._directory / "line.sock")
        self._target = target
        self._passes = threading.Event()
        self._passes.set()
        self._ends: list[socket.socket] = []
        # For each connection that was made: whether it passes.
        self._each_passes: list[threading.Event] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(200)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._passes.wait()
                far = socket.socket(socket.AF_UNIX)
                self._ends += [near, far]
                try:
                    far.connect(self._target)
                except OSError:
                    near.close()
                    continue
                passes = threading.Event()
                passes.set()
                self._each_passes.append(passes)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink, passes), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, passes: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._passes.wait()
                passes.wait()
                sink.sendall(data)
        self._passes.wait()
        passes.wait()
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def swallow(self) -> None:
        """Let nothing pass any more."""
        self._passes.clear()

    def swallow_old(self) -> None:
        """Let nothing pass any more on the connections that there are."""
        for passes in self._each_passes:
            passes.clear()

    def mend(self) -> None:
        """Let everything pass again, also what was sent meanwhile, as a network does."""
        self._passes.set()
        for passes in self._each_passes:
            passes.set()

    def close(self) -> None:
        self.mend()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        shutil.rmtree(self._directory)


@contextmanager
def line_to(target: str) -> Iterator[Line]:
    """A `Line` that is gone after the block."""
    line = Line(target)
    try:
        yield line
    finally:
        line.close()
