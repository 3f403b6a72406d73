"""The end of a process that serves: it answers what it has, cancels what is left after the grace period, and closes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from threadbridge.common.threads import NOT_STARTED
from threadbridge.http.server import ConnectionServer
from threadbridge.loop.bridge import Bridge
from threadbridge.process import logs
from threadbridge.process.identity import remove_pid_file

logger = logging.getLogger("threadbridge")

# Seconds that cancelled requests get to stop their work, such as queries in the database.
CANCEL_TIME = 1.0


async def answer_what_is_left(
    bridge: Bridge, server: ConnectionServer, *, grace: float, linger: float, stop_now: asyncio.Event
) -> bool:
    """Wait until all requests are answered; cancel the rest after the grace period. Return whether any were cancelled.

    :param linger: seconds for which requests may still arrive on open connections.
    :param stop_now: ends the grace period.
    """
    drained = asyncio.create_task(_drain(bridge, server, linger))
    stopped_now = asyncio.create_task(stop_now.wait())
    await asyncio.wait((drained, stopped_now), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    stopped_now.cancel()
    if drained.done():
        drained.result()
    has_cut = _cancel_unfinished(bridge)
    if has_cut:
        await asyncio.wait((drained,), timeout=CANCEL_TIME)
    return has_cut


def close(bridge: Bridge, *, has_cut: bool) -> bool:
    """Close the bridge; return whether every request has been answered and no thread is at work."""
    busy = [lane for lane in bridge.lanes if lane.busy]
    for lane in busy:
        message = "stopped while threads of the lane %s were at work: %d"
        if lane.upstream:
            message = "stopped while other hosts ran requests of the lane %s: %d"
        logger.error(message, lane.name, lane.busy)
    if has_cut or busy:
        bridge.exchanges.watch.process_ends()
        bridge.exchanges.cut()
        return False
    bridge.close()
    bridge.exchanges.watch.process_ends()
    logger.info("stopped, every request is answered")
    return True


async def _drain(bridge: Bridge, server: ConnectionServer, linger: float) -> None:
    await server.drain(linger)
    await bridge.forwarding.drain()
    bridge.close()
    try:
        # Applications may go on after their response, in `close()`. Not in the loop's default executor: the runner
        # would wait for a worker that never ends.
        await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), bridge.join)
    except NOT_STARTED as error:
        logger.warning("cannot start a thread to wait for the others, so polling them instead: %s", error)
        while any(lane.busy for lane in bridge.lanes):
            await asyncio.sleep(0.1)


def _cancel_unfinished(bridge: Bridge) -> bool:
    """Refuse waiting requests and cancel running ones, whatever their method; return whether there were any."""
    left = bridge.exchanges.unfinished()
    for exchange in left:
        message = "stopped before request %s was answered: %s %s"
        if exchange.ended:
            message = "stopped while request %s, already ended for its client, still ran: %s %s"
        logger.error(message, exchange.id, exchange.start_line.method, exchange.start_line.path)
    bridge.exchanges.abandon(left)
    return bool(left)


def end_process() -> NoReturn:
    """End the process with status 1, whatever its threads are doing."""
    remove_pid_file()
    logging.shutdown()
    for _, handler in logs.installed:
        # A call of `logging.config` has made `logging.shutdown` forget it.
        handler.flush()
    sys.stdout.flush()
    os._exit(1)
