"""``--check`` says by what queries are stopped if a proxy is between the frontend and the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.doctor_report import SITE, Report, run_check
from tests.support.mysql_proxy import stand_in_proxy
from tests.support.pgbouncer import pgbouncer
from tests.support.postgresql import private_postgresql
from tests.support.tcp_mariadb import tcp_mariadb


def check_pool(directory: Path, driver: str, settings: dict[str, Any]) -> Report:
    (directory / "site_app.py").write_text(f"""{SITE}
import {driver}
from dbutils.pooled_db import PooledDB
pool = PooledDB({driver}, maxconnections=2, **{settings!r})
""")
    return Report(run_check(["-m", "threadbridge", "site_app:app", "--json"], {}, cwd=directory))


@pytest.fixture(scope="module")
def proxied() -> Iterator[dict[str, Any]]:
    """Leads to a proxy with connection ids of its own."""
    with (
        tcp_mariadb() as server,
        stand_in_proxy((server["host"], server["port"]), server, multiplexes=True, first_id=10_000) as proxy,
    ):
        yield {**server, "port": proxy.address[1], "behind": server}


def test_a_query_is_stopped_past_the_proxy_and_a_limit_is_recommended(proxied: dict[str, Any], tmp_path: Path) -> None:
    server = proxied["behind"]
    settings = {name: value for name, value in proxied.items() if name != "behind"}
    report = check_pool(tmp_path, "MySQLdb", settings)
    assert report.message("stopping queries").startswith(
        f"a test query was stopped past the proxy, at 127.0.0.1:{server['port']}, "
    )
    assert report.bad == {"statement limit": "warning"}
    assert "ALTER USER myapplication@localhost WITH MAX_STATEMENT_TIME 210:" in report.advice("statement limit")


def test_where_queries_cannot_be_stopped_it_says_why(proxied: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("mariadb")
    settings = {name: value for name, value in proxied.items() if name != "behind"}
    report = check_pool(tmp_path, "mariadb", settings)
    assert report.bad == {"stopping queries": "warning", "statement limit": "warning"}
    assert "the driver mariadb sends statements without the comments" in report.message("stopping queries")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_behind_pgbouncer(driver: str, tmp_path: Path) -> None:
    with private_postgresql() as server, pgbouncer(server, "transaction", 4) as settings:
        report = check_pool(tmp_path, driver, settings)
        assert report.bad == {"stopping queries": "warning"}
        assert ("this driver cannot ask it" in report.message("stopping queries")) == (driver == "psycopg2")
        assert "run ALTER ROLE CURRENT_USER SET statement_timeout = '210 s'" in report.advice("stopping queries")
        with closing(psycopg.connect(host=server["PGHOST"], user="test", dbname="postgres", autocommit=True)) as root:
            root.execute("ALTER ROLE test SET statement_timeout = '210 s'")
            root.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        report = check_pool(tmp_path, driver, settings)
        assert report.bad == ({} if driver == "psycopg" else {"stopping queries": "warning"})
