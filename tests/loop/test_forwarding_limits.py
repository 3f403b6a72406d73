"""Which requests are forwarded, how many, and how often."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.nginx_server import Nginx
from tests.support.processes import free_port
from tests.support.raw_server import OK, RawServer, answering
from tests.support.remote_lane import application, frontend, hosts, record_of
from threadbridge import Bridge, Lane
from threadbridge.crossing.estimate import Estimate
from threadbridge.http.intermediary import SENT_BY_LANE, TIME_LEFT
from threadbridge.settings.table import BridgeSettings


def test_the_requests_on_other_hosts_are_limited_in_all_and_for_each_client() -> None:
    go_on = threading.Event()

    def hold(client: socket.socket, request: bytes) -> bool:
        go_on.wait(20)
        client.sendall(OK)
        return True

    def key(headers: Any, address: str) -> str:
        return str(headers["X-Client"])

    with RawServer(hold) as far, frontend(far.url, room=8, client_key=key) as near:
        begun = b"GET /far/ HTTP/1.1\r\nHost: a\r\nX-Client: %d\r\nConnection: close\r\n\r\n"
        clients = [near.send(begun % 1) for _ in range(5)]
        # A client has a quarter.
        statuses = sorted(client.recv(12)[9:] for client in clients[2:])
        assert statuses == [b"503", b"503", b"503"]
        clients += [near.send(begun % number) for number in (2, 2, 3, 3, 4, 4)]
        wait_until(lambda: near.bridge.lanes[0].busy == 8, "all places are taken")
        response, _ = near.request("GET", "/far/", headers={"X-Client": "5"})
        assert (response.status, response.headers["X-Threadbridge-Ran"]) == (503, "no")
        go_on.set()
        for client in clients[:2] + clients[5:]:
            assert b"200 OK" in client.recv(65536)
        for client in clients:
            client.close()


def test_a_forwarded_request_runs_where_it_arrives() -> None:
    """All hosts may have the same configuration."""
    port = free_port()
    here = [Lane("far", "/far/*", upstream=[f"http://127.0.0.1:{port}"])]
    with BridgeThread(application, threads=1, lanes=here, xheaders=True) as far:
        with frontend(f"http://127.0.0.1:{far.port}") as near:
            assert near.request("GET", "/far/")[0].status == 200
        response, _ = far.request("GET", "/far/")
        assert response.status == 503


def test_hosts_that_trust_nobody_do_not_forward_in_circles(caplog: pytest.LogCaptureFixture) -> None:
    with frontend(f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}") as near:
        for host in hosts(near):
            host._origin = host._origin._replace(port=near.port)
        response, _ = near.request("GET", "/far/")
        assert response.status == 502
        # With a 503, each of them would have tried the other host, too.
        assert sum(host.answered + host.refused for host in hosts(near)) == 3
        records = [record_of(near) for _ in range(4)]
        assert [(record.status, record.upstream_error) for record in records if not record.upstream] == [
            (502, "proxy_loop_detected")
        ]
        assert {record.status for record in records} == {502}
        assert "have forwarded it 3 times already" in caplog.text


def test_other_proxies_with_a_similar_name_are_no_loop() -> None:
    with RawServer(answering(OK)) as far, frontend(far.url) as near:
        names = ("threadbridge.example:80", "threadbridge-2 (threadbridge)", "my-threadbridge")
        via = ", ".join(f"1.1 {name}" for name in names)
        assert near.request("GET", "/far/", headers={"Via": via})[0].status == 200
        assert f"Via: {via}, 1.1 threadbridge\r\n".encode() in far.requests[0]


def test_a_client_of_a_trusted_proxy_cannot_pretend_to_be_another_bridge(tmp_path: Path) -> None:
    """Otherwise it could make this host run what other hosts should."""
    here = [Lane("far", "/far/*", upstream=[f"http://127.0.0.1:{free_port()}"])]
    pretended = {SENT_BY_LANE: "far", "Connection": SENT_BY_LANE}
    with BridgeThread(application, threads=1, lanes=here, xheaders=True) as bridge:
        assert bridge.request("GET", "/far/", headers=pretended)[0].status == 200
        # As a proxy passes it on that replaces the field Connection.
        assert bridge.request("GET", "/far/", headers={SENT_BY_LANE: "far"})[0].status == 503
        to_bridge = {f"127.0.0.1:{port}": f"127.0.0.1:{bridge.port}" for port in (8000, 8001)}
        with Nginx("standalone.conf", tmp_path, to_bridge) as nginx:
            assert requests.get(f"{nginx.url}/near", headers=pretended, timeout=20).status_code == 200
            assert requests.get(f"{nginx.url}/far/", headers=pretended, timeout=20).status_code == 503


def test_a_request_with_too_little_time_left_is_refused_at_once() -> None:
    """Another host may have a thread for it."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            entered.set()
            assert go_on.wait(20)
        start_response("200 OK", [])
        return []

    with BridgeThread(wait, threads=1, xheaders=True, long_paths=["/slow"]) as far:
        costs = far.bridge.shared.costs
        assert costs is not None
        for _ in range(20):
            estimate = Estimate(far.bridge.shared.routes.find("GET", "/slow").cost, "/slow", "")
            costs.estimate(estimate)
            costs.learn(estimate, 10.0, 0.0)
        running = far.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert entered.wait(30)
        waiting = far.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: far.bridge.lanes[0].queued == 1, "it waits")
        response, _ = far.request("GET", "/slow", headers={TIME_LEFT: "2000"})
        assert (response.status, response.headers["X-Threadbridge-Ran"]) == (503, "no")
        assert far.bridge.lanes[0].refused_early == 1
        go_on.set()
        for client in (running, waiting):
            assert b"200 OK" in client.recv(65536)
            client.close()


def test_long_requests_go_to_other_hosts_and_short_ones_stay() -> None:
    with BridgeThread(application, threads=1) as far:
        settings: BridgeSettings = {"long_upstream": [f"http://127.0.0.1:{far.port}"], "long_paths": ["/long*"]}
        with BridgeThread(application, threads=1, **settings) as near:
            assert "HTTP_VIA" in json.loads(near.request("GET", "/long/1")[1])
            assert "HTTP_VIA" not in json.loads(near.request("GET", "/short")[1])
        # While nobody is there, they run here.
        settings["long_upstream"] = [f"http://127.0.0.1:{free_port()}"]
        with BridgeThread(application, threads=1, **settings) as near:
            assert near.request("GET", "/long/1")[0].status == 503
            assert "HTTP_VIA" not in json.loads(near.request("GET", "/long/1")[1])


def test_unusable_hosts_are_refused() -> None:
    for url in ("r1:8000", "ftp://r1", "http://", "http://r1:99999", "http://r1/path", "http://a@r1", "http://r1?x"):
        with pytest.raises(ValueError, match="expected http://HOST:PORT"):
            Lane("far", upstream=[url])
    with pytest.raises(ValueError, match="a remote lane needs room for at least 1 request"):
        Bridge(application, threads=1, long_upstream=["http://r1"], queue=0)
    with pytest.raises(ValueError, match="give threads or upstream"):
        Lane("far", threads=1, upstream=["http://r1"])
    with pytest.raises(ValueError, match="give pool or upstream"):
        Lane("far", upstream=["http://r1"], pool=object())
    with pytest.raises(ValueError, match="long_upstream needs schedule=cost"):
        Bridge(application, threads=1, long_upstream=["http://r1"], schedule="fair")
    assert [str(origin) for origin in Lane("far", upstream=["http://r1", "https://[::1]"]).upstream] == [
        "http://r1:80",
        "https://[::1]:443",
    ]
