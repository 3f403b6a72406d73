"""One process's life: it listens, says so, serves, drains when told to stop, and ends."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack, cast
from wsgiref.types import WSGIApplication

from threadbridge.common.threads import NOT_STARTED
from threadbridge.compiled import is_compiled
from threadbridge.crossing.lanes import Lane
from threadbridge.http.limits import Limits
from threadbridge.http.server import ConnectionServer
from threadbridge.http.stream import check_tornado
from threadbridge.loop.bridge import Bridge
from threadbridge.process.affinity import Affinity
from threadbridge.process.application_logging import demote_errors_of_cancelled_requests, keep_logging, restore_logging
from threadbridge.process.heartbeat import Heartbeat, open_stderr
from threadbridge.process.interpreter import loop_factory, settle, warn_of_idle_loops
from threadbridge.process.logs import in_format, reopen_log_files
from threadbridge.process.signals import hold_signals, on_signal, warn_of_replaced_handlers
from threadbridge.process.standard_error import say
from threadbridge.process.systemd import feed_watchdog, notify
from threadbridge.settings.table import BridgeSettings, Settings, from_keywords, grace_period
from threadbridge.sockets.inheritance import MESSAGE_SIZE, REOPEN, STOP, STOP_NOW, Inheritance, take_inheritance
from threadbridge.sockets.listeners import bind, describe, leave_new_connections_to_others, tls_context

if TYPE_CHECKING:
    from threadbridge.admin import AdminServer
    from threadbridge.process.supervisor import Supervisor

logger = logging.getLogger("threadbridge")

# How long requests that are cut may take to stop what they are doing, such as queries in the database.
CANCEL_TIME = 1.0
# Seconds between two looks whether all threads are idle, when there can be none that waits for them.
JOIN_INTERVAL = 0.1


def serve(
    application: WSGIApplication,
    *,
    on_start: Callable[[], object] | None = None,
    **settings: Unpack[Settings],
) -> int:
    """Serve a WSGI application until SIGTERM or SIGINT; give the process's exit status.

    The keywords are the settings of docs/settings.md, with their meanings, units and defaults; ``pool`` or ``threads``
    is needed. Prints one line with the address once connections are accepted. On the signal the port is closed, and
    what is running or queued is answered: status 0. What is left when ``grace`` is over, or at a second signal, is
    cancelled and cut: the process ends with status 1. SIGHUP opens the log files anew. With ``processes`` the program
    is run anew in each of them, from its beginning until it comes here, and this process supervises them: it replaces
    those that die, and all, one after the other, at SIGUSR2.

    ``on_start`` is called on the loop as soon as connections are accepted, in each process that serves. Use it to start
    what belongs to the loop, such as a `tornado.ioloop.PeriodicCallback`: `serve` runs a loop of its own, so callbacks
    that you schedule before the call never run. If it raises an exception, so does `serve`.

    Raises ``ValueError`` for a setting that cannot be used, and ``OSError`` when the address cannot be listened on.
    Call it in the main thread, which becomes the loop's.
    """
    values = from_keywords(settings)
    inheritance = take_inheritance()
    service: Service | Supervisor
    if values["processes"] > 1 and inheritance is None:
        # Not above: the processes that serve do not need it.
        from threadbridge.process.supervisor import Supervisor

        service = Supervisor(values)
    else:
        service = Service(application, values, inheritance, on_start)
    service.listen()
    return service.run()


class Service:
    """The life of a process that serves an application: construct, `listen`, `run`. Loop side."""

    def __init__(
        self,
        application: WSGIApplication,
        settings: Settings,
        inheritance: Inheritance | None = None,
        on_start: Callable[[], object] | None = None,
    ) -> None:
        """Prepare everything that does not need the address; raises ``ValueError``."""
        check_tornado()
        self._settings = settings
        self._on_start = on_start
        values = cast(Mapping[str, Any], settings)
        self._bridge = Bridge(application, **{name: values[name] for name in BridgeSettings.__annotations__})
        # Other processes may run the same application: those of the supervisor, or what else listens at this port.
        self._bridge.shared.is_multiprocess = inheritance is not None or settings["reuse_port"]
        self._loop_factory = loop_factory(settings["loop"])
        self._limits = Limits(
            max_header_size=settings["max_header_size"],
            max_body_size=settings["max_body_size"],
            header_timeout=settings["header_timeout"],
            idle_timeout=settings["idle_timeout"],
            body_timeout=settings["body_timeout"],
            send_timeout=settings["send_timeout"],
            min_rate=settings["min_rate"],
            transfer_timeout=settings["transfer_timeout"],
            max_connections=settings["max_connections"],
            max_connections_per_client=settings["max_connections_per_client"],
        )
        certfile = settings["certfile"]
        self._tls = tls_context(certfile, settings["keyfile"]) if certfile else None
        directory = inheritance.run_directory if inheritance is not None else settings["run_directory"]
        wants_admin = settings["admin_port"] is not None or directory is not None
        self._admin: AdminServer | None = None
        if wants_admin:
            # Not above: it takes more than a megabyte.
            from threadbridge.admin import AdminServer

            self._admin = AdminServer(self._bridge, settings, inheritance)
        self._sockets: list[socket.socket] = []
        self._remove_socket_file: Callable[[], None] = lambda: None
        self._stop_by = 0.0
        self._inheritance = inheritance
        self._tell = inheritance.tell if inheritance is not None else notify

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes, also those that the bridge has made itself."""
        return self._bridge.lanes

    def listen(self) -> None:
        """Take the address, unless the supervisor has it; raises ``OSError``."""
        if self._inheritance is not None:
            self._sockets = list(self._inheritance.listeners)
        else:
            [self._sockets], self._remove_socket_file = bind(self._settings)
        if self._admin is not None:
            self._admin.listen()

    def run(self) -> int:
        """Serve until a signal comes; give the exit status, or end the process if requests or threads are left."""
        restore_logging()
        demote_errors_of_cancelled_requests()
        settle(self._settings["switch_interval"])
        warn_of_replaced_handlers()
        warn_of_idle_loops()
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            has_ended = runner.run(self._live())
        # The loop has let go of them, and the process may still wait for threads of the application's own.
        hold_signals()
        if not has_ended:
            # The interpreter would wait for the threads that are left, however long their queries take.
            end_process()
        return 0

    @property
    def grace_left(self) -> float:
        """Seconds that are left of the grace period, after `run`."""
        return max(0.0, self._stop_by - time.monotonic())

    async def _live(self) -> bool:
        """Serve until a signal comes; whether everything had ended within the grace period."""
        loop = asyncio.get_running_loop()
        stop, stop_now = asyncio.Event(), asyncio.Event()

        def on_stop(reason: str) -> None:
            if not stop.is_set():
                logger.info("%s: stopping, %d requests to answer", reason, len(self._bridge.exchanges.open))
                stop.set()

        signals: list[signal.Signals] = []

        def stop_or_hurry(number: signal.Signals) -> None:
            # What the supervisor says does not count: it may say what a signal to all processes says too.
            signals.append(number)
            if len(signals) > 1:
                logger.warning("%s again: stopping at once", number.name)
                stop_now.set()
            on_stop(number.name)

        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, stop_or_hurry, number)
        on_signal(signal.SIGHUP, reopen_log_files)
        # Or else it would end the process: it may be sent to all of a service.
        on_signal(signal.SIGUSR2, logger.warning, "SIGUSR2: only the supervisor (--processes) can reload")
        if self._inheritance is not None:
            orders = {STOP: lambda: on_stop("supervisor"), STOP_NOW: stop_now.set, REOPEN: reopen_log_files}
            loop.add_reader(self._inheritance.channel, self._obey, self._inheritance.channel, orders)

        server = ConnectionServer(
            self._bridge.start_request,
            self._bridge.telemetry.refused,
            self._limits,
            self._tls,
            self._bridge.spool.memory,
            self._bridge.spool.unread,
            self._settings["trusted_proxies"],
        )
        self._bridge.servers.append(server)
        server.add_sockets(self._sockets)
        if self._admin is not None:
            self._admin.start(self._places())
        if self._settings["affinity"] == "auto":
            keep_together()
        if self._bridge.guard is not None:
            # Not the directory that a supervisor makes for its processes, which the next one would not find.
            self._bridge.guard.connections.begin(self._settings["run_directory"])
        feeding = asyncio.create_task(feed_watchdog())
        keeping = asyncio.create_task(keep_logging())
        heartbeat = self._start_heartbeat()
        try:
            if self._on_start is not None:
                self._on_start()
            self._say_where()
            how = "compiled" if is_compiled() else "not compiled"
            logger.info("Python %s, %s, on %s", platform.python_version(), how, type(loop).__module__.partition(".")[0])
            await stop.wait()
        finally:
            # While this process still listens, nobody takes the file for one that was left behind.
            self._remove_socket_file()
            if self._admin is not None:
                self._admin.drain()

        grace = grace_period(self._settings)
        self._stop_by = time.monotonic() + grace
        self._tell("STOPPING=1", f"STATUS=Stopping, {len(self._bridge.exchanges.open)} requests to answer")
        if self._settings["reuse_port"] and self._inheritance is None:
            for listener in self._sockets:
                leave_new_connections_to_others(listener)
        server.stop()
        drained = asyncio.create_task(self._drain(server))
        stopped_now = asyncio.create_task(stop_now.wait())
        await asyncio.wait((drained, stopped_now), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        stopped_now.cancel()
        feeding.cancel()
        keeping.cancel()
        heartbeat.stop()
        if drained.done():
            drained.result()
        has_cut = self._cancel_what_is_left()
        if has_cut:
            await asyncio.wait((drained,), timeout=CANCEL_TIME)
        if self._admin is not None:
            await self._admin.close()
        for lane in self._bridge.lanes:
            if lane.busy:
                logger.error("stopped while threads of the lane %s were at work: %d", lane.name, lane.busy)
        if has_cut or any(lane.busy for lane in self._bridge.lanes):
            self._bridge.exchanges.watch.process_ends()
            self._bridge.exchanges.cut()
            return False
        self._bridge.close()
        self._bridge.exchanges.watch.process_ends()
        logger.info("stopped, every request is answered")
        return True

    def _cancel_what_is_left(self) -> bool:
        """Refuse what waits, and cancel what runs, whatever its method is; whether there was anything."""
        left = self._bridge.exchanges.unfinished()
        for exchange in left:
            which = (exchange.id, exchange.start_line.method, exchange.start_line.path)
            if not exchange.ended:
                logger.error("stopped before request %s was answered: %s %s", *which)
            else:
                logger.error("stopped while request %s, already ended for its client, still ran: %s %s", *which)
        self._bridge.exchanges.abandon(left)
        return bool(left)

    def _start_heartbeat(self) -> Heartbeat:
        limit = self._settings["watchdog"]
        if self._inheritance is not None:
            tell, inherited = self._inheritance.tell, self._inheritance.stacks_file
            heartbeat = Heartbeat(limit, lambda: tell("WATCHDOG=1"), inherited, reads_back=True)
            self._inheritance.started()
        else:
            stderr = open_stderr()
            if not faulthandler.is_enabled():
                faulthandler.enable(stderr)
            heartbeat = Heartbeat(limit, lambda: None, stderr, reads_back=False)
        heartbeat.start()
        return heartbeat

    def _say_where(self) -> None:
        places = " and ".join(self._places())
        if self._inheritance is None:
            operators = self._admin.address if self._admin is not None else ""
            say(in_format(f"Serving on {places} (pid {os.getpid()}{operators and f', operators: {operators}'})"))
        self._tell("READY=1", f"STATUS=Serving on {places}")

    def _obey(self, channel: socket.socket, orders: Mapping[bytes, Callable[[], None]]) -> None:
        """Do what the supervisor says. When it is gone, nobody needs this process any more."""
        try:
            message = channel.recv(MESSAGE_SIZE)
        except ConnectionResetError:
            message = b""
        if message:
            orders[message]()
        else:
            asyncio.get_running_loop().remove_reader(channel)
            logger.error("the supervisor has died; answering what has arrived, then exiting")
            orders[STOP]()
            if self._admin is not None:
                # The next supervisor binds the same port, while this process still answers.
                self._admin.leave_port()

    def _places(self) -> list[str]:
        return [describe(listener, "https" if self._tls else "http") for listener in self._sockets]

    async def _drain(self, server: ConnectionServer) -> None:
        await server.drain()
        self._bridge.close()
        # Applications may go on after their response is out, in `close()`. The waiting thread is a daemon, so that a
        # worker that never ends holds up neither the loop nor the interpreter's end.
        joined = asyncio.Event()
        loop = asyncio.get_running_loop()

        def join() -> None:
            self._bridge.join()
            loop.call_soon_threadsafe(joined.set)

        try:
            threading.Thread(target=join, name="threadbridge-join", daemon=True).start()
        except NOT_STARTED as error:
            logger.warning("cannot start a thread to wait for the others, so polling them instead: %s", error)
            while any(lane.busy for lane in self._bridge.lanes):
                await asyncio.sleep(JOIN_INTERVAL)
        else:
            await joined.wait()


def keep_together() -> None:
    """Keep the threads on one processor where that is of use and the system can."""
    try:
        Affinity().start()
    except (OSError, AttributeError) as error:
        logger.info("threads are left to the kernel: %s", error)


def end_process() -> None:
    """End the process with status 1, whatever its threads are doing."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)
