"""What every pool and driver promises for the time when its database cannot be reached, and after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.database.contract.servers import Server
from tests.database.contract.stacks import Stack
from tests.faults.line import FaultyLine
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import in_request, running

MakeStack = Callable[..., Stack]


@pytest.fixture(autouse=True)
def _has_sessions(server: Server) -> None:
    if not server.has_sessions:
        pytest.skip("a file is always in reach")


@pytest.fixture
def over_line(server: Server) -> Iterator[tuple[Server, FaultyLine]]:
    """Comes before `make_stack` among a test's arguments: the line must outlive the stack."""
    with server.behind_line() as found:
        yield found


def answers(stack: Stack) -> bool:
    """Whether it answers a request; if not, the error must be an outage."""
    with running():
        try:
            return [tuple(row) for row in stack.ask("SELECT 42")] == [(42,)]
        except stack.errors as error:
            assert stack.guard.is_outage(error), repr(error)
            return False


def test_a_connection_that_the_server_has_ended_fails_at_most_once(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    assert answers(stack)
    stack.server.end_sessions()
    outcomes = [answers(stack) for _ in range(3)]
    assert outcomes[1:] == [True, True]
    assert stack.guard.in_use == 0


def test_a_query_whose_session_ends_fails_as_an_outage_and_leaves_nothing(make_stack: MakeStack) -> None:
    stack = make_stack(1)
    request, worker = in_request(lambda: stack.transfer_slowly(1, 2, 3))
    wait_until(stack.server.computes, "it runs")
    stack.server.end_sessions()
    worker.join()
    assert worker.error is not None and stack.guard.is_outage(worker.error), repr(worker.error)
    assert request.statements.outcome == "rolled back"
    assert stack.guard.in_use == 0
    assert answers(stack)
    assert stack.server.rows("SELECT * FROM ledger") == []


def test_without_a_line_to_the_server_requests_fail_as_an_outage_until_there_is_one(
    over_line: tuple[Server, FaultyLine], make_stack: MakeStack
) -> None:
    over, line = over_line
    stack = make_stack(1, over)
    assert answers(stack)
    hidden = Path(line.path).rename(f"{line.path}.hidden")
    line.cut()
    # The first may have the connection that was cut. A pool that connects by itself makes requests wait anyway.
    outcomes = [answers(stack) for _ in range(2 if stack.connects_in_requests else 1)]
    assert not any(outcomes)
    assert stack.guard.in_use == 0
    assert stack.guard.last_outage > stack.guard.last_success
    hidden.rename(line.path)
    wait_until(lambda: answers(stack), "it answers again")
    assert stack.guard.in_use == 0


def test_a_thread_that_never_finishes_connecting_takes_no_connection_with_it(
    over_line: tuple[Server, FaultyLine], make_stack: MakeStack
) -> None:
    over, line = over_line
    stack = make_stack(1, over)
    if not stack.connects_in_requests:
        pytest.skip("the pool connects in threads of its own, or when it is made")
    line.swallow(new=True)
    request, worker = in_request(lambda: stack.ask("SELECT 1"))
    wait_until(lambda: line.swallowed > 0 and stack.guard.in_use == 1, "it connects")
    # Cancelled only now: if it does not wait for an answer yet, it would end by itself.
    assert stack.guard.abandon(request) == (1, 0)
    request.cancel()
    assert stack.guard.in_use == 0
    line.swallow(new=False)
    # While that thread still tries.
    assert answers(stack)
    line.mend()
    worker.join()
    assert isinstance(worker.error, stack.errors)
    wait_until(lambda: answers(stack), "it answers again")
    assert stack.guard.in_use == 0
