"""Keeps a process's threads on one processor while one is all they can use.

Threads that take turns with the interpreter's lock wake one another all the time, and on several processors that costs
more than the rest of a request: docs/performance.md has figures. Threads that compute outside that lock can use several
processors; they are left to the kernel.
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

logger = logging.getLogger("threadbridge")

# Seconds between two looks, and until the next when the threads were let go for a trial.
INTERVAL, TRIAL = 0.5, 0.1
# In processors: a process that takes less is left alone; from the next on a processor is full; a process that may use
# all and takes more than the last gains by that.
LIGHT, FULL, PARALLEL = 0.1, 0.9, 1.5
# How much more another processor must offer to be worth the move.
MARGIN = 0.2
# How often the processor is seen to be full until there is a trial; after each trial twice as often.
PATIENCE, MOST_PATIENCE = 4, 32
# The audit events of a thread that is about to start a process, or to become another program.
STARTS = frozenset({"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"})


def choose(processor: int | None, busy: float, idle: dict[int, float], *, is_patient: bool, coin: float) -> int | None:
    """The processor to be on for the next while, or None for all of them.

    :param processor: where the threads have been kept; None: they could use all.
    :param busy: how much processor time they took, in processors.
    :param idle: of each processor that they may use, the share of time in which nobody used it.
    :param is_patient: whether it is too early for a trial of all.
    :param coin: 0 to 1, at random: not all processes that share a processor should leave it at once.
    """
    idlest = max(idle, key=lambda number: idle[number])
    if processor is None:
        return idlest if LIGHT < busy < PARALLEL else None
    if busy > FULL and not is_patient:
        return None
    if idle[processor] < 1 - FULL and idle[idlest] > busy + MARGIN and coin < 0.5:
        # It is full, though not with these threads.
        return idlest
    return processor


class Affinity:
    """Checks twice a second how much processor time the process takes, and moves its threads. Loop side.

    Threads whose affinity somebody else has set are left alone, and no other process is ever touched. A new process
    inherits the affinity of the thread that starts it, so a thread that is about to start one is let go first, by an
    audit hook (PEP 578), and is not moved back for a while. Processes that start without an audit event inherit the
    one processor: those of `multiprocessing`'s methods ``spawn`` and ``forkserver``, and of C extensions.

    The loop owns all state but `_started` and the affinity of threads, which a lock guards: any thread starts
    processes.

    Raises ``OSError`` where the system does not provide the figures, and ``AttributeError`` where it has no affinity.
    """

    def __init__(self) -> None:
        # Its own: the application may have seeded the global one, and expects the numbers of that seed.
        self._chance = random.Random()
        self._all = os.sched_getaffinity(0)
        self._processor: int | None = None
        self._patience = PATIENCE
        self._full_looks = 0
        self._at = time.monotonic()
        self._used = time.process_time()
        self._idle = _idle_seconds()
        self._process = os.getpid()
        # The threads that were let go since the last look because they start a process.
        self._started: set[int] = set()
        # Re-entrant: garbage may be collected under it, and a finalizer may start a process.
        self._lock = threading.RLock()

    def start(self) -> None:
        """Begin, unless there is only one processor."""
        # In a container the kernel's numbers may be others than those in the file.
        if len(self._all) > 1 and self._all <= self._idle.keys():
            sys.addaudithook(self._on_audit_event)
            self._set_timer()

    def _on_audit_event(self, event: str, arguments: tuple[object, ...]) -> None:
        """Let the calling thread use all processors if it is about to start a process. Any thread."""
        # Forked processes have the hook too, but not the threads that it is about.
        if event in STARTS and os.getpid() == self._process:
            with self._lock, suppress(OSError):
                if os.sched_getaffinity(0) == {self._processor}:
                    self._started.add(threading.get_native_id())
                    os.sched_setaffinity(0, self._all)

    def _set_timer(self, seconds: float = INTERVAL) -> None:
        asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        is_trial = False
        try:
            is_trial = self._decide()
        except OSError as error:
            # There may be no file descriptor left for a moment, or somebody has taken processors away.
            logger.debug("threads stay where they are: %s", error)
        self._set_timer(TRIAL if is_trial else INTERVAL)

    def _decide(self) -> bool:
        """Move the threads where they should be; whether that is for a trial."""
        now, used, idle = time.monotonic(), time.process_time(), _idle_seconds()
        seconds = now - self._at
        busy = (used - self._used) / seconds
        shares = {number: (idle[number] - self._idle[number]) / seconds for number in self._all}
        self._at, self._used, self._idle = now, used, idle
        self._full_looks += busy > FULL
        is_patient = self._full_looks < self._patience
        processor = choose(self._processor, busy, shares, is_patient=is_patient, coin=self._chance.random())
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
        wanted = self._all if processor is None else {processor}
        with self._lock:
            before, self._processor = self._processor, processor
            ours = (self._all, {before})
            started, self._started = self._started, set()
            for thread in threads:
                if thread not in started:
                    # A new thread has the affinity of the one that started it. It may have ended.
                    with suppress(ProcessLookupError):
                        if os.sched_getaffinity(thread) in ours:
                            os.sched_setaffinity(thread, wanted)


def _idle_seconds() -> dict[int, float]:
    """For how long each processor has been idle since the machine was started."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name.startswith("cpu") and name != "cpu":
            # Idle, and idle while a disk works.
            found[int(name[3:])] = (int(times[3]) + int(times[4])) / ticks
    return found
