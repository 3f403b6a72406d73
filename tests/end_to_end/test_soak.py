"""Everything at once for a while, and afterwards nothing is left of it.

It lasts ``SOAK_SECONDS``, 10 by default; ten minutes before a release.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
# Until the process has grown to the size that it keeps; on a loaded machine few requests are answered in the time.
WARM_UP_SECONDS, WARM_UP_REQUESTS = 10.0, 2000
CLIENTS = 12
# As tests.support.soak_application has it, which cannot be imported without its database.
PIECE = bytes(range(256)) * 256


class Client(threading.Thread):
    """Sends random requests until it is told to stop; counts what came of them, and keeps the first wrong answer."""

    def __init__(self, port: int, seed: int, until: float) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.wrong: str | None = None
        self._port = port
        self._random = random.Random(seed)
        self._until = until
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def run(self) -> None:
        actions = [self.fast] * 8 + [self.query] * 4 + [self.slow, self.stream, self.drip, self.file, self.fail]
        actions += [self.upload] * 2 + [self.chunked_upload] + [self.leave] * 3 + [self.stall, self.garbage]
        while time.monotonic() < self._until and self.wrong is None:
            action = self._random.choice(actions)
            try:
                action()
            except OSError as error:
                self.wrong = f"{action.__name__}: {error!r}"
            self.outcomes[action.__name__] += 1
        self._connection.close()

    def ask(self, path: str, expected: bytes | None, status: int = 200, body: object = None) -> None:
        method = "GET" if body is None else "POST"
        self._connection.request(method, path, body=body, encode_chunked=not isinstance(body, bytes | None))  # type: ignore[arg-type]
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != status or (expected is not None and answer != expected):
            self.wrong = f"{method} {path}: {response.status} {answer[:100]!r}"

    def fast(self) -> None:
        self.ask("/", b"fast")

    def query(self) -> None:
        self.ask("/query", None)

    def slow(self) -> None:
        self.ask("/query?n=0.2", None)

    def stream(self) -> None:
        count = self._random.randint(1, 60)
        self.ask(f"/stream?n={count}", PIECE * count)

    def drip(self) -> None:
        self.ask("/drip?n=0.02", PIECE * 5)

    def file(self) -> None:
        count = self._random.randint(0, 60)
        self.ask(f"/file?n={count}", PIECE * count)

    def fail(self) -> None:
        self.ask("/raise", None, status=500)

    def upload(self) -> None:
        body = self._random.randbytes(self._random.choice([10, 100_000, 3_000_000]))
        self.ask("/upload", hashlib.sha256(body).hexdigest().encode(), body=body)

    def chunked_upload(self) -> None:
        body = self._random.randbytes(1_500_000)
        pieces = (body[start : start + 50_000] for start in range(0, len(body), 50_000))
        self.ask("/upload", hashlib.sha256(body).hexdigest().encode(), body=pieces)

    def leave(self) -> None:
        """Ask for something and go, at once or after some of the answer."""
        path = self._random.choice(["/query?n=5", "/stream?n=1000", "/drip?n=0.5", "/file?n=500", "/"])
        with self.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            if self._random.random() < 0.5:
                client.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    client.recv(65536)

    def stall(self) -> None:
        """Begin an upload, and go."""
        with self.connect() as client:
            client.sendall(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n")
            client.sendall(bytes(self._random.choice([0, 1000, 2_000_000])))

    def garbage(self) -> None:
        with self.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n")
            client.recv(65536)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=30)


class Footprint:
    """What a process holds, read from /proc."""

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")

    @property
    def threads(self) -> int:
        return len(list((self._process / "task").iterdir()))

    @property
    def files(self) -> list[str]:
        """What its descriptors refer to, but for sockets of the database, of which there may be as many as allowed."""
        found = []
        for link in (self._process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(link))
        return found

    @property
    def temporary_files(self) -> int:
        return sum(name.endswith("(deleted)") for name in self.files)

    @property
    def memory(self) -> int:
        """Resident kilobytes."""
        line = next(line for line in (self._process / "status").read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1])


def load(port: int, seconds: float, seed: int) -> Counter[str]:
    clients = [Client(port, seed + number, time.monotonic() + seconds) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    outcomes: Counter[str] = Counter()
    for client in clients:
        client.join()
        assert client.wrong is None, client.wrong
        outcomes += client.outcomes
    return outcomes


def established(port: int) -> int:
    local = f"0100007F:{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[1] == local and fields[3] == "01" for fields in lines)


@pytest.mark.parametrize("seed", [1])
def test_nothing_is_left_of_a_long_and_mixed_load(seed: int, mariadb: dict[str, str]) -> None:
    arguments = (
        "-m",
        "threadbridge",
        "tests.support.soak_application:app",
        "--pool=tests.support.soak_application:pool",
    )
    with Frontend((*arguments, "--port={port}", "--logging=none"), env=mariadb) as server:
        footprint = Footprint(server.process.pid)
        # An answer shows that all has been opened that stays open. The server's output goes to one (see Frontend).
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
            connection.request("GET", "/")
            connection.getresponse().read()
        wait_until(lambda: established(server.port) == 0, "the client is gone")
        at_first = footprint.temporary_files
        warm_up = load(server.port, WARM_UP_SECONDS, seed * 1000)
        while warm_up.total() < WARM_UP_REQUESTS:
            warm_up += load(server.port, WARM_UP_SECONDS / 3, seed * 1000 + warm_up.total())
        wait_until(lambda: established(server.port) == 0, "the clients are gone")
        wait_until(lambda: footprint.temporary_files == at_first, "the temporary files are gone", 20)
        sizes = [footprint.memory]
        # What the load needs at once differs from time to time; a leak grows with each.
        while len(sizes) == 1 or (len(sizes) < 5 and sizes[-1] > max(sizes[:-1]) * 1.1):
            outcomes = load(server.port, SECONDS, seed * 1000 + 500 * len(sizes))
            assert len(outcomes) == 12, outcomes
            wait_until(lambda: established(server.port) == 0, "the clients are gone")
            wait_until(lambda: footprint.temporary_files == at_first, "the temporary files are gone", 20)
            # Five connections, their list, two control connections, the listener, the loop's own, the output.
            wait_until(lambda: len(footprint.files) <= 24, "the descriptors are closed", 20)
            # Lanes 5 + 4, disk 4, cancellers 4, the stopper, the loop; spare threads may have come and idle.
            assert footprint.threads <= 30
            sizes.append(footprint.memory)
        assert sizes[-1] <= max(sizes[:-1]) * 1.1, sizes
        assert server.stop() == 0
