"""Behind a proxy with connection ids of its own, queries are stopped by themselves, past the proxy, or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import CANCELLATIONS, MARIADB, cancel_at_random, is_stopped
from tests.support.cancelling import own_messages, query
from tests.support.inprocess import wait_until
from tests.support.mysql_proxy import StandInProxy, stand_in_proxy
from tests.support.requests_in_threads import in_request, one, running
from tests.support.tcp_mariadb import free_port, tcp_mariadb
from threadbridge.database.drivers.mysql_identity import Variables
from threadbridge.database.pools.dbutils import DBUtilsGuard

SHORT, LONG = MARIADB


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    with tcp_mariadb() as settings:
        yield settings


def latest_id(server: dict[str, Any]) -> int:
    """The thread id of a connection to the server made just now."""
    with closing(MySQLdb.connect(**server)) as connection:
        number: int = connection.thread_id()
        return number


@pytest.fixture(params=[False, True], ids=["keeps", "multiplexes"])
def proxy(request: pytest.FixtureRequest, server: dict[str, Any]) -> Iterator[StandInProxy]:
    """Its ids are those of other connections in the server: it lags behind by more than it will catch up with."""
    address = server["host"], server["port"]
    ids = [latest_id(server) for _ in range(50)]
    with stand_in_proxy(address, server, multiplexes=request.param, first_id=ids[0]) as proxy:
        yield proxy


def pool_of(server: dict[str, Any], proxy: StandInProxy, **parameters: Any) -> tuple[Any, DBUtilsGuard]:
    settings = {**server, "host": proxy.address[0], "port": proxy.address[1], **parameters}
    pool = PooledDB(MySQLdb, maxconnections=8, **settings)
    return pool, DBUtilsGuard(pool, statement_limit=40)


def wait_for_sleeps(server: dict[str, Any], count: int) -> None:
    """Wait until so many statements sleep in the server."""
    sql = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%SLEEP(1.5)' AND id <> CONNECTION_ID()"
    with closing(MySQLdb.connect(**server)) as connection:
        wait_until(lambda: one(connection, sql) == count, f"{count} sleep")


def test_of_all_queries_only_those_of_cancelled_requests_are_stopped(
    server: dict[str, Any], proxy: StandInProxy, caplog: pytest.LogCaptureFixture
) -> None:
    pool, guard = pool_of(server, proxy)
    outcome = cancel_at_random([pool], CANCELLATIONS, SHORT, LONG, is_stopped)
    print(outcome)
    guard.close()
    pool.close()
    outcome.assert_that_only_they_were_stopped()
    assert (proxy.exchanges > 0) == proxy.multiplexes
    # Nothing was asked of the proxy that it understands differently, or that costs its clients.
    assert (proxy.kills, proxy.pinning) == ([], [])
    assert own_messages(caplog) == []
    assert guard.stopper.severed == 0


@pytest.mark.parametrize("multiplexes", [False, True])
def test_ids_that_agree_by_chance_disturb_nobody(server: dict[str, Any], multiplexes: bool) -> None:
    address = server["host"], server["port"]
    others = (
        "SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'myapplication' AND id <> CONNECTION_ID()"
    )
    with closing(MySQLdb.connect(**server)) as connection:
        wait_until(lambda: one(connection, others) == 0, "nothing else connects")
    with stand_in_proxy(address, server, multiplexes=multiplexes, first_id=latest_id(server) + 1) as proxy:
        pool, guard = pool_of(server, proxy)
        with running(), closing(pool.connection()) as connection:
            assert one(connection, "SELECT CONNECTION_ID()") == connection.number
        outcome = cancel_at_random([pool], CANCELLATIONS, SHORT, LONG, is_stopped)
        print(outcome)
        guard.close()
        pool.close()
    assert (outcome.foreign, outcome.not_stopped) == ([], [])
    assert outcome.answered > 0


def test_the_statement_limit_holds_behind_the_proxy(server: dict[str, Any], proxy: StandInProxy) -> None:
    settings = {**server, "host": proxy.address[0], "port": proxy.address[1]}
    pool = PooledDB(MySQLdb, maxconnections=1, **settings)
    guard = DBUtilsGuard(pool, statement_limit=0.5)
    begun = time.monotonic()
    with running(), closing(pool.connection()) as connection, pytest.raises(MySQLdb.OperationalError) as raised:
        one(connection, LONG)
    # In whole seconds.
    assert raised.value.args[0] == 1969 and 0.9 < time.monotonic() - begun < 5
    assert (proxy.kills, proxy.pinning) == ([], [])
    guard.close()
    pool.close()


def test_a_server_that_cannot_be_reached_past_the_proxy_is_logged(
    server: dict[str, Any], proxy: StandInProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Variables, "address_behind_proxy", lambda self, connection: f"127.0.0.1:{free_port()}")
    pool, guard = pool_of(server, proxy)
    request, worker = in_request(lambda: query(pool, "SELECT SLEEP(1.5)"))
    wait_for_sleeps(server, 1)
    request.cancel()
    worker.join()
    assert worker.error is None
    wait_until(lambda: guard.stopper.failures > 0, "the failure is counted")
    assert guard.stopper.stops == 0
    guard.close()
    pool.close()
    [message, *_] = own_messages(caplog)
    assert message.startswith("cannot stop cancelled queries in database 'myapplication' at 127.0.0.1:")
    assert "the server's own address" in message
    assert proxy.kills == []


@pytest.mark.parametrize("obstacle", ["no MariaDB", "no comments", "the application connects"])
def test_where_nothing_is_proven_nothing_is_stopped_and_the_log_says_so_once(
    server: dict[str, Any],
    proxy: StandInProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
) -> None:
    settings = {**server, "host": proxy.address[0], "port": proxy.address[1]}
    creator: Any = MySQLdb
    if obstacle == "no comments":
        creator = pytest.importorskip("mariadb")
    elif obstacle == "the application connects":

        def creator(**parameters: Any) -> Any:
            return MySQLdb.connect(**parameters)

    else:
        process = Variables.process
        monkeypatch.setattr(Variables, "process", lambda *args: (*process(*args)[:3], "8.0.36"))
    pool = PooledDB(creator, maxconnections=2, **settings)
    guard = DBUtilsGuard(pool)
    workers = [in_request(lambda: query(pool, "SELECT SLEEP(1.5)")) for _ in range(2)]
    wait_for_sleeps(server, 2)
    for request, _ in workers:
        request.cancel()
    for _, worker in workers:
        worker.join()
        assert worker.error is None
    guard.close()
    pool.close()
    assert guard.stopper.stops == 0
    [message] = own_messages(caplog)
    assert message.startswith("queries in ") and "a proxy with connection ids of its own is in between" in message
    assert proxy.kills == []
