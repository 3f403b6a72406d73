"""What the campaign breaks: a MariaDB server, a line to it, and a frontend with an operators' port."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import MySQLdb

from tests.faults.application import ACCOUNTS, LOCK_WAIT
from tests.faults.line import FaultyLine
from tests.support.databases import connect_settings, kill_server, start_server
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, free_port, private_mariadb

CONNECTIONS = 5
DEADLINE = 8
SET_LOCK_WAIT = f"SET innodb_lock_wait_timeout = {LOCK_WAIT}"
# What is 0 while nobody asks for anything.
IDLE_AT_0 = (
    "threadbridge_open_requests",
    "threadbridge_busy_threads",
    "threadbridge_queued_requests",
    "threadbridge_pool_connections_in_use",
    "threadbridge_spool_bytes",
)
# The sizes of the disk for large bodies, and of those bodies.
DISK_SIZE = 24 * 1024 * 1024
BODY_SIZE = 1_500_000
# The size of the disk for the logs: more than they take.
LOGS_SIZE = 8 * 1024**3
# What pools the application may have, besides the usual one.
POOLS: Sequence[dict[str, Any]] = (
    *({}, {}, {"maxusage": 5}, {"ping": 7}, {"ping": 0}, {"maxcached": 2}, {"blocking": True}),
    *({"autocommit": True}, {"autocommit": True, "maxusage": 3}, {"own_function": True}),
)


class Unavailable(Exception):
    """A fault that cannot be made here; the message says why."""


class Site:
    """``with Site() as site:`` serves `tests.faults.application` inside the block, at ``site.port``."""

    def __init__(
        self, processes: int = 2, pool: dict[str, Any] | None = None, *, over_tcp: bool = False, cancel: str = "safe"
    ) -> None:
        self.processes = processes
        self._pool = pool or {}
        self._over_tcp = over_tcp
        self._cancel = cancel
        self._stack = ExitStack()
        self.port = free_port()
        self.admin_port = free_port()
        # When a process was killed, by `time.time`: lines of its access log may be missing.
        self.kills: list[float] = []
        # From when till when the access log could not be written.
        self.unlogged: list[tuple[float, float]] = []
        # Clear while nobody reads standard error.
        self.is_read = threading.Event()
        self.is_read.set()
        # What the faults have seen that must not be.
        self.wrong: list[str] = []
        self.is_restarting = False
        # Why there is no disk that can be filled; "" if there is one.
        self.no_disk = ""
        # The process groups of all frontends.
        self._groups: list[int] = []
        # Of requests that the faults make.
        self._numbers = itertools.count(8_000_000_000)

    def __enter__(self) -> Site:
        self.mariadb = self._stack.enter_context(private_mariadb())
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        self.line = FaultyLine(self.mariadb["MYSQL_UNIX_SOCKET"])
        self._stack.callback(self.line.close)
        self.disk = self.directory / "disk"
        self.logs = self.directory / "logs"
        for directory, size in ((self.disk, DISK_SIZE), (self.logs, LOGS_SIZE)):
            directory.mkdir()
            self._mount(directory, size)
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
        self._stack.close()

    # The database.

    def root(self) -> Any:
        """A connection that may do everything. Raises `Unavailable`."""
        if os.geteuid() != 0:
            raise Unavailable("only root may be the administrator of the database (scripts/mariadb.sh)")
        return MySQLdb.connect(
            user="root",
            unix_socket=self.mariadb["MYSQL_UNIX_SOCKET"],
            database="myapplication",
            autocommit=True,
            init_command=SET_LOCK_WAIT,
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

    def _mount(self, directory: Path, size: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            self.no_disk = "there is no program mount"
        except subprocess.CalledProcessError as error:
            self.no_disk = error.stderr.strip()
        else:
            self._stack.callback(subprocess.run, ["umount", str(directory)], check=True)

    def start(self) -> None:
        """Start it; returns when it accepts connections. Raises ``AssertionError`` when it does not."""
        settings = {**connect_settings(self.mariadb, self.line.path), "init_command": SET_LOCK_WAIT}
        if self._over_tcp:
            del settings["unix_socket"]
            settings |= {"host": "127.0.0.1", "port": self.line.port}
        command = [
            *(sys.executable, "-m", "threadbridge", "tests.faults.application:app"),
            *("--pool=tests.faults.application:pool", f"--port={self.port}", f"--admin_port={self.admin_port}"),
            *(f"--processes={self.processes}", f"--deadline={DEADLINE}", "--queue_timeout=5", "--grace=20"),
            *(f"--log_file_prefix={self.logs / 'app.log'}", "--log_to_stderr=true", "--slow_log=0"),
            f"--cancel={self._cancel}",
        ]
        pool = json.dumps({"maxconnections": CONNECTIONS, **settings, **self._pool})
        with (self.directory / "output.log").open("ab") as output:
            start = output.tell()
            self.frontend = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "FAULTS_POOL": pool, "TMPDIR": str(self.disk)},
                stdout=output,
                stderr=subprocess.PIPE,
                # A group of its own, in which forks stay too.
                process_group=0,
            )
        threading.Thread(target=self._read, args=(self.frontend.stderr,), daemon=True).start()
        self._groups.append(self.frontend.pid)
        self._stack.callback(_kill_group, self.frontend.pid)

        def is_settled() -> bool:
            return "Serving on" in self.output()[start:] or self.frontend.poll() is not None

        wait_until(is_settled, "the frontend serves", 60)
        assert self.frontend.poll() is None, f"the frontend does not start: {self.output()[start:]}"

    def _read(self, stderr: IO[bytes]) -> None:
        """Keep what a frontend writes to standard error, while somebody is to read it."""
        with stderr, (self.directory / "stderr.log").open("ab", buffering=0) as file:
            while part := os.read(stderr.fileno(), 65536):
                file.write(part)
                self.is_read.wait()

    def end(self) -> None:
        """Have it answer what it has been asked, and end."""
        self.frontend.send_signal(signal.SIGTERM)
        try:
            status = self.frontend.wait(40)
        except subprocess.TimeoutExpired:
            self.wrong.append("it has not ended 40 s after SIGTERM")
            self.frontend.kill()
            status = self.frontend.wait()
        if status != 0:
            self.wrong.append(f"after SIGTERM it ended with status {status}: {self.output()[-500:]}")

    @contextmanager
    def restarting(self, pool: dict[str, Any] | None = None) -> Iterator[None]:
        """It ends in this block, and is started again after it: at once, as a service manager does."""
        self.is_restarting = True
        try:
            yield
            if pool is not None:
                self._pool = pool
            try:
                self.start()
            except AssertionError as error:
                self.wrong.append(str(error))
        finally:
            self.is_restarting = False

    def next_number(self) -> int:
        """The number of another request."""
        return next(self._numbers)

    def ask(self, path: str) -> int:
        """Ask for this; the status, 0 if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def output(self) -> str:
        """What it has said on standard output, and at last on standard error."""
        return (self.directory / "output.log").read_text(errors="replace") + self._stderr()[-3000:]

    def keep_output(self, directory: Path) -> None:
        """Copy all that it has said, in its logs and elsewhere."""
        for path in (self.directory / "output.log", self.directory / "stderr.log", *self.logs.iterdir()):
            if path.exists():
                shutil.copy(path, directory)

    def _stderr(self) -> str:
        file = self.directory / "stderr.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def children(self) -> list[int]:
        """The processes that serve."""
        if self.processes == 1:
            return [self.frontend.pid]
        with suppress(FileNotFoundError):
            path = Path(f"/proc/{self.frontend.pid}/task/{self.frontend.pid}/children")
            return [int(pid) for pid in path.read_text().split()]
        return []

    def left(self) -> list[str]:
        """The processes of the frontend, and of those before it, that have not ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                _, _, rest = (path / "stat").read_text().rpartition(")")
                state, parent, group, *_ = rest.split()
                if int(group) in self._groups and state not in "ZX":
                    found.append(f"{path.name} (of {group}, child of {parent})")
        return found

    def kill_child(self, pid: int) -> None:
        """End a process that serves."""
        self.kills.append(time.time())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    @contextmanager
    def limited(self, what: int, limit: Callable[[int], int]) -> Iterator[None]:
        """In this block each process may have so much of a resource, by its pid."""
        before: dict[int, tuple[int, int]] = {}
        try:
            for pid in self.children():
                with suppress(ProcessLookupError, FileNotFoundError):
                    before[pid] = resource.prlimit(pid, what)
                    resource.prlimit(pid, what, (limit(pid), before[pid][1]))
            yield
        finally:
            for pid, both in before.items():
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, what, both)

    def ready(self, path: str = "/readyz") -> tuple[int, str]:
        """What `/readyz` says."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, repr(error)

    def unfinished(self) -> list[str]:
        """The metrics, of all processes, that are not 0 though nobody asks for anything."""
        lines = self.page("/metrics").splitlines()
        if not lines:
            return ["the operators' port does not answer"]
        return [line for line in lines if line.startswith(IDLE_AT_0) and float(line.split()[-1]) != 0]

    def page(self, path: str) -> str:
        """A page of the operators' port; "" if there is no answer."""
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=15) as answer,
        ):
            return str(answer.read().decode())
        return ""

    # The logs.

    def access_log(self) -> dict[str, list[str]]:
        """The lines of the access logs, by the number of the request in them."""
        lines: dict[str, list[str]] = {}
        for path in sorted(self.logs.glob("*.access*.log*")):
            for line in path.read_text(errors="replace").splitlines():
                # A process that is killed leaves a part of a line in front of another's.
                match = re.search(r'"[A-Z]+ \S*[?&]id=(\d+)\S* HTTP/1\.1" ', line)
                if match is not None:
                    lines.setdefault(match[1], []).append(line)
        return lines

    def losses(self) -> list[tuple[float, float]]:
        """From when till when, by `time.time`, lines of the access log may have been lost.

        A process that is killed takes those with it that it has not written yet. A request that crashes may wait for
        as long as any other before it does so: the supervisor tells when, to the second. It may be killed itself before
        that is read, and a single process has none, so the faults note when they have killed something.
        """
        ends = re.findall(r"^\[\w (\d{6} \d\d:\d\d:\d\d) .* ended: killed by", self._stderr(), re.MULTILINE)
        ended = [time.mktime(time.strptime(end, "%y%m%d %H:%M:%S")) for end in ends]
        return [*((killed, killed) for killed in self.kills), *((at, at + 1) for at in ended), *self.unlogged]

    def tracebacks(self) -> list[str]:
        """What the logs have of errors that nobody has foreseen."""
        found = []
        for path in [*sorted(self.logs.glob("app*.log*")), self.directory / "stderr.log"]:
            if ".access" not in path.name:
                parts = path.read_text(errors="replace").split("Traceback (most recent call last)")
                found += [f"{before[-300:].strip()} … {after[:1500]}" for before, after in pairwise(parts)]
        return found


def _kill_group(leader: int) -> None:
    """End whatever is left of a frontend."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
