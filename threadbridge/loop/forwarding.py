"""Forwards the requests of remote lanes to other hosts, and their responses to the clients. Loop side."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Future
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus

from tornado.iostream import StreamClosedError

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.common.worker_threads import TaskThreads
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.response_body import Buffer, Taken
from threadbridge.crossing.states import State
from threadbridge.http.client_connection import ClientConnection
from threadbridge.http.intermediary import forwarded_request, forwarded_response, never_ran
from threadbridge.http.response_parser import Response
from threadbridge.loop.body_sender import BodySender
from threadbridge.loop.upstream import Host, Upstream

logger = logging.getLogger("threadbridge")
_failed, _unreadable, _no_host = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)


class Forwarding:
    """The requests that other hosts run for a bridge with these lanes."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        remote = [lane for lane in lanes if lane.upstream]
        self._resolver = TaskThreads(2, "threadbridge-resolver") if remote else None
        self.upstreams = {lane: Upstream(lane, self._resolver) for lane in remote if self._resolver is not None}
        self._requests: set[ForwardedRequest] = set()
        self._all_ended = asyncio.Event()

    def forward(self, exchange: Exchange) -> None:
        """Send a queued exchange to a host of its lane."""
        request = ForwardedRequest(exchange, self.upstreams[exchange.lane], self._on_end)
        self._requests.add(request)
        exchange.lane.begin_elsewhere(exchange)
        request.send_to_next()

    def is_up(self, lane: Lane) -> bool:
        """Return whether a host of this lane may be expected to answer."""
        return self.upstreams[lane].is_up

    def _on_end(self, request: ForwardedRequest, exchange: Exchange) -> None:
        self._requests.discard(request)
        exchange.lane.end_elsewhere(exchange)
        if not self._requests:
            self._all_ended.set()

    async def drain(self) -> None:
        """Wait until no other host runs a request, even one whose client has left."""
        while self._requests:
            self._all_ended.clear()
            await self._all_ended.wait()

    def close(self) -> None:
        """Close all connections, which cancels what still runs on other hosts."""
        for request in list(self._requests):
            request.cancel()
        for upstream in self.upstreams.values():
            upstream.close()
        if self._resolver is not None:
            self._resolver.shutdown(wait=False)


