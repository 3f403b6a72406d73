"""Several processes on one port: starts them, replaces those that end, passes on the operators' signals.

Each process runs the program from its beginning instead of being a fork of this one: it has its own connections, locks
and threads, and after a reload the application's new version. With ``preload``, another process runs the program from
its beginning, and forks them (`preloader`).

Each has its own listening socket, and the kernel spreads connections evenly over these (``SO_REUSEPORT``). With one
socket for all, a loop that never blocks would accept more than its threads can serve. The sockets are the supervisor's:
connections that a process has not accepted when it ends wait for its successor, and a reload loses none.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from threadbridge.process.application_pools import close_idle_connections
from threadbridge.process.child import Child
from threadbridge.process.identity import pid_files
from threadbridge.process.logs import in_format, reopen_log_files
from threadbridge.process.preloader import Preloaders
from threadbridge.process.privileges import Identity
from threadbridge.process.program import Executed
from threadbridge.process.renewal import INTERVAL, RETRY, Limits
from threadbridge.process.signals import RESIZING, on_signal, pause, warn_of_replaced_handlers
from threadbridge.process.standard_error import say
from threadbridge.process.systemd import feed_watchdog, notify
from threadbridge.process.watchdog import START_FACTOR, kill_those_that_hang
from threadbridge.settings.table import Settings, grace_period
from threadbridge.sockets.inheritance import DRAIN, REOPEN, STOP_NOW, Supervision
from threadbridge.sockets.listeners import Listeners, bind, bind_admin, bind_agent, describe

if TYPE_CHECKING:
    from threadbridge.telemetry.statsd import Statsd

logger = logging.getLogger("threadbridge")

# A process ends too soon if it does so before it accepts connections, or at most this many seconds after.
SOON = 10.0
# Seconds until it is replaced, after each such end in a row; the last one repeats. They keep a process that cannot run
# from taking the others' processor time, but are short since its share of the connections waits.
DELAYS = (0.0, 0.5, 1.0, 2.0, 4.0)
# Seconds between two reports of their number to the statsd server.
STATSD_INTERVAL = 1.0
# Seconds that a process gets to end by itself, after its grace period.
PATIENCE = 5.0
# Seconds for which a process that is to go accepts connections that clients have begun to make. For new ones, the
# clients' systems try again after a second.
LINGER = 0.5
# Why a port cannot be bound again.
ROOTS_PORTS = (
    "; after the start, which root has made, no more processes can be added on ports below 1024: restart with a higher "
    "number of processes"
)


def _processes(count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''}"


class Supervisor:
    """A process that supervises others, which serve: construct, `listen`, `run`. It has its own loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SettingError`."""
        self._settings = settings
        # How many processes there are, and how many there shall be.
        self._count = self._wanted = settings["processes"]
        self._identity = Identity(settings)
        self._limits = Limits(settings)
        self._children: set[Child] = set()
        self._listeners = Listeners()
        self._admin_listeners: list[socket.socket] = []
        self._agent_listeners: list[socket.socket] = []
        self._run_directory = settings["run_directory"]
        self._statsd: Statsd | None = None
        if settings["statsd"]:
            # Not at the top: few have such a server.
            from threadbridge.telemetry.statsd import Statsd

            self._statsd = Statsd(settings["statsd"], settings["statsd_prefix"], settings["dogstatsd_tags"])
        # Whether any process has ever accepted connections.
        self._works = False
        # For the processes' metrics, in a file that they inherit.
        self._supervision_file = os.memfd_create("supervision")
        self._tell_processes(Supervision(self._count))
        self._status = 0
        self._stop, self._stop_now, self._reload = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._resize = asyncio.Event()
        # Held while a process is replaced, added or removed: one at a time.
        self._changing = asyncio.Lock()
        # With ``preload``.
        self._preloaders = Preloaders(START_FACTOR * settings["watchdog"])
        # Set once all processes have accepted connections at the same time.
        self._complete = asyncio.Event()

    def listen(self) -> None:
        """Bind the address. Raises ``OSError``."""
        self._listeners = bind(self._settings, self._count)
        self._admin_listeners = bind_admin(self._settings)
        self._agent_listeners = bind_agent(self._settings)

    def give_up_root(self) -> None:
        """Become the user and group of the settings, who own what has been opened before. Raises `SettingError`."""
        sockets = (*self._listeners.of_process, self._admin_listeners, self._agent_listeners)
        descriptors = {each.fileno() for of_one in sockets for each in of_one}
        paths: list[str | Path] = [*self._listeners.paths, *pid_files()]
        self._identity.become(descriptors, paths, self._run_directory)

    def run(self) -> int:
        """Serve until a signal comes; return the exit status: 0 if all requests were answered."""
        with ExitStack() as stack:
            if (self._admin_listeners or self._agent_listeners) and self._run_directory is None:
                # Through it the process that an operator or HAProxy reaches finds the others, to show them too.
                self._run_directory = stack.enter_context(TemporaryDirectory(prefix="threadbridge-"))
            warn_of_replaced_handlers(*RESIZING)
            asyncio.run(self._live())
        return self._status

    async def _live(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, self._on_stop, number)
        on_signal(signal.SIGHUP, self._reopen_log_files)
        on_signal(signal.SIGUSR2, self._reload.set)
        on_signal(signal.SIGTTIN, self._resize_by, 1)
        on_signal(signal.SIGTTOU, self._resize_by, -1)
        try:
            async with asyncio.TaskGroup() as group:
                watching = kill_those_that_hang(self._children, self._settings["watchdog"])
                lives = (self._start_all(), watching, self._tell_statsd(), feed_watchdog())
                changes = (self._reload_when_told(), self._resize_when_told(), self._renew_when_due())
                tasks = [group.create_task(each) for each in (*lives, *changes)]
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
            logger.info("%s: stopping %s", number.name, _processes(len(self._children)))
            self._stop.set()

    def _reopen_log_files(self) -> None:
        reopen_log_files()
        for child in self._children:
            child.tell(REOPEN)
        self._preloaders.reopen_log_files()

    async def _start_all(self) -> None:
        # Only one at first, so that an error common to all is reported once.
        if not await self._starts(1):
            return
        if self._settings["pool"] not in ("none", ["none"]):
            # The program may have imported the application here too, which may have made connections.
            close_idle_connections()
        for number in range(2, self._count + 1):
            self._replace(number, failures=0)
        await self._complete.wait()
        admin_scheme = "https" if self._settings["admin_certfile"] else "http"
        operators = "".join(f", operators: {describe(listener, admin_scheme)}" for listener in self._admin_listeners)
        processes = _processes(self._count)
        say(in_format(f"Serving on {self._places()} (pid {os.getpid()}, {processes}{operators})"))
        notify("READY=1", self._status_line())

    def _places(self) -> str:
        scheme = "https" if self._settings["certfile"] else "http"
        return " and ".join(describe(listener, scheme) for listener in self._listeners.of_process[0])

    def _status_line(self) -> str:
        return f"STATUS=Serving on {self._places()} with {_processes(self._count)}"

    def _start(self, number: int, failures: int = 0) -> Child | None:
        """Start a process; return None if the system has no room for it."""
        try:
            child = Child(
                self._preloaders.fork if self._settings["preload"] else Executed,
                number,
                self._listeners.of_process[number - 1],
                self._admin_listeners,
                self._agent_listeners,
                self._run_directory,
                self._supervision_file,
                failures=failures,
                max_requests=self._limits.requests_of_next(),
                start_limit=START_FACTOR * self._settings["watchdog"],
                on_change=self._on_change,
            )
        except OSError as error:
            logger.error("process %d cannot be started: %s", number, error.strerror)
            if not self._works:
                self._give_up(1)
            return None
        self._children.add(child)
        return child

    async def _starts(self, number: int) -> bool:
        """Start a process; return whether it has come to accept connections."""
        child = self._start(number)
        if child is not None:
            await child.start_done.wait()
        return child is not None and child.is_ready

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
        if self._present(child.number) is None:
            # Otherwise a reload has failed, and the old process serves.
            self._tell_processes(self._supervision._replace(failures=self._supervision.failures + 1))
        too_soon = child.ready_since is None or time.monotonic() - child.ready_since < SOON
        self._replace_later(child.number, child.failures + 1 if too_soon else 0)

    def _replace_later(self, number: int, failures: int) -> None:
        # However often it has failed: processes have worked, so requests crash it, or the fault is temporary.
        delay = DELAYS[min(max(failures, 1), len(DELAYS)) - 1]
        if failures > 1:
            logger.error("process %d has ended too soon %d times in a row: next try in %g s", number, failures, delay)
        asyncio.get_running_loop().call_later(delay, self._replace, number, failures)

    def _replace(self, number: int, failures: int) -> None:
        is_wanted = not self._stop.is_set() and number <= self._count and self._present(number) is None
        if is_wanted and self._start(number, failures) is None:
            self._replace_later(number, failures + 1)

    def _tell_processes(self, supervision: Supervision) -> None:
        self._supervision = supervision
        supervision.write(self._supervision_file)

    def _present(self, number: int) -> Child | None:
        """The process with this number that has not been told to stop."""
        return next((child for child in self._children if child.number == number and not child.told_to_stop), None)

    def _give_up(self, status: int) -> None:
        self._status = max(self._status, status)
        self._stop.set()

    async def _renew(self, number: int) -> bool:
        """Replace a process, which serves until its successor does; return whether that could be started."""
        # None has this number while its next start is delayed.
        old = self._present(number)
        if not await self._starts(number):
            return False
        if old is not None:
            # Before another starts: each process has its connections to the database.
            await self._end(old)
        return True

    async def _reload_when_told(self) -> None:
        """Replace all processes, one after the other."""
        await self._complete.wait()
        while True:
            await self._reload.wait()
            self._reload.clear()
            async with self._changing:
                logger.info("SIGUSR2: replacing all processes")
                previous = self._preloaders.begin_again()
                number = 1
                while number <= self._count and await self._renew(number):
                    number += 1
                succeeded = number > self._count
                if succeeded:
                    logger.info("all processes are replaced")
                else:
                    logger.error("a new process could not be started: the old ones stay")
                self._tell_processes(self._supervision._replace(reloaded=succeeded))
                self._preloaders.settle(previous, has_begun=number > 1)

    async def _renew_when_due(self) -> None:
        """Replace each process that has reached a limit."""
        await self._complete.wait()
        while self._limits.are_set:
            await asyncio.sleep(INTERVAL)
            for child in list(self._children):
                reason = self._limits.exceeded(child)
                async with self._changing:
                    # Another change may have replaced it meanwhile.
                    if not reason or self._present(child.number) is not child:
                        continue
                    logger.info("%s: %s: replacing it", child, reason)
                    if await self._renew(child.number):
                        continue
                logger.error("no new process could be started in place of %s: next try in %g s", child, RETRY)
                await asyncio.sleep(RETRY)

    def _resize_by(self, difference: int) -> None:
        name = "SIGTTIN" if difference > 0 else "SIGTTOU"
        wanted = max(1, self._wanted + difference)
        if wanted == self._wanted:
            logger.warning("%s: there is only one process left, which stays", name)
            return
        self._wanted = wanted
        self._tell_processes(self._supervision._replace(processes=wanted))
        logger.info("%s: %s from now on, each with its own threads and connections", name, _processes(wanted))
        self._resize.set()

    async def _resize_when_told(self) -> None:
        """Add or remove processes, those with the highest numbers."""
        await self._complete.wait()
        while True:
            await self._resize.wait()
            self._resize.clear()
            while self._count != self._wanted:
                async with self._changing:
                    if self._count < self._wanted:
                        await self._add()
                    else:
                        await self._remove()
                notify(self._status_line())

    async def _add(self) -> None:
        try:
            self._listeners.add_process()
        except OSError as error:
            logger.error(
                "cannot listen on %s for another process: %s%s",
                *(error.filename, error.strerror, ROOTS_PORTS if error.errno == errno.EACCES else ""),
            )
            self._wanted = self._count
            self._tell_processes(self._supervision._replace(processes=self._count))
            return
        self._count += 1
        # If it does not start, it is tried again like any other.
        await self._starts(self._count)

    async def _remove(self) -> None:
        number, self._count = self._count, self._count - 1
        if self._listeners.remove_process():
            # Until those are accepted that are being made.
            await pause(LINGER, self._stop)
        child = self._present(number)
        if child is not None:
            await self._end(child)

    async def _tell_statsd(self) -> None:
        """Send the number of processes that serve to the statsd server, if there is one; they send the rest."""
        while self._statsd is not None:
            self._statsd.gauge("gunicorn.workers", sum(child.is_ready for child in self._children))
            await asyncio.sleep(STATSD_INTERVAL)

    async def _end_all(self) -> None:
        # Starts nothing more, also after an exception in this class.
        self._stop.set()
        notify("STOPPING=1", f"STATUS=Stopping {len(self._children)} processes")
        if self._works and not self._status:
            for child in self._children:
                child.tell(DRAIN)
            await pause(self._settings["drain_delay"], self._stop_now)
        # While the sockets still listen, so that no other process takes the file for an abandoned one.
        self._listeners.remove_files()
        self._listeners.leave_new_connections_to_others()
        # The processes still have them, and accept the connections that have arrived.
        self._listeners.close()
        for listener in (*self._admin_listeners, *self._agent_listeners):
            listener.close()
        have_answered = all(await asyncio.gather(*map(self._end, self._children)))
        await self._preloaders.end(PATIENCE)
        if have_answered:
            logger.info("all processes have ended")
        else:
            self._give_up(1)

    async def _end(self, child: Child) -> bool:
        """Make a process end; return whether it has answered all its requests."""
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
