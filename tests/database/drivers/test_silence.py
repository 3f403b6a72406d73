"""The network falls silent: threads that wait for it come free, and the others go on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.database.drivers.stacks import POSTGRESQL, Stack
from tests.database.drivers.test_contract import compute
from tests.faults.line import FaultyLine
from tests.support.inprocess import wait_until
from tests.support.requests_in_threads import in_request, one, running
from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.pools.dbutils import DBUtilsGuard

pytestmark = pytest.mark.usefixtures("severed_early")

# What each driver sends first that has no time limit of its own; b"" if that is the handshake.
UNLIMITED = {
    "mysqlclient": b"SET NAMES",
    "PyMySQL": b"",
    "mysql-connector-pure": b"SET NAMES",
    "mariadb": b"SET AUTOCOMMIT",
}
WITH_DESCRIPTOR = (*UNLIMITED, *POSTGRESQL)


@pytest.fixture
def line(stack: Stack, tmp_path: Path) -> Iterator[FaultyLine]:
    """A line to the database, which pools then take."""
    is_postgresql = stack.creator.__name__ in POSTGRESQL
    target = f"{os.environ['PGHOST']}/.s.PGSQL.5432" if is_postgresql else stack.settings["unix_socket"]
    with closing(FaultyLine(target)) as line:
        if is_postgresql:
            # libpq finds the socket by its directory.
            os.symlink(line.path, tmp_path / ".s.PGSQL.5432")
            stack.settings["host"] = str(tmp_path)
        else:
            stack.settings["unix_socket"] = line.path
        yield line


def without_timeouts(stack: Stack) -> Callable[..., Any]:
    """Connects like an application's own function, to which no timeouts can be passed."""

    def connect(**settings: Any) -> Any:
        return stack.creator.connect(**settings)

    return connect


def is_noted(guard: DBUtilsGuard, request: TrackedRequest) -> bool:
    """Whether the guard knows the connection that is being made for the request."""
    connection: Any = guard._by_request[request][0].connection
    return connection._newest is not None


@pytest.mark.parametrize("stack", WITH_DESCRIPTOR, indirect=True)
def test_a_query_on_a_silent_line_is_cut_and_its_connection_ended(stack: Stack, line: FaultyLine) -> None:
    pool, guard = stack.pool()
    request, worker = compute(stack, pool, "INSERT INTO notes VALUES ('half')")
    line.swallow(new=False)
    request.cancel()
    worker.join()
    assert isinstance(worker.error, stack.creator.Error) and guard.is_lost(worker.error), worker.error
    wait_until(lambda: (guard.stopper.severed, guard.stopper.running) == (1, 0), "it has ended in the database")
    wait_until(lambda: not stack.is_computing, "nothing runs")
    with running(), closing(pool.connection()) as connection:
        assert one(connection) == 1
    assert stack.notes == []


@pytest.mark.parametrize("creator", ["driver", "function"])
@pytest.mark.parametrize("stack", UNLIMITED, indirect=True)
def test_a_connection_that_falls_silent_while_it_is_made_is_cut(
    stack: Stack, line: FaultyLine, creator: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["stack"]
    pool, guard = stack.pool(None if creator == "driver" else without_timeouts(stack))
    if UNLIMITED[name]:
        line.swallow_at(UNLIMITED[name])
    else:
        line.swallow(new=True)
    cancelled, worker = in_request(pool.connection)
    wait_until(lambda: line.swallowed == 1 and is_noted(guard, cancelled), "it waits for the server")
    cancelled.cancel()
    worker.join()
    assert isinstance(worker.error, stack.creator.Error) and guard.is_lost(worker.error), worker.error
    assert (pool._connections, pool._idle_cache) == (0, [])
    line.mend()


@pytest.mark.parametrize("stack", WITH_DESCRIPTOR, indirect=True)
def test_a_database_host_that_does_not_answer_stops_no_other_thread(stack: Stack, line: FaultyLine) -> None:
    """A driver that waits for the network must not hold the interpreter's lock, whichever thread it waits in."""
    pool, guard = stack.pool()
    request, worker = compute(stack, pool)
    # It accepts connections, and never answers.
    line.swallow(new=True)
    gaps, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.monotonic()
        while not done.wait(0.01):
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    ticker = threading.Thread(target=tick)
    ticker.start()
    request.cancel()
    worker.join()
    wait_until(lambda: guard.stopper.severed == 1 and guard.stopper.failures > 0, "stopping has failed")
    done.set()
    ticker.join()
    line.mend()
    wait_until(lambda: guard.stopper.running == 0, "it has ended in the database")
    assert max(gaps) < 1.0
