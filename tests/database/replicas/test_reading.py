"""Which requests read from the replica, and what they may do there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.database.replicas.conftest import Serve
from tests.database.replicas.stacks import DBUtils, Django, Stack
from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.replication import ADMINISTRATOR, PRIMARY_ID, REPLICA_ID, Server
from threadbridge import on_replica

PRIMARY, REPLICA = str(PRIMARY_ID), str(REPLICA_ID)


def get(server: BridgeThread, path: str, cookie: str = "", method: str = "GET") -> tuple[int, str]:
    """The response's status and body."""
    response, body = server.request(method, path, headers={"Cookie": cookie} if cookie else {})
    return response.status, body.decode()


def test_reports_read_from_the_replica_and_nothing_else(kind: type[Stack], serve: Serve) -> None:
    with serve(kind) as server:
        assert get(server, "/reports/server") == (200, REPLICA)
        assert get(server, "/server") == (200, PRIMARY)
        assert get(server, "/reports/server", method="HEAD")[0] == 200
        assert get(server, "/reports/server", method="POST") == (200, PRIMARY)
        assert not on_replica()
        [replica] = server.bridge.desk.replicas
        assert (replica.read_here, replica.read_on_primary) == (2, 0)
        assert replica.stands_in == (kind is not Django)


def test_reports_hold_up_no_page(serve: Serve, servers: tuple[Server, Server]) -> None:
    with serve(DBUtils) as server, servers[1].holding("report"), ThreadPoolExecutor(8) as clients:
        reports = [clients.submit(get, server, "/reports/hold") for _ in range(8)]
        # As many as the lane has threads; the others wait.
        wait_until(lambda: servers[1].count_of("GET_LOCK('report'") == 3, "the reports run")
        for _ in range(20):
            assert get(server, "/server") == (200, PRIMARY)
        assert not any(report.done() for report in reports)
        assert servers[0].count_of("GET_LOCK('report'") == 0
        servers[1].let_go()
        assert [report.result() for report in reports] == [(200, REPLICA)] * 8


def test_a_client_that_leaves_stops_its_query_on_the_replica(
    kind: type[Stack], serve: Serve, servers: tuple[Server, Server]
) -> None:
    with serve(kind) as server, servers[1].holding("report"):
        client = server.send(b"GET /reports/hold HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: servers[1].count_of("GET_LOCK('report'") == 1, "the report runs on the replica")
        reset(client)
        wait_until(lambda: servers[1].count_of("GET_LOCK('report'") == 0, "its query is stopped")
        wait_until(lambda: server.bridge.lanes[0].busy == 0, "its thread is free")
        assert get(server, "/reports/server") == (200, REPLICA)


@pytest.mark.parametrize("account", [None, ADMINISTRATOR], ids=["ordinary", "administrator"])
def test_a_change_on_the_replica_is_refused(
    kind: type[Stack],
    account: dict[str, str] | None,
    serve: Serve,
    servers: tuple[Server, Server],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Without the limit, mysql-connector's pool has no other reason to prepare its connections again.
    with serve(kind, account=account, statement_limit=0) as server:
        for _ in range(5):
            # One more than there are connections, so that one is used again.
            assert get(server, "/reports/server") == (200, REPLICA)
        status, _ = get(server, "/reports/change")
        assert status == 500
        assert "a change was refused, because the pool of the lane reports leads to a replica" in caplog.text
        for each in servers:
            assert each.rows("SELECT COUNT(*) FROM myapplication.orders WHERE id = 4711") == [(0,)]
        # It is no reason to do without the replica.
        assert get(server, "/reports/server") == (200, REPLICA)
        assert get(server, "/change") == (200, "none")
        assert servers[0].rows("DELETE FROM myapplication.orders WHERE id = 4711") == []


def test_temporary_tables_are_no_change(kind: type[Stack], serve: Serve) -> None:
    with serve(kind) as server:
        assert get(server, "/reports/temporary") == (200, REPLICA)


def test_long_requests_read_from_the_replica_if_the_application_allows_it(serve: Serve) -> None:
    asked: list[tuple[str, int]] = []

    def may_read(environ: dict[str, Any]) -> bool:
        asked.append((environ["PATH_INFO"], threading.get_ident()))
        if "broken" in environ["PATH_INFO"]:
            raise KeyError("a mistake")
        return "private" not in environ["PATH_INFO"]

    with serve(DBUtils, pattern="", replica_for=may_read, long_paths=["/long/*"]) as server:
        assert get(server, "/long/server") == (200, REPLICA)
        assert get(server, "/long/server", method="POST") == (200, PRIMARY)
        assert get(server, "/server") == (200, PRIMARY)
        assert get(server, "/long/private/server") == (200, PRIMARY)
        assert get(server, "/long/broken/server") == (200, PRIMARY)
        assert get(server, "/reports/server") == (200, PRIMARY)
        assert [path for path, _ in asked] == ["/long/server", "/long/private/server", "/long/broken/server"]
        # Its route still belongs to the pool's lane.
        lanes = {path: route.lane for _, path, route in server.bridge.shared.routes.all()}
        assert lanes["/long/server"] in (None, server.bridge.lane_choice.main)


def test_long_requests_take_no_place_of_others(serve: Serve, servers: tuple[Server, Server]) -> None:
    def may_read(environ: dict[str, Any]) -> bool:
        return not environ["QUERY_STRING"]

    with (
        serve(DBUtils, pattern="", replica_for=may_read, long_paths=["/long/*"]) as server,
        servers[1].holding("report"),
        servers[0].holding("report"),
        ThreadPoolExecutor(5) as clients,
    ):
        reports, main = server.bridge.lanes[0], server.bridge.lane_choice.main
        asked = [clients.submit(get, server, "/long/hold") for _ in range(4)]
        wait_until(lambda: servers[1].count_of("GET_LOCK('report'") == 3, "three run")
        wait_until(lambda: reports.queued == 1, "one waits")
        assert main.free == main.threads
        # It is the first of its route to ask the primary, which says where the route belongs.
        asked.append(clients.submit(get, server, "/long/hold?private"))
        wait_until(lambda: servers[0].count_of("GET_LOCK('report'") == 1, "it runs on the primary")
        wait_until(lambda: main.free == main.threads - 1, "it takes a place there")
        assert reports.queued == 1
        for each in servers:
            each.let_go()
        assert [each.result() for each in asked] == [(200, REPLICA)] * 4 + [(200, PRIMARY)]
