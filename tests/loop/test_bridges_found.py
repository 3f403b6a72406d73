"""A server finds the bridges behind routers, so that metrics, records and bounds are those of a bridge in front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from tornado.routing import PathMatches, Rule, RuleRouter
from tornado.web import Application, FallbackHandler, RequestHandler

from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, HTTPServer
from threadbridge.admin.metrics import exposition
from threadbridge.http.limits import Limits
from threadbridge.telemetry.record import Record


class Native(RequestHandler):
    def get(self) -> None:
        self.write("from tornado")


def answer(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


def in_front(bridge: Bridge) -> Any:
    return bridge


def in_a_router(bridge: Bridge) -> Any:
    return RuleRouter(
        [Rule(PathMatches("/native"), Application([("/native", Native)])), Rule(PathMatches("/.*"), bridge)]
    )


def in_a_router_in_a_router(bridge: Bridge) -> Any:
    return RuleRouter([Rule(PathMatches("/.*"), in_a_router(bridge))])


def in_an_application(bridge: Bridge) -> Any:
    return Application([("/native", Native), ("/.*", bridge)])


def in_a_fallback(bridge: Bridge) -> Any:
    return Application([("/native", Native), (".*", FallbackHandler, {"fallback": bridge})])


def in_a_fallback_in_a_router(bridge: Bridge) -> Any:
    return RuleRouter([Rule(PathMatches("/.*"), in_a_fallback(bridge))])


PLACES = [in_front, in_a_router, in_a_router_in_a_router, in_an_application, in_a_fallback, in_a_fallback_in_a_router]
everywhere = pytest.mark.parametrize("place", PLACES)


def site(place: Callable[[Bridge], Any], **parameters: Any) -> BridgeThread:
    limits = Limits(max_connections=7, max_connections_per_client=5)
    return BridgeThread(answer, lambda bridge: HTTPServer(place(bridge), limits=limits), threads=1, **parameters)


@everywhere
def test_metrics_count_the_connections_of_the_server(place: Callable[[Bridge], Any]) -> None:
    def lines() -> list[str]:
        shown: list[bytes] = []
        server.loop.call_soon_threadsafe(lambda: shown.append(exposition(server.bridge, True)))
        wait_until(lambda: bool(shown), "the loop gives the metrics")
        return shown[0].decode().splitlines()

    with site(place) as server, server.connect(), server.connect():
        wait_until(lambda: "threadbridge_open_connections 2.0" in lines(), "both are counted")
        assert "threadbridge_connection_limit 7.0" in lines()
        assert server.request(path="/page")[1] == b"/page"


@everywhere
def test_refused_requests_are_recorded(place: Callable[[Bridge], Any]) -> None:
    with site(place) as server:
        records: list[Record] = []
        server.bridge.telemetry.subscribe(records.extend)
        assert server.exchange(b"BAD\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        wait_until(lambda: len(records) == 1, "it is recorded")
    assert (records[0].method, records[0].status, records[0].ending) == ("BAD", 400, "refused")


@everywhere
def test_the_server_keeps_to_the_memory_of_the_bridge(place: Callable[[Bridge], Any]) -> None:
    bridge = Bridge(answer, threads=1, memory_size=12345)
    server = HTTPServer(place(bridge))
    assert (server.memory, server.unread) == (bridge.spool.memory, bridge.spool.unread)
    bridge.close()
    bridge.join()


@everywhere
def test_proxies_that_the_bridge_trusts_are_not_limited(place: Callable[[Bridge], Any]) -> None:
    bridge = Bridge(answer, threads=1, trusted_proxies=["203.0.113.0/24"])
    server = HTTPServer(place(bridge))
    assert server.connections.client_of(("203.0.113.9", 1)) == ""
    assert server.connections.client_of(("198.51.100.9", 1)) == "198.51.100.9"
    bridge.close()
    bridge.join()


def test_each_of_several_bridges_counts_the_connections_and_the_first_records_what_is_refused() -> None:
    second = Bridge(answer, threads=1)
    recorded: dict[str, list[Record]] = {"first": [], "second": []}

    def both(first: Bridge) -> HTTPServer:
        first.telemetry.subscribe(recorded["first"].extend)
        second.telemetry.subscribe(recorded["second"].extend)
        rules = [Rule(PathMatches("/first"), first), Rule(PathMatches("/second"), second)]
        return HTTPServer(RuleRouter([*rules, Rule(PathMatches("/also"), first)]))

    with BridgeThread(answer, both, threads=1) as server:
        assert [server.request(path=path)[1] for path in ("/first", "/second", "/also")] == [
            b"/first",
            b"/second",
            b"/also",
        ]
        assert server.bridge.servers == second.servers
        assert len(second.servers) == 1
        assert server.exchange(b"BAD\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        wait_until(lambda: len(recorded["first"]) == 3 and len(recorded["second"]) == 1, "all are recorded")
        second.close()
    second.join()
    assert [record.status for record in recorded["first"]] == [200, 200, 400]
