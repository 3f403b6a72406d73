"""Behind a TCP proxy to several servers, each query is stopped on the server where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import CANCELLATIONS, MARIADB, cancel_at_random, is_stopped
from tests.support.haproxy import haproxy
from tests.support.requests_in_threads import one
from tests.support.tcp_mariadb import free_port, tcp_mariadb
from threadbridge.database.driver import ConnectionSettings, StopFailed
from threadbridge.database.drivers.mysql import MySQL
from threadbridge.database.drivers.mysql_identity import Identity, Variables, address_of
from threadbridge.database.pools.dbutils import DBUtilsGuard

SHORT, LONG = MARIADB
KILLS = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Com_kill'"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[dict[str, Any]]]:
    """Two servers that are accessed with the same user and password."""
    with ExitStack() as stack:
        yield [stack.enter_context(tcp_mariadb()) for _ in range(2)]


def latest_id(server: dict[str, Any]) -> int:
    with closing(MySQLdb.connect(**server)) as connection:
        number: int = connection.thread_id()
        return number


def make_ids_collide(servers: list[dict[str, Any]]) -> None:
    """Make the servers' next connections have the same thread ids."""
    first, second = servers
    while (difference := latest_id(first) - latest_id(second)) != 0:
        latest_id(second if difference > 0 else first)


def without_lock(variables: Variables, connection: Any, number: int, process: str, now: int) -> Identity:
    """What `Variables.marked` gives where the server refuses GET_LOCK, as Galera did until error 1235 was lifted."""
    name, address, _ = variables.name(connection)
    return Identity(number, name, now, "", process, address)


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn"])
@pytest.mark.parametrize("known_by", ["all", "no lock", "equal names", "equal names and no lock"])
def test_of_all_queries_only_those_of_cancelled_requests_are_stopped(
    servers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, balance: str, known_by: str
) -> None:
    if "no lock" in known_by:
        monkeypatch.setattr(Variables, "marked", without_lock)
    if "equal names" in known_by:
        name = Variables.name
        monkeypatch.setattr(Variables, "name", lambda *args: ("the same for both", *name(*args)[1:]))
    make_ids_collide(servers)
    with haproxy([(each["host"], each["port"]) for each in servers], balance) as (host, port):
        pool = PooledDB(MySQLdb, maxconnections=8, **{**servers[0], "host": host, "port": port})
        guard = DBUtilsGuard(pool)
        outcome = cancel_at_random([pool], CANCELLATIONS, SHORT, LONG, is_stopped)
        print(outcome)
        guard.close()
        pool.close()
    outcome.assert_that_only_they_were_stopped()
    assert guard.stopper.severed == 0


def test_nothing_is_killed_on_another_server(servers: list[dict[str, Any]]) -> None:
    """After a fail-over, say: new connections come to the other server, and the first cannot be reached."""
    make_ids_collide(servers)
    first, database = (MySQL("MySQLdb", ConnectionSettings(MySQLdb.connect, (), server)) for server in servers)
    with (
        closing(MySQLdb.connect(**servers[0])) as victim,
        closing(MySQLdb.connect(**servers[1])) as stranger,
    ):
        identity = first.identify(victim)._replace(address=f"127.0.0.1:{free_port()}")
        assert identity.number == stranger.thread_id()
        kills = one(stranger, KILLS)
        # Names and marks may be missing or the same.
        for known_by in (identity, identity._replace(mark=""), identity._replace(mark="", server=name_of(servers[1]))):
            for ask in (lambda each: database.stop_query(victim, each, waits=True), database.kill):
                with pytest.raises(
                    StopFailed, match=r"the control connection came to .*; cannot connect to 127\.0\.0\.1:"
                ):
                    ask(known_by)
        assert one(stranger, KILLS) == kills
        assert one(victim, "SELECT 42") == one(stranger, "SELECT 42") == 42
    database.close()


def name_of(server: dict[str, Any]) -> str:
    """What the guard calls the server."""
    with closing(MySQLdb.connect(**server)) as connection:
        return MySQL("MySQLdb", ConnectionSettings(MySQLdb.connect, (), server)).identify(connection).server


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({}, "db:3306"),
        ({"report_host": None, "wsrep_node_address": ""}, "db:3306"),
        ({"report_host": "10.0.0.9", "report_port": 3307}, "10.0.0.9:3307"),
        ({"report_host": "10.0.0.9", "report_port": 3307, "wsrep_node_address": "10.0.0.1"}, "10.0.0.9:3307"),
        ({"wsrep_node_address": "10.0.0.1"}, "10.0.0.1:3306"),
        # The port is the cluster's own.
        ({"wsrep_node_address": "10.0.0.1:4567"}, "10.0.0.1:3306"),
        ({"wsrep_node_address": "[fd00::1]:4567"}, "fd00::1:3306"),
        ({"wsrep_node_address": "AUTO"}, "db:3306"),
    ],
)
def test_a_servers_own_address(variables: dict[str, Any], address: str) -> None:
    assert address_of({"hostname": "db", "port": 3306, **variables}) == address
