"""Servers as users start them: what they say of the replica, and the examples in the documentation."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from typing import Any

import pytest

from tests.database.replicas.conftest import Serve
from tests.database.replicas.stacks import Django
from tests.support.doctor_report import Report, run_check
from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend
from tests.support.replication import PASSWORD, PRIMARY_ID, REPLICA_ID, Server
from tests.support.tcp_mariadb import free_port
from threadbridge.doctor import Level
from threadbridge.doctor.replicas import check_replicas

EXAMPLES = ROOT / "docs" / "examples"
LANE = "--lane=reports:/reports/*:4:flask_replica:replica"


def url(settings: dict[str, Any]) -> str:
    return "mysql+mysqldb://{user}:{password}@/{database}?unix_socket={unix_socket}".format(**settings)


@pytest.fixture
def environment(servers: tuple[Server, Server]) -> Iterator[dict[str, str]]:
    """For the example with Flask."""
    primary, replica = servers
    yield {"PRIMARY": url(primary.settings), "REPLICA": url(replica.settings)}
    primary.rows("DROP TABLE IF EXISTS myapplication.shop_orders, myapplication.shop_order")


class Client:
    """A client that keeps cookies."""

    def __init__(self, site: Frontend) -> None:
        self._url = site.url
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def ask(self, path: str, data: bytes | None = None) -> str:
        """The body of the response."""
        with self._opener.open(f"{self._url}{path}", data, timeout=60) as response:
            return str(response.read().decode())


def pages_of(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
        return str(response.read().decode())


def test_the_example_with_flask_and_what_the_operators_see(environment: dict[str, str]) -> None:
    port = free_port()
    command = ("-m", "threadbridge", "flask_replica:app", "--port={port}", f"--admin_port={port}", LANE)
    with Frontend(command, cwd=EXAMPLES, env=environment) as site:
        wait_until(lambda: "lane reports: reads from the replica" in site.output(), "the replica follows")
        assert "4 connections: 4 threads" in site.output()
        assert "4 connections: a replica, for the lane reports" in site.output()
        client = Client(site)
        for number in range(1, 4):
            assert client.ask("/orders", b"") == "added\n"
            found, server = client.ask("/reports/orders").rsplit(" ", 1)
            assert found == f"{number} orders, counted by server"
            assert int(server) in (PRIMARY_ID, REPLICA_ID)
        found = f"3 orders, counted by server {REPLICA_ID}\n"
        wait_until(lambda: client.ask("/reports/orders") == found, "the replica has them")
        # Neither engine is taken for one that was made later, when it is first used.
        assert "made later" not in site.output() and "not guarded" not in site.output()
        assert "replica of lane reports: ok" in pages_of(port, "/readyz")
        metrics = pages_of(port, "/metrics")
        lag = next(line for line in metrics.splitlines() if line.startswith("threadbridge_replica_lag_seconds{"))
        assert float(lag.split()[-1]) < 10
        assert 'threadbridge_replica_requests_total{lane="reports",server="replica"}' in metrics
        assert 'threadbridge_pool_connections{pool="reports"} 4.0' in metrics


def test_the_example_with_django(servers: tuple[Server, Server], environment: dict[str, str]) -> None:
    primary, replica = (server.settings for server in servers)
    variables = {
        "MYSQL_HOST": primary["unix_socket"],
        "REPLICA_HOST": replica["unix_socket"],
        "MYSQL_USER": "admin",
        "MYSQL_PASSWORD": PASSWORD,
        "MYSQL_DATABASE": primary["database"],
    }
    with Frontend(("django_replica.py", "{port}"), cwd=EXAMPLES, env=variables) as site:
        client = Client(site)
        assert client.ask("/orders", b"") == "added\n"
        assert client.ask("/reports/orders").startswith("1 orders, counted by ")
        wait_until(
            lambda: client.ask("/reports/orders") == "1 orders, counted by replica\n", "the replica is read from"
        )


def test_the_check_looks_at_the_replica(servers: tuple[Server, Server], environment: dict[str, str]) -> None:
    report = Report(run_check(["-m", "threadbridge", "flask_replica:app", "--json", LANE], environment, cwd=EXAMPLES))
    assert report.level("replica (reports)") == "ok"
    assert "is read-only; the application's pool hands out its connections" in report.message("replica (reports)")
    assert report.level("stopping queries (reports)") == "ok"


def test_the_check_warns_of_a_server_that_is_no_replica(serve: Serve, servers: tuple[Server, Server]) -> None:
    with serve(Django, watches=False) as server:
        replicas = server.bridge.desk.replicas
        [(_, found)] = check_replicas(replicas)
        assert (found.level, found.advice) == (Level.OK, "")
        assert "the application must ask threadbridge.on_replica()" in found.message
        servers[1].rows("SET GLOBAL read_only = 0")
        [(subject, found)] = check_replicas(replicas)
        assert (subject, found.level) == ("replica (reports)", Level.WARNING)
        assert "the replica is not read-only" in found.message and "docs/replicas.md" in found.advice
