"""Waiting for a connection of a guarded pool: in which order, and for how long."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import MySQLdb
import pytest
from dbutils.pooled_db import TooManyConnectionsError

from tests.support.databases import Witness
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import InThread, in_request, one, running, waits
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("method", ["connection", "dedicated_connection"])
def test_a_request_waits_for_a_connection(make_pool: Callable[..., Any], blocking: bool, method: str) -> None:
    pool = make_pool(maxconnections=1, blocking=blocking)
    DBUtilsGuard(pool)
    held = pool.connection()

    def use() -> Any:
        with closing(getattr(pool, method)()) as connection:
            return one(connection, "SELECT 42")

    workers = [in_request(use)[1] for _ in range(3)]
    wait_until(waits(pool, 3), "three requests wait")
    held.close()
    for worker in workers:
        worker.join()
    assert [worker.result for worker in workers] == [42, 42, 42]
    assert pool._connections == 0 and len(pool._idle_cache) == 1


@pytest.mark.parametrize("blocking", [False, True])
def test_waiting_for_a_connection_ends_when_the_request_is_cancelled(
    make_pool: Callable[..., Any], blocking: bool
) -> None:
    pool = make_pool(maxconnections=1, blocking=blocking)
    DBUtilsGuard(pool)
    with closing(pool.connection()):
        request, worker = in_request(pool.connection)
        wait_until(waits(pool), "the request waits")
        request.cancel()
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    assert pool._connections == 0
    with closing(pool.connection()) as connection:
        assert one(connection) == 1


def test_a_cancelled_request_passes_the_connection_on(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    held = pool.connection()
    first, first_worker = in_request(pool.connection)
    wait_until(waits(pool), "the first waits")
    _, second_worker = in_request(lambda: one(pool.connection()))
    wait_until(waits(pool, 2), "the second waits")
    with pool._lock:
        # The notification goes to the first, which is cancelled before it can wake up.
        held.close()
        first.cancelled = True
    for worker in (first_worker, second_worker):
        worker.join()
    assert isinstance(first_worker.error, MySQLdb.OperationalError) and second_worker.result == 1


def test_a_request_does_not_wait_for_itself(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with running(), closing(pool.connection()) as connection:
        with pytest.raises(TooManyConnectionsError):
            pool.connection()
        assert one(connection) == 1
    assert pool._connections == 0


def test_with_a_pool_that_does_not_block_no_request_waits_past_its_deadline(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    with closing(pool.connection()), running(deadline=time.monotonic() + 0.2), pytest.raises(TooManyConnectionsError):
        pool.connection()
    assert pool._connections == 0


def test_the_applications_own_threads_are_left_alone(make_pool: Callable[..., Any], witness: Witness) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    request = TrackedRequest("other", None)
    with closing(pool.connection()) as connection:
        with pytest.raises(TooManyConnectionsError):
            pool.connection()
        request.cancel()
        assert one(connection, "SELECT 42") == 42
    blocking = make_pool(maxconnections=1, blocking=True)
    DBUtilsGuard(blocking)
    held = blocking.connection()
    worker = InThread(blocking.connection)
    wait_until(waits(blocking), "the thread waits")
    held.close()
    worker.join()
    assert one(worker.result) == 1


def test_requests_get_connections_in_the_order_in_which_they_came(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=1)
    DBUtilsGuard(pool)
    held = pool.connection()
    order: list[int] = []

    def use(number: int) -> None:
        with closing(pool.connection()):
            order.append(number)

    workers = []
    for number in range(5):
        workers.append(in_request(partial(use, number))[1])
        wait_until(waits(pool, number + 1), "it waits")
    held.close()
    for worker in workers:
        worker.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_request_that_holds_a_connection_does_not_wait_in_line_for_another(make_pool: Callable[..., Any]) -> None:
    pool = make_pool(maxconnections=2, blocking=True)
    DBUtilsGuard(pool)
    has_one, may_ask = threading.Event(), threading.Event()

    def use_two() -> Any:
        with closing(pool.connection()):
            has_one.set()
            assert may_ask.wait(30)
            with closing(pool.connection()) as connection:
                return one(connection)

    _, worker = in_request(use_two)
    assert has_one.wait(30)
    held = pool.connection()
    in_line = in_request(lambda: pool.connection().close())[1]
    wait_until(waits(pool), "another waits")
    may_ask.set()
    held.close()
    worker.join()
    in_line.join()
    assert (worker.error, worker.result, in_line.error) == (None, 1, None)


def test_a_forked_process_does_not_wait_in_its_parents_line(make_pool: Callable[..., Any]) -> None:
    def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    pool = make_pool(maxconnections=1, blocking=True)
    with BridgeThread(application, pool=pool) as server:
        # From its first request on, a server takes care of forked processes.
        assert server.request()[0].status == 204
        held = pool.connection()
        worker = in_request(lambda: pool.connection().close())[1]
        wait_until(waits(pool), "a request waits")
        child = os.fork()
        if child == 0:
            # Ends the child if it waits, and shows where.
            faulthandler.dump_traceback_later(60, exit=True, file=2)
            try:
                with closing(pool.connection()) as connection:
                    os._exit(one(connection, "SELECT 42"))
            except BaseException:  # noqa: BLE001 - it is shown
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
        held.close()
        worker.join()
        assert worker.error is None
