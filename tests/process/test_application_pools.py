"""Which pools a process serves with nothing configured, what follows from that, and what it says."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from dbutils.pooled_db import PooledDB

from tests.support.inprocess import wait_until
from tests.support.unconfigured import LongQueries, Site
from threadbridge import Lane
from threadbridge.process.application_pools import DEFAULT_THREADS, ApplicationPools
from threadbridge.settings.table import from_keywords

DBUTILS = "tests.support.applications.dbutils_inside"


@pytest.fixture
def long_queries(mariadb: dict[str, str]) -> Iterator[LongQueries]:
    with closing(LongQueries(mariadb)) as queries:
        yield queries


def test_a_pool_inside_a_factory_is_found_and_guarded(mariadb: dict[str, str], long_queries: LongQueries) -> None:
    with Site(f"{DBUTILS}:create_app()", mariadb) as site:
        assert site.pool_lines == ["PooledDB of MySQLdb, 3 connections: 3 threads"]
        assert site.get("/query") == "42"
        long_queries.are_stopped(site)


def test_a_pool_that_is_made_later_is_guarded_from_then_on(mariadb: dict[str, str], long_queries: LongQueries) -> None:
    with Site(f"{DBUTILS}:create_app(lazy=True)", mariadb) as site:
        [line] = site.pool_lines
        assert line == (
            f"none found: {DEFAULT_THREADS} threads (--threads=N changes that; --pool=MODULE:ATTRIBUTE names a pool)"
        )
        assert site.get("/query") == "42"
        wait_until(lambda: len(site.pool_lines) == 2, "the log says so")
        assert site.pool_lines[1] == "made later: PooledDB of MySQLdb, 3 connections"
        long_queries.are_stopped(site)


@pytest.mark.parametrize("option", ["--pool=none", "--threads=1"])
def test_finding_can_be_switched_off(mariadb: dict[str, str], option: str) -> None:
    threads = "1 thread" if option == "--threads=1" else f"{DEFAULT_THREADS} threads"
    for lazy in (False, True):
        with Site(f"{DBUTILS}:create_app(lazy={lazy})", mariadb, option) as site:
            assert site.get("/query") == "42"
            assert site.pool_lines == [f"none: {threads}"]


def test_of_several_processes_one_says_what_was_found(mariadb: dict[str, str]) -> None:
    with Site(f"{DBUTILS}:create_app()", mariadb, "--processes=2") as site:
        assert site.get("/query") == "42"
        assert site.pool_lines == ["PooledDB of MySQLdb, 3 connections: 3 threads"]


def pool(size: int) -> PooledDB:
    return PooledDB(sqlite3, maxconnections=size, database=":memory:")


@pytest.mark.parametrize(
    ("keywords", "threads", "lines"),
    [
        ({"pool": pool(3)}, None, ["PooledDB of sqlite3, 3 connections: 3 threads"]),
        ({"pool": pool(3), "threads": 20}, 20, ["PooledDB of sqlite3, 3 connections: 20 threads"]),
        ({"pool": pool(0)}, DEFAULT_THREADS, ["PooledDB of sqlite3, unlimited: 10 threads"]),
        ({"pool": "none"}, DEFAULT_THREADS, ["none: 10 threads"]),
        ({"pool": [], "threads": 7}, 7, ["none: 7 threads"]),
        (
            {"pool": [pool(3), pool(12), pool(0)]},
            12,
            [f"PooledDB of sqlite3, {size}: 12 threads" for size in ("3 connections", "12 connections", "unlimited")],
        ),
    ],
)
def test_threads_follow_the_pools(keywords: Any, threads: int | None, lines: list[str]) -> None:
    pools = ApplicationPools(from_keywords(keywords))
    assert pools.threads == threads
    assert list(pools.lines()) == lines


def test_the_pools_of_replicas_have_no_threads_of_their_own() -> None:
    primary, replica = pool(3), pool(2)
    lane = Lane("reports", "/reports/*", threads=2, pool=lambda: replica)
    pools = ApplicationPools(from_keywords({"pool": [primary, replica], "lanes": [lane]}))
    assert list(pools.lines()) == [
        "PooledDB of sqlite3, 3 connections: 3 threads",
        "PooledDB of sqlite3, 2 connections: a replica, for the lane reports",
    ]
    # A function is called once.
    assert lane.pool is pools.replicas["reports"]
    # Without `pool`, all pools of the process are found.
    with pytest.raises(ValueError, match=r"a replica stands for one pool, but the application has .* that one first"):
        ApplicationPools(from_keywords({"lanes": [lane]}))
    lane = Lane("reports", threads=2, pool=[primary, replica])
    with pytest.raises(ValueError, match="lane reports: its pool must be one, not 2"):
        ApplicationPools(from_keywords({"pool": primary, "lanes": [lane]}))


def test_a_pool_that_fails_to_be_guarded_does_not_harm_the_application(caplog: pytest.LogCaptureFixture) -> None:
    def add(pool: object) -> None:
        raise ZeroDivisionError

    pools = ApplicationPools(from_keywords({"threads": 2}))
    construct = PooledDB.__init__
    try:
        with caplog.at_level(logging.INFO, "threadbridge"):
            pools.watch(add)
            made = pool(1)
        # The process serves no more.
        pools.close()
        pool(1)
    finally:
        PooledDB.__init__ = construct
    made.connection().close()
    assert [record.message for record in caplog.records] == ["a pool that was made later is not guarded"]
