"""The life of a process that serves: it listens, serves, drains when told to stop, and ends."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast
from wsgiref.types import WSGIApplication

from threadbridge.common import interpreter
from threadbridge.compiled import is_compiled
from threadbridge.http.limits import DRAIN_LINGER, Limits
from threadbridge.http.server import ConnectionServer
from threadbridge.http.stream import check_tornado
from threadbridge.loop.bridge import Bridge
from threadbridge.process import logs
from threadbridge.process.affinity import keep_together
from threadbridge.process.application_pools import ApplicationPools
from threadbridge.process.cost_keeper import CostKeeper
from threadbridge.process.cost_sharing import CostSharing
from threadbridge.process.ending import answer_what_is_left, close, end_process
from threadbridge.process.event_loops import loop_factory, warn_of_idle_loops
from threadbridge.process.heartbeat import Heartbeat, open_stderr
from threadbridge.process.signals import RESIZING, hold_signals, on_signal, pause, warn_of_replaced_handlers
from threadbridge.process.standard_error import say
from threadbridge.process.stopping import Stop
from threadbridge.process.systemd import feed_watchdog, notify
from threadbridge.settings.table import BridgeSettings, Settings, grace_period
from threadbridge.sockets.inheritance import DRAIN, MESSAGE_SIZE, REOPEN, STOP, STOP_NOW, Inheritance
from threadbridge.sockets.listeners import BACKLOG, Listeners, bind, describe

if TYPE_CHECKING:
    from threadbridge.admin.metrics_export import MetricsExport
    from threadbridge.admin.server import AdminServer
    from threadbridge.process.reloader import Reloader
    from threadbridge.sockets.certificates import Certificates
    from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")

# Before the process is replaced because the application's files have changed: seconds that requests get to end, and
# for which others may arrive on connections that are open.
RELOAD_GRACE = 0.5
RELOAD_LINGER = 0.05


class Service:
    """A process that serves an application: construct, `listen`, `run`."""

    def __init__(
        self,
        application: WSGIApplication,
        settings: Settings,
        inheritance: Inheritance | None = None,
        name: str = "",
        reloader: Reloader | None = None,
        pools: ApplicationPools | None = None,
    ) -> None:
        """Raises ``ValueError``.

        :param name: the application's import path, if the command line gives one.
        :param reloader: if given, the process is replaced when the application's files change.
        :param pools: the application's, if they have been looked for before this process was forked.
        """
        check_tornado()
        self._settings = settings
        values = cast(Mapping[str, Any], settings)
        self.pools = pools if pools is not None else ApplicationPools(settings)
        keywords = {name: values[name] for name in BridgeSettings.__annotations__}
        keywords |= {"pool": self.pools.found or None, "threads": self.pools.threads}
        self.bridge = Bridge(application, **keywords)
        self.pools.watch(self.bridge.desk.add)
        # Other processes, of the supervisor or on the same port, may run the same application.
        self.bridge.shared.is_multiprocess = inheritance is not None or settings["reuse_port"]
        self._loop_factory = loop_factory(settings["loop"])
        self._limits = Limits(**{field.name: values[field.name] for field in fields(Limits)})
        self._certificates: Certificates | None = None
        if settings["certfile"] is not None:
            # Not at the top: most processes serve HTTP behind a proxy.
            from threadbridge.sockets.certificates import Certificates

            self._certificates = Certificates(settings)
        directory = inheritance.run_directory if inheritance is not None else settings["run_directory"]
        self._admin: AdminServer | None = None
        if settings["admin_port"] is not None or settings["agent_port"] is not None or directory is not None:
            # Imported here because it takes more than a megabyte.
            from threadbridge.admin.server import AdminServer

            self._admin = AdminServer(self.bridge, settings, inheritance)
            self._admin.console.certificates = self._certificates
        costs = self.bridge.shared.costs
        self._costs: CostKeeper | None = None
        if costs is not None:
            # Not the inherited directory, which this supervisor may have created, and the next one would not find.
            self._costs = CostKeeper(costs, self.bridge.shared.routes, settings["run_directory"], name)
        self._sharing: CostSharing | None = None
        if self._costs is not None and self._admin is not None:
            self._sharing = CostSharing(self._costs, self._admin.frontends, self._expect_short)
            self._admin.console.costs = self._sharing.answer
        # The supervisor has those of its processes.
        self._listeners = Listeners()
        self._sockets: list[socket.socket] = []
        self._metrics: MetricsExport | None = None
        if settings["otel"]:
            # Not at the top: it takes megabytes.
            from threadbridge.admin.metrics_export import MetricsExport

            reader = inheritance.supervision_reader() if inheritance is not None else None
            self._metrics = MetricsExport(self.bridge, reader, self._certificates)
        # Set in `run`.
        self._server: ConnectionServer | None = None
        self._stop_by = 0.0
        self._inheritance = inheritance
        self._reloader = reloader
        # Whether it stops to be replaced.
        self._reloads = False
        # How many requests have ended; a supervisor replaces the process after `max_requests`.
        self._answered = 0
        if settings["max_requests"]:
            self.bridge.telemetry.subscribe(self._count)
        self._tell = inheritance.tell if inheritance is not None else notify

    def listen(self) -> None:
        """Bind the address, unless the supervisor has. Raises ``OSError``."""
        reloader = self._reloader
        if self._inheritance is not None:
            self._sockets = list(self._inheritance.listeners)
            for listener in self._sockets:
                # Those of a process that was added later get no connections before this.
                if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    listener.listen(BACKLOG)
        elif reloader is not None and reloader.listeners:
            self._listeners.keep(reloader.listeners, self._settings)
            [self._sockets] = self._listeners.of_process
        else:
            self._listeners = bind(self._settings)
            [self._sockets] = self._listeners.of_process
        if self._admin is not None:
            self._admin.listen(reloader.admin_listeners if reloader is not None else ())
        if reloader is not None:
            reloader.keep(self._sockets, self._admin.sockets if self._admin is not None else ())

    def give_up_root(self) -> None:
        """See `Runnable`: processes that are to become another user have a supervisor, which has done so."""

    def run(self) -> int:
        """Serve until a signal comes; return the exit status, or end the process if requests or threads are left."""
        logs.restore_logging()
        logs.demote_errors_of_cancelled_requests()
        sys.setswitchinterval(self._settings["switch_interval"])
        if self._settings["on_worker_start"] is not None:
            self._settings["on_worker_start"]()
        if self._costs is not None:
            self._costs.load()
            if self._costs.knows_any:
                self._expect_short()
        interpreter.freeze_loaded()
        warn_of_replaced_handlers(*(RESIZING if self._inheritance is not None else ()))
        warn_of_idle_loops()
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            has_ended = runner.run(self._live())
        if self._metrics is not None:
            self._metrics.close()
        self.pools.close()
        # The loop no longer handles them, and the process may still wait for the application's own threads.
        hold_signals()
        self._call_on_worker_exit()
        if self._costs is not None:
            self._costs.save_last()
        if self._reloader is not None:
            if self._reloads:
                self._reloader.replace()
            # A signal may have come when it was about to be replaced.
            self._listeners.remove_files()
        if not has_ended:
            self.bridge.flush_traces()
            # The interpreter would wait for the remaining threads, however long their queries take.
            end_process()
        return 0

    def _call_on_worker_exit(self) -> None:
        if self._settings["on_worker_exit"] is not None:
            try:
                self._settings["on_worker_exit"]()
            except Exception:
                logger.exception("on_worker_exit has failed")

    @property
    def grace_left(self) -> float:
        """Seconds left of the grace period, after `run`."""
        return max(0.0, self._stop_by - time.monotonic())

    async def _live(self) -> bool:
        """Serve until a signal comes; return whether everything ended within the grace period."""
        loop = asyncio.get_running_loop()
        bridge, spool, proxies = self.bridge, self.bridge.spool, self._settings["trusted_proxies"]
        stop = Stop(bridge.exchanges.open)

        def on_stop_signal(number: signal.Signals) -> None:
            # Even if it is about to be replaced.
            self._reloads = False
            stop.on_signal(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, on_stop_signal, number)
        on_signal(signal.SIGHUP, self._read_again)
        # By default it would end the process, and it may be sent to all processes of a service.
        on_signal(signal.SIGUSR2, logger.warning, "SIGUSR2: only a supervisor (--processes, --supervised) can reload")
        if self._inheritance is not None:
            for number in RESIZING:
                # Likewise; it would be suspended.
                on_signal(number, logger.warning, "%s: only the supervisor adds and removes processes", number.name)
            orders = {
                DRAIN: self._become_unready,
                STOP: stop.on_order,
                STOP_NOW: stop.at_once,
                REOPEN: self._read_again,
            }
            loop.add_reader(self._inheritance.channel, self._obey, self._inheritance.channel, orders)

        server = self._server = ConnectionServer(
            bridge.start_request,
            bridge.telemetry.refused,
            self._limits,
            self._certificates.context if self._certificates is not None else None,
            spool.memory,
            spool.unread,
            proxies,
            self._settings["proxy_protocol"],
        )
        bridge.servers.append(server)
        server.add_sockets(self._sockets)
        places = [describe(listener, "https" if self._certificates else "http") for listener in self._sockets]
        if self._admin is not None:
            self._admin.start(places)
        # Without the lock, threads that compute gain by each processor.
        if self._settings["affinity"] == "auto" and interpreter.lock_is_on():
            keep_together()
        # As for the costs, not the inherited directory.
        bridge.desk.begin(self._settings["run_directory"])
        # Before the first request, which may be for one of them.
        bridge.desk.watch_replicas()
        if self._metrics is not None:
            self._metrics.start()
        feeding = asyncio.create_task(feed_watchdog())
        keeping = asyncio.create_task(self._costs.keep(stop.begun)) if self._costs is not None else None
        sharing: asyncio.Task[None] | None = None
        # One process for all of this host: they share what it gets.
        is_first = self._inheritance is None or self._inheritance.number == 1
        if self._sharing is not None and self._settings["admin_peers"] and is_first:
            sharing = asyncio.create_task(self._sharing.run(stop.begun))
        heartbeat = self._start_heartbeat()
        reloading = asyncio.create_task(self._reload_when_changed(stop)) if self._reloader is not None else None
        try:
            if self._settings["on_start"] is not None:
                self._settings["on_start"]()
            self._announce(" and ".join(places))
            how = "compiled" if is_compiled() else "not compiled"
            logger.info("%s, %s, on %s", interpreter.describe(), how, type(loop).__module__.partition(".")[0])
            if interpreter.is_free_threaded() and interpreter.lock_is_on():
                logger.warning("threads run Python code in turn, as the lock is on: --check says why")
            if self._inheritance is None or self._inheritance.number == 1:
                # The others have the same.
                for line in self.pools.lines():
                    logger.info("pool: %s", line)
                for refusal in self.pools.refusals:
                    logger.warning("pool: %s", refusal)
                sockets = self.bridge.lane_choice.websockets
                if sockets is not None:
                    logger.info("WebSockets of the application: up to %d, each in a thread", sockets.threads)
            await stop.begun.wait()
            self._become_unready()
            self._tell("STOPPING=1", f"STATUS=Stopping, {len(bridge.exchanges.open)} requests to answer")
            await pause(0.0 if self._reloads else self._settings["drain_delay"], stop.delay_over)
        finally:
            if not self._reloads:
                # While this process still listens, so that no other process takes the file for an abandoned one.
                self._listeners.remove_files()
                if self._reloader is not None:
                    self._reloader.release()
            self._become_unready()

        grace = RELOAD_GRACE if self._reloads else grace_period(self._settings)
        self._stop_by = time.monotonic() + grace
        if not self._reloads:
            self._listeners.leave_new_connections_to_others()
        server.stop()
        linger = RELOAD_LINGER if self._reloads else DRAIN_LINGER
        has_cut = await answer_what_is_left(bridge, server, grace=grace, linger=linger, stop_now=stop.now)
        for task in (feeding, keeping, sharing, reloading):
            if task is not None:
                task.cancel()
        heartbeat.stop()
        if self._admin is not None:
            await self._admin.close()
        return close(bridge, has_cut=has_cut)

    def _read_again(self) -> None:
        """Open the log files again, and read the certificates: on SIGHUP, as their tools send it after a change."""
        logs.reopen_log_files()
        if self._certificates is not None and self._server is not None:
            self._certificates.reload()
            self._server.ssl_options = self._certificates.context

    def _become_unready(self) -> None:
        if self._admin is not None:
            self._admin.drain()

    def _count(self, records: Sequence[Record]) -> None:
        self._answered += len(records)

    def _expect_short(self) -> None:
        for lane in self.bridge.lanes:
            lane.expect_short()

    def _start_heartbeat(self) -> Heartbeat:
        inheritance = self._inheritance
        stacks_file = inheritance.stacks_file if inheritance is not None else open_stderr()
        if inheritance is not None:
            inheritance.started()
        elif not faulthandler.is_enabled():
            faulthandler.enable(stacks_file)

        def on_beat() -> None:
            if inheritance is not None:
                inheritance.tell("WATCHDOG=1", f"REQUESTS={self._answered}")
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

    async def _reload_when_changed(self, stop: Stop) -> None:
        assert self._reloader is not None
        changed = await asyncio.wrap_future(self._reloader.changed)
        self._reloads = True
        more = f" and {len(changed) - 3} more files" if len(changed) > 3 else ""
        stop.begin(f"{', '.join(changed[:3])}{more} changed: reload")


def import_rarely_used(settings: Settings) -> None:
    """Import what a `Service` with these settings would: processes that are forked later share it."""
    loop_factory(settings["loop"])
    if (
        settings["admin_port"] is not None
        or settings["agent_port"] is not None
        or settings["run_directory"] is not None
    ):
        import threadbridge.admin.server  # noqa: F401
