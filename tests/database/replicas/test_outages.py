"""A replica that is lost: its requests use the primary, and nothing runs twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.database.replicas.conftest import Serve, usable
from tests.database.replicas.stacks import DBUtils, MySQLConnector, SQLAlchemy, Stack
from tests.database.replicas.test_reading import PRIMARY, REPLICA, get
from tests.support.inprocess import wait_until
from tests.support.replication import Server


def test_while_the_replica_is_lost_reports_read_from_the_primary(
    kind: type[Stack], serve: Serve, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "threadbridge")
    with serve(kind) as server:
        [replica] = server.bridge.desk.replicas
        assert get(server, "/reports/server") == (200, REPLICA)
        servers[1].kill()
        # Before it is noticed, the pool has connections that are lost.
        status, found = get(server, "/reports/server")
        assert status == 503 or (status, found) == (200, PRIMARY)
        for _ in range(5):
            assert get(server, "/reports/server") == (200, PRIMARY)
        wait_until(lambda: "reads from the primary, because the replica cannot be asked" in caplog.text, "it is said")
        servers[1].start()
        usable(server)
        # Django finds a kept connection lost only when it uses it.
        wait_until(lambda: get(server, "/reports/server") == (200, REPLICA), "reports read from the replica again")
        said = [line for line in caplog.messages if line.startswith("lane reports: reads from the primary")]
        assert len(said) == 1
        assert replica.read_on_primary >= 5


@pytest.mark.parametrize("stack", [DBUtils, SQLAlchemy, MySQLConnector])
def test_who_cannot_connect_to_the_replica_gets_a_connection_to_the_primary(
    stack: type[Stack], serve: Serve, servers: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    with serve(stack, replica_lag=60) as server:
        [replica] = server.bridge.desk.replicas
        assert get(server, "/reports/server") == (200, REPLICA)
        # Only the request itself notices.
        replica.close()
        assert replica._thread is not None
        replica._thread.join()
        servers[1].kill()
        assert get(server, "/reports/server") == (200, PRIMARY)
        assert "cannot connect to the replica of the lane reports" in caplog.text
        assert (replica.read_here, replica.read_on_primary) == (1, 1)


def test_what_runs_on_a_replica_that_is_lost_does_not_run_again(
    kind: type[Stack], serve: Serve, servers: tuple[Server, Server]
) -> None:
    with serve(kind) as server, ThreadPoolExecutor(1) as clients, servers[1].holding("report"):
        report = clients.submit(get, server, "/reports/hold")
        wait_until(lambda: servers[1].count_of("GET_LOCK('report'") == 1, "the report runs on the replica")
        servers[1].kill()
        assert report.result()[0] == 503
        assert servers[0].count_of("GET_LOCK('report'") == 0
        assert get(server, "/reports/server") == (200, PRIMARY)
