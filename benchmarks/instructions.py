"""How many instructions a request and a connection take outside the kernel, counted by valgrind.

Unlike times, these counts hardly depend on what else the machine does: two runs differ by less than 1 %.
``python -m benchmarks.instructions`` takes two minutes, and needs valgrind.

Three servers get the same requests: one that sends a fixed answer from asyncio's transport (on uvloop, if it is
installed), which is the least that a server in Python takes; threadbridge with a bare WSGI function; and with Flask.
The differences tell what the bridge takes, and what Flask does.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from benchmarks.clients import connect, head
from tests.support.processes import Frontend

# So few that none of their requests waits long under valgrind, which is fifty times as slow: waiting has a cost, too.
CONNECTIONS = 8
FIXED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n"
SERVE_FIXED = "serve-fixed"
SERVERS = {
    "fixed answer": ("-m", "benchmarks.instructions", SERVE_FIXED, "{port}"),
    "bare function": ("-m", "threadbridge", "benchmarks.instructions:bare", "--port={port}"),
    "Flask": ("-m", "threadbridge", "benchmarks.instructions:flask()", "--port={port}"),
}
OURS = ("--pool=none", "--threads=10", "--access_log=false", "--affinity=none")
VALGRIND = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--fair-sched=yes")
# By what is in the path of the object that has the instructions; the first that fits.
PARTS = (
    ("this package", "threadbridge/"),
    ("httptools", "httptools/"),
    ("uvloop", "uvloop/"),
    ("Python", "python"),
    ("C library", "/libc."),
)
REST = "other libraries"
# Lines of callgrind's format that name the object or the file, and may define a number for it.
_NAMED = re.compile(r"(\w+)=\((\d+)\)(?: (.*))?").fullmatch


def bare(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """The least that a WSGI application does."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"Hello, world!\n"]


def flask() -> WSGIApplication:
    """Hello by Flask."""
    # Not at the top: the other servers would load it.
    from flask import Flask

    application = Flask("hello")
    application.add_url_rule("/", view_func=lambda: "Hello, world!\n")
    return application


class FixedAnswer(asyncio.Protocol):
    """Answers each read at once; closes the connection if the client asks for that."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's has another base class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(FIXED)
        if b"Connection: close" in data:
            self._transport.close()


async def serve_fixed(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(FixedAnswer, "127.0.0.1", port)
    await server.serve_forever()


def on_open_connections(port: int, rounds: int) -> None:
    """Send a request on each connection, read all answers, and begin again."""
    exchange([connect(port) for _ in range(CONNECTIONS)], rounds)


def on_one_connection(port: int, rounds: int) -> None:
    """Send one request after the other."""
    exchange([connect(port)], rounds * CONNECTIONS)


def exchange(clients: Sequence[socket.socket], rounds: int) -> None:
    for _ in range(rounds):
        for client in clients:
            client.sendall(head("/"))
        for client in clients:
            read(client)
    for client in clients:
        client.close()


def on_new_connections(port: int, rounds: int) -> None:
    """Open a connection for each request; the server closes it."""
    request = head("/").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for _ in range(rounds):
        clients = [connect(port) for _ in range(CONNECTIONS)]
        for client in clients:
            client.sendall(request)
        for client in clients:
            read(client)
            while client.recv(4096):
                pass
            client.close()


def read(client: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"world!\n"):
        received = client.recv(4096)
        if not received:
            sys.exit(f"the server has closed a connection after {answer!r}")
        answer += received


LOADS: dict[str, Callable[[int, int], None]] = {
    "open": on_open_connections,
    "one": on_one_connection,
    "new": on_new_connections,
}


def counted(server: str, load: str, rounds: int, directory: Path) -> Counter[str]:
    """Instructions for each request, by the part of the program that has them."""
    directory.mkdir()
    out = directory / "callgrind"
    command = [*VALGRIND, f"--callgrind-out-file={out}", f"--vgdb-prefix={directory}/control"]
    command += [sys.executable, *SERVERS[server]]
    if server != "fixed answer":
        command += OURS
    frontend = Frontend(("{port}",))
    frontend.command = [part.format(port=frontend.port) for part in command]
    with frontend:
        # Caches fill, threads start.
        LOADS[load](frontend.port, max(4, rounds // 4))
        control(directory, "instrumentation on")
        LOADS[load](frontend.port, rounds)
        control(directory, "dump")
    found = parts_in(directory / "callgrind.1")
    requests = rounds * CONNECTIONS
    return Counter({part: round(count / requests) for part, count in found.items()})


def control(directory: Path, command: str) -> None:
    """Give the only server whose pipes are in the directory a command of callgrind's (valgrind's manual, 6.5)."""
    subprocess.run(["vgdb", f"--vgdb-prefix={directory}/control", *command.split()], check=True, capture_output=True)


def parts_in(profile: Path) -> Counter[str]:
    """The sums of a profile in callgrind's format, by part, without what each function has called."""
    objects: dict[str, str] = {}
    found: Counter[str] = Counter()
    part = REST
    is_call = False
    with profile.open() as lines:
        for line in lines:
            named = _NAMED(line.rstrip("\n"))
            if named is not None and named[1] in ("ob", "cob"):
                if named[3] is not None:
                    objects[named[2]] = named[3]
                if named[1] == "ob":
                    part = part_of(objects[named[2]])
            elif line.startswith("calls="):
                is_call = True
            elif line[0] in "0123456789+-*":
                if not is_call:
                    found[part] += int(line.split()[1])
                is_call = False
    return found


def part_of(path: str) -> str:
    return next((part for part, fragment in PARTS if fragment in path), REST)


def main() -> int:
    options = parsed()
    if shutil.which("vgdb") is None:
        sys.exit("valgrind is not installed; on Debian: apt-get install valgrind")
    parts = [part for part, _ in PARTS] + [REST]
    print(f"{'instructions for each request':30}" + "".join(f"{part:>16}" for part in [*parts, "together"]))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(options.keep or directory)
        for load in options.loads.split(","):
            for server in SERVERS:
                found = counted(server, load, options.rounds, root / f"{server} {load}".replace(" ", "-"))
                figures = [*(found[part] for part in parts), found.total()]
                print(f"{server + ', ' + load:30}" + "".join(f"{figure:16,}" for figure in figures), flush=True)
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help=f"of {CONNECTIONS} requests, default %(default)s")
    parser.add_argument("--loads", default=",".join(LOADS), help="on connections that are: %(default)s")
    parser.add_argument("--keep", help="an existing directory, for callgrind's profiles")
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE_FIXED]:
        with suppress(ImportError):
            from uvloop import EventLoopPolicy

            asyncio.set_event_loop_policy(EventLoopPolicy())
        asyncio.run(serve_fixed(int(sys.argv[2])))
    else:
        sys.exit(main())
