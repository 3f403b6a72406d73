"""A cluster of MariaDB Galera nodes on this machine, each in a network namespace with an address of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import MySQLdb

from tests.support.inprocess import wait_until
from tests.support.network import Host, Network
from tests.support.processes import ROOT

PROVIDER = Path("/usr/lib/galera/libgalera_smm.so")
SCRIPTS = ROOT / "build" / "galera" / "usr" / "bin"
# A lost node is noticed within 2 s; the defaults take longer.
_PROVIDER_OPTIONS = (
    "gcache.size=32M;evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.3S;evs.suspect_timeout=PT2S;"
    "evs.inactive_timeout=PT6S;evs.install_timeout=PT5S;gmcast.peer_timeout=PT2S"
)
# What the first node begins with. HAProxy's checks log in without a password.
_USERS = """
CREATE DATABASE shop;
CREATE USER shop@'%' IDENTIFIED BY 'a password';
GRANT ALL ON shop.* TO shop@'%';
GRANT PROCESS ON *.* TO shop@'%';
CREATE USER haproxy@'%';
"""


def missing() -> str | None:
    """What is missing to run clusters here; None if nothing is."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (PROVIDER.exists() and SCRIPTS.exists()):
        return "run scripts/setup.sh clusters"
    return None


class Node(Host):
    """A node; its namespace is there as long as the cluster."""

    def __init__(self, network: Network, name: str, number: int, directory: Path, host_name: str) -> None:
        super().__init__(network, name, number)
        self._host_name = host_name
        self.directory = directory / name
        self._socket = self.directory / "socket"

    def connect(self, **settings: Any) -> Any:
        """A connection straight to it, as its administrator, even while it is unplugged."""
        return MySQLdb.connect(
            **{"unix_socket": str(self._socket), "user": "root", "autocommit": True, "connect_timeout": 2, **settings}
        )

    def execute(self, sql: str, *parameters: object) -> tuple[tuple[Any, ...], ...]:
        """Execute a statement as its administrator."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(sql, parameters or None)
            return tuple(cursor.fetchall())

    @property
    def is_synced(self) -> bool:
        with suppress(MySQLdb.Error):
            return self.execute("SHOW STATUS LIKE 'wsrep_local_state_comment'") == (
                ("wsrep_local_state_comment", "Synced"),
            )
        return False

    def begin(self, cluster: str, sql: str = _USERS) -> None:
        """Start it; an empty ``cluster`` begins a new one with this SQL. Otherwise its data come from another node."""
        shutil.rmtree(self.directory, ignore_errors=True)
        data, temporary = self.directory / "data", self.directory / "tmp"
        for each in (data, temporary):
            each.mkdir(parents=True)
        nobody = pwd.getpwnam("nobody")
        environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        options = [
            *("--no-defaults", f"--datadir={data}", f"--tmpdir={temporary}", "--user=nobody"),
            *(f"--socket={self._socket}", "--pid-file=/tmp/galera.pid", "--port=3306"),
            *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF"),
            *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--max-connections=200"),
        ]
        if not cluster:
            install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"]
            subprocess.run(install, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for path in (self.directory, *self.directory.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        if not cluster:
            bootstrap = ["mariadbd", *options, "--bootstrap", "--skip-networking"]
            text = f"FLUSH PRIVILEGES;\n{sql}"
            subprocess.run(bootstrap, env=environment, check=True, input=text.encode(), stderr=subprocess.DEVNULL)
        replication = [
            *("--bind-address=0.0.0.0", "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}"),
            *(f"--wsrep-cluster-address=gcomm://{cluster}", f"--wsrep-node-address={self.address}"),
            *(f"--wsrep-node-name={self.name}", "--wsrep-sst-method=rsync"),
            f"--wsrep-provider-options={_PROVIDER_OPTIONS}",
            *(() if cluster else ("--wsrep-new-cluster",)),
        ]
        self.start(
            [
                *("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self._host_name),
                *("mariadbd", *options, *replication),
            ],
            log=self.directory.parent / f"{self.name}.log",
            directory=self.directory,
            environment=environment,
        )

    def wait(self) -> None:
        """Wait until it takes part in the cluster."""

        def is_ready() -> bool:
            assert self.processes, f"{self.name} has ended, see {self.directory}.log"
            return self.is_synced

        wait_until(is_ready, f"{self.name} is synced", seconds=90)


class Cluster:
    """Three nodes."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        # Of the application.
        self.settings: dict[str, Any] = {"user": "shop", "password": "a password", "database": "shop"}

    def rejoin(self, node: Node) -> None:
        """Start a node that has ended; returns when it takes part again."""
        others = [each.address for each in self.nodes if each is not node and each.processes]
        node.begin(",".join(others))
        node.wait()


@contextmanager
def galera(host_names: Sequence[str] = ("db1", "db2", "db3")) -> Iterator[Cluster]:
    """A cluster of nodes with these host names. Takes about 20 s to start."""
    directory = Path(tempfile.mkdtemp(prefix="galera-", dir="/tmp"))
    directory.chmod(0o755)
    network = Network("galera", "10.211.77.0/24")
    nodes = [Node(network, f"node{number}", number, directory, name) for number, name in enumerate(host_names, 1)]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        stack.callback(network.remove)
        network.make()
        for node in nodes:
            stack.callback(node.remove)
            node.make()
        cluster = Cluster(nodes)
        begun = time.monotonic()
        nodes[0].begin("")
        nodes[0].wait()
        for node in nodes[1:]:
            cluster.rejoin(node)
        print(f"three Galera nodes are ready after {time.monotonic() - begun:.0f} s")
        yield cluster
