"""The bridge: gives each request that arrives on the loop to a thread that runs the WSGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import cast
from wsgiref.types import WSGIApplication

from tornado import httputil
from tornado.log import access_log

from threadbridge.exchange import Connection, Exchange
from threadbridge.forwarded import ForwardedHeaders, Peer
from threadbridge.hop import Hop
from threadbridge.lanes import Lane
from threadbridge.pool import pool_size
from threadbridge.spool import Spool
from threadbridge.wsgi import call_application

SPOOL_SIZE = 8 * 1024**3


class Bridge(httputil.HTTPServerConnectionDelegate):
    """Serves a blocking WSGI application from Tornado's loop, each call in a thread.

    ``HTTPServer(WSGIContainer(app))`` becomes ``HTTPServer(Bridge(app, pool=db.pool))``. Like `WSGIContainer` it may
    stand in a `tornado.routing.RuleRouter` beside Tornado's own handlers.

    :param application: the WSGI application (PEP 3333).
    :param pool: the DBUtils ``PooledDB`` from which the application takes its connections. As many requests run at
        once as the pool has connections (``maxconnections``).
    :param threads: how many requests run at once, when there is no pool or the pool is unlimited.
    :param lanes: paths that have threads of their own (see `Lane`); the first that matches is taken, and what none
        matches goes to the lane named ``pool`` (``default`` without a pool).
    :param queue: how many requests may wait for a thread of that lane; the next one is answered 503. Default 1000.
    :param xheaders: believe a trusted proxy's ``X-Real-IP``, ``X-Forwarded-For``, ``X-Scheme`` and
        ``X-Forwarded-Proto``. Default False.
    :param trusted_proxies: addresses and networks, beside loopback and Unix sockets, that are such proxies.
    :param spool_size: bytes that large bodies in both directions may take of the disk together. Default 8 GiB.

    Raises ``ValueError`` when ``pool``, ``threads``, ``lanes`` or ``trusted_proxies`` cannot be used as given. Loop
    side, as are all methods but `run`.
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        pool: object | None = None,
        threads: int | None = None,
        lanes: Sequence[Lane] = (),
        queue: int = 1000,
        xheaders: bool = False,
        trusted_proxies: Iterable[str] = (),
        spool_size: int = SPOOL_SIZE,
    ) -> None:
        threads = _lane_width(pool, threads)
        names = [lane.name for lane in lanes]
        default = Lane("default" if pool is None else "pool", threads=threads, queue=queue)
        for name in names:
            if names.count(name) > 1 or name == default.name:
                raise ValueError(f"two lanes are named {name!r}; give each a name of its own")
        self.application = application
        self.lanes = (*lanes, default)
        self.exchanges: set[Exchange] = set()
        self.spool = Spool(spool_size)
        self._hop: Hop | None = None
        self._forwarded = ForwardedHeaders(trusted_proxies) if xheaders else None

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """Begin an exchange; called by the HTTP server for each request."""
        if self._hop is None:
            self._hop = Hop(asyncio.get_running_loop())
        return Exchange(self, self._hop, cast(Connection, request_conn))

    def admit(self, exchange: Exchange) -> None:
        """Give an exchange whose head is known its client's address and its lane, and count it."""
        context = exchange.connection.context
        is_unix = not isinstance(context.address, tuple)
        peer = Peer("" if is_unix else context.remote_ip, context.protocol)
        exchange.peer = self._forwarded.client_of(peer, exchange.headers) if self._forwarded else peer
        path = exchange.start_line.path.partition("?")[0]
        exchange.lane = next(lane for lane in self.lanes if lane.matches(path))
        self.exchanges.add(exchange)

    def run(self, exchange: Exchange) -> None:
        """Call the application for this exchange. Worker side."""
        call_application(self.application, exchange)

    def ended(self, exchange: Exchange) -> None:
        """Count the exchange off and write its line in the access log."""
        self.exchanges.discard(exchange)
        level = logging.INFO if exchange.status < 400 else logging.WARNING
        access_log.log(
            level if exchange.status < 500 else logging.ERROR,
            "%d %s %s (%s) %.2fms",
            exchange.status,
            exchange.start_line.method,
            exchange.start_line.path,
            exchange.peer.address,
            1000 * (time.monotonic() - exchange.started),
        )

    def close(self) -> None:
        """Let the threads end as soon as they are idle."""
        for lane in self.lanes:
            lane.close()
        self.spool.threads.shutdown(wait=False)

    def join(self) -> None:
        """Wait until all threads have ended, after `close`. Any thread but the loop's."""
        for lane in self.lanes:
            lane.join()


def _lane_width(pool: object | None, threads: int | None) -> int:
    if pool is None:
        if threads is None:
            raise ValueError("give pool= (a PooledDB) or threads=; neither says how many requests may run at once")
        return threads
    size = pool_size(pool)
    if size and threads is not None:
        raise ValueError(
            f"the pool has {size} connections and so the lane {size} threads; leave threads={threads} out, or change "
            "the pool's maxconnections"
        )
    if not size and threads is None:
        raise ValueError(
            "the pool is unlimited (maxconnections=0); say with threads= how many requests may run at once"
        )
    return size or threads or 0
