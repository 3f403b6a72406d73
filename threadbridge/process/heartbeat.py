"""Says that the event loop turns, and logs what every thread is doing when it does not."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.threads import NOT_STARTED, stacks

logger = logging.getLogger("threadbridge")

# Seconds between two beats at most.
LONGEST_INTERVAL = 1.0
# A loop that stands still for this share of the limit has its threads' stacks logged.
LOGGED_AFTER = 0.5
# A beat that comes more than this many seconds late is logged; with a short limit, one late by a quarter of that.
LATE = 1.0


class Heartbeat:
    """A timer on the loop, and a thread that notices when the timer stops. Loop side, except for the thread.

    :param limit: seconds that the loop may stand still before the process counts as stuck; 0 for any time.
    :param tell: called on the loop at each beat.
    :param stacks_file: the descriptor to which stacks are written while the interpreter's lock is held.
    :param reads_back: whether that file is this process's alone, so that what is written there is to be logged.

    The thread logs the stacks when the loop stands still but other threads can run. While the interpreter's lock is
    held, no thread can: then `faulthandler` writes the stacks, from a thread of its own that needs no lock. The loop
    owns the time of the last beat, which the thread only reads.
    """

    def __init__(self, limit: float, tell: Callable[[], None], stacks_file: int, *, reads_back: bool) -> None:
        self._limit = limit
        self._tell = tell
        self._stacks_file = stacks_file
        self._reads_back = reads_back
        self._interval = min(limit / 8, LONGEST_INTERVAL) if limit else LONGEST_INTERVAL
        self._shortest_logged = min(limit / 4, LATE) if limit else LATE
        self._beaten = 0.0
        self._late = RepeatedLog(logger)
        self._timer: asyncio.TimerHandle | None = None
        self._has_thread = False
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to beat."""
        self._beaten = time.monotonic()
        self._set_timer()
        self._start_thread()

    def _start_thread(self) -> None:
        if self._limit and not self._has_thread:
            # The next beat tries again.
            with suppress(*NOT_STARTED):
                threading.Thread(target=self._watch, name="threadbridge-heartbeat", daemon=True).start()
                self._has_thread = True

    def stop(self) -> None:
        """Beat no more; the thread ends by itself."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)

    def _beat(self) -> None:
        now = time.monotonic()
        late = now - self._beaten - self._interval
        self._beaten = now
        self._set_timer()
        if late > self._shortest_logged:
            self._late.log(
                logging.WARNING,
                "the event loop stood still for %.1f s; deadlines and responses were delayed by that much",
                late,
            )
            written = read_stacks(self._stacks_file) if self._reads_back else ""
            if written:
                logger.error("calls while the interpreter's lock was held, innermost first:\n%s", written)
        self._start_thread()
        self._tell()

    def _watch(self) -> None:
        after = LOGGED_AFTER * self._limit
        has_logged = False
        while True:
            with suppress(RuntimeError):
                # Nothing is written as long as this thread comes by here in time.
                faulthandler.dump_traceback_later(after, file=self._stacks_file)
            if self._stopped.wait(self._interval):
                break
            stalled_for = time.monotonic() - self._beaten
            if stalled_for < after:
                has_logged = False
            elif not has_logged:
                has_logged = True
                _log_stacks(stalled_for)
        faulthandler.cancel_dump_traceback_later()


def _log_stacks(stalled_for: float) -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    try:
        shown = [f"{names.get(number, f'thread {number}')}\n{calls.rstrip()}" for number, calls in stacks().items()]
    except OSError as error:
        shown = [f"not known: {error}"]
    logger.error(
        "the event loop has stood still for %.1f s; no client is served. Each thread's calls, innermost first:\n%s",
        stalled_for,
        "\n".join(shown),
    )


def read_stacks(descriptor: int) -> str:
    """What `faulthandler` has written to this file since the last call; "" for nothing."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="backslashreplace").rstrip()
    if text:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
    return text


def open_stderr() -> int:
    """A descriptor of its own for standard error, for `faulthandler`; writing there does not block if possible."""
    try:
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            # A pipe may be full, and nobody may read it.
            return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
