"""Which requests are forwarded, how many, and how often."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from tests.support.inprocess import BridgeThread, wait_until
from tests.support.processes import free_port
from tests.support.raw_server import OK, RawServer
from tests.support.remote_lane import application, frontend, hosts, record_of
from threadbridge import Bridge, Lane
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
    with frontend(f"http://127.0.0.1:{free_port()}") as near:
        [host] = hosts(near)
        host._origin = host._origin._replace(port=near.port)
        response, _ = near.request("GET", "/far/")
        assert response.status == 503
        records = [record_of(near) for _ in range(4)]
        assert {record.status for record in records} == {503}
        assert "have forwarded it 3 times already" in caplog.text


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
    with pytest.raises(ValueError, match="give threads or upstream"):
        Lane("far", threads=1, upstream=["http://r1"])
    with pytest.raises(ValueError, match="long_upstream needs schedule=cost"):
        Bridge(application, threads=1, long_upstream=["http://r1"], schedule="fair")
    assert [str(origin) for origin in Lane("far", upstream=["http://r1", "https://[::1]"]).upstream] == [
        "http://r1:80",
        "https://[::1]:443",
    ]
