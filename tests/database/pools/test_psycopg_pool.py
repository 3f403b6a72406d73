"""The guard of a ``psycopg_pool.ConnectionPool``: what is not the same for all pools."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool, NullConnectionPool, PoolTimeout, TooManyRequests

from tests.support.inprocess import wait_until
from tests.support.postgresql import Witness
from tests.support.requests_in_threads import in_request, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.psycopg_pool import PsycopgPoolGuard, describe

MakePool = Callable[..., tuple[Any, PsycopgPoolGuard]]

COMPUTE = "SELECT count(*) FROM generate_series(1, 2000000000)"


def notes(witness: Witness) -> list[str]:
    return [note for (note,) in witness.connection.execute("SELECT note FROM notes ORDER BY note")]


def test_no_block_of_a_cancelled_request_commits(make_psycopg_pool: MakePool, postgresql_witness: Witness) -> None:
    pool, _ = make_psycopg_pool()
    with running() as request:
        with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as connection:
            connection.execute("INSERT INTO notes VALUES ('block of the pool')")
            request.cancel()
        assert request.statements.outcome == "rolled back"
    with running() as request:
        with pytest.raises(psycopg.errors.QueryCanceled), pool.connection() as connection:
            connection.autocommit = True
            with connection.transaction():
                connection.execute("INSERT INTO notes VALUES ('block of the connection')")
                request.cancel()
        assert request.statements.outcome == "rolled back"
    assert notes(postgresql_witness) == []


def test_blocks_do_what_psycopg_says(make_psycopg_pool: MakePool, postgresql_witness: Witness) -> None:
    pool, _ = make_psycopg_pool(kwargs={"autocommit": True})
    with running() as request:
        with pool.connection() as connection:
            with connection.transaction():
                connection.execute("INSERT INTO notes VALUES ('1 committed')")
                with connection.transaction() as inner:
                    connection.execute("INSERT INTO notes VALUES ('to the savepoint')")
                    raise psycopg.Rollback(inner)
            assert request.statements.outcome == "committed"
            with connection.transaction(force_rollback=True):
                connection.execute("INSERT INTO notes VALUES ('forced')")
            with pytest.raises(ZeroDivisionError), connection.transaction():
                connection.execute("INSERT INTO notes VALUES ('failed')")
                1 / 0  # noqa: B018
            with connection.pipeline(), connection.transaction():
                connection.execute("INSERT INTO notes VALUES ('2 in a pipeline')")
        assert request.statements.count == 5
    assert notes(postgresql_witness) == ["1 committed", "2 in a pipeline"]


def test_the_applications_classes_are_kept(make_psycopg_pool: MakePool) -> None:
    class Own(psycopg.Connection[Any]):
        pass

    pool, _ = make_psycopg_pool(connection_class=Own, kwargs={"cursor_factory": psycopg.ClientCursor})
    with running() as request, pool.connection() as connection:
        assert isinstance(connection, Own)
        with connection.cursor() as cursor:
            assert isinstance(cursor, psycopg.ClientCursor)
            cursor.execute(psycopg.sql.SQL("SELECT {}::int").format(psycopg.sql.Placeholder()), [1])
        with connection.cursor("named") as cursor:
            assert isinstance(cursor, psycopg.ServerCursor)
            cursor.execute("SELECT generate_series(1, 3)")
            assert cursor.fetchall() == [(1,), (2,), (3,)]
        assert [statement.sql for statement in request.statements.latest] == [
            "SELECT %s::int",
            "SELECT generate_series(1, 3)",
        ]


def test_copy_and_stream_are_stopped_and_leave_the_outcome_open(
    make_psycopg_pool: MakePool, postgresql_witness: Witness
) -> None:
    pool, _ = make_psycopg_pool()
    with running() as request:
        with pool.connection() as connection, connection.cursor() as cursor:
            with cursor.copy("COPY notes FROM STDIN") as copy:
                copy.write_row(["copied"])
            assert list(cursor.stream("SELECT 1")) == [(1,)]
        assert request.statements.outcome == "unknown"
    assert notes(postgresql_witness) == ["copied"]

    def stream() -> None:
        with pool.connection() as connection, connection.cursor() as cursor:
            list(cursor.stream(COMPUTE))

    request, worker = in_request(stream)
    wait_until(lambda: postgresql_witness.running == [COMPUTE], "it runs")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, psycopg.errors.QueryCanceled)
    wait_until(lambda: postgresql_witness.running == [], "it has ended")


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_the_pools_own_functions_work_and_are_not_the_requests(make_psycopg_pool: MakePool, kind: Any) -> None:
    calls: list[str] = []

    def configure(connection: Any) -> None:
        connection.execute("SET application_name = 'configured'")
        connection.commit()
        calls.append("configure")

    def check(connection: Any) -> None:
        ConnectionPool.check_connection(connection)
        calls.append("check")

    def reset(connection: Any) -> None:
        calls.append("reset")

    sizes = {"min_size": 0} if kind is NullConnectionPool else {}
    pool, guard = make_psycopg_pool(kind, configure=configure, check=check, reset=reset, **sizes)
    with running() as request:
        with pool.connection() as connection:
            assert connection.execute("SHOW application_name").fetchone() == ("configured",)
        assert request.statements.count == 1
    assert guard.in_use == 0
    assert {"configure", "check"} <= set(calls)
    if kind is ConnectionPool:
        wait_until(lambda: "reset" in calls, "the pool's thread has reset it")


def test_a_request_that_is_cancelled_while_the_pool_checks_a_connection_is_freed(
    make_psycopg_pool: MakePool, postgresql_witness: Witness
) -> None:
    computes = [False]

    def check(connection: Any) -> None:
        if computes[0]:
            connection.execute(COMPUTE)

    pool, guard = make_psycopg_pool(max_size=1, check=check)
    with running(), pool.connection():
        # One that was made before the guard has been replaced.
        computes[0] = True
    request, worker = in_request(pool.getconn)
    wait_until(lambda: postgresql_witness.running == [COMPUTE], "it is checked")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, psycopg.errors.QueryCanceled)
    computes[0] = False
    with running(), pool.connection() as connection:
        assert connection.execute("SELECT 42").fetchone() == (42,)
    assert guard.in_use == 0


def test_connections_from_before_the_guard_are_replaced(postgresql_witness: Witness) -> None:
    with ConnectionPool(min_size=2, max_size=2) as pool:
        pool.wait()
        with pool.connection() as connection:
            number = connection.info.backend_pid
        guard = PsycopgPoolGuard(pool)
        for _ in range(2):
            with running() as request, pool.connection() as connection:
                connection.execute("SELECT 1")
                assert connection.info.backend_pid != number
                assert request.statements.count == 1
        with pytest.raises(ValueError, match="another Bridge"):
            PsycopgPoolGuard(pool)
        guard.close()
        with running(), pool.connection() as connection:
            assert connection.execute("SELECT 42").fetchone() == (42,)


def test_waiting_has_the_pools_own_limits_and_errors(make_psycopg_pool: MakePool) -> None:
    pool, guard = make_psycopg_pool(max_size=1, max_waiting=1)
    with running(), pool.connection() as connection:
        connection.execute("SELECT 1")
        with running(), pytest.raises(PoolTimeout, match=r"couldn't get a connection after 0\.20 sec"):
            pool.getconn(timeout=0.2)
        _, worker = in_request(pool.getconn)
        wait_until(lambda: len(guard._hand_out.line) == 1, "it waits")
        with running(), pytest.raises(TooManyRequests):
            pool.getconn()
    worker.join()
    assert worker.error is None
    assert guard.is_outage(PoolTimeout())


def test_waiting_for_a_slow_database_does_not_reach_the_pools_limit(make_psycopg_pool: MakePool) -> None:
    go_on = threading.Event()

    class Slow(psycopg.Connection[Any]):
        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            go_on.wait(10)
            return super().connect(*args, **kwargs)

    pool, guard = make_psycopg_pool(connection_class=Slow, max_waiting=1, max_size=1)
    request, cancelled = in_request(pool.getconn)
    wait_until(lambda: pool.get_stats()["requests_num"] > 2, "it has asked the pool several times")
    request.cancel()
    cancelled.join()
    assert isinstance(cancelled.error, psycopg.errors.QueryCanceled)
    before = pool.get_stats()["requests_num"]
    _, worker = in_request(lambda: pool.putconn(pool.getconn()))
    wait_until(lambda: pool.get_stats()["requests_num"] > before + 2, "so has this one")
    go_on.set()
    worker.join()
    assert (worker.error, guard.in_use) == (None, 0)


def test_a_request_whose_database_is_away_is_freed_when_it_is_cancelled(tmp_path: Any) -> None:
    with ConnectionPool(f"host={tmp_path} dbname=none", min_size=1, open=True) as pool:
        guard = PsycopgPoolGuard(pool)
        request, worker = in_request(pool.getconn)
        wait_until(lambda: guard._hand_out.line.entering == 1, "it waits for the pool")
        began = time.monotonic()
        request.cancel()
        worker.join()
        assert time.monotonic() - began < 2
        assert isinstance(worker.error, psycopg.errors.QueryCanceled)
        with running(), pytest.raises(PoolTimeout, match=r"after 0\.30 sec"):
            pool.getconn(timeout=0.3)
        guard.close()


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
def test_after_a_stuck_thread_has_come_back_the_pool_has_its_size(make_psycopg_pool: MakePool, kind: Any) -> None:
    sizes = {"min_size": 0} if kind is NullConnectionPool else {}
    pool, guard = make_psycopg_pool(kind, **sizes)
    has_one, go_on = threading.Event(), threading.Event()

    def stick() -> None:
        with pool.connection() as connection:
            connection.execute("SELECT 1")
            has_one.set()
            go_on.wait(10)

    for _ in range(3):
        has_one.clear()
        go_on.clear()
        request, worker = in_request(stick)
        assert has_one.wait(30)
        request.cancel()
        assert guard.abandon(request) == (1, 0)
        go_on.set()
        worker.join()
    # A thread of the guard lets the pool grow.
    wait_until(lambda: (guard.size, guard.in_use) == (2, 0), "the pool has its size")
    with running(), pool.connection() as first, running(), pool.connection() as second:
        assert first.execute("SELECT 1").fetchone() == second.execute("SELECT 1").fetchone()
        with running(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.2)


def test_a_request_that_waits_gets_a_connection_in_place_of_one_that_was_cut(make_psycopg_pool: MakePool) -> None:
    pool, guard = make_psycopg_pool(max_size=1)
    with running() as stuck:
        held = pool.getconn()
        _, waiting = in_request(lambda: pool.putconn(pool.getconn()))
        wait_until(lambda: len(guard._hand_out.line) == 1, "it waits")
        assert guard.abandon(stuck) == (1, 0)
        # Long before the pool's timeout, and before the thread comes back.
        wait_until(lambda: not waiting.thread.is_alive(), "it has got another one")
        assert waiting.error is None
        pool.putconn(held)
    assert (guard.size, guard.in_use) == (1, 0)


def test_a_pool_without_a_limit_has_none_after_a_connection_was_cut(make_psycopg_pool: MakePool) -> None:
    pool, guard = make_psycopg_pool(NullConnectionPool, min_size=0, max_size=0)
    with running() as stuck:
        held = pool.getconn()
        assert guard.abandon(stuck) == (1, 0)
        pool.putconn(held)
    assert (guard.size, guard.in_use, pool.max_size) == (0, 0, 0)
    with running(), pool.connection() as first, running(), pool.connection() as second:
        assert first.execute("SELECT 1").fetchone() == second.execute("SELECT 1").fetchone()


def test_a_psycopg_pool_that_differs_is_refused() -> None:
    pool: ConnectionPool[Any] = ConnectionPool(open=False)
    del pool._check
    with pytest.raises(ValueError, match="psycopg_pool has no _check; threadbridge supports version 3"):
        PsycopgPoolGuard(pool)


def test_requests_are_learned_before_they_wait(postgresql_witness: Witness) -> None:
    asked: list[TrackedRequest] = []
    with ConnectionPool(min_size=1, open=True) as pool:
        guard = PsycopgPoolGuard(pool, lambda guard, request: asked.append(request))
        with running() as request:
            with pool.connection():
                pass
            assert asked == [request]
        guard.close()


def test_the_limit_and_the_tag_reach_each_connection(postgresql_witness: Witness) -> None:
    with ConnectionPool(min_size=1, open=True) as pool:
        guard = PsycopgPoolGuard(pool, statement_limit=7, tags_queries=True)
        with running(), pool.connection() as connection:
            assert connection.execute("SHOW statement_timeout").fetchone() == ("7s",)
            [(query,)] = connection.execute("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()")
            assert query.startswith("/* test */ SELECT query")
        guard.close()


def test_the_description_has_no_password() -> None:
    pool: ConnectionPool[Any] = ConnectionPool(
        "host=db password=secret", kwargs={"dbname": "shop", "password": "secret"}, open=False, name="main", min_size=1
    )
    assert describe(pool) == "ConnectionPool main host=db dbname=shop"
