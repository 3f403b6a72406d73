"""Logs to standard error without waiting for its reader; lines that do not fit are dropped and counted. Any thread.

Other processes share the pipe, the socket (such as the journal's) or the terminal, so it cannot be made non-blocking.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import stat
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import TextIO

from threadbridge.common.threads import NOT_STARTED

# By the levels of `logging`: those of syslog, which systemd reads at the beginning of each line (``sd-daemon(3)``).
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
# Bytes of lines that are kept for a reader that stands still.
KEPT_SIZE = 4 * 1024**2
# Seconds that the process, when it starts and when it ends, waits for a reader.
PATIENCE = 1.0
# The name of the thread that writes.
LOG_THREAD = "threadbridge-log"


def may_block(stream: TextIO | None, descriptor: int) -> bool:
    """Whether this stream is this file descriptor, and has a reader to wait for."""
    try:
        if stream is None or stream.fileno() != descriptor:
            return False
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        # It is closed, or the application has replaced it.
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def goes_to_journal(descriptor: int) -> bool:
    """Whether systemd has connected this file descriptor with the journal."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def say(line: str) -> None:
    """Print a line to standard output; if nobody reads it, go on after `PATIENCE`."""
    if not may_block(sys.stdout, 1):
        print(line, flush=True)
        return
    _write_if_ready(1, f"{line}\n".encode(), PATIENCE)


class StandardError(logging.Handler):
    """A handler whose own thread writes to standard error.

    At most `KEPT_SIZE` bytes wait for the reader. Further lines are dropped until half of that is free again.

    The handler's lock guards all state. Forked processes, where `logging` renews it, lack the thread and write
    themselves, unless they call `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin()
        # `logging.shutdown` flushes it too, unless a call of `logging.config` has made that forget it.
        atexit.register(self.flush)

    def begin(self) -> None:
        """Write with a thread of this process from now on, also if it has been forked."""
        self._waiting: deque[bytes] = deque()
        # Bytes waiting or being written.
        self._size = 0
        self._lost = 0
        self._has_thread = False
        self._owner = os.getpid()
        self._has_priorities = goes_to_journal(2)
        assert self.lock is not None
        self._changed = threading.Condition(self.lock)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`, which takes the lock."""
        try:
            text = self._encoded(record)
        except Exception:  # noqa: BLE001 - formatting the record's arguments may raise anything
            self.handleError(record)
            return
        if os.getpid() != self._owner:
            _write_all(2, text)
        elif sys.is_finalizing():
            # No thread runs any more.
            _write_if_ready(2, text, 0)
        elif self._size + len(text) > (KEPT_SIZE // 2 if self._lost else KEPT_SIZE):
            self._lost += text.count(b"\n")
        else:
            self._log_loss()
            self._keep(text)

    def _encoded(self, record: logging.LogRecord) -> bytes:
        text = self.format(record)
        if self._has_priorities:
            prefix = next(f"<{priority}>" for level, priority in PRIORITIES if record.levelno >= level)
            text = "\n".join(f"{prefix}{line}" for line in text.split("\n"))
        return f"{text}\n".encode(errors="backslashreplace")

    def _keep(self, text: bytes) -> None:
        self._waiting.append(text)
        self._size += len(text)
        self._changed.notify_all()
        if not self._has_thread:
            # If it cannot be started, the next record tries again.
            with suppress(*NOT_STARTED):
                threading.Thread(target=self._work, name=LOG_THREAD, daemon=True).start()
                self._has_thread = True

    def _log_loss(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            text = "%d lines of the log were lost: nobody read standard error"
            record = logging.LogRecord("threadbridge", logging.ERROR, __file__, 0, text, (lost,), None)
            self._keep(self._encoded(record))

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._log_loss()
                self._changed.wait_for(lambda: self._waiting)
                text = self._waiting.popleft()
            _write_all(2, text)
            with self._changed:
                self._size -= len(text)
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written, but at most `PATIENCE`."""
        if os.getpid() == self._owner:
            with self._changed:
                self._changed.wait_for(lambda: not (self._size and self._has_thread), PATIENCE)


def _write_all(descriptor: int, text: bytes) -> None:
    """Write everything, waiting for the reader, unless that has gone for good."""
    left = memoryview(text)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Another process has made it non-blocking.
            select.select((), (descriptor,), ())
        except OSError:
            return


def _write_if_ready(descriptor: int, text: bytes, patience: float) -> None:
    """Write as much as a pipe has room for when it is ready; without blocking, and only if it is ready in time."""
    with suppress(OSError):
        if select.select((), (descriptor,), (), patience)[1]:
            os.write(descriptor, text[: select.PIPE_BUF])
