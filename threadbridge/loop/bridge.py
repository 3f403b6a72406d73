"""The bridge: gives each request that arrives on the loop to a thread that runs the WSGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from wsgiref.types import WSGIApplication

from tornado import httputil

from threadbridge.common import forks
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.worker_threads import TaskThreads
from threadbridge.crossing.current import RunningRequest
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.routes import Route
from threadbridge.crossing.spool import Spool
from threadbridge.crossing.states import State
from threadbridge.http.connection import HTTP1Connection
from threadbridge.http.forwarded import ClientHeaders, ForwardedHeaders, client_of, peer_of
from threadbridge.http.limits import MEMORY_SIZE, Memory
from threadbridge.http.server import RequestContext
from threadbridge.loop.foreign_connection import ForeignConnection
from threadbridge.loop.lag import LoopLag
from threadbridge.loop.lane_choice import LaneChoice
from threadbridge.loop.late_changes import LateChanges
from threadbridge.loop.watch import Watch
from threadbridge.telemetry.access_log import write as write_access_log
from threadbridge.telemetry.slow_log import SlowLog
from threadbridge.telemetry.telemetry import Telemetry
from threadbridge.telemetry.totals import Totals
from threadbridge.worker.environ import path_info_of
from threadbridge.worker.wsgi import call_application, check_application

if TYPE_CHECKING:
    from threadbridge.database.pool import PoolGuard
    from threadbridge.worker.idempotency import Idempotency

logger = logging.getLogger("threadbridge")

# Those that change nothing by definition (RFC 9110, section 9.2.1), but for TRACE.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SPOOL_SIZE = 8 * 1024**3
# Seconds beyond the longest deadline that a statement may take by default: first the bridge tries to stop it.
STATEMENT_MARGIN = 30.0
# For how many seconds the outcomes of requests with an `Idempotency-Key` are kept, and the bytes that they may take.
IDEMPOTENCY_AGE = 24 * 3600.0
IDEMPOTENCY_SIZE = 256 * 1024**2
# Seconds after which a thread that has not come back, though its request has ended, is no longer expected to.
LATE_AFTER = 2.0


class Server(Protocol):
    """What a bridge needs of the servers that have it for their callback: numbers of their clients' connections."""

    refused_connections: dict[str, int]

    @property
    def connections(self) -> int: ...

    @property
    def max_connections(self) -> int: ...

    @property
    def displaced_connections(self) -> int: ...


