"""When the supervisor replaces a process by a fresh one: after many requests, a long time, or with too much memory."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from pathlib import Path

from threadbridge.process.child import Child
from threadbridge.settings.table import Settings

# Seconds between two looks, and for which a process is left alone once it accepts connections: a limit that every
# process reaches at once must not keep the machine busy with starts.
INTERVAL = 1.0
YOUNG = 10.0
# Seconds until the next attempt, after one that failed.
RETRY = 60.0


class Limits:
    """The settings ``max_requests``, ``max_requests_jitter``, ``max_age`` and ``max_memory``."""

    def __init__(self, settings: Settings) -> None:
        self._requests, self._jitter = settings["max_requests"], settings["max_requests_jitter"]
        self._age, self._memory = settings["max_age"], settings["max_memory"]
        self.are_set = bool(self._requests or self._age or self._memory)

    def requests_of_next(self) -> int:
        """How many requests the next process may answer; 0 for any number."""
        # Not the generator of the module, which the application may have seeded in each process.
        return self._requests and self._requests + random.SystemRandom().randint(0, self._jitter)

    def exceeded(self, child: Child) -> str:
        """Say which limit this process has reached, or "" if none or if it is too young."""
        now = time.monotonic()
        if child.ready_since is None or now - child.ready_since < YOUNG:
            return ""
        if 0 < child.max_requests <= child.requests:
            return f"{child.requests} requests (max_requests={child.max_requests})"
        if 0 < self._age <= now - child.started:
            return f"{now - child.started:.0f} s old (max_age={self._age:g})"
        memory = _memory(child.pid, self._memory) if self._memory else 0
        if memory > self._memory:
            return f"{memory / 1024**2:.0f} MB of memory (max_memory={self._memory / 1024**2:.0f} MB)"
        return ""


def _memory(pid: int, limit: int) -> int:
    """The memory of a process in bytes; if it is over the limit, without what belongs to others that share it."""
    with suppress(OSError, ValueError, IndexError):
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident <= limit:
            # It is not more than this, and the kernel need not look at each page.
            return resident
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
