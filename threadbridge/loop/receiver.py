"""Receives a request from its HTTP connection, up to its place in the queue of a lane."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable

from tornado import httputil

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.outgoing_response import Connection
from threadbridge.loop.admission import Admission


class Receiver:
    """The `HTTPMessageDelegate` of one request, but no subclass: compiled attributes are faster without a base."""

    # Made when the head has come; no other method is called before.
    exchange: Exchange

    def __init__(self, admission: Admission, connection: Connection) -> None:
        self._admission = admission
        self._connection = connection

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> None:
        """Admit the request, or refuse it before its body is read."""
        assert isinstance(start_line, httputil.RequestStartLine)
        self.exchange = self._admission.admit(self._connection, start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a piece of the body; the connection reads no more until the awaitable, if any, is done."""
        exchange = self.exchange
        if exchange.ended:
            # Other servers read on after an answer; the body would not be discarded again.
            return None
        try:
            written = exchange.body.append(chunk, exchange.client)
        except RuntimeError:
            # No thread for the disk can be started; that is logged.
            exchange.shed()
            return None
        self._connection.body_held = exchange.body.held
        return None if written is None else self._spooled(written)

    async def _spooled(self, written: Future[None]) -> None:
        exchange = self.exchange
        try:
            await written
        except Exception as error:  # noqa: BLE001 - it is logged, and the request must end
            exchange.refuse_body(error)
        if not exchange.ended:
            self._connection.body_held = exchange.body.held

    def finish(self) -> None:
        """Queue the complete request, unless it has ended."""
        exchange = self.exchange
        if exchange.ended:
            return
        self._connection.answers_after_end = not exchange.is_cancellable
        try:
            written = exchange.body.complete()
        except RuntimeError:
            # As in `data_received`.
            exchange.shed()
            return
        if written is None:
            self._admission.queue(exchange)
            return
        # The end of the body goes to the disk first. Tornado's own server would not wait for an awaitable here.
        self._connection.set_close_callback(exchange.on_connection_close)
        asyncio.ensure_future(self._queue_after(written))  # noqa: RUF006 - the body keeps what the task waits for

    async def _queue_after(self, written: Future[None]) -> None:
        await self._spooled(written)
        self._admission.queue(self.exchange)

    def receive_all(self, body: bytes) -> None:
        """Keep the whole body at once, then queue the request."""
        self._connection.set_close_callback(self.exchange.on_connection_close)
        spooled = self.data_received(body) if body else None
        if spooled is None:
            self.finish()
        else:
            asyncio.ensure_future(spooled).add_done_callback(lambda _: self.finish())

    def on_connection_close(self) -> None:
        """End the exchange: its client has left before the request was complete."""
        self.exchange.on_connection_close()
