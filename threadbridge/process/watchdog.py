"""Kills the supervisor's processes whose event loops stand still, or that do not come to serve. In the supervisor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Set

from threadbridge.process.child import Child

logger = logging.getLogger("threadbridge")

# A process may take this many times as long to start as its event loop may stand still.
START_FACTOR = 4


async def kill_those_that_hang(children: Set[Child], limit: float) -> None:
    """Look after these processes, which may come and go, until this is cancelled.

    :param limit: how many seconds an event loop may stand still; 0 for any time.
    """
    looked_at = time.monotonic()
    while limit:
        interval = min(limit / 8, 1.0)
        await asyncio.sleep(interval)
        now = time.monotonic()
        # If this process was late, the machine may have delayed the others too, as when it was suspended or is
        # overloaded: that is not held against them.
        late = max(0.0, now - looked_at - interval)
        looked_at = now
        for child in children:
            child.heard = min(now, child.heard + late)
            stalled_for = now - child.heard
            patience = limit if child.is_ready else START_FACTOR * limit
            if child.killed or child.told_to_stop or stalled_for < patience:
                continue
            if child.is_ready:
                logger.error("%s: its event loop has stood still for %.0f s: killing it", child, stalled_for)
            else:
                logger.error(
                    "%s does not accept connections after %.0f s: killing it; a start may take %d times watchdog="
                    "%g s, so raise that if the application needs longer",
                    *(child, stalled_for, START_FACTOR, limit),
                )
            child.kill()
