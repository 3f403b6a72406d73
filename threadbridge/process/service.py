"""The life of a process that serves: it listens, serves, drains when told to stop, and ends."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack, cast
from wsgiref.types import WSGIApplication

from tornado.ioloop import IOLoop

from threadbridge.common.threads import NOT_STARTED
from threadbridge.compiled import is_compiled
from threadbridge.http.limits import Limits
from threadbridge.http.server import ConnectionServer
from threadbridge.http.stream import check_tornado
from threadbridge.loop.bridge import Bridge
from threadbridge.process import logs
from threadbridge.process.affinity import keep_together
from threadbridge.process.application_pools import ApplicationPools
from threadbridge.process.cost_keeper import CostKeeper
from threadbridge.process.heartbeat import Heartbeat, open_stderr
from threadbridge.process.signals import hold_signals, on_signal, warn_of_replaced_handlers
from threadbridge.process.standard_error import say
from threadbridge.process.systemd import feed_watchdog, notify
from threadbridge.settings.table import BridgeSettings, Settings, from_keywords, grace_period
from threadbridge.sockets.inheritance import MESSAGE_SIZE, REOPEN, STOP, STOP_NOW, Inheritance, take_inheritance
from threadbridge.sockets.listeners import bind, describe, leave_new_connections_to_others, tls_context

if TYPE_CHECKING:
    from threadbridge.admin.server import AdminServer
    from threadbridge.process.supervisor import Supervisor

logger = logging.getLogger("threadbridge")

# Seconds that cancelled requests get to stop their work, such as queries in the database.
CANCEL_TIME = 1.0


def serve(
    application: WSGIApplication,
    *,
    on_start: Callable[[], object] | None = None,
    **settings: Unpack[Settings],
) -> int:
    """Serve a WSGI application until SIGTERM or SIGINT; return the process's exit status.

    Call it in the main thread, which becomes the loop's. The keywords are the settings in docs/settings.md. Without
    ``pool``, the application's pools are found, see docs/pools.md; ``pool="none"`` turns that off. The signal closes
    the port, and running and queued requests are answered: status 0. Requests left when ``grace`` is over, or at a
    second signal, are cut off: status 1. SIGHUP reopens the log files. With ``processes``, each of them runs the
    program from its beginning to this call, and this process supervises them; SIGUSR2 replaces all of them, one after
    the other.

    ``on_start`` is called on the loop, in each process that serves, once connections are accepted. `serve` runs a loop
    of its own: callbacks scheduled before the call, such as a `tornado.ioloop.PeriodicCallback`, never run.

    Raises ``ValueError`` for an unusable setting, ``OSError`` if the address cannot be listened on, and what
    ``on_start`` raises.
    """
    values = from_keywords(settings)
    inheritance = take_inheritance()
    service: Service | Supervisor
    if values["processes"] > 1 and inheritance is None:
        # Imported here because processes that serve do not need it.
        from threadbridge.process.supervisor import Supervisor

        service = Supervisor(values)
    else:
        service = Service(application, values, inheritance, on_start)
    service.listen()
    return service.run()


class Service:
    """A process that serves an application: construct, `listen`, `run`."""

    def __init__(
        self,
        application: WSGIApplication,
        settings: Settings,
        inheritance: Inheritance | None = None,
        on_start: Callable[[], object] | None = None,
        name: str = "",
    ) -> None:
        """Raises ``ValueError``.

        :param name: the application's import path, if the command line gives one.
        """
        check_tornado()
        self._settings = settings
        self._on_start = on_start
        values = cast(Mapping[str, Any], settings)
        self.pools = ApplicationPools(settings)
        keywords = {name: values[name] for name in BridgeSettings.__annotations__}
        keywords |= {"pool": self.pools.found or None, "threads": self.pools.threads}
        self.bridge = Bridge(application, **keywords)
        self.pools.watch(self.bridge.desk.add)
        # Other processes, of the supervisor or on the same port, may run the same application.
        self.bridge.shared.is_multiprocess = inheritance is not None or settings["reuse_port"]
        self._loop_factory = _loop_factory(settings["loop"])
        self._limits = Limits(**{field.name: values[field.name] for field in fields(Limits)})
        certfile = settings["certfile"]
        self._tls = tls_context(certfile, settings["keyfile"]) if certfile else None
        directory = inheritance.run_directory if inheritance is not None else settings["run_directory"]
        self._admin: AdminServer | None = None
        if settings["admin_port"] is not None or directory is not None:
            # Imported here because it takes more than a megabyte.
            from threadbridge.admin.server import AdminServer

            self._admin = AdminServer(self.bridge, settings, inheritance)
        costs = self.bridge.shared.costs
        self._costs: CostKeeper | None = None
        if costs is not None:
            # Not the inherited directory, which this supervisor may have created, and the next one would not find.
            self._costs = CostKeeper(costs, self.bridge.shared.routes, settings["run_directory"], name)
        self._sockets: list[socket.socket] = []
        self._remove_socket_file: Callable[[], None] = lambda: None
        self._stop_by = 0.0
        self._inheritance = inheritance
        self._tell = inheritance.tell if inheritance is not None else notify

    def listen(self) -> None:
        """Bind the address, unless the supervisor has. Raises ``OSError``."""
        if self._inheritance is not None:
            self._sockets = list(self._inheritance.listeners)
        else:
            [self._sockets], self._remove_socket_file = bind(self._settings)
        if self._admin is not None:
            self._admin.listen()

    def run(self) -> int:
        """Serve until a signal comes; return the exit status, or end the process if requests or threads are left."""
        logs.restore_logging()
        logs.demote_errors_of_cancelled_requests()
        sys.setswitchinterval(self._settings["switch_interval"])
        if self._costs is not None:
            self._costs.load()
            if len(self.bridge.shared.routes):
                for lane in self.bridge.lanes:
                    lane.expect_short()
        # What is loaded stays; examining it all at each collection would take longer than many requests.
        gc.collect()
        gc.freeze()
        warn_of_replaced_handlers()
        _warn_of_idle_loops()
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            has_ended = runner.run(self._live())
        self.pools.close()
        # The loop no longer handles them, and the process may still wait for the application's own threads.
        hold_signals()
        if self._costs is not None:
            self._costs.save_last()
        if not has_ended:
            self.bridge.flush_traces()
            # The interpreter would wait for the remaining threads, however long their queries take.
            end_process()
        return 0

    @property
    def grace_left(self) -> float:
        """Seconds left of the grace period, after `run`."""
        return max(0.0, self._stop_by - time.monotonic())

    async def _live(self) -> bool:
        """Serve until a signal comes; return whether everything ended within the grace period."""
        loop = asyncio.get_running_loop()
        stop, stop_now = asyncio.Event(), asyncio.Event()

        # Signals only: one to all processes makes the supervisor give an order as well.
        came: list[signal.Signals] = []

        def on_stop(reason: str) -> None:
            if not stop.is_set():
                logger.info("%s: stopping, %d requests to answer", reason, len(self.bridge.exchanges.open))
                stop.set()

        def on_stop_signal(number: signal.Signals) -> None:
            if came:
                logger.warning("%s again: stopping at once", number.name)
                stop_now.set()
            came.append(number)
            on_stop(number.name)

        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, on_stop_signal, number)
        on_signal(signal.SIGHUP, logs.reopen_log_files)
        # By default it would end the process, and it may be sent to all processes of a service.
        on_signal(signal.SIGUSR2, logger.warning, "SIGUSR2: only the supervisor (--processes) can reload")
        if self._inheritance is not None:
            orders = {STOP: lambda: on_stop("supervisor"), STOP_NOW: stop_now.set, REOPEN: logs.reopen_log_files}
            loop.add_reader(self._inheritance.channel, self._obey, self._inheritance.channel, orders)

        bridge, spool, proxies = self.bridge, self.bridge.spool, self._settings["trusted_proxies"]
        server = ConnectionServer(
            bridge.start_request, bridge.telemetry.refused, self._limits, self._tls, spool.memory, spool.unread, proxies
        )
        bridge.servers.append(server)
        server.add_sockets(self._sockets)
        places = [describe(listener, "https" if self._tls else "http") for listener in self._sockets]
        if self._admin is not None:
            self._admin.start(places)
        if self._settings["affinity"] == "auto":
            keep_together()
        # As for the costs, not the inherited directory.
        bridge.desk.begin(self._settings["run_directory"])
        feeding = asyncio.create_task(feed_watchdog())
        keeping = asyncio.create_task(self._costs.keep(stop)) if self._costs is not None else None
        heartbeat = self._start_heartbeat()
        try:
            if self._on_start is not None:
                self._on_start()
            self._announce(" and ".join(places))
            how = "compiled" if is_compiled() else "not compiled"
            logger.info("Python %s, %s, on %s", sys.version.split()[0], how, type(loop).__module__.partition(".")[0])
            if self._inheritance is None or self._inheritance.number == 1:
                # The others have the same.
                for line in self.pools.lines():
                    logger.info("pool: %s", line)
                for refusal in self.pools.refusals:
                    logger.warning("pool: %s", refusal)
            await stop.wait()
        finally:
            # While this process still listens, so that no other process takes the file for an abandoned one.
            self._remove_socket_file()
            if self._admin is not None:
                self._admin.drain()

        grace = grace_period(self._settings)
        self._stop_by = time.monotonic() + grace
        self._tell("STOPPING=1", f"STATUS=Stopping, {len(bridge.exchanges.open)} requests to answer")
        if self._settings["reuse_port"] and self._inheritance is None:
            for listener in self._sockets:
                leave_new_connections_to_others(listener)
        server.stop()
        drained = asyncio.create_task(self._drain(server))
        stopped_now = asyncio.create_task(stop_now.wait())
        await asyncio.wait((drained, stopped_now), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        stopped_now.cancel()
        feeding.cancel()
        if keeping is not None:
            keeping.cancel()
        heartbeat.stop()
        if drained.done():
            drained.result()
        has_cut = self._cancel_what_is_left()
        if has_cut:
            await asyncio.wait((drained,), timeout=CANCEL_TIME)
        if self._admin is not None:
            await self._admin.close()
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

    def _cancel_what_is_left(self) -> bool:
        """Refuse waiting requests and cancel running ones, whatever their method; return whether there were any."""
        left = self.bridge.exchanges.unfinished()
        for exchange in left:
            message = "stopped before request %s was answered: %s %s"
            if exchange.ended:
                message = "stopped while request %s, already ended for its client, still ran: %s %s"
            logger.error(message, exchange.id, exchange.start_line.method, exchange.start_line.path)
        self.bridge.exchanges.abandon(left)
        return bool(left)

    def _start_heartbeat(self) -> Heartbeat:
        inheritance = self._inheritance
        stacks_file = inheritance.stacks_file if inheritance is not None else open_stderr()
        if inheritance is not None:
            inheritance.started()
        elif not faulthandler.is_enabled():
            faulthandler.enable(stacks_file)

        def on_beat() -> None:
            if inheritance is not None:
                inheritance.tell("WATCHDOG=1")
            # Applications may configure logging at any time, such as in their first request.
            logs.restore_logging()

        return Heartbeat(self._settings["watchdog"], on_beat, stacks_file, reads_back=inheritance is not None)

    def _announce(self, places: str) -> None:
        if self._inheritance is None:
            operators = f", operators: {self._admin.address}" if self._admin is not None and self._admin.address else ""
            say(logs.in_format(f"Serving on {places} (pid {os.getpid()}{operators})"))
        self._tell("READY=1", f"STATUS=Serving on {places}")

    def _obey(self, channel: socket.socket, orders: Mapping[bytes, Callable[[], None]]) -> None:
        """Carry out the supervisor's order, or stop if it has died."""
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
                # The next supervisor binds the same port while this process still answers.
                self._admin.leave_port()

    async def _drain(self, server: ConnectionServer) -> None:
        await server.drain()
        await self.bridge.forwarding.drain()
        self.bridge.close()
        try:
            # Applications may go on after their response, in `close()`. Not in the loop's default executor: the runner
            # would wait for a worker that never ends.
            await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), self.bridge.join)
        except NOT_STARTED as error:
            logger.warning("cannot start a thread to wait for the others, so polling them instead: %s", error)
            while any(lane.busy for lane in self.bridge.lanes):
                await asyncio.sleep(0.1)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of the event loop ``asyncio`` or ``uvloop``; ``auto`` is uvloop where it is installed."""
    if name == "asyncio" or (name == "auto" and find_spec("uvloop") is None):
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError:
        raise ValueError("loop=uvloop: uvloop is not installed; pip install uvloop, or give loop=asyncio") from None
    return uvloop.new_event_loop


def _warn_of_idle_loops() -> None:
    # Tornado has no public way to ask: `IOLoop.current` creates a loop if there is none.
    for loop in getattr(IOLoop, "_ioloop_for_asyncio", ()):
        if not loop.is_closed() and (getattr(loop, "_scheduled", None) or getattr(loop, "_ready", None)):
            logger.warning(
                "callbacks were scheduled on an IOLoop before serve() was called; they never run, because serve() runs "
                "a loop of its own: schedule them in serve(..., on_start=...)"
            )
            return


def end_process() -> None:
    """End the process with status 1, whatever its threads are doing."""
    logging.shutdown()
    for _, handler in logs.installed:
        # A call of `logging.config` has made `logging.shutdown` forget it.
        handler.flush()
    sys.stdout.flush()
    os._exit(1)
