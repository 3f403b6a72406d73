"""The bridge: the Tornado handler whose requests are answered by a WSGI application in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, cast
from wsgiref.types import WSGIApplication

from tornado import httputil

from threadbridge.common import forks
from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.exchange import Exchange, Shared
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.lane_choice import LaneChoice
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.spool import Spool
from threadbridge.http.connection import HTTP1Connection
from threadbridge.http.forwarded import ForwardedHeaders, Source
from threadbridge.http.memory import MEMORY_SIZE, Memory
from threadbridge.http.server import ConnectionServer
from threadbridge.loop.admission import Admission
from threadbridge.loop.exchanges import Exchanges
from threadbridge.loop.foreign_connection import ForeignConnection
from threadbridge.loop.receiver import Receiver
from threadbridge.loop.watch import LoopLag
from threadbridge.telemetry.access_log import write as write_access_log
from threadbridge.telemetry.slow_log import SlowLog
from threadbridge.telemetry.telemetry import Telemetry
from threadbridge.telemetry.totals import Totals
from threadbridge.worker.wsgi import call_application, check_application

if TYPE_CHECKING:
    from threadbridge.database.pool import PoolGuard
    from threadbridge.worker.idempotency import Idempotency

SPOOL_SIZE = 8 * 1024**3
# Seconds beyond the longest deadline that a statement may take by default: the bridge tries to stop it first.
STATEMENT_MARGIN = 30.0
# For how many seconds the outcomes of requests with an `Idempotency-Key` are kept, and the bytes that they may take.
IDEMPOTENCY_AGE = 24 * 3600.0
IDEMPOTENCY_SIZE = 256 * 1024**2


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
        client_address: Source = "auto",
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
        if not (deadline > 0 and queue_timeout > 0):
            raise ValueError(f"deadline={deadline}, queue_timeout={queue_timeout}; give positive numbers of seconds")
        if bool(idempotent_paths) != bool(idempotency_store):
            raise ValueError("idempotent_paths and idempotency_store: give both, or neither")
        check_application(application)
        cancellation = Cancellation(cancel)
        choice = LaneChoice(lanes, threads=_lane_width(pool, threads), queue=queue, learns=pool is not None)
        self.trusted_proxies = tuple(trusted_proxies)
        forwarded = ForwardedHeaders(self.trusted_proxies, client_address) if xheaders else None
        if statement_limit is None:
            statement_limit = max(deadline, *(lane.deadline or 0.0 for lane in lanes), 0.0) + STATEMENT_MARGIN
        self.guard: PoolGuard | None = None
        if pool is not None:
            # Not above: DBUtils is needed only with a pool.
            from threadbridge.database.pool import PoolGuard

            self.guard = PoolGuard(
                pool,
                lambda request: self._admission.asked(request),
                tags_queries=tag_queries,
                rerun=rerun,
                resets_sessions=reset_sessions,
                statement_limit=statement_limit,
            )
        self.application = application
        self._idempotency: Idempotency | None = None
        if idempotent_paths and idempotency_store:
            # Not above: few applications need it.
            from threadbridge.worker.idempotency import Idempotency
            from threadbridge.worker.idempotency_store import IdempotencyStore

            store = IdempotencyStore(idempotency_store, age=idempotency_age, size=idempotency_size)
            self.application = self._idempotency = Idempotency(application, store, idempotent_paths, self._is_outage)
        self.lanes = choice.all
        self.telemetry = Telemetry(slow_log)
        self.totals = Totals([lane.name for lane in self.lanes])
        self.telemetry.subscribe(self.totals.read)
        if access_log:
            self.telemetry.subscribe(write_access_log)
        if slow_log:
            self.telemetry.subscribe(SlowLog(slow_log_parameters).write)
        self.lag = LoopLag()
        # The servers whose requests come to this bridge.
        self.servers: list[ConnectionServer] = []
        self.spool = Spool(spool_size, Memory(memory_size), Memory(memory_size))
        self.exchanges = Exchanges(self.lanes, cancellation, self.telemetry, self.guard, queue_timeout)
        self.shared = Shared(self.spool, choice, cancellation, self._call, self.exchanges.ended)
        self._admission = Admission(
            self.shared, self.exchanges, deadline=deadline, client_key=client_key, forwarded=forwarded
        )
        self._hop: Hop | None = None

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Return the delegate that receives a request; the HTTP server calls this for each."""
        if self._hop is None:
            self._hop = self.shared.hop = Hop(asyncio.get_running_loop())
            forks.serves(self._hop)
            self.lag.start()
        connection = request_conn if isinstance(request_conn, HTTP1Connection) else ForeignConnection(request_conn)
        return cast(httputil.HTTPMessageDelegate, Receiver(self._admission, connection))

    def __call__(self, request: httputil.HTTPServerRequest) -> None:
        """Answer a request whose body Tornado has received, as `tornado.wsgi.WSGIContainer` does.

        This is for `tornado.web.FallbackHandler`.
        """
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
        """Call the application. Worker side."""
        call_application(self.application, exchange, self._is_outage)

    def _is_outage(self, error: BaseException) -> bool:
        return self.guard is not None and self.guard.is_outage(error)

    def close(self) -> None:
        """End all requests as if their clients had left, and let the threads end."""
        self.exchanges.cut()
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
        self.shared.cancellation.threads.shutdown(wait=False)
        if self._idempotency is not None:
            self._idempotency.close()
        if self.guard is not None:
            self.guard.leave()


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
