"""Behind PgBouncer, psycopg's queries are stopped by the proxy; psycopg2's are not, and the log says so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import psycopg2
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import cancel_at_random
from tests.support.inprocess import wait_until
from tests.support.pgbouncer import pgbouncer
from tests.support.postgresql import private_postgresql
from tests.support.requests_in_threads import in_request, one
from threadbridge.database.pools.dbutils import DBUtilsGuard

# 1000 take a minute.
CANCELLATIONS = int(os.environ.get("CLUSTER_CANCELLATIONS", "100"))
SHORT = "SELECT {0}, count(md5(n::text)) FROM generate_series(1, 3000) AS n"
LONG = "SELECT count(md5(n::text)) FROM generate_series(1, 1000000000) AS n"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with private_postgresql() as variables:
        yield variables


# In transaction mode, fewer connections than clients: each serves one client after another.
@pytest.fixture(params=[("session", 20), ("transaction", 6)], ids=["session", "transaction"])
def proxied(request: pytest.FixtureRequest, server: dict[str, str]) -> Iterator[dict[str, Any]]:
    with pgbouncer(server, *request.param) as settings:
        yield settings


def own_messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "threadbridge" and record.levelno >= logging.WARNING
    ]


def test_of_all_queries_only_those_of_cancelled_requests_are_stopped(
    proxied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pool = PooledDB(psycopg, maxconnections=8, **proxied)
    guard = DBUtilsGuard(pool)
    outcome = cancel_at_random(
        [pool], CANCELLATIONS, SHORT, LONG, lambda error: isinstance(error, psycopg.errors.QueryCanceled)
    )
    print(outcome)
    guard.close()
    pool.close()
    assert (outcome.foreign, outcome.not_stopped) == ([], [])
    assert outcome.soon >= (0.99 if CANCELLATIONS >= 1000 else 0.9) and outcome.answered > 0
    assert (own_messages(caplog), guard.stopper.severed) == ([], 0)


def test_psycopg2_cannot_stop_queries_there_and_the_log_says_so_once(
    server: dict[str, str], proxied: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    pool = PooledDB(psycopg2, maxconnections=2, **proxied)
    guard = DBUtilsGuard(pool)

    def sleep() -> Any:
        with closing(pool.connection()) as connection:
            return one(connection, "SELECT 42 FROM pg_sleep(1.5)")

    workers = [in_request(sleep) for _ in range(2)]
    with closing(psycopg.connect(host=server["PGHOST"], user="test", dbname="postgres", autocommit=True)) as witness:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_until(lambda: witness.execute(sql).fetchall() == [(2,)], "both sleep")
    for request, _ in workers:
        request.cancel()
    for _, worker in workers:
        worker.join()
        assert worker.result == 42
    guard.close()
    pool.close()
    assert guard.stopper.stops == 0
    [message] = own_messages(caplog)
    assert message.startswith("queries in ") and "a proxy such as PgBouncer is in between" in message
