"""The registry of pools: what it recognises, what it refuses, how pools are found, and kinds that others offer."""

from __future__ import annotations

import gc
import importlib
import logging
import sqlite3
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB
from werkzeug.local import LocalProxy

from threadbridge.database import pools
from threadbridge.database.pools import dbutils_kind, finding, kind_from, make_guards, pools_in
from threadbridge.database.pools.finding import find_pools, watch_for_pools
from threadbridge.database.pools.kind import FoundPool, PoolKind, check_names

# For mypy: the module is a kind.
KINDS: list[PoolKind] = [dbutils_kind]


class Derived(PooledDB):  # type: ignore[misc]
    """A pool whose class is the application's."""


def make_pool(cls: type[Any] = PooledDB) -> Any:
    return cls(sqlite3, maxconnections=3, database=":memory:")


def untouchable() -> Any:
    raise AssertionError("the proxy's function was called")


@pytest.mark.parametrize("cls", [PooledDB, Derived])
def test_a_pool_is_recognised_by_its_class(cls: type[Any]) -> None:
    pool = make_pool(cls)
    assert pools_in(pool) == [FoundPool(pool, dbutils_kind)]
    assert (pools_in(pool)[0].size, str(pools_in(pool)[0])) == (3, "PooledDB of sqlite3, 3 connections")


@pytest.mark.parametrize("value", [MySQLdb, "MySQLdb"])
def test_connections_in_no_pool_are_guarded_by_their_driver(value: object) -> None:
    [found] = pools_in(value)
    assert (found.pool, found.size) == (MySQLdb, 0)
    assert str(found) == "connections of MySQLdb in no pool, unlimited"
    [guard] = make_guards(value, lambda guard, request: None)
    assert guard.name == "connections of MySQLdb"
    assert not guard.knows_server
    guard.close()


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ValueError, match=r"pool=pymysql: import of pymysql halted"):
        pools_in("pymysql")


def test_several_pools_count_once_and_keep_their_order() -> None:
    one, two = make_pool(), make_pool()
    calls: list[int] = []

    def function() -> Any:
        calls.append(1)
        return two

    assert [found.pool for found in pools_in([one, (function, one), FoundPool(two, dbutils_kind)])] == [one, two]
    assert len(calls) == 1
    assert pools_in("none") == pools_in([]) == pools_in(["none"]) == []


