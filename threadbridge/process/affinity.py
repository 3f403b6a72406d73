"""Keeps a process's threads on one processor as long as one is all they can use.

Threads that take turns with the interpreter's lock keep waking one another, which across processors costs more than the
rest of a request: docs/performance.md has figures. Threads that compute outside the lock are left to the kernel.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger("threadbridge")

# Seconds between two looks, and until the next during a trial of all processors.
INTERVAL, TRIAL = 0.5, 0.1
# In processors. Up to LIGHT a process is left alone; FULL fills a processor; from PARALLEL on, it gains by several.
LIGHT, FULL, PARALLEL = 0.1, 0.9, 1.5
# A processor must be idle by this much more to be worth the move.
MARGIN = 0.2
# How many looks must find a full processor before a trial; doubled after each trial.
PATIENCE, MOST_PATIENCE = 4, 32
# The audit events of a thread that is about to start a process or to become another program.
STARTS = frozenset({"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


def choose(processor: int | None, busy: float, idle: dict[int, float], *, is_patient: bool, coin: float) -> int | None:
    """Return the processor to use next, or None for all, by the one used so far.

    :param busy: the processor time that the threads used, in processors.
    :param idle: the share of time that each processor was idle.
    :param is_patient: whether it is too early for a trial of all.
    :param coin: random, 0 to 1: not all processes that share a processor should leave it at once.
    """
    idlest = max(idle, key=lambda number: idle[number])
    if processor is None:
        return idlest if LIGHT < busy < PARALLEL else None
    if busy > FULL and not is_patient:
        return None
    if idle[processor] < 1 - FULL and idle[idlest] > busy + MARGIN and coin < 0.5:
        # It is full, but with other processes' work.
        return idlest
    return processor


class Affinity:
    """Moves the process's threads, after a look at its processor time twice a second. On the loop.

    Threads whose affinity someone else has set are left alone. A new process inherits the affinity of the thread that
    starts it; so a thread about to start one, as audit events (PEP 578) show, may use all processors until the next
    look. Only processes that C extensions start inherit the one processor.

    The loop owns all state except `_starting` and the threads' affinities, which a lock guards. Raises ``OSError``
    where the system does not provide the figures, and ``AttributeError`` where it has no affinity.
    """

    def __init__(self) -> None:
        # The application may have seeded the global generator, and expects the numbers of that seed.
        self._random = random.Random()
        self._all = os.sched_getaffinity(0)
        self._processor: int | None = None
        self._patience = PATIENCE
        self._full_looks = 0
        self._at = time.monotonic()
        self._used = time.process_time()
        self._idle = _idle_seconds()
        self._process = os.getpid()
        self._has_wrapped = False
        # The threads that have started a process since the last look.
        self._starting: set[int] = set()
        # Re-entrant: garbage may be collected under it, and a finalizer may start a process.
        self._lock = threading.RLock()

    def start(self) -> None:
        """Begin, unless there is only one processor."""
        # In a container the kernel may number processors differently from /proc/stat.
        if len(self._all) > 1 and self._all <= self._idle.keys():
            self._wrap_multiprocessing()
            sys.addaudithook(self._on_audit_event)
            asyncio.get_running_loop().call_later(INTERVAL, self._look)

    def _on_audit_event(self, event: str, arguments: tuple[object, ...]) -> None:
        """See `sys.addaudithook`. Any thread."""
        if event in STARTS:
            self._let_go()
        elif event == "import" and str(arguments[0]).startswith("multiprocessing."):
            self._wrap_multiprocessing()

    def _wrap_multiprocessing(self) -> None:
        """Wrap the function by which `multiprocessing` starts processes without an audit event, once it is loaded."""
        util: Any = sys.modules.get("multiprocessing.util")
        if self._has_wrapped or not hasattr(util, "spawnv_passfds"):
            return
        self._has_wrapped = True
        spawn = util.spawnv_passfds

        def let_go_and_spawn(*arguments: Any) -> Any:
            self._let_go()
            return spawn(*arguments)

        util.spawnv_passfds = let_go_and_spawn

    def _let_go(self) -> None:
        """Let the calling thread use all processors: it is about to start a process. Any thread."""
        # Forked processes have the hook too, but not the threads it is about.
        if os.getpid() == self._process:
            with self._lock, suppress(OSError):
                if os.sched_getaffinity(0) == {self._processor}:
                    self._starting.add(threading.get_native_id())
                    os.sched_setaffinity(0, self._all)

    def _look(self) -> None:
        is_trial = False
        try:
            is_trial = self._decide()
        except OSError as error:
            # No file descriptor may be left for the moment, or processors may have been taken away.
            logger.debug("threads stay where they are: %s", error)
        asyncio.get_running_loop().call_later(TRIAL if is_trial else INTERVAL, self._look)

    def _decide(self) -> bool:
        """Move the threads to where they should be; return whether that is for a trial."""
        now, used, idle = time.monotonic(), time.process_time(), _idle_seconds()
        seconds = now - self._at
        busy = (used - self._used) / seconds
        shares = {number: (idle[number] - self._idle[number]) / seconds for number in self._all}
        self._at, self._used, self._idle = now, used, idle
        self._full_looks += busy > FULL
        is_patient = self._full_looks < self._patience
        processor = choose(self._processor, busy, shares, is_patient=is_patient, coin=self._random.random())
        is_trial = processor is None and self._processor is not None
        if is_trial:
            self._full_looks = 0
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        elif busy >= PARALLEL:
            self._patience = PATIENCE
        self._keep_on(processor)
        return is_trial

    def _keep_on(self, processor: int | None) -> None:
        if self._processor is None and processor is None:
            return
        # First: if there is no file descriptor left for it, nothing has changed.
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        with self._lock:
            ours = (self._all, {self._processor})
            starting, self._starting, self._processor = self._starting, set(), processor
            for thread in threads:
                # It may have ended. A new one has the affinity of the thread that started it.
                with suppress(ProcessLookupError):
                    if thread not in starting and os.sched_getaffinity(thread) in ours:
                        os.sched_setaffinity(thread, self._all if processor is None else {processor})


def _idle_seconds() -> dict[int, float]:
    """The time each processor has been idle, waiting for disks included, since the machine started."""
    ticks = os.sysconf("SC_CLK_TCK")
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    processors = [fields for fields in lines if fields[0].startswith("cpu") and fields[0] != "cpu"]
    return {int(name[3:]): (int(times[3]) + int(times[4])) / ticks for name, *times in processors}


def keep_together() -> None:
    """Keep the threads on one processor where that is of use and the system can."""
    try:
        Affinity().start()
    except (OSError, AttributeError) as error:
        logger.info("threads are left to the kernel: %s", error)
