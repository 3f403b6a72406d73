"""The examples with Flask: psycopg_pool, Flask-SQLAlchemy and an sqlite file."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import MySQLdb
import pytest
from sqlalchemy import URL

from tests.support.databases import connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.postgresql import Witness
from tests.support.processes import ROOT
from tests.support.site_process import ask_on_its_own
from tests.support.unconfigured import Site
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard

EXAMPLES = ROOT / "docs" / "examples"


def test_a_client_that_leaves_takes_its_query_and_its_order_with_it(postgresql_witness: Witness) -> None:
    example = runpy.run_path(str(EXAMPLES / "flask_psycopg.py"))
    guard = PsycopgPoolGuard(example["pool"])
    with BridgeThread(example["application"], threads=2) as server:
        client = server.send(b"GET /orders/60 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: postgresql_witness.running == ["SELECT pg_sleep($1)"], "the query runs")
        client.close()
        wait_until(lambda: postgresql_witness.running == [], "the query is stopped")
        wait_until(lambda: guard.in_use == 0, "its connection is back")
        assert json.loads(server.request(path="/orders")[1]) == []
        assert server.request(path="/orders/0")[1] == b"ordered\n"
        assert json.loads(server.request(path="/orders")[1]) == ["coffee"]
    guard.close()
    example["pool"].close()


@pytest.fixture
def shop(mariadb: dict[str, str]) -> Iterator[Site]:
    """The example with Flask-SQLAlchemy, served as it says."""
    settings = connect_settings(mariadb)
    url = URL.create(
        "mysql",
        settings["user"],
        settings["password"],
        database=settings["database"],
        query={"unix_socket": settings["unix_socket"]},
    )
    env = {
        "DATABASE_URL": url.render_as_string(hide_password=False),
        "PYTHONPATH": os.pathsep.join(map(str, (EXAMPLES, ROOT))),
    }
    try:
        with Site("flask_sqlalchemy_factory:create_app()", env) as site:
            yield site
    finally:
        with closing(MySQLdb.connect(**settings)) as connection:
            connection.cursor().execute("DROP TABLE IF EXISTS orders_of_example")


def test_the_same_with_flask_sqlalchemy_from_a_factory(shop: Site, mariadb: dict[str, str]) -> None:
    [line] = shop.pool_lines
    assert line.startswith("SQLAlchemy engine mysql://") and line.endswith(", 10 connections: 10 threads")
    with closing(MySQLdb.connect(autocommit=True, **connect_settings(mariadb))) as connection:

        def running() -> int:
            cursor = connection.cursor()
            cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'SELECT sleep(60)%'")
            return int(cursor.fetchone()[0])

        client = ask_on_its_own(shop.port, "/orders/60")
        wait_until(lambda: running() == 1, "the query runs")
        client.close()
        wait_until(lambda: running() == 0, "the query is stopped")
    assert shop.get("/orders/0") == "ordered\n"
    assert json.loads(shop.get("/orders")) == ["coffee"]


def test_the_same_with_an_sqlite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "flask_sqlite.py"))
    guard = SQLAlchemyGuard(example["engine"])
    with BridgeThread(example["app"], threads=2) as server:
        client = server.send(b"GET /report/100000000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: guard.in_use == 1, "the report is made")
        assert json.loads(server.request(path="/notes")[1]) == []
        client.close()
        wait_until(lambda: guard.in_use == 0, "it is stopped")
        # The lock of the writer is free again.
        assert server.request(path="/report/4")[1] == b"10\n"
        assert json.loads(server.request(path="/notes")[1]) == ["up to 4"]
    guard.close()
    example["engine"].dispose()
