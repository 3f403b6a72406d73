"""The hazards: each function does to a server what may happen to it, and gives what was seen of that.

Times are in seconds. Memory is in bytes: what all processes of the server grow by, after small requests of the same
kind, whose needs do not count. A function fails when there is nothing to measure, with ``TimeoutError`` when it
has waited longer than `LIMIT`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import MEGABYTE
from benchmarks.clients import HANGS, LIMIT, Refused, answer_within, ask, connect, head, is_open, send, wait
from benchmarks.subject import Memory, Subject

# A number, or what happened in its place.
Figures = dict[str, float | str]

TOO_LONG = f"> {LIMIT:g} s"

SLOW_CLIENTS = 20
LEAVING_CLIENTS = 40
STALLED_CLIENTS = 20
IDLE_CLIENTS = 5000
STREAM_MEGABYTES = 256
UPLOAD_MEGABYTES = 1024
FIRST_YIELD = re.compile(rb"first yield at ([0-9.]+)\n")


def seen(measure: Callable[[], float]) -> float | str:
    """What is measured, or what happens in its place."""
    try:
        return measure()
    except TimeoutError:
        return TOO_LONG
    except (OSError, http.client.HTTPException):
        return "no answer"
    except Refused as error:
        return f"status {error}"


def fast_page(subject: Subject) -> Figures:
    """20 slow queries hold every thread of a server just started: a page without a query is asked for 20 times."""
    with ExitStack() as clients:
        for _ in range(SLOW_CLIENTS):
            clients.enter_context(send(subject.port, f"/query?seconds={subject.slow:.4f}"))
        time.sleep(0.3)
        return {"fast page": seen(lambda: worst_wait(subject.port))}


def worst_wait(port: int) -> float:
    worst = 0.0
    for _ in range(20):
        worst = max(worst, ask(port, "/"))
        if worst > HANGS:
            break
        time.sleep(0.05)
    return worst


def abandoned_queries(subject: Subject) -> Figures:
    """40 clients ask for slow queries and leave after 0.3 s; then one asks for a short query."""
    with ExitStack() as clients:
        for _ in range(LEAVING_CLIENTS):
            clients.enter_context(send(subject.port, f"/query?seconds={subject.slow:.4f}"))
        time.sleep(0.3)
    figures: Figures = {"next query": seen(lambda: ask(subject.port, "/query?seconds=0.01"))}
    return {**figures, "still running": subject.slow_queries()}


def stalled_uploads(subject: Subject) -> Figures:
    """20 clients send the beginning of a body and then nothing; a new client asks for the page."""
    idle = wait(subject.port)
    with ExitStack() as clients:
        for _ in range(STALLED_CLIENTS):
            client = clients.enter_context(connect(subject.port))
            client.sendall(head("/upload", "POST", MEGABYTE) + bytes(MEGABYTE // 16))
        time.sleep(0.5)
        return {"stalled uploads": seen(lambda: wait(subject.port)), "before uploads": idle}


def stalled_downloads(subject: Subject) -> Figures:
    """20 clients ask for 8 MB and read nothing; a new client asks for the page."""
    idle = wait(subject.port)
    with ExitStack() as clients:
        for _ in range(STALLED_CLIENTS):
            clients.enter_context(send(subject.port, "/stream?megabytes=8"))
        time.sleep(0.5)
        return {"stalled downloads": seen(lambda: wait(subject.port)), "before downloads": idle}


def slow_reader(subject: Subject) -> Figures:
    """A client reads a stream of 256 MB slowly, a megabyte and a pause in turn, for three seconds."""
    for _ in range(5):
        ask(subject.port, "/stream?megabytes=1")
    memory = Memory(subject)
    with send(subject.port, f"/stream?megabytes={STREAM_MEGABYTES}") as client:
        first_bytes = [until_first_byte(client)]
        until = time.monotonic() + 3
        while time.monotonic() < until:
            read(client, MEGABYTE)
            time.sleep(0.1)
        growth = memory.peak_growth
    for _ in range(4):
        with send(subject.port, f"/stream?megabytes={STREAM_MEGABYTES}") as client:
            first_bytes.append(until_first_byte(client))
    return {"stream's memory": growth, "first byte": statistics.median(first_bytes)}


def until_first_byte(client: socket.socket) -> float:
    """The time from the application's first yield to the arrival of what it yielded."""
    received = b""
    while (found := FIRST_YIELD.search(received)) is None:
        if not (part := client.recv(65536)):
            raise http.client.IncompleteRead(received)
        received += part
    return time.monotonic() - float(found[1])


def read(client: socket.socket, size: int) -> None:
    while size > 0 and (part := client.recv(size)):
        size -= len(part)


def large_upload(subject: Subject) -> Figures:
    """A client sends 1 GiB as fast as the server takes it."""
    size = UPLOAD_MEGABYTES * MEGABYTE
    piece = bytes(MEGABYTE)
    with connect(subject.port) as client:
        client.sendall(head("/upload", "POST", MEGABYTE) + piece)
        answer_within(client, LIMIT)
    memory = Memory(subject)
    give_up = time.monotonic() + LIMIT
    with connect(subject.port) as client:
        client.sendall(head("/upload", "POST", size))
        try:
            for _ in range(UPLOAD_MEGABYTES):
                client.settimeout(max(0.001, give_up - time.monotonic()))
                client.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            return {"upload's memory": "refused"}
        received = int(answer_within(client, give_up - time.monotonic()))
    return {"upload's memory": memory.peak_growth if received == size else f"{received} bytes came"}


def stop(subject: Subject) -> Figures:
    """SIGTERM while 20 queries run or wait: who is answered, how the process ends, whether its port is free then."""
    with ExitStack() as stack:
        clients = [stack.enter_context(send(subject.port, "/query?seconds=0.5")) for _ in range(20)]
        time.sleep(0.25)
        give_up = time.monotonic() + LIMIT
        subject.process.send_signal(signal.SIGTERM)
        answered = 0
        for client in clients:
            with client, contextlib.suppress(OSError, http.client.HTTPException, Refused):
                answer_within(client, give_up - time.monotonic())
                answered += 1
        try:
            status: float | str = subject.process.wait(max(0.001, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = TOO_LONG
    return {"answered": answered, "exit status": status, "port": "free" if is_free(subject.port) else "taken"}


def is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError:
            return False
    return True


def idle_connections(subject: Subject) -> Figures:
    """5,000 clients have had one answer each and keep their connections; a new client asks for the page."""
    idle = wait(subject.port)
    memory = Memory(subject)
    give_up = time.monotonic() + LIMIT
    with ExitStack() as stack:
        clients = []
        with contextlib.suppress(OSError, http.client.HTTPException, Refused):
            for _ in range(IDLE_CLIENTS):
                client = stack.enter_context(connect(subject.port, give_up - time.monotonic()))
                client.sendall(head("/"))
                answer_within(client, give_up - time.monotonic())
                clients.append(client)
        held = sum(map(is_open, clients))
        is_late = len(clients) < IDLE_CLIENTS and time.monotonic() >= give_up
        figures: Figures = {"held": f"{held} in {LIMIT:g} s" if is_late else held, "before them": idle}
        figures["memory each"] = memory.growth / held if held else "-"
        figures["beside them"] = seen(lambda: wait(subject.port))
    return figures
