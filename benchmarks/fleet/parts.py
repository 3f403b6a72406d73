"""The kinds of parts that a fleet has: how each is started, and how it is seen to serve."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import MySQLdb

from tests.support.galera import Node
from tests.support.haproxy import HAPROXY
from tests.support.network import Host, Network
from tests.support.processes import ROOT

PORT, ADMIN_PORT = 8000, 18000
# Orders of the load. No key keeps one from being there twice: that would be seen.
ORDERS = """
CREATE TABLE IF NOT EXISTS myapplication.written (
    id BIGINT AUTO_INCREMENT PRIMARY KEY, load_id CHAR(8) NOT NULL, number INT NOT NULL, half TINYINT NOT NULL,
    KEY (load_id, number)
)
"""
# Seconds that a part may take to start, on a loaded machine.
PATIENCE = 120


def get(address: str, port: int, path: str, seconds: float = 5) -> tuple[int, str]:
    """The status and the body of a response; raises ``OSError`` or ``HTTPException``."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def processor_time(process: int) -> float:
    """The seconds of processor time that a process has used; 0 if it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class Part(ABC):
    """A host of the fleet with its program. It is found by its name, whoever has started it."""

    program: str

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.name = host.name
        self.directory = directory
        self.log = directory / f"{host.name}.log"

    def __str__(self) -> str:
        return f"{self.name:8} {self.host.address:14} {self.program:15}"

    @abstractmethod
    def start(self) -> None:
        """Start the program."""

    @abstractmethod
    def problem(self) -> str:
        """Why it does not serve; empty if it does."""

    def mend(self) -> None:
        """Make it what it should be, whatever is missing; returns when it serves."""
        self._reach()
        if not self.host.processes:
            self.start()
        self.wait()

    def _reach(self) -> None:
        """Make its host, and undo what keeps others from reaching it."""
        self.host.make()
        self.host.plug()
        self.host.speed_up()
        self.host.signal(signal.SIGCONT)

    def wait(self) -> None:
        """Return when it serves."""
        give_up = time.monotonic() + PATIENCE
        while problem := self.problem():
            if not self.host.processes or time.monotonic() > give_up:
                raise SystemExit(f"fleet: {self.name} does not serve: {problem}; see {self.log}")
            time.sleep(0.05)

    @property
    def processor_time(self) -> float:
        """The seconds of processor time that its processes have used."""
        return sum(processor_time(process) for process in self.host.processes)

    @property
    def memory(self) -> int:
        """The bytes that its processes use; what they share counts in parts."""
        total = 0
        for process in self.host.processes:
            with suppress(OSError):
                text = Path(f"/proc/{process}/smaps_rollup").read_text()
                total += sum(int(size) for size in re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)) * 1024
        return total


class Database(Part):
    """A Galera node."""

    program = "MariaDB, Galera"

    def __init__(self, network: Network, name: str, number: int, directory: Path, password: Path) -> None:
        self.node = Node(network, name, number, directory, name)
        super().__init__(self.node, directory)
        self._password = password
        self.others: Sequence[Database] = ()

    def start(self) -> None:
        cluster = ",".join(other.node.address for other in self.others if other.host.processes)
        if cluster:
            self.node.begin(cluster)
            return
        password = self._password.read_text().strip()
        self.node.begin(
            "",
            f"""
            CREATE DATABASE myapplication CHARACTER SET utf8mb4;
            CREATE USER myapplication@'%' IDENTIFIED BY '{password}';
            GRANT ALL ON myapplication.* TO myapplication@'%';
            GRANT PROCESS ON *.* TO myapplication@'%';
            CREATE USER haproxy@'%';
            """,
        )
        self.node.wait()
        socket = {"MYSQL_UNIX_SOCKET": str(self.node.directory / "socket")}
        with self.log.open("ab") as output:
            subprocess.run(
                [sys.executable, "-m", "myapplication.sampledata"],
                cwd=ROOT,
                env={**os.environ, **socket, "MYSQL_PASSWORD_FILE": str(self._password)},
                check=True,
                stdout=output,
            )
        self.node.execute(ORDERS)

    def problem(self) -> str:
        try:
            state = self._status("wsrep_local_state_comment")
            [[read_only]] = self.node.execute("SELECT @@read_only")
            view = self._view()
        except MySQLdb.Error as error:
            return f"{error}"
        if state != "Synced":
            return f"its state is {state}"
        if any(other.host.processes and other._latest_view() > view for other in self.others):
            # It was suspended, say.
            return "it has not noticed that the others go on without it"
        return "it is read-only" if read_only else ""

    def _status(self, name: str) -> str:
        [[_, value]] = self.node.execute("SHOW STATUS LIKE %s", name)
        return str(value)

    def _view(self) -> int:
        """The number of the change of the cluster that it knows last."""
        return int(self._status("wsrep_cluster_conf_id"))

    def _latest_view(self) -> int:
        """The same, or 0 if it does not belong to the majority."""
        with suppress(MySQLdb.Error):
            return self._view() if self._cluster_status() == "Primary" else 0
        return 0

    def mend(self) -> None:
        self._reach()
        self._restore_majority()
        for statement in ("SET GLOBAL wsrep_desync = OFF", "SET GLOBAL read_only = OFF"):
            with suppress(MySQLdb.Error):
                self.node.execute(statement)
        super().mend()

    def _restore_majority(self) -> None:
        """If nodes are left, but not most of them, tell one to go on: by themselves, they wait for the others."""
        nodes = [self, *self.others]
        statuses = {node: node._cluster_status() for node in nodes}
        left = [node for node, status in statuses.items() if status]
        if left and "Primary" not in statuses.values():
            left[0].node.execute("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'")
            left[0].node.wait()

    def _cluster_status(self) -> str:
        """``Primary`` if it belongs to the majority; empty if it does not answer."""
        with suppress(MySQLdb.Error):
            return self._status("wsrep_cluster_status")
        return ""


class Proxy(Part):
    """HAProxy with a configuration that may change."""

    program = "HAProxy"

    def __init__(self, host: Host, directory: Path, configuration: str, port: int, path: str = "") -> None:
        super().__init__(host, directory)
        self.configuration = configuration
        self._port = port
        self._path = path

    def _write(self) -> Path:
        file = self.directory / f"{self.name}.cfg"
        file.write_text(self.configuration)
        return file

    def start(self) -> None:
        # With a master, which reloads.
        self.host.start([HAPROXY, "-W", "-db", "-f", self._write()], log=self.log, directory=self.directory)

    def configure(self, configuration: str) -> None:
        """Begin again with another configuration; connections are cut."""
        self.configuration = configuration
        self.host.kill()
        self.mend()

    def problem(self) -> str:
        if not self.host.processes:
            return "it is not running"
        try:
            if self._path:
                status, body = get(self.host.address, self._port, self._path)
                return "" if status == 200 else f"{status}: {body[:100]}"
            # A server behind it must speak first, as MySQL's do.
            with socket.create_connection((self.host.address, self._port), timeout=5) as client:
                return "" if client.recv(1) else "no server behind it answers"
        except (OSError, http.client.HTTPException) as error:
            return f"{error!r}"


class Frontend(Part):
    """threadbridge, with the application."""

    program = "threadbridge"

    def __init__(self, host: Host, directory: Path, settings: Sequence[str], database: str, password: Path) -> None:
        super().__init__(host, directory)
        self._settings = settings
        self._environment = {
            "MYSQL_HOST": database,
            "MYSQL_PASSWORD_FILE": str(password),
            # A report that only waits, for measurements.
            "MYAPPLICATION_DIAGNOSTICS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self) -> None:
        self.start_beside(0)

    def start_beside(self, shift: int, *settings: str) -> None:
        """Start it; a shift makes it another one on the same host, with ports that are higher by so many."""
        name = self.name if shift == 0 else f"{self.name}-{shift}"
        own = [
            *(f"--address={self.host.address}", f"--port={PORT + shift}"),
            *(f"--admin_address={self.host.address}", f"--admin_port={ADMIN_PORT + shift}"),
            f"--run_directory={self.directory / name}",
            f"--log_file_prefix={self.directory / name}.log",
        ]
        command = [sys.executable, "-m", "threadbridge", "benchmarks.fleet.application:app", *own, *self._settings]
        log = self.directory / f"{name}.log"
        self.host.start([*command, *settings], log=log, directory=ROOT, environment=self._environment)

    def problem(self) -> str:
        if not self.host.processes:
            return "it is not running"
        try:
            status, body = get(self.host.address, ADMIN_PORT, "/readyz")
        except (OSError, http.client.HTTPException) as error:
            return f"{error!r}"
        return "" if status == 200 else body.strip()
