"""How a process runs Python: which event loop, how its threads take turns, what the garbage collector looks at."""

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
    """The factory of the event loop ``asyncio`` or ``uvloop``; ``auto`` is uvloop where that is installed.

    Raises ``ValueError`` if uvloop is asked for and not installed.
    """
    if name == "asyncio" or (name == "auto" and find_spec("uvloop") is None):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ValueError("loop=uvloop: uvloop is not installed; pip install uvloop, or give loop=asyncio") from None
    return uvloop.new_event_loop


def settle(switch_interval: float) -> None:
    """Prepare for serving, once the application is loaded.

    :param switch_interval: seconds that a thread may compute while another one waits to.
    """
    sys.setswitchinterval(switch_interval)
    # What has been loaded stays, and may be a lot: examining it again at each garbage collection takes longer than many
    # requests.
    gc.collect()
    gc.freeze()


def warn_of_idle_loops() -> None:
    """Log a warning if callbacks have been scheduled on an `IOLoop`, before this process starts a loop of its own."""
    # Tornado has no public way to ask: `IOLoop.current` makes a loop when there is none.
    for loop in getattr(IOLoop, "_ioloop_for_asyncio", ()):
        if not loop.is_closed() and (getattr(loop, "_scheduled", None) or getattr(loop, "_ready", None)):
            logger.warning(
                "callbacks were scheduled on an IOLoop before serve() was called; they never run, because serve() runs "
                "a loop of its own: schedule them in serve(..., on_start=...)"
            )
            return
