"""Attacks that would take a server from its other clients, and those others, who see what it costs them."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Event
from pathlib import Path

import requests

from tests.support.processes import ROOT, Frontend, free_port

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
"""
MEGABYTE = 1024 * 1024
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


def large_heads_without_bodies(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nX-A: " + b"a" * 58_000 + b"\r\n\r\n")


def slow_heads(client: socket.socket) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: a")


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


class Others:
    """They ask again and again, and note how long that takes, and how the server's memory grows."""

    def __init__(self, server: Frontend, admin_port: int) -> None:
        self._server = server
        self._health = f"http://127.0.0.1:{admin_port}/healthz"
        self.ask()
        self._before = memory_of(server)
        # The longest time, in seconds, of an answer of the application and of one of /healthz; bytes of memory more.
        self.slowest = self.slowest_health = 0.0
        self.grown = 0

    def ask(self) -> tuple[float, float]:
        """Ask for both; how long that took."""
        taken = []
        for url, expected in ((self._server.url, "hello"), (self._health, "ok\n")):
            start = time.monotonic()
            assert requests.get(url, timeout=30).text == expected
            taken.append(time.monotonic() - start)
        return taken[0], taken[1]

    def ask_while(self, goes_on: Callable[[], bool]) -> None:
        """Ask until this is over, and 20 times at least."""
        for looks in itertools.count():
            if looks >= 20 and not goes_on():
                return
            page, health = self.ask()
            self.slowest, self.slowest_health = max(self.slowest, page), max(self.slowest_health, health)
            self.grown = max(self.grown, memory_of(self._server) - self._before)

    def __str__(self) -> str:
        return (
            f"others waited {self.slowest * 1000:.0f} ms at most, /healthz took {self.slowest_health * 1000:.0f} ms, "
            f"{self.grown / MEGABYTE:.1f} MB more"
        )


def attack_with(attack: Callable[[socket.socket], None], count: int, server: Frontend, others: Others) -> None:
    """Attack on so many connections at once, while the others ask."""
    context = multiprocessing.get_context("fork")
    sent, release = context.Event(), context.Event()
    # A process of its own, so that the others do not wait for the attackers' interpreter.
    attacker = context.Process(target=_attack, args=(attack, count, server, sent, release), daemon=True)
    attacker.start()
    try:
        others.ask_while(lambda: attacker.is_alive() and not sent.is_set())
        assert sent.is_set(), "the attackers have failed"
    finally:
        release.set()
        attacker.join()


def _attack(
    attack: Callable[[socket.socket], None], count: int, server: Frontend, sent: Event, release: Event, threads: int = 8
) -> None:
    # Of a few addresses, for each has 28,000 ports at most.
    clients = [connect(server, 2 + number // 10_000) for number in range(count)]

    def run(part: list[socket.socket]) -> None:
        for client in part:
            # The server may refuse what it gets, and then takes no more of it.
            with suppress(OSError):
                attack(client)

    with ThreadPoolExecutor(threads) as executor:
        list(executor.map(run, [clients[start::threads] for start in range(threads)]))
    sent.set()
    release.wait()