def broken() -> None:
    raise KeyError("DATABASE_URL")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (sqlite3, "pool=<module 'sqlite3'.*> is not a pool that can be guarded .*give the pool object itself"),
        ("db.pool", "pool='db.pool' is not a pool"),
        (object(), "is not a pool that can be guarded"),
        (PooledDB, "is not a pool that can be guarded"),
        (lambda: 5, r"<lambda>\(\) returned 5, which is not a pool"),
        (broken, "pool: broken raised KeyError: 'DATABASE_URL'"),
        (make_pool().connection(), r"a dbutils\.pooled_db\.PooledDedicatedDBConnection is none"),
    ],
)
def test_anything_else_is_refused_with_advice(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pools_in(value)


def test_the_guards_are_those_of_the_pools_and_say_which_was_asked() -> None:
    asked: list[object] = []
    one, two = make_guards([make_pool(), make_pool()], lambda guard, request: asked.append(guard))
    named = make_guards(FoundPool(make_pool(), dbutils_kind, "reports"), lambda guard, request: None)[0]
    assert (one.name, one.key, named.name, named.key) == ("PooledDB of sqlite3", "", f"{one.name} (reports)", "reports")
    for guard in (one, two, named):
        guard.close()


def test_if_one_cannot_be_guarded_none_is() -> None:
    free, taken = make_pool(), make_pool()
    [owner] = make_guards(taken, lambda guard, request: None)
    with pytest.raises(ValueError, match="belongs to another Bridge already"):
        make_guards([free, taken], lambda guard, request: None)
    for guard in (owner, *make_guards(free, lambda guard, request: None)):
        guard.close()


def test_pools_are_found_wherever_they_are_and_proxies_stay_untouched() -> None:
    def closure() -> Any:
        return hidden

    hidden, dropped = make_pool(), make_pool()
    dropped.cycle = dropped
    identity = id(dropped)
    proxies = [LocalProxy(untouchable), types.SimpleNamespace(attribute=LocalProxy(untouchable))]
    del dropped
    gc.disable()
    try:
        found = [each.pool for each in find_pools()]
    finally:
        gc.enable()
    assert found.count(hidden) == 1
    assert identity not in map(id, found)
    assert closure() is hidden and len(proxies) == 2


def test_a_pool_that_is_made_later_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other kinds would go on watching after this test.
    monkeypatch.setattr(finding, "loaded_kinds", lambda: [dbutils_kind])
    monkeypatch.setattr(PooledDB, "__init__", PooledDB.__init__)
    known, later = make_pool(), list[FoundPool]()
    watch_for_pools([FoundPool(known, dbutils_kind)], later.append)
    derived = make_pool(Derived)
    make_pool().close()
    gc.collect()
    assert [type(each.pool) for each in later] == [Derived, PooledDB]
    assert later[0].pool is derived


class Library:
    """A library with names that a guard uses."""

    def __init__(self) -> None:
        self._private = 1

    def method(self) -> None:
        """It is public."""


def test_the_names_that_a_library_lacks_are_listed() -> None:
    check_names("Library 3", "Library 3 to 5", {Library: "_private method", Library(): "_private"})
    used = {Library: "_private _absent", Library(): "_other method"}
    with pytest.raises(
        ValueError, match=r"^Library 6 has no Library\(a\), _absent, _other; .* supports Library 3 to 5:"
    ):
        check_names("Library 6", "Library 3 to 5", used, ["Library(a)"])


KIND = """
import blockpool

def pools_of(value):
    return {"": value} if isinstance(value, blockpool.Pool) else {}

def size(pool):
    return 4

def describe(pool):
    return "block pool, 4 connections"
"""


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package that offers a kind for ``blockpool``, in the module ``blockpool_kind``."""
    metadata = tmp_path / "blockpool-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: blockpool\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[threadbridge.pools]\nblockpool = blockpool_kind\n")
    (tmp_path / "blockpool.py").write_text("class Pool:\n    pass\n")
    (tmp_path / "blockpool_kind.py").write_text(KIND)
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (pools._offers, pools.kind_from):
        cached.cache_clear()
    yield tmp_path
    for cached in (pools._offers, pools.kind_from):
        cached.cache_clear()
    for name in ("blockpool", "blockpool_kind"):
        sys.modules.pop(name, None)


def test_another_package_can_offer_a_kind(offer: Path) -> None:
    assert "blockpool_kind" not in sys.modules
    pool = importlib.import_module("blockpool").Pool()
    [found] = pools_in(pool)
    assert (found.pool, found.size, str(found)) == (pool, 4, "block pool, 4 connections")
    assert [each.pool for each in find_pools()].count(pool) == 1


def test_a_kind_that_fails_does_not_keep_others_from_being_found(offer: Path, caplog: pytest.LogCaptureFixture) -> None:
    (offer / "blockpool_kind.py").write_text("def pools_of(value):\n    return value.absent\n")
    others, pool = [importlib.import_module("blockpool").Pool() for _ in range(3)], make_pool()
    assert len(others) == 3
    with caplog.at_level(logging.INFO, "threadbridge"):
        assert pool in [each.pool for each in find_pools()]
    [record] = caplog.records
    assert record.message.startswith("objects of <class 'blockpool.Pool'> cannot be searched for pools: AttributeError")


def test_pools_are_found_among_frozen_objects() -> None:
    hidden = make_pool()
    gc.freeze()
    assert hidden in [each.pool for each in find_pools()]


def test_a_kind_that_cannot_be_loaded_is_logged_once(offer: Path, caplog: pytest.LogCaptureFixture) -> None:
    (offer / "blockpool_kind.py").write_text("import absent_library\n")
    pool = importlib.import_module("blockpool").Pool()
    with caplog.at_level(logging.INFO, "threadbridge"):
        for _ in range(2):
            assert kind_from("blockpool") is None
            find_pools()
    [record] = caplog.records
    assert record.message.startswith(
        "pools of blockpool are not guarded, because blockpool_kind cannot be imported: ModuleNotFoundError"
    )
    with pytest.raises(ValueError, match="is not a pool that can be guarded"):
        pools_in(pool)
