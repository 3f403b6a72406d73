"""Attacks that would take the server from the others: they cost bounded memory, and the others are served meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.processes import ROOT, Frontend

APPLICATION = """
def app(environ, start_response):
    while environ["wsgi.input"].read(65536):
        pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]
"""
MEGABYTE = 1024 * 1024
MOST_MEMORY = 64 * MEGABYTE
# Generous, for machines that do much else; what is measured is printed.
SLOWEST = 1.0
POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[Frontend]:
    (directory / "attacked.py").write_text(APPLICATION)
    arguments = ("-m", "threadbridge", "attacked:app", "--threads=4", "--port={port}", "--logging=warning", *options)
    with Frontend(arguments, env={"PYTHONPATH": f"{ROOT}:{directory}"}) as server:
        requests.get(server.url, timeout=10)
        yield server


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


ATTACKS: list[tuple[Callable[[socket.socket], None], int]] = [
    (lines_in_chunks, 60),
    (tiny_chunks, 40),
    (incomplete_heads, 600),
    (header_names, 300),
    (blank_lines, 100),
    (pipelined, 50),
    (megabytes_in_memory, 100),
]


@pytest.mark.parametrize(("attack", "count"), ATTACKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_attack_takes_neither_the_loop_nor_the_memory(
    attack: Callable[[socket.socket], None], count: int, tmp_path: Path
) -> None:
    with serving(tmp_path) as server:
        before = memory_of(server)
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(count)]

        def run(part: list[socket.socket]) -> None:
            for client in part:
                # The server may refuse what it gets, and then takes no more of it.
                with suppress(OSError):
                    attack(client)

        senders = [threading.Thread(target=run, args=(clients[start::8],)) for start in range(8)]
        for sender in senders:
            sender.start()
        slowest = grown = 0.0
        looks = 0
        while any(sender.is_alive() for sender in senders) or looks < 5:
            start = time.monotonic()
            assert requests.get(server.url, timeout=30).text == "hello"
            slowest = max(slowest, time.monotonic() - start)
            grown = max(grown, memory_of(server) - before)
            looks += 1
        for sender in senders:
            sender.join()
        for client in clients:
            client.close()
        print(f"{attack.__name__}: others waited {slowest * 1000:.0f} ms at most, {grown / MEGABYTE:.1f} MB more")
        assert slowest < SLOWEST
        assert grown < MOST_MEMORY
