"""Clients that each ask for one thing after the other, leave when they like, and remember what they were answered."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from tests.faults.application import ACCOUNTS
from tests.faults.site import BODY_SIZE

WRITES = ("transfer", "transfer_begun", "transfer_again", "insert")
QUERIES = (*WRITES, "read", "slow", "session")
# Seconds in which each request has an answer, or is cut; the deadline is over long before.
PATIENCE = 45
# How often each kind of request is made.
KINDS = {
    "transfer": 25,
    "transfer_begun": 15,
    "transfer_again": 10,
    "insert": 15,
    "read": 15,
    "slow": 6,
    "session": 5,
    "compute": 2,
    "upload": 2,
    "large": 2,
}


@dataclass
class Sent:
    """A request, and what its client knows of it.

    :param ended: by `time.time`.
    :param status: 0 if there was no whole answer.
    :param by_server: whether the answer was the server's own, and not the application's.
    """

    kind: str
    source: int
    target: int
    status: int = 0
    began: float = 0.0
    ended: float = 0.0
    by_server: bool = False


class Crowd:
    """``with Crowd(port, clients=24, seed=1) as crowd:``; inside the block the clients are at work."""

    def __init__(self, port: int, clients: int, seed: int) -> None:
        self.sent: dict[int, Sent] = {}
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._port = port
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(number, random.Random(f"{seed}-{number}")), daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            if thread.is_alive():
                self.wrong.append("a client has waited for its answer for more than a minute")

    @property
    def transfers(self) -> int:
        """How many have been answered 200."""
        return sum(self.answers[f"{kind} 200"] for kind in WRITES if kind != "insert")

    @property
    def queries(self) -> int:
        """How many that need the database have been answered 200."""
        return sum(self.answers[f"{kind} 200"] for kind in QUERIES)

    def _live(self, client: int, chance: random.Random) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            number = client * 10_000_000 + count
            [kind] = chance.choices(list(KINDS), list(KINDS.values()))
            source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
            sent = Sent(kind, source, target, began=time.time())
            with self._lock:
                self.sent[number] = sent
            try:
                sent.status = self._ask(number, sent, chance)
            except TimeoutError:
                self.wrong.append(f"{kind} {number} had no answer {PATIENCE} s after {time.ctime(sent.began)}")
            except OSError:
                # Refused or cut: it may have been done or not.
                time.sleep(0.02)
            sent.ended = time.time()
            with self._lock:
                self.answers[f"{kind} {sent.status}"] += 1

    def _ask(self, number: int, sent: Sent, chance: random.Random) -> int:
        method = "POST" if sent.kind in (*WRITES, "session", "upload") else "GET"
        query = f"id={number}&source={sent.source}&target={sent.target}&steps={chance.randrange(1, 30)}"
        body = bytes(BODY_SIZE if sent.kind == "upload" else chance.randrange(3000)) if method == "POST" else b""
        head = (
            f"{method} /{sent.kind}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        leaves, is_slow = chance.random(), chance.random() < 0.05
        with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as client:
            if is_slow:
                half = chance.randrange(len(head) + len(body))
                client.sendall((head + body)[:half])
                time.sleep(0.5 * chance.random())
                client.sendall((head + body)[half:])
            else:
                client.sendall(head + body)
            if leaves < 0.06:
                client.settimeout(0.001 + 0.2 * chance.random())
                with suppress(TimeoutError):
                    client.recv(1)
                if leaves < 0.03:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return 0
            if leaves < 0.09 and method == "POST":
                # Its request is complete, and it still waits for the answer.
                client.shutdown(socket.SHUT_WR)
            parts = []
            while part := client.recv(65536):
                parts.append(part)
                if is_slow:
                    time.sleep(0.02)
        return self._status(number, sent, b"".join(parts))

    def _status(self, number: int, sent: Sent, answer: bytes) -> int:
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            return 0
        status = int(head[9:12])
        if body.startswith(b"503 Service Unavailable: too many connections"):
            # Refused before its request was read: the log may not know which it was.
            return 0
        sent.by_server = not body.startswith(f"{number} ".encode())
        if b"NOT AS IT SHOULD" in body:
            self.wrong.append(f"{sent.kind} {number}: {body.decode()}")
        elif status == 200 and sent.by_server:
            self.wrong.append(f"{sent.kind} {number} was answered with {body[:100]!r}")
        elif sent.kind == "large" and status == 200 and len(body) < 2_000_000:
            # Cut while it was sent.
            return 0
        return status
