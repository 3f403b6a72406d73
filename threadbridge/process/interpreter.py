"""How a process runs Python: its event loop, how its threads take turns, what the garbage collector examines."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec

from tornado.ioloop import IOLoop

logger = logging.getLogger("threadbridge")


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return the factory of the event loop ``asyncio`` or ``uvloop``; ``auto`` is uvloop where it is installed.

    Raises ``ValueError`` if uvloop is asked for and not installed.
    """
    if name == "asyncio" or (name == "auto" and find_spec("uvloop") is None):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ValueError("loop=uvloop: uvloop is not installed; pip install uvloop, or give loop=asyncio") from None
    return uvloop.new_event_loop


def tune_interpreter(switch_interval: float) -> None:
    """Set how many seconds a thread may compute while another waits, and exempt what is loaded from garbage collection.

    Call it once the application is loaded: loaded objects stay, and examining them all at each collection would take
    longer than many requests.
    """
    sys.setswitchinterval(switch_interval)
    gc.collect()
    gc.freeze()


def warn_of_idle_loops() -> None:
    """Log a warning if callbacks are scheduled on an `IOLoop` that will never run, as the server runs its own."""
    # Tornado has no public way to ask: `IOLoop.current` creates a loop if there is none.
    for loop in getattr(IOLoop, "_ioloop_for_asyncio", ()):
        if not loop.is_closed() and (getattr(loop, "_scheduled", None) or getattr(loop, "_ready", None)):
            logger.warning(
                "callbacks were scheduled on an IOLoop before serve() was called; they never run, because serve() runs "
                "a loop of its own: schedule them in serve(..., on_start=...)"
            )
            return
