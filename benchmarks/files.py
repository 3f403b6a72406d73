"""What it costs to send a large file: by the application's iteration, and by the server.

``python -m benchmarks.files`` downloads the same file in four ways from one server, in turn, as fast as a client can
read: as the application's own pieces, through ``wsgi.file_wrapper``, by ``X-Sendfile``, and as a static file. It prints
the rates, the server's processor time, and how long another request waits for the only thread while
a client does not read.
"""

from __future__ import annotations

import os
import random
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, median
from wsgiref.types import StartResponse, WSGIEnvironment

from benchmarks.subject import Subject
from tests.support.processes import Frontend

SIZE = 200_000_000
ROUNDS = 9
WAYS = ("/pieces", "/wrapped", "/named", "/static/file")
# Where the server finds the directory of the file.
VARIABLE = "BENCHMARK_FILES"


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Sends the file in the way that the path names."""
    path = Path(os.environ[VARIABLE], "file")
    headers = [("Content-Type", "application/octet-stream")]
    way = environ["PATH_INFO"]
    if way == "/named":
        start_response("200 OK", [*headers, ("X-Sendfile", str(path))])
        return []
    if way not in WAYS:
        start_response("200 OK", headers)
        return [b"hello"]
    start_response("200 OK", [*headers, ("Content-Length", str(path.stat().st_size))])
    if way == "/pieces":
        return pieces(path)
    wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](path.open("rb"))
    return wrapped


def pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes, as frameworks iterate over them."""
    with path.open("rb") as file:
        while piece := file.read(65536):
            yield piece


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "file").write_bytes(bytes(SIZE))
        options = ("--threads=1", "--port={port}", f"--x_sendfile={directory}", f"--static=/static/:{directory}")
        command = ("-m", "threadbridge", "benchmarks.files:app", *options)
        with Frontend(command, env={**os.environ, VARIABLE: directory}) as frontend:
            server = Subject(frontend, {})
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            costs: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(ROUNDS + 1):
                for way in random.Random(number).sample(WAYS, len(WAYS)):
                    rate, cost = download(server, way)
                    # The first round only warms up.
                    if number:
                        rates[way].append(rate)
                        costs[way].append(cost)
            for way in WAYS:
                # The kernel counts processor time in steps of 10 ms: not for single downloads.
                rate, cost = median(rates[way]), mean(costs[way])
                print(
                    f"{way:13} {rate / 1e6:6.0f} MB/s ({rate / median(rates[WAYS[0]]):.2f}), "
                    f"processor {1e12 * cost:4.0f} ms for 1 GB ({cost / mean(costs[WAYS[0]]):.2f})"
                )
            for way in WAYS:
                print(f"{way:13} while it stands still, another request takes {1e3 * other(server, way):.1f} ms")


def download(server: Subject, way: str) -> tuple[float, float]:
    """Bytes for a second, and the server's processor seconds for a byte."""
    began, before = time.monotonic(), server.processor_seconds()
    received, buffer = 0, bytearray(1 << 20)
    with ask(server, way) as client:
        while size := client.recv_into(buffer):
            received += size
    assert received > SIZE
    return received / (time.monotonic() - began), (server.processor_seconds() - before) / received


def other(server: Subject, way: str) -> float:
    """Seconds for a small request while a download stands still."""
    with ask(server, way) as client:
        assert client.recv(8, socket.MSG_WAITALL) == b"HTTP/1.1"
        began = time.monotonic()
        with ask(server, "/") as quick:
            while quick.recv(4096):
                pass
        return time.monotonic() - began


def ask(server: Subject, way: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    client.sendall(f"GET {way} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    return client


if __name__ == "__main__":
    main()
