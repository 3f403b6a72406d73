"""What the campaign breaks: a MariaDB server, a line to it, and a frontend of two processes with an operators' port."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import MySQLdb

from tests.databases import connect_settings, kill_server, start_server
from tests.faults.application import ACCOUNTS
from tests.faults.line import FaultyLine
from tests.inprocess import wait_until
from tests.processes import ROOT, free_port, private_mariadb

CONNECTIONS = 5
# 50 s unless set: statements that wait for each other's locks would stand still for most of a campaign.
LOCK_WAIT = "SET innodb_lock_wait_timeout = 3"
DEADLINE = 8


class Site:
    """``with Site() as site:`` serves `tests.faults.application` inside the block, at ``site.port``."""

    def __init__(self, processes: int = 2, pool: dict[str, Any] | None = None) -> None:
        self.processes = processes
        self._pool = pool or {}
        self._stack = ExitStack()
        self.port = free_port()
        self.admin_port = free_port()
        # When a process was killed, by `time.time`: lines of its access log may be missing.
        self.kills: list[float] = []

    def __enter__(self) -> Site:
        self.mariadb = self._stack.enter_context(private_mariadb())
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        self.line = FaultyLine(self.mariadb["MYSQL_UNIX_SOCKET"])
        self._stack.callback(self.line.close)
        self.sql(
            "CREATE TABLE ledger (id BIGINT NOT NULL, source INT NOT NULL, target INT NOT NULL, KEY (id)) "
            "ENGINE=InnoDB",
            "CREATE TABLE accounts (id INT PRIMARY KEY, amount INT NOT NULL) ENGINE=InnoDB",
            f"INSERT INTO accounts SELECT seq, 1000 FROM seq_1_to_{ACCOUNTS}",  # noqa: S608 - a number of our own
        )
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.frontend.poll() is None:
            for pid in (self.frontend.pid, *self.children()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.frontend.wait()
        self._stack.close()

    # The database.

    def root(self) -> Any:
        """A connection that may do everything."""
        return MySQLdb.connect(
            user="root",
            unix_socket=self.mariadb["MYSQL_UNIX_SOCKET"],
            database="myapplication",
            autocommit=True,
            init_command=LOCK_WAIT,
        )

    def sql(self, *statements: str) -> tuple[tuple[Any, ...], ...]:
        """What the last statement gives, asked of the database directly."""
        connection = self.connect()
        try:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            return tuple(cursor.fetchall())
        finally:
            connection.close()

    def connect(self) -> Any:
        """A connection past the line, as the application's user."""
        return MySQLdb.connect(autocommit=True, read_timeout=30, **connect_settings(self.mariadb))

    def restart_database(self) -> None:
        """Kill it and start it again."""
        kill_server(self.mariadb)
        start_server(self.mariadb)

    @property
    def database_pid(self) -> int:
        return int((Path(self.mariadb["MYSQL_UNIX_SOCKET"]).parent / "mariadb.pid").read_text())

    # The frontend.

    def start(self) -> None:
        """Start it; returns when it accepts connections."""
        settings = {**connect_settings(self.mariadb, self.line.path), "init_command": LOCK_WAIT}
        pool = {"maxconnections": CONNECTIONS, **settings, **self._pool}
        self._output = (self.directory / "output.log").open("ab")
        command = [
            *(sys.executable, "-m", "threadbridge", "tests.faults.application:app"),
            *("--pool=tests.faults.application:pool", f"--port={self.port}", f"--admin_port={self.admin_port}"),
            *(f"--processes={self.processes}", f"--deadline={DEADLINE}", "--queue_timeout=5", "--grace=20"),
            *(f"--log_file_prefix={self.directory / 'app.log'}", "--slow_log=0"),
        ]
        self.frontend = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FAULTS_POOL": json.dumps(pool)},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: self.answers() or self.frontend.poll() is not None, "the frontend answers", 30)
        assert self.frontend.poll() is None, self.output()

    def answers(self) -> bool:
        """Whether somebody accepts connections."""
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
            return True
        return False

    def output(self) -> str:
        return (self.directory / "output.log").read_text(errors="replace")

    def children(self) -> list[int]:
        """The processes that serve."""
        if self.processes == 1:
            return [self.frontend.pid]
        with suppress(FileNotFoundError):
            path = Path(f"/proc/{self.frontend.pid}/task/{self.frontend.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []

    def kill_child(self, pid: int) -> None:
        """End a process that serves."""
        self.kills.append(time.time())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def limit_descriptors(self, free: int | None) -> None:
        """Let each process open no more than so many files; None for as many as before."""
        for pid in self.children():
            with suppress(ProcessLookupError, FileNotFoundError):
                opened = len(os.listdir(f"/proc/{pid}/fd"))
                _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if free is None else opened + free, hard))

    def ready(self) -> tuple[int, str]:
        """What `/readyz` says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/readyz?db=1", timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, repr(error)

    def requests(self) -> list[dict[str, Any]]:
        """The requests that the operators' port shows."""
        address = f"http://127.0.0.1:{self.admin_port}/requests.json"
        with urllib.request.urlopen(address, timeout=15) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["requests"]
            return found

    # The logs.

    def access_log(self) -> dict[str, list[str]]:
        """The lines of the access logs, by the number of the request in them."""
        lines: dict[str, list[str]] = {}
        for path in sorted(self.directory.glob("*.access*.log*")):
            for line in path.read_text(errors="replace").splitlines():
                match = re.search(r"[?&]id=(\d+)", line)
                if match is not None:
                    lines.setdefault(match[1], []).append(line)
        return lines

    def tracebacks(self) -> list[str]:
        """What the logs have of errors that nobody has foreseen."""
        found = []
        for path in [*sorted(self.directory.glob("app*.log*")), self.directory / "output.log"]:
            if ".access" not in path.name:
                parts = path.read_text(errors="replace").split("Traceback (most recent call last)")
                found += [f"{before[-300:].strip()} … {after[:1500]}" for before, after in pairwise(parts)]
        return found
