"""Attacks that would take the server from the others: they cost bounded memory, and the others are served meanwhile."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.processes import ROOT, Frontend, free_port

APPLICATION = """
LARGE = [("Content-Type", "text/plain"), ("Content-Length", "1000000")]

def app(environ, start_response):
    while environ["wsgi.input"].read(65536):
        pass
    if environ["PATH_INFO"] == "/list":
        start_response("200 OK", LARGE)
        return [bytes(1_000_000)]
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", LARGE)
        return (bytes(50_000) for _ in range(20))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]

if __name__ == "__main__":
    import sys
    import threadbridge.connections
    from threadbridge import serve

    # All the other addresses of loopback are those of strangers.
    threadbridge.connections.LOOPBACK = ("127.0.0.1",)
    serve(
        app, threads=4, port=int(sys.argv[1]), admin_port=int(sys.argv[2]), access_log=False, max_connections=300,
        max_connections_per_client=30,
    )
"""
MEGABYTE = 1024 * 1024
MOST_MEMORY = 64 * MEGABYTE
# Generous, for machines that do much else; what is measured is printed.
SLOWEST = 1.0
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def serving(directory: Path) -> Iterator[tuple[Frontend, int]]:
    """The server, and the operators' port."""
    (directory / "attacked.py").write_text(APPLICATION)
    admin_port = free_port()
    arguments = ("-m", "threadbridge", "attacked:app", "--threads=4", "--port={port}", "--logging=warning")
    with Frontend((*arguments, f"--admin_port={admin_port}"), env={"PYTHONPATH": f"{ROOT}:{directory}"}) as server:
        yield server, admin_port


def connect(server: Frontend, number: int) -> socket.socket:
    """A connection that comes from the address of this number, which is not that of the others."""
    client = socket.socket()
    client.settimeout(10)
    # As over a network: with loopback's large segments the kernel would take some megabytes of each response.
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.bind((f"127.0.0.{number}", 0))
    client.connect(("127.0.0.1", server.port))
    return client


def memory_of(server: Frontend) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def lines_in_chunks(client: socket.socket) -> None:
    client.sendall(POST + b"30000\r\n" + b"\r\n\r\n" * 0xC000 + b"\r\n")
    client.sendall((b"30000\r\n" + b"\r\n\r\n" * 0xC000 + b"\r\n") * 3)


def tiny_chunks(client: socket.socket) -> None:
    client.sendall(POST + b"2\r\nab\r\n" * 100_000)


def incomplete_heads(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * 58_000)


def header_names(client: socket.socket) -> None:
    # Each name is another one.
    number = client.getsockname()[1]
    for _ in range(3):
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x%d" % number + b"y" * 60_000 + b": 1\r\n\r\n")


def blank_lines(client: socket.socket) -> None:
    client.sendall(b"\r\n" * 100_000)


def pipelined(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nHost:\r\n\r\n" * 20_000)


def megabytes_in_memory(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"a" * (MEGABYTE - 1000))


def slow_bodies(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"a" * 50_000)
    for _ in range(20):
        client.sendall(b"a")


def unread(client: socket.socket, path: bytes) -> None:
    client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")


def unread_lists(client: socket.socket) -> None:
    unread(client, b"/list")


def unread_streams(client: socket.socket) -> None:
    unread(client, b"/stream")


ATTACKS: list[tuple[Callable[[socket.socket], None], int]] = [
    (lines_in_chunks, 60),
    (tiny_chunks, 40),
    (incomplete_heads, 600),
    (header_names, 300),
    (blank_lines, 100),
    (pipelined, 50),
    (megabytes_in_memory, 100),
    (slow_bodies, 600),
    (unread_lists, 400),
    (unread_streams, 400),
]


class Others:
    """They ask again and again, and note how long that takes, and how the server's memory grows."""

    def __init__(self, server: Frontend, admin_port: int) -> None:
        self._server = server
        self._health = f"http://127.0.0.1:{admin_port}/healthz"
        self.slowest = self.grown = 0.0
        self.ask()
        self._before = memory_of(server)
        self.slowest = 0.0

    def ask(self) -> None:
        for url, expected in ((self._server.url, "hello"), (self._health, "ok\n")):
            start = time.monotonic()
            assert requests.get(url, timeout=30).text == expected
            self.slowest = max(self.slowest, time.monotonic() - start)

    def ask_while(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.start()
        for looks in itertools.count():
            if looks >= 20 and not any(thread.is_alive() for thread in threads):
                return
            self.ask()
            self.grown = max(self.grown, memory_of(self._server) - self._before)

    def check(self, attack: str) -> None:
        print(f"{attack}: others waited {self.slowest * 1000:.0f} ms at most, {self.grown / MEGABYTE:.1f} MB more")
        assert self.slowest < SLOWEST
        assert self.grown < MOST_MEMORY


@pytest.mark.parametrize(("attack", "count"), ATTACKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_attack_takes_neither_the_loop_nor_the_memory(
    attack: Callable[[socket.socket], None], count: int, tmp_path: Path
) -> None:
    with serving(tmp_path) as (server, admin_port):
        others = Others(server, admin_port)
        clients = [connect(server, 2) for _ in range(count)]

        def run(part: list[socket.socket]) -> None:
            for client in part:
                # The server may refuse what it gets, and then takes no more of it.
                with suppress(OSError):
                    attack(client)

        others.ask_while([threading.Thread(target=run, args=(clients[start::8],)) for start in range(8)])
        for client in clients:
            client.close()
        others.check(attack.__name__)


def test_connections_of_a_few_clients_leave_room_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "attacked.py").write_text(APPLICATION)
    admin_port = free_port()
    with Frontend((str(tmp_path / "attacked.py"), "{port}", str(admin_port))) as server, ExitStack() as stack:
        others = Others(server, admin_port)

        def hold(number: int) -> None:
            """Have more connections than it may, each with a request that never ends."""
            for _ in range(100):
                client = stack.enter_context(connect(server, number))
                with suppress(OSError):
                    client.sendall(b"GET / HTTP/1.1\r\nHo")

        others.ask_while([threading.Thread(target=hold, args=(number,)) for number in range(2, 10)])
        with connect(server, 99) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        metrics = requests.get(f"http://127.0.0.1:{admin_port}/metrics", timeout=30).text
        assert f'threadbridge_connections_refused_total{{reason="client"}} {8 * 70}.0' in metrics
        assert 'threadbridge_connections_refused_total{reason="connections"} 0.0' in metrics
        others.check("connections")
