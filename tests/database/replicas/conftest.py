"""A primary and its replica, and applications that use them in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.database.replicas.stacks import STACKS, Stack
from tests.support.inprocess import BridgeThread, wait_until
from tests.support.replication import Server, replicated
from threadbridge import Lane


@pytest.fixture(scope="session")
def both() -> Iterator[tuple[Server, Server]]:
    """The two servers; a test restores what it changes."""
    with replicated() as (primary, replica):
        primary.rows("CREATE TABLE myapplication.orders (id BIGINT PRIMARY KEY) ENGINE=InnoDB")
        yield primary, replica


@pytest.fixture
def servers(both: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """The same; the replica is looked at more often, and follows the primary again when the test ends."""
    monkeypatch.setattr("threadbridge.database.replica.INTERVAL", 0.05)
    monkeypatch.setattr("threadbridge.database.replica.PATIENCE", 0.1)
    yield both
    primary, replica = both
    if replica.process is None:
        replica.start()
    replica.rows("SET GLOBAL read_only = 1")
    replica.rows("START SLAVE")
    follows(primary, replica)


def follows(primary: Server, replica: Server) -> None:
    """Wait until the replica has what the primary has."""
    [(position,)] = primary.rows("SELECT @@gtid_binlog_pos")
    assert replica.rows(f"SELECT MASTER_GTID_WAIT('{position}', 30)") == [(0,)]


Serve = Callable[..., Any]


@pytest.fixture(params=STACKS)
def kind(request: pytest.FixtureRequest) -> type[Stack]:
    """Each way in which an application may use the two."""
    found: type[Stack] = request.param
    return found


@pytest.fixture
def serve(servers: tuple[Server, Server]) -> Serve:
    """Serves a stack with a lane for reports, which read from the replica from the start, unless the test says not."""

    @contextmanager
    def serving(
        kind: type[Stack],
        *,
        pattern: str = "/reports/*",
        watches: bool = True,
        waits: bool = True,
        account: Any = None,
        **settings: Any,
    ) -> Iterator[BridgeThread]:
        stack = kind(*(server.settings | (account or {}) for server in servers))
        lane = Lane("reports", pattern, threads=3, pool=stack.replica)
        try:
            with BridgeThread(stack.application, pool=stack.primary, threads=4, lanes=[lane], **settings) as server:
                if watches:
                    # Not only when the first request comes.
                    server.bridge.desk.watch_replicas()
                if watches and waits:
                    usable(server)
                yield server
        finally:
            stack.close()

    return serving


def usable(server: BridgeThread) -> None:
    """Wait until reports read from the replica."""
    [replica] = server.bridge.desk.replicas
    wait_until(lambda: replica.may_read(0.0), "the replica is known to follow the primary")
