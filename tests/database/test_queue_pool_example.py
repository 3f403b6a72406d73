"""The worked example of docs/pools.md: another package's pool, guarded by what that package offers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from tests.support.site_process import ask_on_its_own
from tests.support.unconfigured import LongQueries, Site

APPLICATION = """
import MySQLdb
from queue_pool import QueuePool
from tests.support.applications.mysql_settings import LONG, settings

def connect():
    return MySQLdb.connect(**settings())

pool = QueuePool(connect, 2)

def app(environ, start_response):
    result = "page"
    if environ["PATH_INFO"] != "/":
        connection = pool.get()
        try:
            cursor = connection.cursor()
            cursor.execute(LONG if environ["PATH_INFO"] == "/long" else "SELECT 42")
            [result] = cursor.fetchone()
        finally:
            pool.put(connection)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(result).encode()]
"""


@pytest.fixture
def site(tmp_path: Path, mariadb: dict[str, str]) -> Iterator[Site]:
    """The application beside an installed package with the pool and its entry point."""
    metadata = tmp_path / "queue_pool-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: queue_pool\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[threadbridge.pools]\nqueue_pool = queue_pool_kind\n")
    (tmp_path / "queue_site.py").write_text(APPLICATION)
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "docs" / "examples", ROOT)))
    with Site("queue_site:app", {**mariadb, "PYTHONPATH": path}) as site:
        yield site


def test_the_queries_of_clients_that_leave_are_stopped(site: Site, mariadb: dict[str, str]) -> None:
    assert site.pool_lines == ["QueuePool, 2 connections: 2 threads"]
    with closing(LongQueries(mariadb)) as long_queries:
        for _ in range(3):
            long_queries.are_stopped(site)
            assert site.get("/query") == "42"
        # Both connections, and a client that waits for one of them.
        clients = [ask_on_its_own(site.port, "/long") for _ in range(3)]
        wait_until(lambda: long_queries.count() == 2, "both connections are in use")
        assert site.get("/") == "page"
        for client in reversed(clients):
            client.close()
        wait_until(lambda: long_queries.count() == 0, "the queries are stopped")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(site.get, ["/query"] * 40)) == ["42"] * 40
