"""How a process that serves is told to stop: by signals, by its supervisor, or because its files changed. Loop side."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sized

logger = logging.getLogger("threadbridge")


class Stop:
    """The stop of a process, which may be told more than once.

    :param open_requests: those to answer, for the log.
    """

    def __init__(self, open_requests: Sized) -> None:
        self.begun = asyncio.Event()
        # Set when the drain delay, and when the grace period, ends early.
        self.delay_over, self.now = asyncio.Event(), asyncio.Event()
        self._open_requests = open_requests
        # Signals only: one to all processes makes the supervisor give an order as well.
        self._signal_came = False

    def begin(self, reason: str) -> None:
        """Stop, after the drain delay."""
        if not self.begun.is_set():
            logger.info("%s: stopping, %d requests to answer", reason, len(self._open_requests))
            self.begun.set()

    def on_signal(self, number: signal.Signals) -> None:
        """Stop; at once if this is the second signal."""
        if self._signal_came:
            logger.warning("%s again: stopping at once", number.name)
            self.at_once()
        self._signal_came = True
        self.begin(number.name)

    def on_order(self) -> None:
        """Stop without a delay: the supervisor has waited for it itself, or replaces this process."""
        self.delay_over.set()
        self.begin("supervisor")

    def at_once(self) -> None:
        """End the drain delay and the grace period."""
        self.delay_over.set()
        self.now.set()
