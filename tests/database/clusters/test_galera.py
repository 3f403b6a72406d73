"""Three Galera nodes of equal names behind HAProxy: on demand, with CLUSTERS=1, after scripts/setup.sh clusters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.support.cancellation_campaign import CANCELLATIONS, MARIADB, cancel_at_random, is_stopped
from tests.support.galera import Cluster, galera, missing
from tests.support.haproxy import haproxy
from threadbridge.database.pools.dbutils import DBUtilsGuard

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTERS") != "1" or missing() is not None,
    reason=missing() or "takes minutes; runs with CLUSTERS=1",
)
SHORT, LONG = MARIADB


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with galera(["db", "db", "db"]) as cluster:
        yield cluster


def make_ids_collide(cluster: Cluster) -> None:
    """Make the nodes' next connections have the same thread ids."""

    def latest(number: int) -> int:
        with closing(cluster.nodes[number].connect()) as connection:
            latest: int = connection.thread_id()
            return latest

    ids = [latest(number) for number in range(3)]
    for number, begun in enumerate(ids):
        while begun < max(ids):
            begun = latest(number)


@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "first", "source", "writer and backups"])
def test_of_all_queries_only_those_of_cancelled_requests_are_stopped(cluster: Cluster, balance: str) -> None:
    make_ids_collide(cluster)
    servers = [(node.address, 3306) for node in cluster.nodes]
    algorithm, others = ("first", "backup") if balance == "writer and backups" else (balance, "")
    with haproxy(servers, algorithm, others=others) as (host, port):
        pool: Any = PooledDB(MySQLdb, maxconnections=8, host=host, port=port, **cluster.settings)
        guard = DBUtilsGuard(pool)
        outcome = cancel_at_random([pool], CANCELLATIONS, SHORT, LONG, is_stopped)
        print(balance, outcome)
        guard.close()
        pool.close()
    outcome.assert_that_only_they_were_stopped()
    assert guard.stopper.severed == 0
