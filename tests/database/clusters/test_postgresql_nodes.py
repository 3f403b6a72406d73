"""Behind a TCP proxy to several PostgreSQL servers, each query is stopped on the server where it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import psycopg2.errors
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import cancel_at_random
from tests.support.haproxy import haproxy
from tests.support.postgresql import private_postgresql
from tests.support.tcp_mariadb import free_port
from threadbridge.database.pools.dbutils import DBUtilsGuard

# 1000 take a minute.
CANCELLATIONS = int(os.environ.get("CLUSTER_CANCELLATIONS", "100"))
SHORT = "SELECT {0}, count(md5(n::text)) FROM generate_series(1, 3000) AS n"
LONG = "SELECT count(md5(n::text)) FROM generate_series(1, 1000000000) AS n"
STOPPED = psycopg.errors.QueryCanceled, psycopg2.errors.QueryCanceled


@pytest.fixture(scope="module")
def servers() -> Iterator[list[tuple[str, int]]]:
    """Two servers' addresses."""
    with ExitStack() as stack:
        ports = [free_port(), free_port()]
        for port in ports:
            stack.enter_context(private_postgresql(port))
        yield [("127.0.0.1", port) for port in ports]


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_of_all_queries_only_those_of_cancelled_requests_are_stopped(
    servers: list[tuple[str, int]], driver: Any, balance: str
) -> None:
    with haproxy(servers, balance) as (host, port):
        settings = {"host": host, "port": port, "user": "test", "dbname": "postgres", "sslmode": "disable"}
        pool: Any = PooledDB(driver, maxconnections=8, **settings)
        guard = DBUtilsGuard(pool)
        outcome = cancel_at_random([pool], CANCELLATIONS, SHORT, LONG, lambda error: isinstance(error, STOPPED))
        print(outcome)
        guard.close()
        pool.close()
    assert (outcome.foreign, outcome.not_stopped) == ([], [])
    assert outcome.soon >= (0.99 if CANCELLATIONS >= 1000 else 0.9) and outcome.answered > 0
    assert guard.stopper.severed == 0
