"""The bridge: the Tornado handler whose requests are answered by a WSGI application in threads."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING, Unpack, cast
from wsgiref.types import WSGIApplication

from tornado import httputil

from threadbridge.common import forks
from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.exchange import Exchange, Shared
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.load import LoadReport
from threadbridge.crossing.routes import Routes
from threadbridge.crossing.spool import Spool
from threadbridge.database.desk import Desk
from threadbridge.http.connection import HTTP1Connection
from threadbridge.http.forwarded import ForwardedHeaders
from threadbridge.http.limits import Memory
from threadbridge.http.server import ConnectionServer
from threadbridge.http.url_prefix import UrlPrefix
from threadbridge.loop.admission import Admission
from threadbridge.loop.exchanges import Exchanges
from threadbridge.loop.foreign_connection import ForeignConnection
from threadbridge.loop.forwarding import Forwarding
from threadbridge.loop.lane_choice import LaneChoice
from threadbridge.loop.receiver import Receiver
from threadbridge.loop.watch import LoopLag
from threadbridge.settings.table import BridgeSettings, for_bridge, longest_deadline
from threadbridge.settings.values import mount_of
from threadbridge.telemetry.access_log import write as write_access_log
from threadbridge.telemetry.slow_log import write as write_slow_log
from threadbridge.telemetry.telemetry import Telemetry
from threadbridge.telemetry.totals import Totals
from threadbridge.worker.application_values import check_application
from threadbridge.worker.wsgi import call_application

if TYPE_CHECKING:
    from threadbridge.telemetry.access_format import AccessFormat
    from threadbridge.telemetry.statsd import Statsd
    from threadbridge.telemetry.tracing import Tracing
    from threadbridge.worker.file_sending import FileSending
    from threadbridge.worker.idempotency import Idempotency
    from threadbridge.worker.static_files import StaticFiles

# Seconds beyond the longest deadline that a statement may take by default: the bridge tries to stop it first.
STATEMENT_MARGIN = 30.0
# The library with which Flask-Sock and Flask-SocketIO speak WebSocket, and how many of them there may be by default.
WEBSOCKET_LIBRARY = "simple_websocket"
DEFAULT_WEBSOCKETS = 100


class Bridge(httputil.HTTPServerConnectionDelegate):
    """Serves a blocking WSGI application (PEP 3333) from Tornado's loop, each call in a thread.

    ``HTTPServer(WSGIContainer(app))`` becomes ``HTTPServer(Bridge(app, pool=db.pool))``. Like `WSGIContainer`, it may
    stand in a `tornado.routing.RuleRouter` beside Tornado's own handlers.

    The keywords are settings: docs/settings.md has their meanings, units and defaults. ``pool`` or ``threads`` is
    required; ``pool`` may be a sequence of pools. A request goes to the first of ``lanes`` whose pattern matches.
    Without a pool, all others go to a lane named ``default``. With a pool, they go to a lane named ``pool``, which has
    as many threads as the pool has connections, unless ``threads`` says otherwise, or, if requests of their route have
    not used the pool, to a lane named ``quick``, which has four. With several pools, each has a lane of its own, named
    ``pool-KEY``. With ``websockets``, requests that ask for a WebSocket go to a lane named ``websocket``.
    ``client_key`` and ``replica_for`` are called on the loop.

    Raises ``ValueError`` when arguments cannot be used as given or contradict each other, and ``TypeError`` for an
    unknown keyword. Loop side.
    """

    def __init__(self, application: WSGIApplication, **settings: Unpack[BridgeSettings]) -> None:
        values = for_bridge(settings)
        check_application(application)
        cancellation = Cancellation(values["cancel"])
        costs = Costs()
        routes = Routes(costs)
        learned = costs if values["schedule"] == "cost" else None
        self.trusted_proxies = tuple(values["trusted_proxies"])
        forwarded = ForwardedHeaders(self.trusted_proxies, values["client_address"]) if values["xheaders"] else None
        root_path, header = values["root_path"], values["prefix_header"]
        statement_limit = values["statement_limit"]
        if statement_limit is None:
            statement_limit = longest_deadline(values) + STATEMENT_MARGIN
        websockets = values["websockets"]
        if websockets is None and WEBSOCKET_LIBRARY not in sys.modules:
            websockets = 0
        # Before the pools are guarded, since these may refuse their settings.
        self._statsd: Statsd | None = None
        if values["statsd"]:
            from threadbridge.telemetry.statsd import Statsd

            self._statsd = Statsd(values["statsd"], values["statsd_prefix"], values["dogstatsd_tags"])
        access_format: AccessFormat | None = None
        if values["access_log_format"]:
            from threadbridge.telemetry.access_format import AccessFormat

            access_format = AccessFormat(values["access_log_format"])
        tracing: Tracing | None = None
        if values["otel"]:
            # Not above: it takes megabytes.
            from threadbridge.telemetry.tracing import Tracing

            tracing = Tracing()
        static, accel = [*map(mount_of, values["static"])], [*map(mount_of, values["x_accel_redirect"])]
        self._files: FileSending | None = None
        self._static_files: StaticFiles | None = None
        if static or accel or values["x_sendfile"]:
            # Not above: few processes send files.
            from threadbridge.worker.file_sending import FileSending
            from threadbridge.worker.static_files import StaticFiles

            self._files = FileSending(values["x_sendfile"], accel)
            self._static_files = StaticFiles(static)
        self.desk = Desk(
            lambda guard, request: self._admission.asked(request, guard.key),
            tags_queries=values["tag_queries"],
            rerun=values["rerun"],
            resets_sessions=values["reset_sessions"],
            statement_limit=statement_limit,
        )
        try:
            if values["pool"] is not None:
                self.desk.add(values["pool"], is_first=True)
            for lane in values["lanes"]:
                if lane.pool is not None:
                    lane.replica = self.desk.add_replica(lane.pool, lane.name, values["replica_lag"])
            self.lane_choice = LaneChoice(
                values["lanes"],
                threads=values["threads"],
                pools=self.desk.first,
                queue=values["queue"],
                routes=routes,
                costs=learned,
                short_paths=values["short_paths"],
                long_paths=values["long_paths"],
                long_upstream=values["long_upstream"],
                static=[mount.prefix for mount in static],
                websockets=DEFAULT_WEBSOCKETS if websockets is None else websockets,
            )
        except ValueError:
            # Another bridge may guard the pools.
            self.desk.close()
            raise
        self.application = application
        self._idempotency: Idempotency | None = None
        file = values["idempotency_store"]
        if file:
            # Not above: few applications need it.
            from threadbridge.worker.idempotency import Idempotency
            from threadbridge.worker.idempotency_store import IdempotencyStore

            store = IdempotencyStore(file, age=values["idempotency_age"], size=values["idempotency_size"])
            self._idempotency = Idempotency(application, store, values["idempotent_paths"], self._is_outage)
            self.application = self._idempotency
        self.lanes = self.lane_choice.all
        self.telemetry = Telemetry(values["slow_log"])
        self.totals = Totals([lane.name for lane in self.lanes])
        self.telemetry.subscribe(self.totals.read)
        if values["access_log"]:
            if access_format is None:
                self.telemetry.subscribe(write_access_log)
            else:
                self.telemetry.keep = access_format.keep
                self.telemetry.subscribe(partial(write_access_log, line=access_format.line))
        if values["slow_log"]:
            self.telemetry.subscribe(partial(write_slow_log, values["slow_log_parameters"]))
        if self._statsd is not None:
            self.telemetry.subscribe(self._statsd)
        self.lag = LoopLag()
        # The servers whose requests come to this bridge.
        self.servers: list[ConnectionServer] = []
        self.spool = Spool(values["spool_size"], Memory(values["memory_size"]), Memory(values["memory_size"]))
        self.exchanges = Exchanges(self.lanes, cancellation, self.telemetry, self.desk, values["queue_timeout"])
        self.exchanges.tracing = tracing
        load_report = LoadReport(self.lane_choice.general, learned) if values["load_report"] else None
        self.shared = Shared(self.spool, routes, learned, cancellation, self._call, self.exchanges.ended, load_report)
        self.shared.keeps_environ = access_format is not None and access_format.needs_environ
        self.shared.replicas = self.desk.replicas
        if tracing is not None:
            self.shared.enter_untraced = tracing.enter_unrecorded
        self.shared.tells_timing = values["server_timing"]
        self.forwarding = Forwarding(self.lanes)
        self._admission = Admission(
            self.shared,
            self.lane_choice,
            self.exchanges,
            self.forwarding,
            values["deadline"],
            values["queue_timeout"],
            client_key=values["client_key"],
            forwarded=forwarded,
            replica_for=values["replica_for"],
            trusted_proxies=self.trusted_proxies,
            prefix=UrlPrefix(root_path, header) if root_path or header != "none" else None,
        )
        self._hop: Hop | None = None

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Return the delegate that receives a request; the HTTP server calls this for each."""
        if self._hop is None:
            self._hop = self.shared.hop = Hop(asyncio.get_running_loop())
            forks.serves(self._hop)
            self.lag.start()
            self.desk.watch_replicas()
        connection = request_conn if isinstance(request_conn, HTTP1Connection) else ForeignConnection(request_conn)
        return cast(httputil.HTTPMessageDelegate, Receiver(self._admission, connection))

    def __call__(self, request: httputil.HTTPServerRequest) -> None:
        """Answer a request whose body Tornado has received; for `tornado.web.FallbackHandler`."""
        assert request.connection is not None and request.method is not None and request.uri is not None
        receiver = cast(Receiver, self.start_request(None, request.connection))
        line = httputil.RequestStartLine(request.method, request.uri, request.version)
        context = request.connection.context  # type: ignore[attr-defined]
        own = context.remote_ip, context.protocol
        # With `xheaders` the context has changed back by now; the request still has what the proxy said.
        context.remote_ip, context.protocol = request.remote_ip, request.protocol
        receiver.headers_received(line, request.headers)
        context.remote_ip, context.protocol = own
        receiver.receive_all(request.body)

    def _call(self, exchange: Exchange) -> None:
        """Call the application, or serve a static file. Worker side."""
        if exchange.lane is self.lane_choice.static:
            assert self._static_files is not None
            call_application(self._static_files, exchange, self._is_outage, self._files)
        else:
            call_application(self.application, exchange, self._is_outage, self._files)

    def _is_outage(self, error: BaseException) -> bool:
        return self.desk.is_outage(error)

    def flush_traces(self) -> None:
        """Export the traces that have ended, within a few seconds. Any thread but the loop's."""
        if self.exchanges.tracing is not None:
            self.exchanges.tracing.flush()

    def close(self) -> None:
        """End all requests as if their clients had left, and let the threads end."""
        self.exchanges.cut()
        if self._statsd is not None:
            self._statsd.close()
        self.forwarding.close()
        if self._hop is not None:
            forks.serves_no_more(self._hop)
        for lane in self.lanes:
            lane.close()
        self.spool.threads.shutdown(wait=False)
        self.desk.close()
        self.lag.stop()

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        for lane in self.lanes:
            lane.join()
        # Only now: until then there may be something to cancel.
        self.shared.cancellation.threads.shutdown(wait=False)
        if self._idempotency is not None:
            self._idempotency.close()
        self.flush_traces()
        self.desk.leave()
