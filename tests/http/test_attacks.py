"""Attacks that would take the server from the others: they cost bounded memory, and the others are served meanwhile.

``python -m benchmarks.attacks`` makes larger ones, and measures.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from tests.support import attacks
from tests.support.attacks import APPLICATION, MEGABYTE, Others, attack_with, connect, serving
from tests.support.processes import Frontend, free_port

# With limits for the clients of all addresses but one, as if those were strangers' and not loopback's.
LIMITED = f"""{APPLICATION}
if __name__ == "__main__":
    import sys
    import threadbridge.http.forwarded
    from threadbridge import serve

    # All the other addresses of loopback are those of strangers.
    threadbridge.http.forwarded.LOOPBACK = ("127.0.0.1",)
    serve(
        app, threads=4, port=int(sys.argv[1]), admin_port=int(sys.argv[2]), access_log=False, max_connections=300,
        max_connections_per_client=30,
    )
"""
MOST_MEMORY = 64 * MEGABYTE
# Generous, for machines that do much else: what is measured is printed, and has limits in the benchmark.
SLOWEST = 5.0
ATTACKS: list[tuple[Callable[[socket.socket], None], int]] = [
    (attacks.lines_in_chunks, 60),
    (attacks.tiny_chunks, 40),
    (attacks.incomplete_heads, 600),
    (attacks.large_heads_without_bodies, 1500),
    (attacks.header_names, 300),
    (attacks.blank_lines, 100),
    (attacks.pipelined, 50),
    (attacks.megabytes_in_memory, 100),
    (attacks.slow_bodies, 600),
    (attacks.unread_lists, 400),
    (attacks.unread_streams, 400),
]


def check(attack: str, others: Others) -> None:
    print(f"{attack}: {others}")
    assert others.slowest < SLOWEST
    assert others.grown < MOST_MEMORY


@pytest.mark.parametrize(("attack", "count"), ATTACKS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_an_attack_takes_neither_the_loop_nor_the_memory(
    attack: Callable[[socket.socket], None], count: int, tmp_path: Path
) -> None:
    with serving(tmp_path) as (server, admin_port):
        others = Others(server, admin_port)
        attack_with(attack, count, server, others)
        check(attack.__name__, others)


def test_connections_of_a_few_clients_leave_room_for_the_others(tmp_path: Path) -> None:
    (tmp_path / "attacked.py").write_text(LIMITED)
    admin_port = free_port()
    with Frontend((str(tmp_path / "attacked.py"), "{port}", str(admin_port))) as server, ExitStack() as stack:
        others = Others(server, admin_port)

        def hold(number: int) -> None:
            """Have more connections than it may, each with a request that never ends."""
            for _ in range(100):
                client = stack.enter_context(connect(server, number))
                with suppress(OSError):
                    client.sendall(b"GET / HTTP/1.1\r\nHo")

        with ThreadPoolExecutor(8) as executor:
            attackers = [executor.submit(hold, number) for number in range(2, 10)]
            others.ask_while(lambda: not all(attacker.done() for attacker in attackers))
            for attacker in attackers:
                attacker.result()
        with connect(server, 99) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        metrics = requests.get(f"http://127.0.0.1:{admin_port}/metrics", timeout=30).text
        assert f'threadbridge_connections_refused_total{{reason="client"}} {8 * 70}.0' in metrics
        assert 'threadbridge_connections_refused_total{reason="connections"} 0.0' in metrics
        check("connections", others)
