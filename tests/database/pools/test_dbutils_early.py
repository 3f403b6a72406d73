"""Connections of a ``PooledDB`` that the application gets in ways that the guard does not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import MySQLdb
import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from tests.support.databases import Witness
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import in_request, one, running, waits
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.pools.sqlalchemy import SQLAlchemyGuard

COMPUTE = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"


class TestMethodTakenBeforeTheGuard:
    """``get = pool.connection``, as a module of the application may do when it is imported."""

    def test_its_queries_are_stopped_and_its_connections_come_back(
        self, make_pool: Callable[..., Any], witness: Witness
    ) -> None:
        pool = make_pool()
        get = pool.connection
        guard = DBUtilsGuard(pool)

        def use() -> None:
            with closing(get()) as connection:
                one(connection, COMPUTE)

        request, worker = in_request(use)
        witness.wait_for("seq_1_to_1000000")
        request.cancel()
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
        wait_until(lambda: not witness.running, "the query has ended")
        assert guard.in_use == 0 and guard.overdue() == 0

    def test_its_statements_are_recorded_and_its_requests_learned(self, make_pool: Callable[..., Any]) -> None:
        asked: list[TrackedRequest] = []
        pool = make_pool()
        get = pool.connection
        DBUtilsGuard(pool, lambda guard, request: asked.append(request))
        for _ in range(2):
            # The second time, with a connection from the pool.
            with running() as request:
                with closing(get()) as connection:
                    assert one(connection, "SELECT 42") == 42
                assert asked.pop() is request
                assert [statement.sql for statement in request.statements.latest] == ["SELECT 42"]

    def test_a_cancelled_request_does_not_commit(self, make_pool: Callable[..., Any], witness: Witness) -> None:
        pool = make_pool()
        get = pool.connection
        DBUtilsGuard(pool)
        with running() as request, closing(get()) as connection:
            connection.cursor().execute("INSERT INTO notes VALUES ('half')")
            request.cancel()
            with pytest.raises(MySQLdb.OperationalError):
                connection.commit()
        assert witness.notes == []

    @pytest.mark.parametrize("blocking", [False, True])
    def test_its_waiting_ends_with_the_request(self, make_pool: Callable[..., Any], blocking: bool) -> None:
        pool = make_pool(maxconnections=1, blocking=blocking)
        get = pool.connection
        DBUtilsGuard(pool)
        with closing(pool.connection()):
            request, worker = in_request(get)
            wait_until(waits(pool), "the request waits")
            request.cancel()
            worker.join()
            assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
        assert pool._connections == 0

    def test_its_waiting_ends_when_a_connection_comes_back(self, make_pool: Callable[..., Any]) -> None:
        pool = make_pool(maxconnections=1, blocking=True)
        get = pool.connection
        DBUtilsGuard(pool)
        held = pool.connection()

        def use() -> Any:
            with closing(get()) as connection:
                return one(connection)

        _, worker = in_request(use)
        wait_until(waits(pool), "the request waits")
        held.close()
        worker.join()
        assert worker.result == 1


@pytest.fixture(params=["engine without guard", "engine with guard"])
def engine(request: pytest.FixtureRequest, make_pool: Callable[..., Any]) -> Iterator[sqlalchemy.Engine]:
    """An engine whose connections come from a guarded pool, as ``creator`` allows."""
    pool = make_pool()
    DBUtilsGuard(pool)
    engine = sqlalchemy.create_engine("mysql+mysqldb://", creator=pool.connection, poolclass=NullPool)
    guard = SQLAlchemyGuard(engine) if request.param == "engine with guard" else None
    yield engine
    if guard is not None:
        guard.close()
    engine.dispose()
    assert pool._connections == 0


def test_an_engine_works_on_a_guarded_pool(engine: sqlalchemy.Engine, witness: Witness) -> None:
    with running() as request:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO notes VALUES (:note)"), {"note": "kept"})
        assert request.statements.outcome == "committed"
    assert witness.notes == ["kept"]


def test_queries_of_an_engine_on_a_guarded_pool_are_stopped(engine: sqlalchemy.Engine, witness: Witness) -> None:
    def use() -> None:
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO notes VALUES ('half')"))
            connection.execute(sqlalchemy.text(COMPUTE))

    with engine.connect():
        # The dialect has asked for the server's version.
        pass
    request, worker = in_request(use)
    witness.wait_for("seq_1_to_1000000")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, sqlalchemy.exc.OperationalError)
    wait_until(lambda: not witness.running, "the query has ended")
    assert witness.notes == []
