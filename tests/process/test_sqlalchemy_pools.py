"""Flask-SQLAlchemy's and SQLAlchemy's engines, served with nothing configured."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from tests.support.databases import connect_settings
from tests.support.inprocess import wait_until
from tests.support.unconfigured import LongQueries, Site
from threadbridge.database.pools import pools_in, sqlalchemy_kind
from threadbridge.database.pools.finding import find_pools, watch_for_pools
from threadbridge.database.pools.kind import FoundPool, PoolKind
from threadbridge.process.application_pools import ApplicationPools, close_idle_connections
from threadbridge.settings.table import from_keywords

FACTORY = "tests.support.applications.flask_sqlalchemy_factory"
# For mypy: the module is a kind.
KINDS: list[PoolKind] = [sqlalchemy_kind]


@pytest.fixture
def long_queries(mariadb: dict[str, str]) -> Iterator[LongQueries]:
    with closing(LongQueries(mariadb)) as queries:
        yield queries


def without_url(lines: list[str]) -> list[str]:
    """The lines with … in place of user and server."""
    return [line.replace(line[line.index("://") + 3 : line.rindex("/")], "…") for line in lines]


@pytest.mark.parametrize("arguments", [[], [f"--pool={FACTORY}:db"]])
def test_flask_sqlalchemy_from_a_factory(
    mariadb: dict[str, str], long_queries: LongQueries, arguments: list[str]
) -> None:
    with Site(f"{FACTORY}:create_app('shop')", mariadb, *arguments) as site:
        name = f"SQLAlchemy engine mysql://…/{mariadb['MYSQL_DATABASE']}"
        assert without_url(site.pool_lines) == [f"{name}, 4 connections (3 + 1 overflow): 4 threads"]
        password = Path(mariadb["MYSQL_PASSWORD_FILE"]).read_text().strip()
        assert password not in site.output()
        assert (site.get("/"), site.get("/query")) == ("shop", "42")
        long_queries.are_stopped(site)


def test_the_binds_of_flask_sqlalchemy_have_lanes_of_their_own(
    mariadb: dict[str, str], long_queries: LongQueries
) -> None:
    with Site(f"{FACTORY}:create_app(reports=True)", mariadb) as site:
        name = f"SQLAlchemy engine mysql://…/{mariadb['MYSQL_DATABASE']}"
        wait_until(lambda: len(site.pool_lines) == 2, "both are said")
        assert without_url(site.pool_lines) == [
            f"{name}, 4 connections (3 + 1 overflow) (default): 4 threads",
            f"{name}, 2 connections (reports): 2 threads",
        ]
        for _ in range(3):
            assert (site.get("/query"), site.get("/report")) == ("42", "42")
        long_queries.are_stopped(site)
        wait_until(lambda: site.output().count("GET /report") == 3, "the access log is written")
        lanes = [line.partition(" lane=")[2].split()[0] for line in site.output().splitlines() if "GET /report" in line]
        assert lanes[-1] == "pool-reports"


def file_engine(directory: Path, **options: Any) -> Engine:
    return create_engine(f"sqlite:///{directory}/{len(options)}.db", **options)


def test_engines_are_found_once_and_asynchronous_ones_not(tmp_path: Path) -> None:
    engine = file_engine(tmp_path, pool_size=2, max_overflow=0)
    of_same_pool = engine.execution_options(isolation_level="SERIALIZABLE")
    asynchronous = create_async_engine("postgresql+psycopg://nowhere/a")
    found = [each.pool for each in find_pools()]
    assert found.count(engine) == 1
    assert of_same_pool not in found and asynchronous.sync_engine not in found
    assert pools_in([engine, of_same_pool]) == [FoundPool(engine, sqlalchemy_kind)]


@pytest.mark.parametrize(
    ("options", "size", "text_"),
    [
        ({"pool_size": 5, "max_overflow": 5}, 10, "10 connections (5 + 5 overflow)"),
        ({"pool_size": 5, "max_overflow": 0}, 5, "5 connections"),
        ({"pool_size": 5, "max_overflow": -1}, 0, "unlimited"),
        ({"poolclass": NullPool}, 0, "unlimited"),
    ],
)
def test_the_size_of_an_engine_is_what_it_hands_out(
    tmp_path: Path, options: dict[str, Any], size: int, text_: str
) -> None:
    [found] = pools_in(file_engine(tmp_path, **options))
    assert found.size == size
    assert str(found) == f"SQLAlchemy engine sqlite:///{tmp_path}/{len(options)}.db, {text_}"


def test_one_connection_for_all_is_not_guarded() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with pytest.raises(ValueError, match="all requests would share the one connection"):
        pools_in(engine)
    pools = ApplicationPools(from_keywords({"threads": 2}))
    assert engine not in [found.pool for found in pools.found]
    assert [refusal for refusal in pools.refusals if "StaticPool" in refusal]


def test_a_flask_sqlalchemy_object_knows_the_names(tmp_path: Path) -> None:
    db, app = SQLAlchemy(), Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/main.db"
    app.config["SQLALCHEMY_BINDS"] = {"audit": f"sqlite:///{tmp_path}/audit.db"}
    db.init_app(app)
    assert [found.name for found in pools_in(db)] == ["default", "audit"]
    with app.app_context():
        engines = [db.engines[None], db.engines["audit"]]
    assert [found.pool for found in pools_in([db, *engines])] == engines
    named = {id(found.pool): found.name for found in find_pools()}
    assert [named[id(engine)] for engine in engines] == ["default", "audit"]


def test_a_flask_sqlalchemy_that_differs_is_refused() -> None:
    db = SQLAlchemy()
    del db._app_engines
    with pytest.raises(ValueError, match="Flask-SQLAlchemy has no _app_engines; threadbridge supports"):
        pools_in(db)


@pytest.mark.parametrize("disposes", [False, True])
def test_an_engine_that_is_made_later_is_reported_before_its_first_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disposes: bool
) -> None:
    # What it changes is changed back.
    monkeypatch.setattr(Engine, "__init__", Engine.__init__)
    later: list[Any] = []
    connections: list[object] = []
    watch_for_pools([], lambda found: later.append((weakref.ref(found.pool), len(connections))))
    engine = file_engine(tmp_path)
    event.listen(engine.pool, "connect", lambda connection, record: connections.append(connection))
    if disposes:
        engine.dispose()
    assert later == []
    for _ in range(2):
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 42")).scalar() == 42
    assert [(reference(), count) for reference, count in later] == [(engine, 0)]
    assert len(connections) == 1
    assert "connect" not in engine.pool.__dict__
    # An engine for each tenant, dropped again.
    engine.dispose()
    del engine, connection
    connections.clear()

    def is_gone() -> bool:
        gc.collect()
        return [reference() for reference, _ in later] == [None]

    wait_until(is_gone, "it is gone")


def test_the_idle_connections_of_all_pools_are_closed(mariadb: dict[str, str], caplog: Any) -> None:
    settings = connect_settings(mariadb)
    url = sqlalchemy.URL.create(
        "mysql", settings["user"], settings["password"], query={"unix_socket": settings["unix_socket"]}
    )
    engine = create_engine(url)
    with engine.connect() as connection:
        number = connection.execute(text("SELECT CONNECTION_ID()")).scalar()
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "threadbridge"):
        close_idle_connections()
    assert engine.pool.checkedin() == 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT CONNECTION_ID()")).scalar() != number
    assert caplog.records == []
    engine.dispose()
