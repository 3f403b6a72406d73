"""Behind a TCP proxy to several PostgreSQL servers, each query is stopped on the server where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import psycopg2.errors
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import CANCELLATIONS, POSTGRESQL, cancel_at_random
from tests.support.haproxy import haproxy
from tests.support.postgresql import private_postgresql
from tests.support.tcp_mariadb import free_port
from threadbridge.database.pools.dbutils import DBUtilsGuard

SHORT, LONG = POSTGRESQL
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
    outcome.assert_that_only_they_were_stopped()
    assert guard.stopper.severed == 0
