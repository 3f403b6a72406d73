"""No stop waits for another: not for one that hangs, nor for one in a database that does not answer."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import MySQLdb
import pytest
from dbutils.pooled_db import PooledDB

from tests.database.test_control_connection import number_of_control
from tests.faults.line import FaultyLine
from tests.support.cancelling import (
    COUNTED_WAIT,
    WAITING,
    Application,
    assert_all_is_well,
    calls_of,
    get,
    kept_controls,
    own_messages,
    query,
)
from tests.support.databases import Witness, connect_settings
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.requests_in_threads import InThread, in_request
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database import bounded_calls
from threadbridge.database.bounded_calls import AT_ONCE, MAX_THREADS, BoundedCalls
from threadbridge.database.driver import StopFailed
from threadbridge.database.pools.dbutils import DBUtilsGuard
from threadbridge.database.stopper import Stopper
from threadbridge.database.stopper_thread import StopperThread


@pytest.fixture
def line(mariadb: dict[str, str]) -> Iterator[FaultyLine]:
    line = FaultyLine(mariadb["MYSQL_UNIX_SOCKET"])
    yield line
    line.close()


def pool_of(mariadb: dict[str, str], size: int, line: FaultyLine | None = None) -> Any:
    settings = connect_settings(mariadb, None if line is None else line.path)
    return PooledDB(MySQLdb, maxconnections=size, **settings)


def waiting_application(pool: Any) -> Application:
    return Application(lambda environ: query(pool, COUNTED_WAIT if environ["QUERY_STRING"] else "SELECT 1"))


def waiting_numbers(witness: Witness) -> list[int]:
    """The thread ids of the connections whose statements wait."""
    rows = witness.rows("SELECT id, info FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
    return [number for number, sql in rows if WAITING in (sql or "")]


def test_stops_do_not_wait_for_one_that_hangs(mariadb: dict[str, str], witness: Witness, line: FaultyLine) -> None:
    before = set(witness.connections)
    # One more than are used, as the lane keeps a thread from requests that take long.
    pool = pool_of(mariadb, 6, line)
    application = waiting_application(pool)
    with BridgeThread(application, pool=pool) as server:
        server.request()
        victim = server.send(get("/?slow"))
        number = witness.wait_for(WAITING)
        others = [server.send(get("/?slow")) for _ in range(4)]
        wait_until(lambda: len(witness.running) == 5, "all run")
        line.swallow_at(b"KILL QUERY %d" % number)
        victim.close()
        wait_until(lambda: line.swallowed == 1, "its KILL hangs")
        for client in others:
            client.close()
        # The driver waits for the KILL for 3 s.
        wait_until(lambda: application.ended == 1 + 4, "the others are free", seconds=2)
        assert waiting_numbers(witness) == [number] and line.swallowed == 1
        line.mend()
        wait_until(lambda: application.ended == 1 + 5, "the last is free")
        assert [error.args[0] for error in application.errors] == [1317] * 5
        assert witness.executions == 5
        assert_all_is_well(pool, witness)
        stopper = server.bridge.desk.first[0].stopper
        wait_until(lambda: stopper.stops == 5, "they are counted")
        assert (stopper.failures, stopper.severed) == (0, 0)
        # The pool's, and one control connection.
        wait_until(lambda: len(set(witness.connections) - before) == 6 + 1, "the other control connections are closed")
    pool.close()


def test_a_database_is_asked_by_few_connections_at_a_time(
    mariadb: dict[str, str], witness: Witness, line: FaultyLine
) -> None:
    before = set(witness.connections)
    pool = pool_of(mariadb, 12, line)
    application = waiting_application(pool)
    with BridgeThread(application, pool=pool) as server:
        server.request()
        clients = [server.send(get("/?slow")) for _ in range(10)]
        wait_until(lambda: len(witness.running) == 10, "all run")
        line.swallow_at(b"KILL QUERY")
        for client in clients:
            client.close()
        wait_until(lambda: line.swallowed == AT_ONCE, "stops hang")
        # Long enough for more.
        time.sleep(5 * bounded_calls.LATE_AFTER)
        assert line.swallowed == AT_ONCE and len(set(witness.connections) - before) == 10 + AT_ONCE
        line.mend()
        wait_until(lambda: application.ended == 1 + 10, "all are free")
        assert_all_is_well(pool, witness)
        wait_until(lambda: len(set(witness.connections) - before) == 12 + 1, "one control connection is left")
    pool.close()


def test_forty_queries_are_stopped_at_once(mariadb: dict[str, str], witness: Witness) -> None:
    pool = pool_of(mariadb, 45)
    application = waiting_application(pool)
    with BridgeThread(application, pool=pool) as server:
        server.request()
        clients = [server.send(get("/?slow")) for _ in range(40)]
        wait_until(lambda: len(witness.running) == 40, "all run")
        for client in clients:
            client.close()
        assert server.request()[0].status == 200
        wait_until(lambda: application.ended == 1 + 40 + 1, "all are free", seconds=2)
        assert [error.args[0] for error in application.errors] == [1317] * 40
        assert witness.executions == 40
        assert_all_is_well(pool, witness)
        stopper = server.bridge.desk.first[0].stopper
        wait_until(lambda: stopper.stops == 40, "they are counted")
        assert (stopper.failures, stopper.severed) == (0, 0)
    pool.close()


def in_waiting_request(pool: Any) -> tuple[TrackedRequest, InThread]:
    return in_request(lambda: query(pool, COUNTED_WAIT))


def test_a_database_that_does_not_answer_delays_no_stop_in_another(
    mariadb: dict[str, str],
    witness: Witness,
    line: FaultyLine,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threadbridge.database.stopper.SEVER_AFTER", 3.0)
    monkeypatch.setattr("threadbridge.database.stopper.ATTEMPT_TIMEOUT", 1.0)
    stopper = Stopper()
    dead, living = pool_of(mariadb, 1, line), pool_of(mariadb, 2)
    guards = [DBUtilsGuard(dead, stopper=stopper), DBUtilsGuard(living, stopper=stopper)]
    lost_request, lost = in_waiting_request(dead)
    witness.wait_for(WAITING)
    requests = [in_waiting_request(living) for _ in range(2)]
    wait_until(lambda: len(witness.running) == 3, "all run")
    line.swallow(new=True)
    lost_request.cancel()
    wait_until(lambda: [len(each._callers) for each in calls_of(stopper)].count(1) == 1, "a stop hangs")
    for (request, worker), seen in zip(requests, ["hangs", "is known to hang"], strict=True):
        request.cancel()
        wait_until(lambda: worker.error is not None, f"stopped while the other database {seen}", seconds=0.8)  # noqa: B023
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
        assert lost.thread.is_alive()
        wait_until(lambda: own_messages(caplog) != [], "the outage is logged")
    [message] = own_messages(caplog)
    assert message.startswith("cannot stop cancelled queries in database ") and f" at {line.path};" in message
    # It is cut in time, and its worker does not wait for the attempts that hang.
    lost.join()
    assert any(caller.is_alive() for calls in calls_of(stopper) for caller in calls._abandoned)
    wait_until(lambda: (stopper.severed, stopper.running) == (1, 1), "it is remembered")
    line.mend()
    wait_until(lambda: stopper.running == 0, "it has ended")
    for guard, pool in zip(guards, [dead, living], strict=True):
        guard.close()
        pool.close()
    # Whoever made it closes it.
    assert stopper.thread is not None
    stopper.close()
    wait_until(lambda: stopper.thread is None, "it has ended")


def test_stops_go_on_once_threads_can_be_started_again(
    mariadb: dict[str, str], witness: Witness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "threadbridge-stopper-call":
            raise RuntimeError("can't start new thread")
        start(thread)

    pool = pool_of(mariadb, 2)
    guard = DBUtilsGuard(pool)
    requests = [in_waiting_request(pool) for _ in range(2)]
    wait_until(lambda: len(witness.running) == 2, "they run")
    number_of_control(pool)
    wait_until(lambda: [len(each._callers) for each in calls_of(guard.stopper)] == [0], "its thread has ended")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for request, _ in requests:
            request.cancel()
        wait_until(lambda: guard.stopper.failures > 0, "no thread can be started")
        assert len(witness.running) == 2
    for _, worker in requests:
        worker.join()
        assert isinstance(worker.error, MySQLdb.OperationalError) and worker.error.args[0] == 1317
    first, second = own_messages(caplog)
    assert first.endswith("trying again: no thread for it: can't start new thread")
    assert second.startswith("cancelled queries can be stopped again in database ")
    guard.close()
    pool.close()


def test_abandoned_calls_are_few_and_forgotten_when_they_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_calls, "OUTAGE_PAUSE", 0.01)
    schedule = StopperThread()
    calls = BoundedCalls(schedule, "it", timeout=0.1)
    outcomes: list[Any] = []
    returns = threading.Event()

    def ask(function: Callable[[], object]) -> object:
        """The outcome of a call that is made."""
        outcomes.clear()
        while outcomes in ([], [None]):
            outcomes.clear()
            schedule.add(time.monotonic(), lambda: calls.call(function, outcomes.append))
            wait_until(lambda: outcomes != [], "there is an outcome")
        return outcomes[0]

    for _ in range(MAX_THREADS):
        assert str(ask(lambda: returns.wait(60))) == "no answer within 0.1 s"
    before = threading.active_count()
    failure = ask(lambda: returns.wait(60))
    assert isinstance(failure, StopFailed) and str(failure) == "8 earlier attempts have not returned"
    assert threading.active_count() == before
    returns.set()
    wait_until(lambda: ask(lambda: "an answer") == "an answer", "it answers again")
    schedule.close()
    wait_until(lambda: threading.active_count() == before - MAX_THREADS - 1, "no thread is left")


@contextmanager
def held_by_another_thread(lock: Any) -> Iterator[None]:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(20)

    holder = InThread(hold)
    assert held.wait(30)
    try:
        yield
    finally:
        release.set()
        holder.join()


def test_a_forked_process_stops_its_own_queries(mariadb: dict[str, str], witness: Witness) -> None:
    pool = pool_of(mariadb, 1)
    with BridgeThread(waiting_application(pool), pool=pool) as server:
        server.request()
        guard: Any = server.bridge.desk.first[0]
        wait_until(lambda: kept_controls(guard) != [], "the control connection is made")
        goes_on, go = os.pipe()
        answers, answer = os.pipe()
        locks = (
            guard.stopper._changed,
            guard.stopper._lock,
            next(iter(guard._database.controls._servers.values()))._lock,
        )
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(held_by_another_thread(lock))
            pid = os.fork()
            if not pid:
                # A child that hangs is killed.
                signal.alarm(20)
                try:
                    request, worker = in_waiting_request(pool)
                    os.read(goes_on, 1)
                    request.cancel()
                    worker.join()
                    os.write(answer, repr(worker.error).encode())
                except BaseException:  # noqa: BLE001 - it is shown
                    traceback.print_exc()
                finally:
                    os._exit(0)
        os.close(answer)
        witness.wait_for(WAITING)
        os.write(go, b"1")
        assert os.read(answers, 1000).startswith(b"OperationalError(1317")
        assert os.waitpid(pid, 0) == (pid, 0)
        assert guard.stopper.stops == 0
        assert_all_is_well(pool, witness)
        for descriptor in (goes_on, go, answers):
            os.close(descriptor)
    pool.close()


def test_calls_that_can_wait_let_others_pass_and_are_made_one_at_a_time() -> None:
    schedule = StopperThread()
    calls = BoundedCalls(schedule, "it", timeout=20)
    made: list[str] = []
    returns = threading.Event()

    def hang(name: str) -> None:
        made.append(name)
        assert returns.wait(20)

    def ask() -> None:
        for number in range(2):
            calls.call(lambda number=number: hang(f"waits {number}"), ended.append, can_wait=True)  # type: ignore[misc]
        for number in range(3):
            calls.call(lambda number=number: made.append(f"{number}"), ended.append)  # type: ignore[misc]

    ended: list[object] = []
    schedule.add(time.monotonic(), ask)
    wait_until(lambda: len(ended) == 3, "the others have passed")
    first = made.index("waits 0")
    assert [*made[:first], *made[first + 1 :]] == ["0", "1", "2"]
    returns.set()
    wait_until(lambda: len(ended) == 5, "all have ended")
    assert made[-1] == "waits 1"
    schedule.close()


def test_once_all_places_are_taken_by_late_calls_none_is_made_until_these_have_ended() -> None:
    schedule = StopperThread()
    calls = BoundedCalls(schedule, "it", timeout=20)
    events = [threading.Event() for _ in range(AT_ONCE)]
    ended: list[object] = []

    def ask() -> None:
        for event in events:
            calls.call(lambda event=event: event.wait(20), ended.append)  # type: ignore[misc]
        calls.call(lambda: "the next", ended.append)

    schedule.add(time.monotonic(), ask)
    wait_until(lambda: calls._is_full, "all are late")
    for number, event in enumerate(events):
        assert ended == [True] * number
        event.set()
        wait_until(lambda number=number: len(ended) > number, "it has ended")  # type: ignore[misc]
    wait_until(lambda: ended == [True] * AT_ONCE + ["the next"], "the next is made")
    schedule.close()
