"""The desk: the names of its guards, which of them it keeps, and what it does with all of them."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
import sqlalchemy
from dbutils.pooled_db import PooledDB, TooManyConnectionsError

from tests.support.requests_in_threads import running
from threadbridge.database.desk import Desk, _unique
from threadbridge.database.guard import Guard
from threadbridge.database.pools.dbutils import DBUtilsGuard


def pool_of(directory: Path, name: str = "one.db") -> Any:
    return PooledDB(sqlite3, maxconnections=1, database=str(directory / name), check_same_thread=False)


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk(lambda guard, request: None)
    yield desk
    desk.close()


@pytest.mark.parametrize(
    ("keys", "unique"),
    [
        (["", ""], ["1", "2"]),
        (["users", "users", "users"], ["users", "users-2", "users-3"]),
        (["db.pool", "Größe", "a/b"], ["db_pool", "Gr__e", "a_b"]),
        (["2", ""], ["2", "3"]),
    ],
)
def test_keys_are_unique_and_can_be_part_of_a_lane_s_name(keys: list[str], unique: list[str]) -> None:
    taken: set[str] = set()
    for key, expected in zip(keys, unique, strict=True):
        assert _unique(key, taken) == expected
        taken.add(expected)


def test_many_threads_add_pools(desk: Desk, tmp_path: Path) -> None:
    pools = [pool_of(tmp_path) for _ in range(40)]
    together = threading.Barrier(8)

    def add(first: int) -> None:
        together.wait(10)
        for pool in pools[first::8]:
            desk.add(pool)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    assert sorted(int(guard.key) for guard in desk) == list(range(1, 41))


def test_a_pool_that_the_application_drops_takes_its_guard_with_it(desk: Desk, tmp_path: Path) -> None:
    kept = pool_of(tmp_path)
    desk.add(pool_of(tmp_path), is_first=True)
    desk.add(kept)
    desk.add(pool_of(tmp_path))
    gc.collect()
    assert [guard.key for guard in desk] == ["1", "2"]
    # The next one may have its key.
    desk.add(another := pool_of(tmp_path))
    assert [guard.key for guard in desk] == ["1", "2", "3"]
    assert another.connection.__self__ in desk


def test_a_pool_that_is_added_after_the_end_is_left_alone(desk: Desk, tmp_path: Path) -> None:
    desk.close()
    pool = pool_of(tmp_path)
    desk.add(pool)
    assert [guard.closed for guard in desk] == [True]
    with closing(pool.connection()) as connection:
        connection.cursor().execute("SELECT 1")


def test_lists_of_connections_begin_for_pools_that_are_added_later(
    desk: Desk, make_pool: Callable[..., Any], tmp_path: Path
) -> None:
    early, late = make_pool(), make_pool()
    desk.add(early)
    desk.begin(str(tmp_path))
    desk.add(late)
    for pool in (early, late):
        with running(), closing(pool.connection()):
            pass
    assert len(list(tmp_path.glob("connections-*"))) == 2
    pools = [early, late]
    for pool in pools:
        pool.close()


def test_a_replica_stands_for_the_first_pool(desk: Desk, tmp_path: Path) -> None:
    first, second, other = (pool_of(tmp_path) for _ in range(3))
    with pytest.raises(ValueError, match="lane reports: its pool stands for the application's own, but there is none"):
        desk.add_replica(other, "reports", 10.0)
    desk.add([first, second], is_first=True)
    with pytest.raises(ValueError, match="has 2 pools; give the one that leads to the replica"):
        desk.add_replica([other, pool_of(tmp_path)], "reports", 10.0)
    replica = desk.add_replica(other, "reports", 10.0)
    assert (replica.stands_in, [guard.key for guard in desk]) == (True, ["1", "2", "reports"])
    # A hand-out costs nothing more where no replica stands for the pool.
    assert second.connection.__func__ is DBUtilsGuard._connection is not first.connection.__func__
    assert replica.look() == "replicas of this kind of database are not supported; see docs/replicas.md"
    assert not replica.may_read(0.0)
    # This host's clock may be behind the primary's, which is not known.
    assert replica.now - time.time() > 9


def test_another_kind_of_pool_cannot_stand_in(desk: Desk, tmp_path: Path) -> None:
    first, engine = pool_of(tmp_path), sqlalchemy.create_engine("sqlite://")
    desk.add(first, is_first=True)
    assert not desk.add_replica(engine, "reports", 10.0).stands_in
    assert first.connection.__func__ is DBUtilsGuard._connection


def test_an_outage_of_any_pool_is_one(desk: Desk, make_pool: Callable[..., Any], tmp_path: Path) -> None:
    assert not desk.is_outage(TooManyConnectionsError())
    desk.add(pool_of(tmp_path), is_first=True)
    assert desk.is_outage(TooManyConnectionsError())
    gone_away = MySQLdb.OperationalError(2006, "gone away")
    assert not desk.is_outage(gone_away)
    pool = make_pool()
    desk.add(pool)
    assert desk.is_outage(gone_away)
    assert not desk.is_outage(MySQLdb.ProgrammingError(1064, "syntax"))


def test_all_connections_of_a_stuck_request_are_cut(
    desk: Desk, make_pool: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make_pool(), make_pool()
    desk.add([first, second], is_first=True)
    guards: list[Guard] = list(desk)
    with caplog.at_level(logging.ERROR), running() as request:
        held = [pool.connection() for pool in (first, second, second)]
        assert [guard.in_use for guard in guards] == [1, 2]
        assert desk.abandon(request) == (3, 0)
        assert [guard.in_use for guard in guards] == [0, 0]
        assert desk.abandon(request) == (0, 0)
        for connection in held:
            connection.close()