class ForwardedRequest:
    """One exchange of a remote lane: sent to one host, and to the next only if it is known not to have run.

    The exchange's state says how far it is: ``QUEUED`` until bytes of it have been sent to a host, then ``RUNNING``.

    :param on_end: called once, when no host has anything more to do for it.
    """

    def __init__(
        self, exchange: Exchange, upstream: Upstream, on_end: Callable[[ForwardedRequest, Exchange], None]
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._on_end = on_end
        self._tried: list[Host] = []
        self._host: Host | None = None
        self._connection: ClientConnection | None = None
        # The task that connects to the host, as long as it does.
        self._connecting: asyncio.Future[ClientConnection] | None = None
        self._sender: BodySender | None = None
        # Reads that were under way when their senders were stopped.
        self._readings: list[Future[bytes]] = []
        self._response: ForwardedResponseBody | None = None
        # The latest response of a host that has refused to run it.
        self._refusal: tuple[Response, bytes] | None = None
        self._has_ended = False

    def send_to_next(self) -> None:
        """Send it to a host that has not refused it; if there is none, answer 503."""
        if self._exchange.ended:
            # Its client has left, and it runs nowhere.
            self._end(0)
            return
        host = self._upstream.next(self._tried)
        if host is None:
            self._give_up()
            return
        self._tried.append(host)
        self._host = host
        host.begin(self)
        self._send_over_kept(host)

    def _send_over_kept(self, host: Host) -> None:
        while (connection := host.take_kept()) is not None:
            if self._send(host, connection):
                return
        self._connecting = asyncio.ensure_future(host.connect())
        self._connecting.add_done_callback(partial(self._on_connected, host))

    def _on_connected(self, host: Host, connecting: asyncio.Future[ClientConnection]) -> None:
        self._connecting = None
        if connecting.cancelled():
            # By `cancel`, or because the loop ends.
            return
        error = connecting.exception()
        if self._has_ended:
            # `cancel` came too late for the connection.
            if error is None:
                host.keep(connecting.result())
            return
        if error is not None:
            self._cannot_send(host, f"cannot connect: {getattr(error, 'strerror', None) or error!r}")
        elif self._exchange.ended:
            host.keep(connecting.result())
            self._leave_host()
            self._end(0)
        elif not self._send(host, connecting.result()):
            # Not to be repeated: a host that accepts connections only to close them would get one after the other.
            self._cannot_send(host, "the connection was closed at once")

    def _cannot_send(self, host: Host, reason: str) -> None:
        host.has_failed(reason)
        self._leave_host()
        self.send_to_next()

    def _send(self, host: Host, connection: ClientConnection) -> bool:
        """Send it; return False if the connection took not one byte, so that it cannot have run."""
        exchange = self._exchange
        connection.begin(self, exchange.is_head)
        deadline = exchange.running.deadline
        assert deadline is not None
        head = forwarded_request(
            exchange.start_line.method,
            exchange.start_line.path,
            exchange.headers,
            authority=host.name.partition("://")[2],
            client=exchange.peer,
            request_id=exchange.id,
            length=exchange.body.size,
            time_left=deadline - time.monotonic(),
            lane=exchange.lane.name,
        )
        sender = self._sender = BodySender(exchange.body, exchange.spool, connection, self._on_unread_body)
        try:
            sender.send_head(head)
        except StreamClosedError:
            connection.close()
            self._sender = None
            return False
        self._connection = connection
        exchange.upstream = host.name
        if exchange.state is State.QUEUED:
            exchange.run_elsewhere(self.cancel)
        sender.send_rest()
        return True

    def _on_unread_body(self, reason: str) -> None:
        """End it: this host cannot send it, for which the other is not to blame."""
        message = "request %s cannot be forwarded: %s"
        _unreadable.log(logging.ERROR, message, self._exchange.id, reason)
        self._drop_connection()
        self._leave_host()
        self._end(0)
        self._exchange.fail_elsewhere("proxy_internal_error", HTTPStatus.INTERNAL_SERVER_ERROR)

    # `ResponseReader`.

    def on_response(self, response: Response, body: bytes, complete: bool) -> None:
        host, connection, exchange = self._host, self._connection, self._exchange
        assert host is not None and connection is not None
        is_refusal = never_ran(response)
        host.has_answered(is_refusal)
        if is_refusal:
            self._refusal = response, body if complete else b""
            self._leave_host()
            self._leave_connection(host, connection, complete)
            self.send_to_next()
            return
        if complete:
            self._leave_host()
            self._leave_connection(host, connection, True)
            self._end(response.status)
            exchange.send_head(forwarded_response(response), body, None)
        elif exchange.ended:
            # Its client has left, or has been answered 504: nobody reads the rest.
            self._leave_host()
            self._leave_connection(host, connection, False)
            self._end(response.status)
        else:
            self._response = ForwardedResponseBody(exchange, connection, self.cancel)
            exchange.send_head(forwarded_response(response), body, self._response)

    def on_body(self, body: bytes, complete: bool) -> None:
        host, connection, response = self._host, self._connection, self._response
        assert host is not None and connection is not None and response is not None
        if complete:
            status = self._exchange.status
            self._leave_host()
            self._leave_connection(host, connection, True)
            self._end(status)
        response.add(body, complete)

    def on_failure(self, error: str, reason: str) -> None:
        self._connection = None
        self._fail(error, reason)

    def _leave_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.end(self)

    def _leave_connection(self, host: Host, connection: ClientConnection, complete: bool) -> None:
        self._connection = None
        # A response may come before the request has been sent.
        is_sent = self._stop_sending()
        if connection.release() and complete and is_sent:
            host.keep(connection)
        else:
            connection.close()

    def _stop_sending(self) -> bool:
        """Send no more of the body; return whether all of it had been sent."""
        sender, self._sender = self._sender, None
        if sender is None:
            return True
        sender.stop()
        if sender.reading is not None:
            self._readings.append(sender.reading)
        return sender.is_done

    def _give_up(self) -> None:
        """Answer 503: no host has run it."""
        exchange, refusal = self._exchange, self._refusal
        if refusal is None:
            message = "no host of the lane %s can be reached, request %s is answered 503: %s %s"
            _no_host.log(logging.ERROR, message, exchange.lane.name, exchange.id, *exchange.start_line[:2])
            self._end(0)
            exchange.upstream_error = "destination_unavailable"
            exchange.shed()
            return
        response, body = refusal
        self._end(response.status)
        if not exchange.is_head:
            # It may not have been read to its end.
            response.length = len(body)
        exchange.send_head(forwarded_response(response), body, None)

    def _fail(self, error: str, reason: str) -> None:
        """End it after a failure of the host, which may have run it: it is not repeated."""
        host, exchange = self._host, self._exchange
        self._drop_connection()
        if host is not None:
            self._leave_host()
            host.has_failed(reason)
        _failed.log(
            logging.ERROR,
            "request %s may have run on %s, and is not repeated: %s: %s %s",
            exchange.id,
            exchange.upstream,
            reason,
            *exchange.start_line[:2],
        )
        self._end(0)
        exchange.fail_elsewhere(error)

    def cancel(self) -> None:
        """Stop it where it runs, by closing the connection."""
        if not self._has_ended:
            if self._connecting is not None:
                self._connecting.cancel()
            self._drop_connection()
            self._leave_host()
            self._end(0)
            # Unless it has been answered already.
            self._exchange.fail_elsewhere("connection_terminated")

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        self._stop_sending()
        if connection is not None:
            connection.close()

    def _end(self, status: int) -> None:
        self._has_ended = True
        self._stop_sending()
        exchange = self._exchange
        if exchange.run_at and not exchange.worker_is_done:
            exchange.came_back(status)
            reads = [reading for reading in self._readings if not reading.done()]
            if reads:
                asyncio.gather(*reads, return_exceptions=True).add_done_callback(self._close_body)
            else:
                self._close_body()
        self._on_end(self, exchange)

    def _close_body(self, read: object = None) -> None:
        body, spool = self._exchange.body, self._exchange.spool
        if body.is_in_file:
            spool.clear_up(body.close)
        else:
            body.close()


class ForwardedResponseBody:
    """The body of another host's response: a `Source`. While the client is slow, nothing more is read from the host."""

    def __init__(self, exchange: Exchange, connection: ClientConnection, cancel: Callable[[], None]) -> None:
        self._exchange = exchange
        self._connection: ClientConnection | None = connection
        self._cancel = cancel
        self._pieces: list[Buffer] = []
        self._complete = False
        self._reader_waits = False

    def add(self, data: bytes, complete: bool) -> None:
        """Add what the host has sent."""
        if data:
            self._pieces.append(data)
        if complete:
            self._complete = True
            # It may carry another request now.
            self._connection = None
        if self._reader_waits:
            self._reader_waits = False
            self._exchange.pump()
        elif self._connection is not None:
            self._connection.pause_reading()

    def take(self) -> Taken:
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            return pieces
        if self._complete:
            return ()
        self._reader_waits = True
        if self._connection is not None:
            self._connection.resume_reading()
        return None

    def close(self) -> None:
        self._pieces.clear()
        if not self._complete:
            self._complete = True
            self._connection = None
            self._cancel()
