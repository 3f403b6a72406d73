"""Clients, good and bad: plain sockets, so that each byte is sent and read when the measurement wants it."""

from __future__ import annotations

import http.client
import socket
import ssl
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

# Seconds after which a measurement is given up.
LIMIT = 15.0
ASKS = 9
# Longer than any noise of the machine.
HANGS = 1.0


class Refused(Exception):
    """The server has answered with another status than 200."""


def connect(port: int, seconds: float = LIMIT, *, tls: bool = False) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=max(seconds, 0.001))
    if not tls:
        return client
    # The certificate is the benchmark's own.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(client)


def head(path: str, method: str = "GET", length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def send(port: int, path: str) -> socket.socket:
    """A connection on which the path has been asked for, and nothing read."""
    client = connect(port)
    client.sendall(head(path))
    return client


def read_answer(client: socket.socket) -> bytes:
    """The body of the next response. Raises `Refused`, and ``OSError`` or ``HTTPException`` when there is none."""
    response = http.client.HTTPResponse(client)
    try:
        response.begin()
        body = response.read()
    finally:
        response.close()
    if response.status != 200:
        raise Refused(f"{response.status}")
    return body


def answer_within(client: socket.socket, seconds: float) -> bytes:
    client.settimeout(max(seconds, 0.001))
    return read_answer(client)


def ask(port: int, path: str, seconds: float = LIMIT, *, tls: bool = False) -> float:
    """How long a new client waits for the whole answer; raises ``TimeoutError`` when it is longer than ``seconds``."""
    began = time.monotonic()
    with connect(port, seconds, tls=tls) as client:
        client.sendall(head(path))
        answer_within(client, seconds)
    return time.monotonic() - began


def wait(port: int, path: str = "/") -> float:
    """The median of some new clients' waits for the page; or the first that is long enough to be no accident."""
    waits: list[float] = []
    for _ in range(ASKS):
        waits.append(ask(port, path))
        if waits[-1] > HANGS:
            return waits[-1]
    return statistics.median(waits)


def keeps_connection(port: int, method: str, path: str, body: int, *, tls: bool = False) -> bool:
    """Whether the server leaves the connection open after its answer. Raises as `read_answer` does."""
    with connect(port, tls=tls) as client:
        client.sendall(head(path, method, body if method == "POST" else None) + bytes(body))
        read_answer(client)
        # One that closes does so at once.
        client.settimeout(0.05)
        try:
            return client.recv(1) != b""
        except TimeoutError:
            return True


def at_once(port: int, path: str, clients: int, *, tls: bool = False) -> None:
    """Have so many clients ask at the same moment, and wait for all answers; raises as `ask` does."""
    with ThreadPoolExecutor(clients) as executor:
        list(executor.map(lambda _: ask(port, path, tls=tls), range(clients)))


def is_open(client: socket.socket) -> bool:
    """Whether the server has left an idle connection open."""
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
