"""Shows that the event loop turns, and logs what every thread is doing when it does not."""

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


class Heartbeat:
    """A timer on the loop, and a thread that notices when the timer stops.

    :param limit: seconds after which a process with a stalled loop counts as hung; 0 for never.
    :param reads_back: whether ``stacks_file`` is this process's own, so that its contents still have to be logged.

    The thread logs the stacks if the loop stands still but other threads can run. While the interpreter's lock is held,
    none can: then `faulthandler` writes them to ``stacks_file``, from a thread that needs no lock. The loop owns all
    state; the thread reads the time of the last beat.
    """

    def __init__(self, limit: float, on_beat: Callable[[], None], stacks_file: int, *, reads_back: bool) -> None:
        self._limit = limit
        self._on_beat = on_beat
        self._stacks_file = stacks_file
        self._reads_back = reads_back
        # Seconds between two beats, and the shortest delay of a beat that is logged.
        self._interval = min(limit / 8, 1.0) if limit else 1.0
        self._shortest_logged = min(limit / 4, 1.0) if limit else 1.0
        self._beaten = time.monotonic()
        self._late = RepeatedLog(logger)
        self._has_thread = False
        self._stopped = threading.Event()
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)
        self._start_thread()

    def stop(self) -> None:
        """Stop beating; the thread ends by itself."""
        self._stopped.set()
        self._timer.cancel()

    def _start_thread(self) -> None:
        if self._limit and not self._has_thread:
            # If this fails, the next beat tries again.
            with suppress(*NOT_STARTED):
                threading.Thread(target=self._watch, name="threadbridge-heartbeat", daemon=True).start()
                self._has_thread = True

    def _beat(self) -> None:
        now = time.monotonic()
        late = now - self._beaten - self._interval
        self._beaten = now
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._beat)
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
        self._on_beat()

    def _watch(self) -> None:
        after = self._limit / 2
        has_logged = False
        while True:
            with suppress(RuntimeError):
                # Writes nothing as long as this thread gets back here in time.
                faulthandler.dump_traceback_later(after, file=self._stacks_file)
            if self._stopped.wait(self._interval):
                break
            stalled_for = time.monotonic() - self._beaten
            if stalled_for >= after and not has_logged:
                _log_stacks(stalled_for)
            has_logged = stalled_for >= after
        faulthandler.cancel_dump_traceback_later()


def _log_stacks(stalled_for: float) -> None:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    try:
        shown = "\n".join(f"{names.get(number, f'thread {number}')}\n{calls}" for number, calls in stacks().items())
    except OSError as error:
        shown = f"not known: {error}"
    logger.error(
        "the event loop has stood still for %.1f s; no client is served. Each thread's calls, innermost first:\n%s",
        stalled_for,
        shown,
    )


def read_stacks(descriptor: int) -> str:
    """Return what `faulthandler` has written to this file since the last call."""
    text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="backslashreplace").rstrip()
    if text:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
    return text


def open_stderr() -> int:
    """Return a new descriptor of standard error for `faulthandler`, non-blocking if possible."""
    try:
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            # The pipe may be full, with nobody reading it.
            return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
