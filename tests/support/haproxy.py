"""HAProxy in front of database servers, as a TCP proxy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.tcp_mariadb import free_port

HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or "haproxy"


@contextmanager
def haproxy(
    servers: Sequence[tuple[str, int]], balance: str, lines: Sequence[str] = (), *, first: str = "", others: str = ""
) -> Iterator[tuple[str, int]]:
    """Spreads connections over the servers by an algorithm of HAProxy's; gives its address.

    ``lines`` belong to the section; ``first`` and ``others`` are options of the servers.
    """
    directory = Path(tempfile.mkdtemp(prefix="haproxy-"))
    port = free_port()
    section = [
        *lines,
        *(
            f"server s{number} {address[0]}:{address[1]} {others if number else first}"
            for number, address in enumerate(servers)
        ),
    ]
    (directory / "haproxy.cfg").write_text(
        f"""defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen database
    bind 127.0.0.1:{port}
    balance {balance}
"""
        + "".join(f"    {line}\n" for line in section)
    )
    process = subprocess.Popen([HAPROXY, "-db", "-f", directory / "haproxy.cfg"], stdin=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        wait_until(answers, "HAProxy answers")
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory)
