"""Behind PgBouncer, psycopg's queries are stopped by the proxy; psycopg2's are not, and the log says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import psycopg2
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import CANCELLATIONS, POSTGRESQL, cancel_at_random
from tests.support.cancelling import own_messages
from tests.support.inprocess import wait_until
from tests.support.pgbouncer import pgbouncer
from tests.support.postgresql import private_postgresql
from tests.support.requests_in_threads import in_request, one
from threadbridge.database.pools.dbutils import DBUtilsGuard

SHORT, LONG = POSTGRESQL


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with private_postgresql() as variables:
        yield variables


# In transaction mode, fewer connections than clients: each serves one client after another.
@pytest.fixture(params=[("session", 20), ("transaction", 6)], ids=["session", "transaction"])
def proxied(request: pytest.FixtureRequest, server: dict[str, str]) -> Iterator[dict[str, Any]]:
    with pgbouncer(server, *request.param) as settings:
        yield settings


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
    outcome.assert_that_only_they_were_stopped()
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
