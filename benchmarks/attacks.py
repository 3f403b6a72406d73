"""What attacks on the clients' port cost the others: ``python -m benchmarks.attacks``, about two minutes.

The exit status is 1 if /healthz took longer, or the server more memory, than it may.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support import attacks
from tests.support.attacks import MEGABYTE, Others, attack_with, serving


class Attack(NamedTuple):
    """An attack, on how many connections, and what it may cost.

    :param slowest: seconds that /healthz takes at most.
    :param grown: bytes of memory that the server takes more.
    """

    make: Callable[[socket.socket], None]
    connections: int
    slowest: float = 0.05
    grown: int = 64 * MEGABYTE


ATTACKS = [
    # 200 MB each.
    Attack(attacks.lines_in_chunks, 300),
    Attack(attacks.tiny_chunks, 300),
    # So many connections take time by themselves: the interpreter looks through all their objects for garbage.
    Attack(attacks.incomplete_heads, 3500, slowest=1),
    Attack(attacks.large_heads_without_bodies, 3500, slowest=1),
    Attack(attacks.slow_heads, 15_000, slowest=0.5, grown=128 * MEGABYTE),
]


def main() -> int:
    names = [attack.make.__name__ for attack in ATTACKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--only", choices=names, help="one of them")
    only = parser.parse_args().only
    most = max(attack.connections for attack in ATTACKS) + 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The server inherits it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), max(hard, most)))
    status = 0
    for attack in ATTACKS:
        name = attack.make.__name__
        if only in (None, name):
            with tempfile.TemporaryDirectory() as directory, serving(Path(directory)) as (server, admin_port):
                others = Others(server, admin_port)
                attack_with(attack.make, attack.connections, server, others)
            missed = others.slowest_health > attack.slowest or others.grown > attack.grown
            print(f"{name}, {attack.connections} connections: {others}{' - TOO MUCH' if missed else ''}", flush=True)
            status = max(status, missed)
    return status


if __name__ == "__main__":
    sys.exit(main())
