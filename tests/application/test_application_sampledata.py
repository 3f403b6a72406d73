"""Loading the sample data: the same rows each time, and only into an empty database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from myapplication import app, views
from myapplication.database import DBConnection
from tests.support.processes import ROOT, private_mariadb

Query = Callable[[str], list[tuple[Any, ...]]]
LOAD = [sys.executable, "-m", "myapplication.sampledata"]


def query_on(variables: dict[str, str]) -> Query:
    """Gives a function that runs one statement and returns its rows."""

    def query(sql: str) -> list[tuple[Any, ...]]:
        connection = MySQLdb.connect(
            unix_socket=variables["MYSQL_UNIX_SOCKET"],
            user=variables["MYSQL_USER"],
            password=Path(variables["MYSQL_PASSWORD_FILE"]).read_text().strip(),
            database=variables["MYSQL_DATABASE"],
        )
        with closing(connection), closing(connection.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    return query


@pytest.fixture(scope="module")
def own_server() -> Iterator[dict[str, str]]:
    with private_mariadb() as variables:
        yield variables


@pytest.fixture
def empty(own_server: dict[str, str]) -> dict[str, str]:
    """The variables that lead to an empty database."""
    query = query_on(own_server)
    tables = [name for (name,) in query("SHOW TABLES")]
    if tables:
        query(f"SET STATEMENT foreign_key_checks = 0 FOR DROP TABLE {', '.join(tables)}")
    return own_server


def load(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LOAD, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True)


def load_until_orders(variables: dict[str, str]) -> subprocess.Popen[str]:
    """Starts a load that has already made some orders when this returns."""
    process = subprocess.Popen(
        LOAD, env={**os.environ, **variables}, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert any("orders:" in line for line in process.stdout), process.communicate()
    return process


def test_the_sample_data_is_the_same_in_every_load(sample_data: dict[str, str]) -> None:
    query = query_on(sample_data)
    assert query("SELECT COUNT(*), MIN(registered_on), MAX(registered_on) FROM customers") == [
        (20_000, date(2016, 1, 1), date(2022, 12, 24))
    ]
    assert query("SELECT COUNT(*), COUNT(DISTINCT name), SUM(price) FROM products") == [
        (1_200, 1_200, Decimal("89626.00"))
    ]
    assert query("SELECT COUNT(*), COUNT(DISTINCT customer_id), MIN(ordered_at), MAX(ordered_at) FROM orders") == [
        (300_000, 20_000, datetime(2023, 1, 1, 7, 1, 48), datetime(2025, 12, 31, 22, 57, 54))
    ]
    assert query("SELECT COUNT(*), SUM(quantity), SUM(quantity * unit_price) FROM order_lines") == [
        (1_000_000, 2_144_985, Decimal("157023895.46"))
    ]


def test_the_rows_fit_together(sample_data: dict[str, str]) -> None:
    query = query_on(sample_data)
    assert query(
        """
        SELECT COUNT(*) FROM order_lines
        JOIN orders ON orders.id = order_id
        JOIN customers ON customers.id = customer_id AND registered_on < ordered_at
        JOIN products ON products.id = product_id AND unit_price <= price
        """
    ) == [(1_000_000,)]


def test_loaded_sample_data_is_left_as_it_is(sample_data: dict[str, str]) -> None:
    query = query_on(sample_data)
    before = query("SELECT * FROM sample_data")
    ended = load(sample_data)
    assert ended.returncode == 0
    assert "nothing was changed" in ended.stdout
    assert query("SELECT * FROM sample_data") == before


def test_somebody_elses_database_is_refused(empty: dict[str, str]) -> None:
    query = query_on(empty)
    query("CREATE TABLE orders (id INT)")
    ended = load(empty)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("The database myapplication is not empty")
    assert ended.stderr.count("\n") == 1
    assert query("SHOW TABLES") == [("orders",)]


def test_a_load_that_is_stopped_removes_what_it_made(empty: dict[str, str]) -> None:
    process = load_until_orders(empty)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was not loaded" in errors
    assert query_on(empty)("SHOW TABLES") == []


def test_a_load_that_was_cut_off_does_not_count_as_complete(empty: dict[str, str]) -> None:
    query = query_on(empty)
    process = load_until_orders(empty)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while query("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user <> 'system user'"):
        assert time.monotonic() < deadline, "the server still runs the load"
        time.sleep(0.05)
    ended = load(empty)
    assert ended.returncode == 1
    assert "is incomplete" in ended.stderr
    advice = ended.stderr.split("load again: ")[1].strip().rstrip(";")
    query(advice)
    assert query("SHOW TABLES") == []


@pytest.mark.parametrize("result_format", ["html", "json", "csv"])
def test_before_the_load_every_search_is_an_error_page(
    empty: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    result_format: str,
) -> None:
    for name, value in {**empty, "MYAPPLICATION_POOL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(views, "db", DBConnection())
    for _ in range(30):
        answer = app.test_client().get(f"/query/?report=products&format={result_format}")
        assert answer.status_code == 500
        assert "The database could not run this report" in answer.text
        assert answer.mimetype == ("application/json" if result_format == "json" else "text/html")
    assert "Traceback" in caplog.text
    assert "report=products" in caplog.text


def test_a_database_that_is_down_is_one_line() -> None:
    ended = load({"MYSQL_UNIX_SOCKET": "/nonexistent/mariadb.sock"})
    assert ended.returncode == 1
    assert "/nonexistent/mariadb.sock" in ended.stderr
    assert ended.stderr.count("\n") == 1
