"""Drivers that other packages support, and drivers that nobody supports."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dbutils.pooled_db import PooledDB

from tests.support.requests_in_threads import one, running
from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import _factory_elsewhere, database_of
from threadbridge.database.pools.dbutils import DBUtilsGuard

# A driver whose connections are sqlite3's in disguise, and a package that supports it.
DRIVER = """
import sqlite3

class Connection:
    def __init__(self, database, check_same_thread=True):
        self._connection = sqlite3.connect(database, check_same_thread=check_same_thread)

    def __getattr__(self, name):
        return getattr(self._connection, name)

threadsafety = 1
connect = Connection
OperationalError = InterfaceError = InternalError = sqlite3.OperationalError
"""
SUPPORT = """
from threadbridge.database.drivers.sqlite import SQLite

class Other(SQLite):
    def __init__(self, driver, settings):
        super().__init__(driver, settings)
        assert settings.kwargs == {"database": ":memory:"}
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs the driver, and the package with what its module contains."""

    def install(support: str) -> Any:
        (tmp_path / "otherdb.py").write_text(DRIVER)
        (tmp_path / "otherdb_support.py").write_text(support)
        metadata = tmp_path / "otherdb_support-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: otherdb-support\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[threadbridge.drivers]\notherdb = otherdb_support:Other\n")
        monkeypatch.syspath_prepend(tmp_path)
        return __import__("otherdb")

    yield install
    for name in ("otherdb", "otherdb_support"):
        sys.modules.pop(name, None)
    _factory_elsewhere.cache_clear()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_another_package_supports_a_driver(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool: Any = PooledDB(install(SUPPORT), maxconnections=1, database=":memory:")
    guard = DBUtilsGuard(pool)
    with running() as request, closing(pool.connection()) as connection:
        assert one(connection) == 1
        request.cancel()
        with pytest.raises(Exception, match="interrupted: the request was cancelled"):
            one(connection)
    assert guard._database is not None and guard._database.driver == "otherdb"
    assert messages(caplog) == []
    guard.close()
    pool.close()


def test_support_that_cannot_be_loaded_is_reported_once(install: Any, caplog: pytest.LogCaptureFixture) -> None:
    driver = install("import no_such_module")
    for _ in range(2):
        pool: Any = PooledDB(driver, maxconnections=1, database=":memory:", check_same_thread=False)
        guard = DBUtilsGuard(pool)
        with running(), closing(pool.connection()) as connection:
            assert one(connection) == 1
        with running(), closing(pool.connection()) as connection:
            assert one(connection) == 1
        guard.close()
        pool.close()
    cannot, *unknown = messages(caplog)
    assert cannot == (
        "the entry point otherdb of otherdb-support cannot be loaded, so queries sent with otherdb cannot be stopped: "
        "ModuleNotFoundError(\"No module named 'no_such_module'\"). Upgrade, repair or uninstall otherdb-support"
    )
    # Once for each pool.
    assert unknown == ["queries cannot be stopped: threadbridge does not support the driver otherdb"] * 2


def test_built_in_support_needs_no_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", None)
    settings = ConnectionSettings(lambda: None, (), {})
    for driver in ("MySQLdb", "pymysql", "mysql.connector", "mariadb", "psycopg", "psycopg2", "sqlite3"):
        database = database_of([driver], settings)
        assert database is not None and database.driver == driver.partition(".")[0]
        database.close()
