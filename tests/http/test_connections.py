"""How many connections clients may have, which are closed for others, and what those are told that find no place."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
import requests

from tests.support.admin_site import Site
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import Bridge, HTTPServer
from threadbridge.admin.server import MAX_CONNECTIONS
from threadbridge.http.connections import Connections, default_max_connections
from threadbridge.http.limits import Limits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PART = b"GET / HTTP/1.1\r\nHo"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class _Server(HTTPServer):
    """Takes what its peers say on connecting for their addresses: all tests come from loopback."""

    addresses: Iterator[str]

    def _handle_connection(self, connection: socket.socket, address: object) -> None:
        super()._handle_connection(connection, (next(self.addresses), 1))


def serving(addresses: list[str], **limits: int) -> BridgeThread:
    def make(bridge: Bridge) -> HTTPServer:
        server = _Server(bridge, limits=Limits(**limits))
        server.addresses = iter(addresses)
        return server

    return BridgeThread(app, make, threads=1)


def ask(client: socket.socket) -> bytes:
    client.sendall(GET)
    return client.recv(65536)


def is_closed(client: socket.socket) -> bool:
    return client.recv(65536) == b""


def open_connections(server: BridgeThread) -> int:
    [counted] = server.bridge.servers
    return len(counted.connections)


def refused(server: BridgeThread) -> dict[str, int]:
    [counted] = server.bridge.servers
    return counted.refused_connections


def test_the_longest_idle_connection_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(["127.0.0.1"] * 4, max_connections=2) as server, ExitStack() as stack:
        first, second = (stack.enter_context(server.connect()) for _ in range(2))
        assert b"200 OK" in ask(second) and b"200 OK" in ask(first)
        third = stack.enter_context(server.connect())
        assert b"200 OK" in ask(third)
        assert is_closed(second)
        assert b"200 OK" in ask(first)
        fourth = stack.enter_context(server.connect())
        assert b"200 OK" in ask(fourth)
        assert is_closed(third)
        assert open_connections(server) == 2 and server.bridge.servers[0].connections.displaced == 2
    assert "refused" not in caplog.text


def test_what_finds_no_place_is_answered_503_until_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(["127.0.0.1"] * 20, max_connections=2) as server, ExitStack() as stack:
        busy = [stack.enter_context(server.send(PART)) for _ in range(2)]
        wait_until(lambda: open_connections(server) == 2, "both are there")
        for _ in range(10):
            answer = server.exchange(b"")
            assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answer
        assert refused(server) == {"descriptors": 0, "connections": 10, "client": 0}
        wait_until(lambda: caplog.text.count('" 503 46 ') == 10, "each has its line in the access log")
        assert caplog.text.count("max_connections=2 are open") == 1
        busy[0].sendall(b"st: a\r\n\r\n")
        assert b"200 OK" in busy[0].recv(65536)
        with server.connect() as client:
            assert b"200 OK" in ask(client)
        assert is_closed(busy[0])


def test_a_client_has_no_more_than_its_share(caplog: pytest.LogCaptureFixture) -> None:
    one, other, network = "192.0.2.1", "192.0.2.2", [f"2001:db8::{number}" for number in range(3)]
    addresses = [one, one, one, other, *network, "::ffff:192.0.2.1", one]
    with (
        serving(addresses, max_connections=100, max_connections_per_client=2) as server,
        ExitStack() as stack,
    ):
        clients = []

        def connect() -> socket.socket:
            clients.append(stack.enter_context(server.send(PART)))
            return clients[-1]

        connect(), connect()
        assert connect().recv(65536).startswith(b"HTTP/1.1 503 ")
        connect(), connect(), connect()
        assert connect().recv(65536).startswith(b"HTTP/1.1 503 ")
        # As IPv6 sockets write the first one's address.
        assert connect().recv(65536).startswith(b"HTTP/1.1 503 ")
        assert refused(server) == {"descriptors": 0, "connections": 0, "client": 3}
        wait_until(lambda: open_connections(server) == 5, "the others are there")
        # Its own that is idle makes room, and no other's.
        clients[0].sendall(b"st: a\r\n\r\n")
        assert b"200 OK" in clients[0].recv(65536)
        with server.connect() as client:
            assert b"200 OK" in ask(client)
            assert is_closed(clients[0])
    assert "192.0.2.1, which already has max_connections_per_client=2" in caplog.text


def test_one_that_sends_slowly_from_many_connections_makes_room_for_others() -> None:
    one, other, proxy = "192.0.2.1", "192.0.2.2", "127.0.0.1"
    with (
        serving([one, one, one, other, proxy, other], max_connections=3, max_connections_per_client=3) as server,
        ExitStack() as stack,
    ):
        slow = [stack.enter_context(server.send(PART)) for _ in range(3)]
        wait_until(lambda: open_connections(server) == 3, "all are there")
        second = stack.enter_context(server.send(PART))
        assert slow[0].recv(65536).startswith(b"HTTP/1.1 503 ")
        proxied = stack.enter_context(server.send(PART))
        assert slow[1].recv(65536).startswith(b"HTTP/1.1 503 ")
        # Now nobody has more than another.
        assert server.exchange(b"").startswith(b"HTTP/1.1 503 ")
        for client in (slow[2], second, proxied):
            client.sendall(b"st: a\r\n\r\n")
            assert b"200 OK" in client.recv(65536)


def test_proxies_are_not_limited_on_their_own() -> None:
    connections = Connections(trusted_proxies=["192.0.2.0/24", "2001:db8::/32"])
    for address in (("127.0.0.1", 1), ("::1", 1, 0, 0), ("192.0.2.9", 1), ("2001:db8::1", 1, 0, 0), "", b""):
        assert connections.client_of(address) == ""
    assert connections.client_of(("198.51.100.1", 1)) == "198.51.100.1"
    assert (
        connections.client_of(("fe80::1%lo", 1, 0, 1)) == connections.client_of(("fe80::2%lo", 1, 0, 1)) == "fe80::/64"
    )
    with pytest.raises(ValueError):
        Connections(trusted_proxies=["proxy.example.com"])


@pytest.mark.parametrize(("files", "expected"), [(16384, 14336), (1024, 896), (256, 192), (64, 32), (1, 1)])
def test_the_default_leaves_descriptors_for_others(files: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (files, files))
    assert default_max_connections() == expected == Connections().max_connections
    assert Connections().max_connections_per_client == max(1, expected // 4)


def one_was_refused(site: Site) -> bool:
    try:
        return 'threadbridge_connections_refused_total{reason="connections"} 1.0' in site.admin("/metrics").text
    except requests.ConnectionError:
        return False


def test_operators_have_connections_of_their_own(tmp_path: Path) -> None:
    with Site(tmp_path, "--max_connections=1", "--max_connections_per_client=1") as site, ExitStack() as stack:
        busy = site.occupy(stack, "flag")
        for port, count in ((site.port, 1), (site.admin_port, MAX_CONNECTIONS + 1)):
            address = ("127.0.0.1", port)
            clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(count)]
            assert clients[-1].recv(9) == (b"HTTP/1.1 " if port == site.port else b"")
            for client in clients:
                client.close()
        wait_until(lambda: one_was_refused(site), "operators get in again, and see it")
        assert f"the operators' port has {MAX_CONNECTIONS} connections" in site.output()
        site.finish("flag")
        assert busy.recv(15) == b"HTTP/1.1 200 OK"
