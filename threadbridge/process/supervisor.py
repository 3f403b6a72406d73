"""Several processes on one port: starts them, replaces one that ends, passes on what the operators want.

Each process runs the program anew, from its beginning, instead of being a copy (``fork``) of this one: it imports the
application itself, and so has connections, locks and threads of its own, and after a reload the new version.

Each has a listening socket of its own, over which the kernel spreads the connections evenly (``SO_REUSEPORT``). From
one socket for all, the first process to wake up would take most of them, however many requests it has waiting: a loop
that never blocks accepts whatever its threads have to do. The sockets are the supervisor's: connections that have not
been accepted when a process dies wait for the next one in its place, and none is lost in a reload.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

from threadbridge.process.child import Child
from threadbridge.process.logs import in_format, reopen_log_files
from threadbridge.process.signals import on_signal, warn_of_replaced_handlers
from threadbridge.process.standard_error import say
from threadbridge.process.systemd import feed_watchdog, notify
from threadbridge.settings.table import Settings, grace_period
from threadbridge.settings.values import ImportPath
from threadbridge.sockets.inheritance import REOPEN, STOP_NOW
from threadbridge.sockets.listeners import bind, bind_admin, describe, leave_new_connections_to_others

logger = logging.getLogger("threadbridge")

# A process that ends before it accepts connections, or within so many seconds after it did, has ended too soon.
SOON = 10.0
# Seconds until it is replaced, after each such end in a row; the last one for all that follow. They keep a process that
# cannot run from taking the processor from the others, and are short since its share of the connections waits.
DELAYS = (0.0, 0.5, 1.0, 2.0, 4.0)
# A process may take so many times as long to start as its event loop may stand still.
START_FACTOR = 4
# Seconds after its grace period in which a process ends by itself, unless something is very wrong with it.
PATIENCE = 5.0


class Supervisor:
    """The life of a process that has others serve: construct, `listen`, `run`. Its own loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = settings["processes"]
        self._children: set[Child] = set()
        # For each process, in the order of their numbers.
        self._listeners: list[list[socket.socket]] = []
        self._admin_listeners: list[socket.socket] = []
        self._remove_socket_file: Callable[[], None] = lambda: None
        # Whether any process has come so far as to accept connections.
        self._works = False
        self._status = 0

    def listen(self) -> None:
        """Take the address; raises ``OSError``."""
        self._listeners, self._remove_socket_file = bind(self._settings, self._count)
        self._admin_listeners = bind_admin(self._settings)

    def run(self) -> int:
        """Serve until a signal comes; give the exit status: 0 if all processes have answered all they were asked."""
        self._run_directory = self._settings["run_directory"]
        with ExitStack() as stack:
            if self._admin_listeners and self._run_directory is None:
                # Whichever process an operator reaches, it shows them all: here they find each other.
                self._run_directory = stack.enter_context(TemporaryDirectory(prefix="threadbridge-"))
            warn_of_replaced_handlers()
            asyncio.run(self._live())
        return self._status

    async def _live(self) -> None:
        # Made here because they belong to the loop.
        self._stop, self._stop_now, self._reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._complete = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, self._on_stop, number)
        on_signal(signal.SIGHUP, self._reopen_log_files)
        on_signal(signal.SIGUSR2, self._reload.set)
        try:
            async with asyncio.TaskGroup() as group:
                lives = (self._start_all(), self._reload_when_told(), self._watch(), feed_watchdog())
                tasks = [group.create_task(each) for each in lives]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._end_all()

    def _on_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            logger.warning("%s again: stopping at once", number.name)
            self._stop_now.set()
            for child in self._children:
                child.tell(STOP_NOW)
        else:
            logger.info("%s: stopping %d processes", number.name, len(self._children))
            self._stop.set()

    def _reopen_log_files(self) -> None:
        reopen_log_files()
        for child in self._children:
            child.tell(REOPEN)

    # Starting and replacing.

    async def _start_all(self) -> None:
        # One first: what is wrong with all of them is said once.
        first = self._start(1)
        if first is None:
            self._give_up(1)
            return
        await first.settled.wait()
        if not first.is_ready:
            return
        pool: Any = self._settings["pool"]
        if pool is not None and not isinstance(pool, ImportPath):
            # The program has imported the application here too: connections that were made by that serve nobody.
            pool.close()
        for number in range(2, self._count + 1):
            self._replace(number, failures=0)
        await self._complete.wait()
        scheme = "https" if self._settings["certfile"] else "http"
        places = " and ".join(describe(listener, scheme) for listener in self._listeners[0])
        operators = "".join(f", operators: {describe(listener, 'http')}" for listener in self._admin_listeners)
        say(in_format(f"Serving on {places} (pid {os.getpid()}, {self._count} processes{operators})"))
        notify("READY=1", f"STATUS=Serving on {places} with {self._count} processes")

    def _start(self, number: int, failures: int = 0) -> Child | None:
        """Start a process; None when there cannot be one more."""
        try:
            child = Child(
                number,
                self._listeners[number - 1],
                self._admin_listeners,
                self._run_directory,
                failures=failures,
                start_limit=START_FACTOR * self._settings["watchdog"],
                on_change=self._on_change,
            )
        except OSError as error:
            logger.error("process %d cannot be started: %s", number, error.strerror)
            return None
        self._children.add(child)
        return child

    def _on_change(self, child: Child) -> None:
        if child.status is None:
            self._works = True
            if sum(each.is_ready for each in self._children) == self._count:
                self._complete.set()
            return
        self._children.discard(child)
        if child.told_to_stop:
            return
        if not self._works:
            self._give_up(child.status if child.status > 0 else 1)
            return
        too_soon = child.ready_since is None or time.monotonic() - child.ready_since < SOON
        self._replace_later(child.number, child.failures + 1 if too_soon else 0)

    def _replace_later(self, number: int, failures: int) -> None:
        # However often: some have accepted connections, so it is a request that ends them, or passes.
        delay = DELAYS[min(max(failures, 1), len(DELAYS)) - 1]
        if failures > 1:
            logger.error("process %d has ended too soon %d times in a row: next try in %g s", number, failures, delay)
        asyncio.get_running_loop().call_later(delay, self._replace, number, failures)

    def _replace(self, number: int, failures: int) -> None:
        if self._stop.is_set() or self._present(number) is not None:
            return
        if self._start(number, failures) is None:
            self._replace_later(number, failures + 1)

    def _present(self, number: int) -> Child | None:
        """The process of this number that is to stay, if there is one."""
        return next((child for child in self._staying if child.number == number), None)

    @property
    def _staying(self) -> list[Child]:
        return [child for child in self._children if not child.told_to_stop]

    def _give_up(self, status: int) -> None:
        self._status = max(self._status, status)
        self._stop.set()

    async def _reload_when_told(self) -> None:
        """Replace all processes, one after the other: each serves until the new one does."""
        await self._complete.wait()
        while True:
            await self._reload.wait()
            self._reload.clear()
            logger.info("SIGUSR2: replacing all processes")
            if await self._replace_all():
                logger.info("all processes are replaced")
            else:
                logger.error("a new process could not be started: the old ones stay")

    async def _replace_all(self) -> bool:
        for number in range(1, self._count + 1):
            # None has its number while the next try is waited for.
            old = self._present(number)
            new = self._start(number)
            if new is None:
                return False
            await new.settled.wait()
            if not new.is_ready:
                return False
            if old is not None:
                # Not two more at a time: each has its connections to the database.
                await self._end(old)
        return True

    # Watching and ending.

    async def _watch(self) -> None:
        """Kill the processes that stand still: others take their places."""
        limit = self._settings["watchdog"]
        looked_at = time.monotonic()
        while limit:
            interval = min(limit / 8, 1.0)
            await asyncio.sleep(interval)
            now = time.monotonic()
            # What this process is late by, the machine may have kept from all: it is not held against the others. So a
            # machine that was suspended ends nobody, nor one on which all get their turn only now and then.
            late = max(0.0, now - looked_at - interval)
            for child in self._children:
                child.heard = min(now, child.heard + late)
            looked_at = now
            for child in self._staying:
                stalled_for = now - child.heard
                if child.killed or stalled_for < (limit if child.is_ready else START_FACTOR * limit):
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

    async def _end_all(self) -> None:
        # Also after a mistake in here: nothing is started any more.
        self._stop.set()
        # While there are listeners, nobody takes the file for one that was left behind.
        self._remove_socket_file()
        for listener in {listener for listeners in self._listeners for listener in listeners}:
            if self._settings["reuse_port"]:
                leave_new_connections_to_others(listener)
            # The processes still have it, and take what has arrived.
            listener.close()
        for listener in self._admin_listeners:
            listener.close()
        notify("STOPPING=1", f"STATUS=Stopping {len(self._children)} processes")
        clean = await asyncio.gather(*(self._end(child) for child in self._children))
        if not all(clean):
            self._give_up(1)
        else:
            logger.info("all processes have ended")

    async def _end(self, child: Child) -> bool:
        """Have a process end; whether it has answered all that it was asked."""
        was_ready = child.is_ready
        if child.status is None:
            child.stop()
        ended = asyncio.create_task(child.ended.wait())
        stopped_now = asyncio.create_task(self._stop_now.wait())
        grace = grace_period(self._settings)
        await asyncio.wait((ended, stopped_now), timeout=grace + PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        stopped_now.cancel()
        if self._stop_now.is_set():
            await asyncio.wait((ended,), timeout=PATIENCE)
        if child.status is None:
            logger.error("%s did not end when told to: killing it", child)
            child.kill()
        await ended
        return child.status == 0 or not was_ready
