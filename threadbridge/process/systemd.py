"""Tells systemd how the process is doing: the protocol of ``sd_notify(3)``."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket

logger = logging.getLogger("threadbridge")


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager, if there is one; log it if that fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
            # Linux's abstract sockets, names without a file, are written with an "@".
            manager.sendto("\n".join(assignments).encode(), re.sub("^@", "\0", address))
    except OSError as error:
        logger.warning("cannot tell the service manager %s: %s", " ".join(assignments), error.strerror)


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``, half the service manager's limit; None if it has none for this process."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    if not limit.isdecimal() or int(limit) == 0 or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit) / 2_000_000


async def feed_watchdog() -> None:
    """Send ``WATCHDOG=1`` to the service manager as often as it wants, as long as the loop turns."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
