"""Admits requests: names the client, chooses the lane, and queues the request there or refuses it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast
from wsgiref.types import WSGIEnvironment

from tornado import httputil

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.estimate import MAX_TEXT, Estimate
from threadbridge.crossing.exchange import Exchange, Shared
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.outgoing_response import Connection
from threadbridge.crossing.replicas import READING_METHODS, Replica, changed_at
from threadbridge.crossing.routes import Route
from threadbridge.crossing.states import State
from threadbridge.http.connection import HTTP1Connection
from threadbridge.http.context import RequestContext
from threadbridge.http.forwarded import (
    ClientAddress,
    ForwardedHeaders,
    TrustedProxies,
    client_of,
    peer_of,
    remove_forwarded,
)
from threadbridge.http.intermediary import MAX_HOPS, SENT_BY_LANE, TIME_LEFT, hops, is_sent_by_lane, seconds_left
from threadbridge.http.request_start import REQUEST_START, RequestStarts
from threadbridge.http.url_prefix import UrlPrefix
from threadbridge.loop.exchanges import Exchanges
from threadbridge.loop.forwarding import Forwarding
from threadbridge.loop.lane_choice import LaneChoice
from threadbridge.telemetry.sampling import Sampling
from threadbridge.worker.environ import environ_of, path_info_of

if TYPE_CHECKING:
    from threadbridge.telemetry.tracing import Tracing

logger = logging.getLogger("threadbridge")

_monotonic: Final = time.monotonic
_QUEUED: Final = State.QUEUED


class Admission:
    """Admits the requests of a bridge.

    :param deadline: seconds from a request's end to its response's beginning, in lanes without their own deadline.
    :param queue_timeout: seconds that a request may wait; one that would wait for longer is refused at once.
    :param forwarding: sends the requests of remote lanes to other hosts.
    :param forwarded: reads what trusted proxies say of clients; None to believe none.
    :param replica_for: whether a long request may read from a replica, by its environ; None: only those for the lanes'
        paths.
    :param trusted_proxies: those who get the load report.
    :param prefix: divides paths; None if the application is not below a prefix.
    """

    def __init__(
        self,
        shared: Shared,
        choice: LaneChoice,
        exchanges: Exchanges,
        forwarding: Forwarding,
        deadline: float,
        queue_timeout: float,
        *,
        client_key: Callable[[httputil.HTTPHeaders, str], str] | None,
        forwarded: ForwardedHeaders | None,
        replica_for: Callable[[WSGIEnvironment], object] | None,
        trusted_proxies: Sequence[str],
        prefix: UrlPrefix | None,
    ) -> None:
        self._shared = shared
        self._choice = choice
        self._exchanges = exchanges
        self._forwarding = forwarding
        self._deadline = deadline
        self._queue_timeout = queue_timeout
        self._client_key = client_key
        self._replica_for = replica_for
        self._failed, self._looped = RepeatedLog(logger), RepeatedLog(logger)
        self._forwarded = forwarded
        self._is_trusted = TrustedProxies(trusted_proxies).include
        self._prefix = prefix
        self._starts = RequestStarts()
        self._sampling = Sampling(1.0) if exchanges.tracing is None else exchanges.tracing.sampling
        self._lanes_to_wake: set[Lane] = set()

    def admit(
        self, connection: Connection, start_line: httputil.RequestStartLine, headers: httputil.HTTPHeaders
    ) -> Exchange:
        """Make the exchange for a request whose head has come; it has ended with 503 if its lane is full."""
        exchange = Exchange(self._shared, connection, start_line, headers)
        context = connection.context
        peer = context.peer if isinstance(context, RequestContext) else peer_of(context)
        exchange.peer = peer
        if self._shared.load_report is not None:
            exchange.peer_is_trusted = self._is_trusted(peer.address)
        if self._forwarded is not None:
            exchange.peer = self._forwarded.client_of(peer, headers)
            exchange.id = self._forwarded.request_id_of(peer, headers) or exchange.id
            if (SENT_BY_LANE in headers or TIME_LEFT in headers) and self._forwarded.trusts(peer):
                exchange.is_forwarded = is_sent_by_lane(headers)
                exchange.time_left = seconds_left(headers)
            if REQUEST_START in headers and self._forwarded.trusts(peer):
                is_local = self._forwarded.is_local(peer)
                exchange.before = self._starts.waited(peer.address, is_local=is_local, value=headers[REQUEST_START])
        exchange.client = client_of(exchange.peer.address) if self._client_key is None else self._key_of(exchange)
        path = path_info_of(start_line.path)
        if self._prefix is not None:
            is_trusted = self._forwarded is not None and self._forwarded.trusts(peer)
            exchange.script_name, path = self._prefix.split(path, headers, is_trusted)
        exchange.path_info = path
        takes_socket = self._choice.websockets is not None and self._offer_socket(exchange, connection)
        exchange.lane, route, exchange.is_probe = self._choice.choose(
            start_line.method, path, exchange.is_forwarded, takes_socket
        )
        exchange.running = TrackedRequest(exchange.id, None, route, exchange.client)
        exchange.running.lane = exchange.lane
        if exchange.lane.replica is not None:
            self._let_read(exchange, exchange.lane.replica)
        if self._exchanges.tracing is not None:
            self._begin_trace(self._exchanges.tracing, exchange, peer)
        exchange.estimate = self._estimate_of(exchange, route, path)
        self._exchanges.add(exchange)
        if not exchange.lane.has_room_for(exchange):
            exchange.shed()
        return exchange

    def _offer_socket(self, exchange: Exchange, connection: Connection) -> bool:
        """Let the application take over the connection if the request asks for a WebSocket; return whether it may."""
        if "Upgrade" not in exchange.headers:
            return False
        # Not above: few applications need it.
        from threadbridge.crossing.socket_relay import SocketRelay, asks_for_websocket

        method, _, version = exchange.start_line
        if not isinstance(connection, HTTP1Connection) or not asks_for_websocket(method, version, exchange.headers):
            return False
        exchange.relay = SocketRelay(connection, self._shared.hop.post, exchange.begin_relay, exchange.end_relay)
        return True

    def _begin_trace(self, tracing: Tracing, exchange: Exchange, peer: ClientAddress) -> None:
        # As for other headers: strangers could have everything recorded.
        is_trusted = self._forwarded is not None and self._forwarded.trusts(peer)
        has_parent = is_trusted and tracing.has_parent(exchange.headers)
        if has_parent or self._sampling.takes():
            exchange.running.trace = tracing.begin(exchange, has_parent=has_parent)

    def _estimate_of(self, exchange: Exchange, route: Route | None, path: str) -> Estimate:
        costs = self._shared.costs
        target = exchange.start_line.path
        if route is None or costs is None:
            return Estimate(None, target, exchange.client)
        estimate = Estimate(route.cost, target, exchange.client, self._choice.pinned_class(path))
        costs.estimate(estimate)
        return estimate

    def _add_form(self, exchange: Exchange) -> None:
        """Estimate the cost again if the body is a form: its fields are parameters, too."""
        estimate, costs = exchange.estimate, self._shared.costs
        if costs is None or estimate.route is None or not exchange.body.size:
            return
        if exchange.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            estimate.add_form(exchange.body.beginning(MAX_TEXT).decode("latin-1"))
            costs.estimate(estimate)

    def _key_of(self, exchange: Exchange) -> str:
        assert self._client_key is not None
        try:
            return str(self._client_key(exchange.headers, exchange.peer.address))
        except Exception as error:  # noqa: BLE001 - the application's; it is logged, and there is the address
            message = "request %s: client_key failed; using the client's address instead"
            self._failed.log(logging.ERROR, message, exchange.id, exc_info=error)
            return client_of(exchange.peer.address)

    def queue(self, exchange: Exchange) -> None:
        """Queue a request that is complete, unless it has ended."""
        if exchange.ended:
            return
        # It may have been admitted long ago: there must still be a thread to spare for a probe.
        if exchange.is_probe and not self._choice.may_probe():
            self._move(exchange, self._choice.main)
        self._add_form(exchange)
        self._send_elsewhere_if_long(exchange)
        self._send_to_replica_if_long(exchange)
        # First, as otherwise another might be refused for it in vain.
        if self._waits_too_long(exchange) or not self._makes_room_for(exchange):
            exchange.shed()
        elif exchange.lane.upstream and hops(exchange.headers) >= MAX_HOPS:
            # No 503, or each bridge on the way would try all its other hosts.
            message = "request %s: refused, other bridges have forwarded it %d times already: see docs/fleet.md, Trust"
            self._looped.log(logging.ERROR, message, exchange.id, MAX_HOPS)
            exchange.refuse_loop()
        elif exchange.move(_QUEUED):
            exchange.queued_at = _monotonic()
            limit = exchange.queued_at + self._time_of(exchange)
            exchange.running.deadline = min(limit, exchange.started + exchange.time_left)
            exchange.connection.set_close_callback(exchange.on_connection_close)
            if exchange.lane.upstream:
                if self._forwarded is None:
                    # Here nothing is trusted, but the other host trusts this one.
                    remove_forwarded(exchange.headers)
                if self._exchanges.tracing is not None:
                    self._exchanges.tracing.pass_on(exchange)
                self._forwarding.forward(exchange)
            else:
                self._put(exchange)

    def _send_elsewhere_if_long(self, exchange: Exchange) -> None:
        """Let other hosts run a request that is long as far as is known, if there are such hosts."""
        lane = self._choice.long
        if lane is None or exchange.is_forwarded or exchange.lane.upstream or exchange.estimate.route is None:
            return
        if exchange.lane.class_of(exchange) == "long" and self._forwarding.is_up(lane):
            self._shared.routes.never_ran(exchange.running.route, exchange.is_probe)
            exchange.is_probe = False
            self._move(exchange, lane)

    def _let_read(self, exchange: Exchange, replica: Replica) -> bool:
        """Let a request read from the replica, if its method only reads; returns whether it does."""
        if exchange.start_line.method not in READING_METHODS:
            return False
        exchange.running.replica = replica
        exchange.running.changed_at = changed_at(exchange.headers)
        return True

    def _send_to_replica_if_long(self, exchange: Exchange) -> None:
        """Let a request that is long as far as is known read from a replica, if the application allows that."""
        lane = self._choice.replica
        if lane is None or lane.replica is None or self._replica_for is None or exchange.estimate.route is None:
            return
        if (
            not exchange.lane.upstream
            and exchange.lane.class_of(exchange) == "long"
            and exchange.start_line.method in READING_METHODS
            and lane.replica.may_read(changed_at(exchange.headers))
            and self._allows_replica(exchange)
        ):
            self._shared.routes.never_ran(exchange.running.route, exchange.is_probe)
            exchange.is_probe = False
            self._let_read(exchange, lane.replica)
            self._move(exchange, lane)

    def _allows_replica(self, exchange: Exchange) -> bool:
        # To read a body from its file would take that from the application.
        if self._replica_for is None or exchange.body.is_in_file:
            return False
        try:
            return bool(self._replica_for(environ_of(exchange)))
        except Exception as error:  # noqa: BLE001 - the application's; it is logged, and there is the primary
            message = "request %s: replica_for failed; it reads from the primary"
            self._failed.log(logging.ERROR, message, exchange.id, exc_info=error)
            return False

    def _makes_room_for(self, exchange: Exchange) -> bool:
        """Return whether the lane has room, if need be after refusing another request in its queue."""
        if exchange.lane.has_room(exchange):
            return True
        displaced = exchange.lane.displace(exchange)
        if displaced is not None:
            cast(Exchange, displaced).shed()
        return displaced is not None

    def _time_of(self, exchange: Exchange) -> float:
        """Return the seconds from its end until a request's response must begin."""
        seconds = exchange.lane.deadline or self._deadline
        # At most half: should clocks differ after all, requests can still be answered.
        return seconds if exchange.before <= 0.0 else max(seconds - exchange.before, seconds / 2)

    def _waits_too_long(self, exchange: Exchange) -> bool:
        """Return whether the request would be refused, or expire, while it waits: then better at once."""
        limit = min(self._queue_timeout, self._time_of(exchange))
        if exchange.time_left < limit:
            # Its client has waited since then.
            limit = max(0.0, exchange.time_left - (_monotonic() - exchange.started))
        if exchange.lane.expected_wait(exchange) <= limit:
            return False
        exchange.lane.refused_early += 1
        return True

    def _put(self, exchange: Exchange) -> None:
        exchange.lane.put(exchange)
        if not self._lanes_to_wake:
            # Not at once: a thread would take the interpreter from the loop, which may have more requests to read.
            asyncio.get_running_loop().call_soon(self._wake_lanes)
        self._lanes_to_wake.add(exchange.lane)

    def _wake_lanes(self) -> None:
        lanes, self._lanes_to_wake = self._lanes_to_wake, set()
        for lane in lanes:
            lane.wake()

    def asked(self, request: TrackedRequest, pool: str) -> None:
        """Note that the request asks for a connection of the pool with this key. Worker side."""
        route = request.route
        if route is None:
            # It is in a lane for certain paths.
            return
        if request.replica is not None:
            # It is in its lane because it is long; where its route belongs is known.
            return
        lane = self._choice.lane_of(pool)
        if lane is request.lane and lane is route.lane:
            # So it is for most.
            return
        if request.lane not in self._choice.all:
            # It is another bridge's, whose application uses this pool too.
            return
        is_new = self._shared.routes.asked(route, lane)
        if lane is not request.lane and lane not in request.also_in:
            # Counted once.
            request.also_in += (lane,)
            self._shared.hop.post(self._adopt, request, lane)
        if is_new:
            self._shared.hop.post(self._gather, route)

    def _adopt(self, request: TrackedRequest, lane: Lane) -> None:
        """Count a request of another lane in this one too, as it takes a connection from its pool."""
        for exchange in self._exchanges.open:
            if exchange.running is request:
                exchange.adopt_by(lane)
                return

    def _gather(self, route: Route) -> None:
        """Take the requests of a route into the lane of the pool that it has turned out to use."""
        # Waiting requests first, or a thread that takes the place of a running one would take them here; and in the
        # order in which they came, since their clients' turns follow from it.
        waits = (State.RECEIVING, State.QUEUED)
        lane = route.lane
        assert lane is not None
        for exchange in sorted(self._exchanges.open, key=lambda each: (each.state not in waits, each.queued_at)):
            if exchange.running.route is route and exchange.lane is not lane and not _is_elsewhere(exchange):
                self._change_lane(exchange, lane)

    def _move(self, exchange: Exchange, lane: Lane) -> None:
        exchange.lane = exchange.running.lane = lane

    def _change_lane(self, exchange: Exchange, lane: Lane) -> None:
        """Move a request to the lane; if a thread of the quick one runs it already, let another work beside that."""
        if exchange.state is State.RECEIVING:
            self._move(exchange, lane)
        elif exchange.lane.withdraw(exchange):
            self._move(exchange, lane)
            if self._makes_room_for(exchange):
                self._put(exchange)
            else:
                exchange.shed()
        elif self._choice.is_quick(exchange.lane):
            exchange.lane.replace(exchange)


def _is_elsewhere(exchange: Exchange) -> bool:
    """Return whether the request is in a remote lane or in that of a replica, where it stays."""
    return bool(exchange.lane.upstream) or exchange.running.replica is not None
