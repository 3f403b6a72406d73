"""Faults of what the frontend has of the machine: descriptors, threads, memory, disk."""

from __future__ import annotations

import os
import random
import resource
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.faults.fault import Fault, pause
from tests.faults.site import LOGS_SIZE, Site, Unavailable


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
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(65536)):
                pass
        pause(chance, 1, 4)
    finally:
        filler.unlink()


def log_disk_full(site: Site, chance: random.Random) -> None:
    """The disk of the log files, which is made as small as what is on it."""
    if site.no_disk:
        raise Unavailable(site.no_disk)
    began = time.time()
    taken = os.statvfs(site.logs)
    try:
        _resize(site.logs, (taken.f_blocks - taken.f_bfree) * taken.f_frsize)
        pause(chance, 0.5, 3)
    finally:
        _resize(site.logs, LOGS_SIZE)
        site.unlogged.append((began, time.time()))


def _resize(directory: Path, size: int) -> None:
    # A few more bytes may be there by now: then it is tried again.
    for attempt in range(20):
        command = ["mount", "-o", f"remount,size={size + attempt * 65536}", str(directory)]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return
    raise Unavailable("the disk of the logs cannot be made smaller")


def standard_error_unread(site: Site, chance: random.Random) -> None:
    """A reader that stands still; all logs go there too."""
    site.is_read.clear()
    try:
        pause(chance, 1, 5)
    finally:
        site.is_read.set()


def interpreter_held(site: Site, chance: random.Random) -> None:
    """No thread of a process can run, the loop's neither."""
    site.ask(f"/hold?id={site.next_number()}&seconds={chance.randrange(1, 4)}")


def _status(pid: int, name: str) -> int:
    """A figure of the process, in kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def resident(pid: int) -> int:
    """Kilobytes of memory that the process has in use."""
    return _status(pid, "VmRSS")


FAULTS: tuple[Fault, ...] = (
    descriptors_used_up,
    memory_short,
    threads_used_up,
    disk_full,
    log_disk_full,
    standard_error_unread,
    interpreter_held,
)