class Bridge(httputil.HTTPServerConnectionDelegate):
    """Serves a blocking WSGI application from Tornado's loop, each call in a thread.

    ``HTTPServer(WSGIContainer(app))`` becomes ``HTTPServer(Bridge(app, pool=db.pool))``. Like `WSGIContainer` it may
    stand in a `tornado.routing.RuleRouter` beside Tornado's own handlers.

    :param application: the WSGI application (PEP 3333).
    :param pool: the DBUtils ``PooledDB`` from which the application takes its connections. As many requests run at
        once as the pool has connections (``maxconnections``).
    :param threads: how many requests run at once, when there is no pool or the pool is unlimited.
    :param lanes: paths that have threads of their own (see `Lane`); the first that matches is taken. With a pool, what
        none matches goes to the lane ``pool`` if its like were seen to use the pool, or else to the lane ``quick``;
        without one it goes to the lane ``default``.
    :param queue: how many requests may wait for a thread of a lane, see `Lane`. Default 1000.
    :param queue_timeout: seconds that a request may wait so, until it is answered 503. Default 30.
    :param deadline: seconds until a request must be answered, waiting included, or it is answered 504. Default 180. It
        begins with the end of the request and ends with the beginning of the response: a stream may take as long as it
        likes.
    :param statement_limit: seconds that a statement on a connection of the pool may take; the database and the driver
        enforce it, also when this process cannot. 0 for no limit. Default: `STATEMENT_MARGIN` more than the longest
        deadline of all lanes.
    :param rerun: ``safe`` (the default) repeats a plain query whose connection was lost, on a new one, where it was the
        first since the request got the connection, or since a commit or rollback; ``never`` repeats nothing.
    :param reset_sessions: close a connection of the pool after a request that may have changed its session, so that
        the next request gets a clean one. Default True.
    :param cancel: which requests are cancelled, and their queries stopped, when their clients leave or at the deadline:
        ``safe`` (GET, HEAD and OPTIONS, the default), ``all`` or ``none``. What still runs 10 s after its deadline is
        cancelled in any case, unless its response is being sent.
    :param tag_queries: have the statements of a request begin with a comment that names it, so that the database's list
        of processes does too. Default False.
    :param client_key: of the request's headers and the client's address makes the name of the client, whose requests
        take turns with those of others, and which has its share of the disk and of `idempotency_size`; the default is
        the address, with IPv6 its /64 network. Called on the loop side.
    :param xheaders: believe what a trusted proxy says of the client, and its ``X-Request-ID``. Default False.
    :param client_address: the headers in which it says that, see `ForwardedHeaders`: ``x-real-ip``,
        ``x-forwarded-for``, ``forwarded`` or ``auto``, the default.
    :param trusted_proxies: addresses and networks, besides loopback and Unix sockets, that are such proxies, and whose
        connections are not limited for each client.
    :param spool_size: bytes that large bodies in both directions may take of the disk together, those of one client a
        quarter of it. Default 8 GiB.
    :param memory_size: bytes that heads and bodies may take of memory together, and as many again responses that are
        not read, see `Memory`. Default 32 MiB.
    :param access_log: log each request, at the level INFO of the logger ``tornado.access``. Default True.
    :param slow_log: seconds, waiting included, or seconds in the database, from which on a request is logged with its
        statements, at the level WARNING of the logger ``threadbridge.slow``; 0 for never. Default 1.
    :param slow_log_parameters: show there the strings and numbers in the text of statements. Default False.
    :param idempotent_paths: patterns, as those of lanes, of the paths on which a POST or PATCH that repeats the
        ``Idempotency-Key`` of an earlier one is not run again, but answered with its outcome. Default: none.
    :param idempotency_store: the SQLite file that keeps these outcomes, for all processes of the host.
    :param idempotency_age: seconds for which an outcome is kept. Default: 24 hours.
    :param idempotency_size: bytes that all outcomes may take, see `IdempotencyStore`. Default 256 MiB.

    Raises ``ValueError`` when ``application``, ``pool``, ``threads``, ``lanes``, ``client_address`` or
    ``trusted_proxies`` cannot be used as given. Loop side, as are all methods but `run`.
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        pool: object | None = None,
        threads: int | None = None,
        lanes: Sequence[Lane] = (),
        queue: int = 1000,
        queue_timeout: float = 30.0,
        deadline: float = 180.0,
        statement_limit: float | None = None,
        rerun: Literal["safe", "never"] = "safe",
        reset_sessions: bool = True,
        cancel: Literal["safe", "all", "none"] = "safe",
        tag_queries: bool = False,
        client_key: Callable[[httputil.HTTPHeaders, str], str] | None = None,
        xheaders: bool = False,
        client_address: ClientHeaders = "auto",
        trusted_proxies: Iterable[str] = (),
        spool_size: int = SPOOL_SIZE,
        memory_size: int = MEMORY_SIZE,
        access_log: bool = True,
        slow_log: float = 1.0,
        slow_log_parameters: bool = False,
        idempotent_paths: Sequence[str] = (),
        idempotency_store: str | None = None,
        idempotency_age: float = IDEMPOTENCY_AGE,
        idempotency_size: int = IDEMPOTENCY_SIZE,
    ) -> None:
        if rerun not in ("safe", "never"):
            raise ValueError(f"rerun={rerun!r}; give 'safe' or 'never'")
        if cancel not in ("safe", "all", "none"):
            raise ValueError(f"cancel={cancel!r}; give 'safe', 'all' or 'none'")
        if not (deadline > 0 and queue_timeout > 0):
            raise ValueError(f"deadline={deadline}, queue_timeout={queue_timeout}; give positive numbers of seconds")
        threads = _lane_width(pool, threads)
        self._choice = LaneChoice(lanes, threads=threads, queue=queue, learns=pool is not None)
        if statement_limit is None:
            statement_limit = max(deadline, *(lane.deadline or 0.0 for lane in lanes), 0.0) + STATEMENT_MARGIN
        self.guard: PoolGuard | None = None
        if pool is not None:
            # Not above: DBUtils is needed only where there is a pool of its making.
            from threadbridge.database.pool import PoolGuard

            self.guard = PoolGuard(
                pool,
                self._asked,
                tags_queries=tag_queries,
                rerun=rerun,
                resets_sessions=reset_sessions,
                statement_limit=statement_limit,
            )
        check_application(application)
        self.application = application
        # Whether other processes may run the same application; a program that knows that none does says so here.
        self.multiprocess = True
        self._idempotency: Idempotency | None = None
        if bool(idempotent_paths) != bool(idempotency_store):
            raise ValueError("idempotent_paths and idempotency_store: give both, or neither")
        if idempotent_paths and idempotency_store:
            # Not above: few applications need it.
            from threadbridge.worker.idempotency import Idempotency
            from threadbridge.worker.idempotency_store import IdempotencyStore

            store = IdempotencyStore(idempotency_store, age=idempotency_age, size=idempotency_size)
            self.application = self._idempotency = Idempotency(application, store, idempotent_paths, self._is_outage)
        self.lanes = self._choice.all
        self.exchanges: set[Exchange] = set()
        self.telemetry = Telemetry(slow_log)
        self.totals = Totals([lane.name for lane in self.lanes])
        self.telemetry.subscribe(self.totals.read)
        self.lag = LoopLag()
        # Those that have this bridge for their callback.
        self.servers: list[Server] = []
        if access_log:
            self.telemetry.subscribe(write_access_log)
        if slow_log:
            self.telemetry.subscribe(SlowLog(slow_log_parameters).write)
        self.spool = Spool(spool_size, Memory(memory_size), Memory(memory_size))
        self._deadline = deadline
        self._cancels = cancel
        self._client_key = client_key
        self._key_failed = RepeatedLog(logger)
        self._lanes_to_wake: set[Lane] = set()
        self._late_changes = LateChanges()
        self._watch = Watch(self, queue_timeout, self._late_changes)
        # Callbacks of applications may block for a moment, so that there is more than one.
        self._cancellers = TaskThreads(4, "threadbridge-cancel")
        self._hop: Hop | None = None
        self.trusted_proxies = tuple(trusted_proxies)
        self._forwarded = ForwardedHeaders(self.trusted_proxies, client_address) if xheaders else None

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Begin an exchange; called by the HTTP server for each request."""
        if self._hop is None:
            self._hop = Hop(asyncio.get_running_loop())
            forks.serves(self._hop)
            self.lag.start()
        connection = request_conn if isinstance(request_conn, HTTP1Connection) else ForeignConnection(request_conn)
        return cast(httputil.HTTPMessageDelegate, Exchange(self, self._hop, connection))

    def __call__(self, request: httputil.HTTPServerRequest) -> None:
        """Answer a request whose body Tornado has received, as `tornado.wsgi.WSGIContainer` does.

        This is for `tornado.web.FallbackHandler`.
        """
        assert request.connection is not None and request.method is not None and request.uri is not None
        exchange = cast(Exchange, self.start_request(None, request.connection))
        line = httputil.RequestStartLine(request.method, request.uri, request.version)
        context = exchange.connection.context
        own = context.remote_ip, context.protocol
        # With `xheaders` the context has changed back by now; the request still has what the proxy said.
        context.remote_ip, context.protocol = request.remote_ip, request.protocol
        exchange.headers_received(line, request.headers)
        context.remote_ip, context.protocol = own
        if exchange.ended:
            # The lane is full, and the client has been told.
            return
        exchange.connection.set_close_callback(exchange.on_connection_close)
        spooled = exchange.data_received(request.body) if request.body else None
        if spooled is None:
            _finish(exchange)
        else:
            asyncio.ensure_future(spooled).add_done_callback(lambda _: _finish(exchange))

    def admit(self, exchange: Exchange) -> None:
        """Give an exchange whose head is known its client's address and its lane, and count it."""
        context = exchange.connection.context
        peer = context.peer if isinstance(context, RequestContext) else peer_of(context)
        exchange.peer = peer
        if self._forwarded is not None:
            exchange.peer = self._forwarded.client_of(peer, exchange.headers)
            exchange.id = self._forwarded.request_id_of(peer, exchange.headers) or exchange.id
        address = exchange.peer.address
        exchange.client = client_of(address) if self._client_key is None else self._key_of(exchange, self._client_key)
        line = exchange.start_line
        exchange.lane, route, exchange.is_probe = self._choice.choose(line.method, path_info_of(line.path))
        exchange.time_allowed = exchange.lane.deadline or self._deadline
        exchange.running = RunningRequest(exchange.id, None, route, exchange.client)
        self.exchanges.add(exchange)
        self._watch.start()

    def _key_of(self, exchange: Exchange, client_key: Callable[[httputil.HTTPHeaders, str], str]) -> str:
        address = exchange.peer.address
        try:
            return str(client_key(exchange.headers, address))
        except Exception as error:  # noqa: BLE001 - the application's; it is logged, and there is the address
            self._key_failed.log(
                logging.ERROR,
                "request %s: client_key failed; using the client's address instead",
                exchange.id,
                exc_info=error,
            )
            return address

    def reconsider(self, probe: Exchange) -> None:
        """The probe is complete, perhaps long after it was admitted: there must still be a thread to spare for it."""
        if not self._choice.may_probe():
            probe.change_lane(self._choice.main)

    def queue(self, exchange: Exchange) -> None:
        """Queue an exchange, which is complete, in its lane."""
        exchange.lane.put(exchange)
        if not self._lanes_to_wake:
            # Not at once: a thread would take the interpreter from the loop, which may have more requests to read.
            asyncio.get_running_loop().call_soon(self._wake_lanes)
        self._lanes_to_wake.add(exchange.lane)

    def _wake_lanes(self) -> None:
        lanes, self._lanes_to_wake = self._lanes_to_wake, set()
        for lane in lanes:
            lane.wake()

    def _asked(self, request: RunningRequest) -> None:
        """The request asks for a connection. Worker side."""
        if self._choice.asked(request) and self._hop is not None:
            self._hop.post(self._clear_quick_lane, request.route)

    def _clear_quick_lane(self, route: Route) -> None:
        """The route turned out not to be quick: its requests must not keep those that are from running."""
        # Those that wait come first, or a thread in the place of one that runs would take them here; and they go in the
        # order in which they came, since so they are run.
        is_here = (State.RECEIVING, State.QUEUED)
        for exchange in sorted(self.exchanges, key=lambda each: (each.state not in is_here, each.queued_at)):
            if exchange.running.route is route and exchange.lane is not self._choice.main:
                exchange.change_lane(self._choice.main)

    def run(self, exchange: Exchange) -> None:
        """Call the application for this exchange. Worker side."""
        call_application(self.application, exchange, self._is_outage)
        self._choice.ran(exchange.running.route, exchange.is_probe)

    def _is_outage(self, error: BaseException) -> bool:
        return self.guard is not None and self.guard.is_outage(error)

    def answered(self, exchange: Exchange) -> None:
        """The response begins: from now on the next request of the route may come, and should find its lane."""
        exchange.running.is_answered = True
        self._choice.ran(exchange.running.route, exchange.is_probe)

    def never_ran(self, exchange: Exchange) -> None:
        """The exchange has ended before a worker took it."""
        self._choice.never_ran(exchange.running.route, exchange.is_probe)

    def cancels(self, exchange: Exchange) -> bool:
        """Whether a request is cancelled when its client leaves."""
        return self._cancels == "all" or (self._cancels == "safe" and exchange.start_line.method in SAFE_METHODS)

    def cancel(self, exchange: Exchange) -> None:
        """Nobody waits for a running exchange any more: stop it, if its method allows that."""
        if self.cancels(exchange):
            self._cancellers.keep(exchange.running.cancel)

    def cancel_late(self, exchange: Exchange) -> None:
        """Nobody has waited for a running exchange for so long that it is stopped whatever its method is."""
        self._cancellers.keep(exchange.running.cancel)

    def give_up_connections(self, exchange: Exchange) -> None:
        """The exchange's thread is stuck: cut its connections of the pool, which then count no more."""
        if self.guard is not None:
            # Not here: it takes the pool's lock.
            guard, running = self.guard, exchange.running
            self._cancellers.keep(lambda: _give_up_connections(guard, running))

    def retry_threads(self) -> bool:
        """Try again to start threads that could not be; whether a cancellation still waits for one."""
        for lane in self.lanes:
            lane.wake()
        return self._cancellers.retry()

    def stop(self, exchange: Exchange) -> None:
        """End a request because an operator asks for it, and cancel it whatever its method is.

        Its client gets 503 if it has not begun to run, 504 if it runs; a response that has begun is cut.
        """
        if exchange.state in (State.RECEIVING, State.QUEUED):
            exchange.shed()
        # Not else: a worker may have begun it meanwhile.
        if exchange.state is State.RUNNING:
            exchange.expire()
        if exchange.state is State.RESPONDING:
            exchange.connection.close()
            exchange.on_connection_close()
        self._cancellers.keep(exchange.running.cancel)

    def can_run(self, lane: Lane) -> bool:
        """Whether the lane has a thread that runs requests, or will when it has answered the one that it runs.

        It has none when all of its threads are late by `LATE_AFTER` and not replaced yet, or cannot be replaced.
        """
        return lane.works() and self._watch.overdue_threads(lane, LATE_AFTER) < lane.threads

    def unfinished(self) -> list[Exchange]:
        """Requests that have not ended, and those that have while a worker still runs them."""
        running = {cast(Exchange, job) for lane in self.lanes for job in lane.running()}
        return [*self.exchanges, *(running - self.exchanges)]

    def abandon(self, unfinished: Iterable[Exchange]) -> None:
        """Refuse those that wait with 503, and cancel those that run, whatever their method is."""
        for exchange in unfinished:
            exchange.shed()
            if not exchange.worker_is_done:
                self._cancellers.keep(exchange.running.cancel)

    def cut(self) -> None:
        """End all requests as if their clients had left."""
        # What waits comes first, so that none of it runs in place of what is cancelled.
        for exchange in sorted(self.exchanges, key=lambda exchange: exchange.state is not State.QUEUED):
            exchange.on_connection_close()
        self.telemetry.flush()

    def ended(self, exchange: Exchange) -> None:
        """Count the exchange off, and have it recorded."""
        self.exchanges.discard(exchange)
        self._watch.ended(exchange)
        # Before the record is made: one that was made after the thread's return has the final outcome.
        has_come_back = exchange.worker_is_done
        record = self.telemetry.finished(exchange)
        if not has_come_back:
            self._late_changes.add(exchange, record)

    def process_ends(self) -> None:
        """Tell what is known of the changes of requests whose threads have not come back, before the process ends."""
        self._late_changes.process_ends(self.exchanges)

    def refused(self, context: Any, request_line: str, status: int, sent: int) -> None:
        """The server has refused what a client sent, and no exchange came of it; called by `HTTPServer`.

        :param request_line: as far as it has come.
        :param sent: bytes of the answer's body.
        """
        self.telemetry.refused(peer_of(context).address, request_line, status, sent)

    def close(self) -> None:
        """Answer nobody any more: nothing that waits is run, what runs is cancelled, and the threads end."""
        self.cut()
        if self._hop is not None:
            forks.serves_no_more(self._hop)
        for lane in self.lanes:
            lane.close()
        self.spool.threads.shutdown(wait=False)
        if self.guard is not None:
            self.guard.close()
        self.lag.stop()

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        for lane in self.lanes:
            lane.join()
        # Only now: until then there may be something to cancel.
        self._cancellers.shutdown(wait=False)
        if self._idempotency is not None:
            self._idempotency.close()
        if self.guard is not None:
            self.guard.leave()


