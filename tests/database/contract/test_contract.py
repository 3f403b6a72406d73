"""What every pool and driver promises.

``CONTRACT_CANCELLATIONS`` says how many requests the test of random cancellations cancels for each stack: 1,000 by
default; 10,000 before a release. Of `VARIANTS`, it cancels a fifth of that.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from tests.database.contract.servers import ACCOUNTS
from tests.database.contract.stacks import VARIANTS, Stack
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import in_request, running
from threadbridge.crossing.current import TrackedRequest, current_or_none

CANCELLATIONS = int(os.environ.get("CONTRACT_CANCELLATIONS", "1000"))

MakeStack = Callable[..., Stack]


def test_a_query_of_a_cancelled_request_is_stopped(make_stack: MakeStack) -> None:
    stack = make_stack()
    request, worker = in_request(lambda: stack.ask(stack.server.compute))
    wait_until(lambda: stack.server.running == 1, "it runs")
    request.cancel()
    worker.join()
    assert isinstance(worker.error, stack.errors)
    wait_until(lambda: stack.server.running == 0, "it has ended in the database")
    assert stack.guard.in_use == 0
    assert [tuple(row) for row in stack.ask("SELECT 42")] == [(42,)]


def test_a_cancelled_request_gets_no_connection(make_stack: MakeStack) -> None:
    stack = make_stack()
    stack.ask("SELECT 1")
    with running() as request:
        request.cancel()
        with pytest.raises(stack.errors):
            stack.ask("INSERT INTO ledger VALUES (1, 1, 2)")
    assert stack.guard.in_use == 0
    assert stack.server.is_consistent


def test_a_cancelled_request_neither_continues_its_transaction_nor_commits_it(make_stack: MakeStack) -> None:
    stack = make_stack()
    for ends in ("execute", "commit"):
        with running() as request:
            with pytest.raises(stack.errors), stack.use() as connection:
                connection.execute("INSERT INTO ledger VALUES (1, 1, 2)")
                request.cancel()
                if ends == "execute":
                    connection.execute("UPDATE accounts SET amount = amount - 1 WHERE id = 1")
                connection.commit()
            assert request.statements.outcome == "rolled back"
    assert stack.server.rows("SELECT * FROM ledger") == []


def test_statements_and_what_became_of_them_are_recorded(make_stack: MakeStack) -> None:
    stack = make_stack()
    # The first connection is examined by some.
    stack.ask("SELECT 1")
    with running() as request:
        stack.transfer(1, 2, 3)
        assert request.statements.outcome == "committed"
        # Django itself sends BEGIN to SQLite.
        insert, *updates = [each for each in request.statements.latest if each.sql != "BEGIN"]
        assert "INSERT INTO ledger" in insert.sql
        assert insert.rows == 1
        assert len(updates) == 2
    with running() as request:
        with stack.use() as connection:
            connection.execute("INSERT INTO ledger VALUES (2, 1, 2)")
            assert request.statements.outcome == "open"
        assert request.statements.outcome == "rolled back"
    with running() as request:
        stack.ask("SELECT 1")
        assert request.statements.outcome == "none"


def test_statements_are_recorded_without_their_parameters(make_stack: MakeStack) -> None:
    stack = make_stack()
    with running() as request:
        stack.transfer(987654321, 2, 3)
        texts = [each.sql for each in request.statements.latest]
        assert any("INSERT INTO ledger" in text for text in texts)
        assert not any("987654321" in text for text in texts)


def test_statements_name_their_request_to_the_database(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    if not stack.server.has_sessions:
        pytest.skip("there is no server with a list of statements")
    stack.guard.tags_queries = True
    request, worker = in_request(lambda: stack.ask(stack.server.compute))
    wait_until(stack.server.computes, "it runs")
    texts = stack.server.texts
    request.cancel()
    worker.join()
    assert f"/* {request.id} */ {stack.server.compute}" in texts


def test_a_stop_never_meets_the_next_request_with_the_same_connection(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    usual = min(_seconds(lambda: stack.ask(stack.server.brief)) for _ in range(5))
    outcomes = {"done": 0, "stopped": 0}
    for number in range(60):
        # While it gets its connection, while its query runs, while it hands back, or afterwards. On a loaded machine,
        # most stops may come too late: some queries never end by themselves, and some are cancelled at their end.
        query = stack.server.compute if number % 20 == 10 else stack.server.brief
        with cancelled_after(usual * (number % 20) / 10) if number % 20 != 19 else running() as request:
            try:
                stack.ask(query)
                request.cancel()
                outcomes["done"] += 1
            except stack.errors:
                assert request.cancelled
                outcomes["stopped"] += 1
        # Not cancelled: whatever it raises is the other one's.
        with running():
            for _ in range(2):
                stack.ask(stack.server.brief)
    assert all(outcomes.values()), outcomes


def test_a_stop_never_meets_the_next_request_if_the_application_keeps_the_connection(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    with stack.use() as connection:
        usual = min(_seconds(lambda: connection.execute(stack.server.brief)) for _ in range(5))
    followed = 0
    for number in range(60):
        # A stopped query may have spoilt the transaction.
        with suppress(stack.errors), stack.use() as connection:
            with cancelled_after(usual * (number % 20) / 10) if number % 20 != 19 else running() as request:
                connection.execute(stack.server.brief)
                # Perhaps a second time.
                request.cancel()
            with running() as next_request:
                for _ in range(3):
                    try:
                        connection.execute(stack.server.brief)
                    except stack.errors as error:
                        raise AssertionError(f"{next_request.id} has met a stop") from error
            followed += 1
    assert followed


def test_a_stop_under_way_does_not_meet_the_rollback(make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = make_stack(1)
    with running():
        stack.ask("SELECT 1")
    events: list[str] = []
    has_changed, is_asking, go_on = threading.Event(), threading.Event(), threading.Event()
    database: Any = stack.guard._database
    stop_query = database.stop_query

    def stop_late(*args: Any, **kwargs: Any) -> bool:
        is_asking.set()
        assert go_on.wait(30)
        try:
            return bool(stop_query(*args, **kwargs))
        finally:
            events.append("asked to stop")

    monkeypatch.setattr(database, "stop_query", stop_late)

    def work() -> None:
        try:
            with stack.use() as connection:
                connection.execute("INSERT INTO ledger VALUES (1, 1, 2)")
                has_changed.set()
                assert is_asking.wait(30)
                connection.rollback()
        finally:
            events.append("rolled back")

    request, worker = in_request(work)
    assert has_changed.wait(30)
    request.cancel()
    assert is_asking.wait(30)
    [borrow] = stack.guard._by_request[request]
    wait_until(lambda: borrow._is_rolling_back, "it is about to roll back")
    go_on.set()
    worker.join()
    # The pool's own block would commit.
    assert worker.error is None or isinstance(worker.error, stack.errors)
    assert events == ["asked to stop", "rolled back"]
    assert stack.server.rows("SELECT * FROM ledger") == []


@contextmanager
def cancelled_after(seconds: float) -> Iterator[TrackedRequest]:
    """A request that this thread serves, and another thread cancels, perhaps when it has ended."""
    begins = threading.Barrier(2)

    def cancel() -> None:
        begins.wait(10)
        time.sleep(seconds)
        request.cancel()

    with running() as request:
        # Not joined: the next request must meet what is under way.
        threading.Thread(target=cancel, daemon=True).start()
        begins.wait(10)
        yield request


def test_waiting_for_a_connection_ends_with_the_request(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    if not stack.guard.size:
        pytest.skip("it never waits")
    with running(), stack.use() as connection:
        connection.execute("SELECT 1")
        request, worker = in_request(lambda: stack.ask("SELECT 1"))
        wait_until(lambda: len(stack.guard.lock._waiters) == 1, "it waits")  # type: ignore[attr-defined]
        request.cancel()
        worker.join()
        assert isinstance(worker.error, stack.errors)
    assert [tuple(row) for row in stack.ask("SELECT 42")] == [(42,)]


def test_a_thread_that_never_comes_back_takes_no_connection_with_it(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    has_one, go_on = threading.Event(), threading.Event()

    def stick() -> None:
        with stack.use() as connection:
            connection.execute("SELECT 1")
            has_one.set()
            go_on.wait(10)

    request, worker = in_request(stick)
    assert has_one.wait(30)
    request.cancel()
    assert stack.guard.abandon(request) == (1, 0)
    assert stack.guard.in_use == 0
    with running():
        assert [tuple(row) for row in stack.ask("SELECT 42")] == [(42,)]
    go_on.set()
    worker.join()
    assert stack.guard.in_use == 0


def test_random_cancellations_hit_no_other_request_and_leave_nothing_half_done(
    name: str, make_stack: MakeStack
) -> None:
    stack = make_stack(6)
    cancellations = CANCELLATIONS // 5 if name in VARIANTS else CANCELLATIONS
    numbers = iter(range(1, 10**9))
    foreign: list[BaseException] = []
    counts = {"cancelled": 0, "done": 0}
    lock = threading.Lock()
    serving: dict[int, TrackedRequest | None] = {}
    stop = threading.Event()

    def serve(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            request = TrackedRequest("test", None)
            with lock:
                number = next(numbers)
                # Half of them may be cancelled.
                serving[seed] = request if number % 2 else None
            request.enter()
            try:
                stack.transfer(number, *chance.sample(range(1, ACCOUNTS + 1), 2))
                with lock:
                    counts["done"] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
                if not request.cancelled and not is_conflict(error):
                    foreign.append(error)
            finally:
                request.leave()
                with lock:
                    counts["cancelled"] += request.cancelled

    threads = [threading.Thread(target=serve, args=(seed,), daemon=True) for seed in range(10)]
    for thread in threads:
        thread.start()
    chance = random.Random(99)
    give_up = time.monotonic() + 30 + cancellations * 0.06
    while (
        (counts["cancelled"] < cancellations or counts["done"] <= cancellations // 10)
        and not foreign
        and time.monotonic() < give_up
    ):
        with lock:
            each = serving.get(chance.randrange(10))
            # Some connect again after each cancellation, and would never be done otherwise.
            is_ahead = counts["cancelled"] > 9 * counts["done"] + 100
        if each is not None and not is_ahead:
            each.cancel()
        stop.wait(chance.random() / 500)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert foreign == []
    assert counts["cancelled"] >= cancellations and counts["done"] > cancellations // 10, counts
    assert stack.guard.in_use == 0
    wait_until(lambda: stack.server.running == 0, "nothing runs")
    assert stack.server.is_consistent
    assert len(stack.server.rows("SELECT id FROM ledger")) >= counts["done"]
    assert current_or_none() is None


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def is_conflict(error: Exception) -> bool:
    """Whether two transfers came into each other's way, which has nothing to do with cancellation."""
    original = getattr(error, "orig", error.__cause__ or error)
    return (
        original.args[:1] in ((1213,), (1020,))
        # SQLite's "database is locked".
        or getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        or getattr(original, "sqlstate", None) == "40P01"
        or (getattr(original, "pgcode", None) == "40P01")
    )
