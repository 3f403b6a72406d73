"""Non-blocking logging to standard error; lines that do not fit are dropped and counted.

A pipe, a socket (as systemd's journal is) or a terminal takes nothing more while its reader stands still, and whoever
writes there waits. Other processes share them, so that they cannot be made not to block. Any thread.
"""

from __future__ import annotations

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

# Bytes of lines that are kept for a reader that stands still.
KEPT_SIZE = 4 * 1024**2
# Seconds that the start of the process, and its end, wait for a reader.
PATIENCE = 1.0


def may_block(stream: TextIO | None, descriptor: int) -> bool:
    """Whether this stream is this file descriptor, and a reader empties it."""
    try:
        if stream is None or stream.fileno() != descriptor:
            return False
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        # It is closed, or an object of the application's.
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def say(line: str) -> None:
    """Print a line to standard output; if nobody reads that, go on after a moment."""
    if not may_block(sys.stdout, 1):
        print(line, flush=True)
        return

    def write() -> None:
        # Not by `sys.stdout`: whoever waits there would hold up the interpreter's end.
        with suppress(OSError):
            _write_all(1, f"{line}\n".encode())

    thread = threading.Thread(target=write, name="threadbridge-say", daemon=True)
    try:
        thread.start()
    except NOT_STARTED:
        write()
    else:
        thread.join(PATIENCE)


class StandardError(logging.Handler):
    """A handler that has a thread of its own write to standard error.

    :param kept_size: bytes that may wait for that. What comes beyond is dropped until half of that is free again; then
        a line says how many lines that were.

    All state is guarded by the handler's lock, which `logging` renews in forked processes. Those have no such thread,
    and write by themselves.
    """

    def __init__(self, kept_size: int = KEPT_SIZE) -> None:
        super().__init__()
        self._kept_size = kept_size
        # Pending text, and the number of log lines it represents.
        self._waiting: deque[tuple[bytes, int]] = deque()
        # Bytes of those, and of what is being written.
        self._size = 0
        self._lost = 0
        # Whether the last attempt to write failed.
        self._fails = False
        self._thread: threading.Thread | None = None
        self._owner = os.getpid()
        self._is_closed = False
        assert self.lock is not None
        self._changed = threading.Condition(self.lock)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`, which takes the lock."""
        try:
            text = self._encoded(record)
        except Exception:  # noqa: BLE001 - whatever a record's arguments raise when they are shown
            self.handleError(record)
            return
        if os.getpid() != self._owner:
            with suppress(OSError):
                _write_all(2, text)
        elif self._is_closed:
            # The interpreter is ending, and no thread may run any more. What a pipe has room for does not block.
            with suppress(OSError):
                if select.select((), (2,), (), 0)[1]:
                    os.write(2, text[: select.PIPE_BUF])
        elif self._size + len(text) > (self._kept_size // 2 if self._lost else self._kept_size):
            self._lost += text.count(b"\n")
        else:
            if not self._fails:
                self._tell_loss()
            self._keep(text, text.count(b"\n"))

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _keep(self, text: bytes, lines: int) -> None:
        self._waiting.append((text, lines))
        self._size += len(text)
        self._changed.notify_all()
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="threadbridge-log", daemon=True)
            # The next record tries again.
            with suppress(*NOT_STARTED):
                thread.start()
                self._thread = thread

    def _tell_loss(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            text = "%d lines of the log were lost: nobody read standard error"
            record = logging.LogRecord("threadbridge", logging.ERROR, __file__, 0, text, (lost,), None)
            self._keep(self._encoded(record), lost)

    def _work(self) -> None:
        while (next_one := self._next()) is not None:
            text, lines = next_one
            try:
                _write_all(2, text)
            except OSError:
                # Nobody can ever read it; or so it is now.
                fails = True
            else:
                fails = False
            with self._changed:
                self._fails = fails
                self._lost += lines if fails else 0
                self._size -= len(text)
                self._changed.notify_all()

    def _next(self) -> tuple[bytes, int] | None:
        with self._changed:
            if not (self._waiting or self._fails):
                self._tell_loss()
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            return self._waiting.popleft()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called: at the interpreter's end, or by `logging.config`."""
        return self._is_closed

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        if os.getpid() == self._owner:
            with self._changed:
                self._changed.wait_for(lambda: not self._size or self._thread is None, PATIENCE)

    def close(self) -> None:
        """See `logging.Handler`."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()


def _write_all(descriptor: int, text: bytes) -> None:
    left = memoryview(text)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            # Some other process has made it so.
            select.select((), (descriptor,), ())