def _finish(exchange: Exchange) -> None:
    if not exchange.ended:
        exchange.finish()


def _give_up_connections(guard: PoolGuard, running: RunningRequest) -> None:
    given_up, kept = guard.abandon(running)
    if given_up:
        logger.error(
            "request %s: cut %d connections of the pool that its stuck thread held or waited for; the pool can open "
            "others",
            running.id,
            given_up,
        )
    if kept:
        logger.error(
            "request %s: its stuck thread keeps %d connections of the pool as long as other requests use them",
            running.id,
            kept,
        )


def _lane_width(pool: object | None, threads: int | None) -> int:
    if pool is None:
        if threads is None:
            raise ValueError("give pool= (a PooledDB) or threads=: one is required, to set concurrency")
        return threads
    try:
        # Not above: DBUtils is needed only where there is a pool of its making.
        from threadbridge.database.dbutils_check import pool_size
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "dbutils":
            raise
        raise ValueError(
            "pool= needs DBUtils 3.2 or later, below 4, which is not installed; install it, or leave pool out and "
            "give threads="
        ) from None
    size = pool_size(pool)
    if size and threads is not None:
        raise ValueError(
            f"threads={threads} contradicts the pool's maxconnections={size}, which sets the number of threads; leave "
            "threads out, or change maxconnections"
        )
    if not size and threads is None:
        raise ValueError(
            "the pool is unlimited (maxconnections=0); give threads= to limit how many requests run at once"
        )
    return size or threads or 0
