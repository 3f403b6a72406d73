"""Faults of what the frontend has of the machine: descriptors, threads, memory, disk."""

from __future__ import annotations

import os
import random
import resource
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.faults.fault import Fault, pause
from tests.faults.site import Site, Unavailable


def descriptors_used_up(site: Site, chance: random.Random) -> None:
    """Few are left, and idle connections take those."""
    free = chance.randrange(0, 8)
    with (
        ExitStack() as idle,
        site.limited(resource.RLIMIT_NOFILE, lambda pid: free + len(os.listdir(f"/proc/{pid}/fd"))),
    ):
        for _ in range(chance.choice((0, 40))):
            with suppress(OSError):
                idle.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=1))
        pause(chance, 1, 4)


def memory_short(site: Site, chance: random.Random) -> None:
    """Too little for the stack of another thread, or for a few only."""
    free = chance.randrange(2, 24) * 1024 * 1024
    with site.limited(resource.RLIMIT_AS, lambda pid: free + 1024 * _status(pid, "VmSize")):
        pause(chance, 1, 4)


def threads_used_up(site: Site, chance: random.Random) -> None:
    """No thread and no process can be started."""
    if os.geteuid() == 0:
        raise Unavailable("the kernel sets no limit to root's threads (RLIMIT_NPROC): run it as another user")
    with site.limited(resource.RLIMIT_NPROC, lambda pid: 1):
        pause(chance, 1, 4)


def disk_full(site: Site, chance: random.Random) -> None:
    """The small disk for large bodies."""
    if site.no_disk:
        raise Unavailable(site.no_disk)
    filler = site.disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(65536)):
            pass
    pause(chance, 1, 4)
    filler.unlink()


def _status(pid: int, name: str) -> int:
    """A figure of the process, in kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def resident(pid: int) -> int:
    """Kilobytes of memory that the process has in use."""
    return _status(pid, "VmRSS")


FAULTS: tuple[Fault, ...] = (descriptors_used_up, memory_short, threads_used_up, disk_full)
