"""Log lines for a fault that may happen thousands of times a second: few lines, each with the number it stands for."""

from __future__ import annotations

import logging
import threading
import time


class RepeatedLog:
    """Logs a fault at most once per interval (seconds); the next line says how many were left out.

    Make one for each kind of fault. Faults left out after the last line are reported only when the next one is logged.
    """

    def __init__(self, logger: logging.Logger, interval: float = 10.0) -> None:
        self._logger = logger
        self._interval = interval
        self._next_at = 0.0
        self._left_out = 0
        self._lock = threading.Lock()

    def log(self, level: int, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log the line, or count it as left out if the last one is too recent."""
        now = time.monotonic()
        with self._lock:
            if now < self._next_at:
                self._left_out += 1
                return
            self._next_at = now + self._interval
            left_out, self._left_out = self._left_out, 0
        if left_out:
            message += " (and %d more like this since the last such line)"
            args = (*args, left_out)
        # The log shows the caller's line, not this one.
        self._logger.log(level, message, *args, exc_info=exc_info, stacklevel=2)
