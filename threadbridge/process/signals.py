"""The signals of a serving process and its supervisor; waits that they end. Main thread."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from threadbridge.common import forks

logger = logging.getLogger("threadbridge")

# These may be sent to all processes of a service at any time, and by default end a process.
_HELD = (signal.SIGHUP, signal.SIGUSR2)
# To a supervisor: one process more or less.
RESIZING = (signal.SIGTTIN, signal.SIGTTOU)
_came_early: set[int] = set()


def hold_signals() -> None:
    """Keep SIGHUP and SIGUSR2 from ending a process that does not serve yet; `on_signal` handles them later."""
    for number in _HELD:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(number, _remember)


def forget_early_signals() -> None:
    """Forget those that came before this process was forked: they were not for it."""
    _came_early.clear()


def _remember(number: int, frame: FrameType | None) -> None:
    _came_early.add(number)


def on_signal(number: signal.Signals, callback: Callable[..., None], *args: object) -> None:
    """Call ``callback(*args)`` on the running loop for each such signal, and at once if one was held."""
    before = signal.getsignal(number)
    forks.takes_signal(number, signal.SIG_DFL if before is _remember else before)
    asyncio.get_running_loop().add_signal_handler(number, callback, *args)
    forks.wakes_on_signals()
    if number in _came_early:
        _came_early.discard(number)
        callback(*args)


async def pause(seconds: float, until: asyncio.Event) -> None:
    """Wait for this time, or until the event is set."""
    if seconds:
        with suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), seconds)


def warn_of_replaced_handlers(*further: signal.Signals) -> None:
    """Log which of the application's own handlers the server is about to replace: the usual ones, and further ones."""
    ours = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, _remember)
    for number in (signal.SIGTERM, signal.SIGINT, *_HELD, *further):
        if signal.getsignal(number) not in ours:
            logger.warning(
                "%s: the server uses this signal and has replaced the application's handler; use another signal in the "
                "application",
                number.name,
            )
