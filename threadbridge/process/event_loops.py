"""Which event loop a process has, and a warning about others, which never run. Main thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib.util import find_spec

from tornado.ioloop import IOLoop

logger = logging.getLogger("threadbridge")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the event loop ``asyncio`` or ``uvloop``; ``auto`` is uvloop where it is installed.

    Raises ``ValueError`` if uvloop is asked for and missing.
    """
    if name == "asyncio" or (name == "auto" and find_spec("uvloop") is None):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ValueError("loop=uvloop: uvloop is not installed; pip install uvloop, or give loop=asyncio") from None
    return uvloop.new_event_loop


def warn_of_idle_loops() -> None:
    """Log if callbacks wait on a loop that the application made, since the server runs one of its own."""
    # Tornado has no public way to ask: `IOLoop.current` creates a loop if there is none.
    for loop in getattr(IOLoop, "_ioloop_for_asyncio", ()):
        if not loop.is_closed() and (getattr(loop, "_scheduled", None) or getattr(loop, "_ready", None)):
            logger.warning(
                "callbacks were scheduled on an IOLoop before serve() was called; they never run, because serve() runs "
                "a loop of its own: schedule them in serve(..., on_start=...)"
            )
            return
