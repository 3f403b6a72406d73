"""A Galera cluster loses and regains nodes under load: on demand, with CLUSTERS=1, after scripts/setup.sh clusters."""

from __future__ import annotations

import collections
import http.client
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.galera import Cluster, Node, galera, missing
from tests.support.haproxy import haproxy
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTERS") != "1" or missing() is not None,
    reason=missing() or "takes minutes; runs with CLUSTERS=1",
)

# HAProxy asks each node this often whether it takes part in the cluster, and believes the second answer.
CHECK_EVERY = 0.5
# Seconds in which the nodes themselves agree that one is lost, by their settings (evs.suspect_timeout and more), and
# meanwhile commit nothing.
AGREEMENT = 3.0
# As in the example for users.
_EXAMPLE = [line.strip() for line in (ROOT / "docs" / "examples" / "haproxy_galera.cfg").read_text().splitlines()]
LINES = [line for line in _EXAMPLE if "tcp-check" in line.split()[:2] or line.startswith("default-server")]


class Shop:
    """Writes each order in two statements of one transaction; reads; and has a page without a database."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path != "/quick":
            [number] = parse_qs(environ["QUERY_STRING"])["n"]
            with closing(self._pool.connection()) as connection, closing(connection.cursor()) as cursor:
                if path == "/write":
                    for half in (1, 2):
                        cursor.execute("INSERT INTO orders (number, half) VALUES (%s, %s)", (number, half))
                    # A row for which all compete: commits of other nodes make this one fail.
                    cursor.execute("UPDATE counts SET count = count + 1 WHERE id = %s", (int(number) % 8,))
                    connection.commit()
                else:
                    cursor.execute("SELECT COUNT(*) FROM orders WHERE number = %s", (number,))
                    cursor.fetchone()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


class Load:
    """Sends requests until the block ends, and notes what was answered and when."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_over = threading.Event()
        self._numbers = itertools.count(1)
        self.statuses: dict[int, int] = {}
        # When writes were answered 200, and how long pages without a database took.
        self.successes: list[float] = []
        self.quick: list[float] = []
        self.kinds: collections.Counter[tuple[str, int]] = collections.Counter()
        self._threads = [
            threading.Thread(target=self._send, args=(path,), daemon=True)
            for path in [*["/write"] * 6, *["/read"] * 3, "/quick"]
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def _send(self, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._is_over.is_set():
            number = next(self._numbers)
            begun = time.monotonic()
            connection.request("POST" if path == "/write" else "GET", f"{path}?n={number}")
            answer = connection.getresponse()
            answer.read()
            self.kinds[path, answer.status] += 1
            if path == "/write":
                self.statuses[number] = answer.status
                if answer.status == 200:
                    self.successes.append(time.monotonic())
            elif path == "/quick":
                self.quick.append(time.monotonic() - begun)
            # Not to be refused again at once.
            self._is_over.wait(0.1 if answer.status == 503 else 0.02)
        connection.close()

    def longest_gap(self, since: float) -> float:
        """The longest time without a successful write since then."""
        times = [since, *(each for each in sorted(self.successes) if each >= since), time.monotonic()]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


def kill(cluster: Cluster, node: Node) -> None:
    node.kill()
    time.sleep(5)
    # While it gets its data from another node, that is a donor.
    cluster.rejoin(node)


def unplug(cluster: Cluster, node: Node) -> None:
    node.unplug()
    time.sleep(8)
    node.plug()
    wait_until(lambda: node.is_synced, "it takes part again", seconds=60)


def make_donor(cluster: Cluster, node: Node) -> None:
    node.execute("SET GLOBAL wsrep_desync = ON")
    time.sleep(4)
    node.execute("SET GLOBAL wsrep_desync = OFF")
    wait_until(lambda: node.is_synced, "it takes part again", seconds=60)


def make_read_only(cluster: Cluster, node: Node) -> None:
    node.execute("SET GLOBAL read_only = ON")
    time.sleep(4)
    node.execute("SET GLOBAL read_only = OFF")


def restart(cluster: Cluster, node: Node) -> None:
    node.stop()
    cluster.rejoin(node)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with galera() as cluster:
        node = cluster.nodes[0]
        node.execute(
            "CREATE TABLE shop.orders (id BIGINT AUTO_INCREMENT PRIMARY KEY, number INT, half INT, KEY (number))"
        )
        node.execute("CREATE TABLE shop.counts (id INT PRIMARY KEY, count INT NOT NULL)")
        node.execute("INSERT INTO shop.counts VALUES (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0)")
        yield cluster


@contextmanager
def served(cluster: Cluster, balance: str) -> Iterator[BridgeThread]:
    servers = [(node.address, 3306) for node in cluster.nodes]
    algorithm, first, others = balance, "", ""
    if balance == "writer and backups":
        algorithm, first, others = "first", "on-marked-up shutdown-backup-sessions", "backup"
    with haproxy(servers, algorithm, LINES, first=first, others=others) as (host, port):
        settings = {**cluster.settings, "connect_timeout": 2}
        pool: Any = PooledDB(MySQLdb, maxconnections=8, host=host, port=port, **settings)
        with BridgeThread(Shop(pool), pool=pool, deadline=5, cancel="all") as server:
            yield server
        pool.close()


@pytest.mark.parametrize("balance", ["roundrobin", "writer and backups"])
@pytest.mark.parametrize("event", [kill, unplug, make_donor, make_read_only, restart])
def test_what_was_answered_is_true(
    cluster: Cluster,
    event: Callable[[Cluster, Node], None],
    balance: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    witness = cluster.nodes[2]
    witness.execute("DELETE FROM shop.orders")
    with served(cluster, balance) as server, Load(server.port) as load:
        wait_until(lambda: len(load.successes) > 50, "the load runs", seconds=30)
        begun = time.monotonic()
        event(cluster, cluster.nodes[0])
        gap = load.longest_gap(begun)
        done = time.monotonic()
        wait_until(lambda: sum(each > done for each in load.successes) > 50, "the load runs again", seconds=30)
    wait_until(lambda: all(node.is_synced for node in cluster.nodes), "all nodes are synced", seconds=60)
    rows = witness.execute("SELECT number, SUM(half = 1), SUM(half = 2) FROM shop.orders GROUP BY number")
    written = {int(number): (int(first), int(second)) for number, first, second in rows}
    wrong = {
        number: (status, written.get(number, (0, 0)))
        for number, status in load.statuses.items()
        if written.get(number, (0, 0)) not in {200: [(1, 1)], 503: [(0, 0)]}.get(status, [(0, 0), (1, 1)])
    }
    quick = sorted(load.quick)
    lines = [each.getMessage() for each in caplog.records if each.name == "threadbridge" and each.levelno >= 40]
    print(
        f"{event.__name__}, {balance}: {dict(load.kinds)}; longest gap {gap:.1f} s; without database 99 % "
        f"{1000 * quick[len(quick) * 99 // 100]:.0f} ms; {len(lines)} lines of errors"
    )
    assert wrong == {}
    assert gap < AGREEMENT + 2 * CHECK_EVERY + 1
    # Much less than the time in which nothing is committed.
    assert quick[len(quick) * 99 // 100] < 0.5
