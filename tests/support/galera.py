"""A cluster of MariaDB Galera nodes on this machine, each in a network namespace with an address of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import MySQLdb

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
SCRIPTS = ROOT / "build" / "galera" / "usr" / "bin"
NETWORK = "10.211.77"
# A lost node is noticed within 2 s; the defaults take longer.
_PROVIDER_OPTIONS = (
    "gcache.size=32M;evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.3S;evs.suspect_timeout=PT2S;"
    "evs.inactive_timeout=PT6S;evs.install_timeout=PT5S;gmcast.peer_timeout=PT2S"
)
# What `setup` runs on the first node. HAProxy's checks log in without a password.
_USERS = """
FLUSH PRIVILEGES;
CREATE DATABASE shop;
CREATE USER shop@'%' IDENTIFIED BY 'a password';
GRANT ALL ON shop.* TO shop@'%';
GRANT PROCESS ON *.* TO shop@'%';
CREATE USER administrator@'%' IDENTIFIED BY 'another password';
GRANT ALL ON *.* TO administrator@'%';
CREATE USER haproxy@'%';
"""


def missing() -> str | None:
    """What is missing to run clusters here; None if nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (PROVIDER.exists() and SCRIPTS.exists()):
        return "run scripts/setup.sh clusters"
    return None


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


class Node:
    """A node; its namespace is there as long as the cluster."""

    def __init__(self, directory: Path, number: int, host_name: str) -> None:
        self.address = f"{NETWORK}.{number}"
        self.name = f"node{number}"
        self._host_name = host_name
        self.namespace = f"galera{number}"
        self._veth = f"galera-veth{number}"
        self._directory = directory / self.name
        self.process: subprocess.Popen[bytes] | None = None
        _run("ip", "netns", "add", self.namespace)
        _run("ip", "link", "add", self._veth, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _run("ip", "link", "set", self._veth, "master", "galera-bridge", "up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", self.namespace, *command.split())

    def connect(self, **settings: Any) -> Any:
        """A connection straight to it, as its administrator."""
        account = {"user": "administrator", "password": "another password", "connect_timeout": 2}
        return MySQLdb.connect(**{"host": self.address, "autocommit": True, **account, **settings})

    def execute(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        """Execute a statement as its administrator."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return tuple(cursor.fetchall())

    @property
    def is_synced(self) -> bool:
        with suppress(MySQLdb.Error):
            return self.execute("SHOW STATUS LIKE 'wsrep_local_state_comment'") == (
                ("wsrep_local_state_comment", "Synced"),
            )
        return False

    def begin(self, cluster: str) -> None:
        """Start it; an empty ``cluster`` begins a new one. Its data come from another node."""
        shutil.rmtree(self._directory, ignore_errors=True)
        data, temporary = self._directory / "data", self._directory / "tmp"
        for each in (data, temporary):
            each.mkdir(parents=True)
        nobody = pwd.getpwnam("nobody")
        environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        options = [
            *("--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}", "--user=nobody"),
            *(f"--socket={self._directory}/socket", "--pid-file=/tmp/galera.pid", "--port=3306"),
            *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"),
            *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--max-connections=200"),
        ]
        if not cluster:
            install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
            subprocess.run(install, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for path in (self._directory, *self._directory.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        if not cluster:
            bootstrap = ["mariadbd", *options, "--bootstrap", "--skip-networking"]
            subprocess.run(bootstrap, env=environment, check=True, input=_USERS.encode(), stderr=subprocess.DEVNULL)
        replication = [
            *("--bind-address=0.0.0.0", "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}"),
            *(f"--wsrep-cluster-address=gcomm://{cluster}", f"--wsrep-node-address={self.address}"),
            *(f"--wsrep-node-name={self.name}", "--wsrep-sst-method=rsync"),
            f"--wsrep-provider-options={_PROVIDER_OPTIONS}",
            *(() if cluster else ("--wsrep-new-cluster",)),
        ]
        with (self._directory.parent / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("ip", "netns", "exec", self.namespace, "unshare", "--uts"),
                    *("sh", "-c", 'hostname "$0" && exec "$@"', self._host_name),
                    *("mariadbd", *options, *replication),
                ],
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The scripts that copy data are ended with it.
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it takes part in the cluster."""

        def is_ready() -> bool:
            assert self.process is not None and self.process.poll() is None, f"{self.name} has ended"
            return self.is_synced

        wait_until(is_ready, f"{self.name} is synced", seconds=90)

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None

    def unplug(self) -> None:
        """Cut it off without closing anything."""
        _run("ip", "link", "set", self._veth, "down")

    def plug(self) -> None:
        """Undo `unplug`."""
        _run("ip", "link", "set", self._veth, "up")

    def remove(self) -> None:
        self.kill()
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


class Cluster:
    """Three nodes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        # Of the application.
        self.settings: dict[str, Any] = {"user": "shop", "password": "a password", "database": "shop"}

    def rejoin(self, node: Node) -> None:
        """Start a node that has ended; returns when it takes part again."""
        others = [each.address for each in self.nodes if each is not node and each.process is not None]
        node.begin(",".join(others))
        node.wait()


@contextmanager
def galera(host_names: Sequence[str] = ("db1", "db2", "db3")) -> Iterator[Cluster]:
    """A cluster of nodes with these host names. Takes about 20 s to start."""
    directory = Path(tempfile.mkdtemp(prefix="galera-", dir="/tmp"))
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        _run("ip", "link", "add", "galera-bridge", "type", "bridge")
        stack.callback(_run, "ip", "link", "del", "galera-bridge")
        _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "galera-bridge")
        _run("ip", "link", "set", "galera-bridge", "up")
        nodes = []
        for number, host_name in enumerate(host_names, 1):
            nodes.append(Node(directory, number, host_name))
            stack.callback(nodes[-1].remove)
        cluster = Cluster(nodes)
        begun = time.monotonic()
        nodes[0].begin("")
        nodes[0].wait()
        for node in nodes[1:]:
            cluster.rejoin(node)
        print(f"three Galera nodes are ready after {time.monotonic() - begun:.0f} s")
        yield cluster
