"""Sends a request's body to another host, at its pace. Loop side."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from functools import partial

from tornado.iostream import StreamClosedError

from threadbridge.crossing.request_body import RequestBody
from threadbridge.crossing.spool import Spool
from threadbridge.http.client_connection import ClientConnection


class BodySender:
    """One attempt to send a complete body; another attempt has another sender, which begins again.

    :param on_failure: called with the reason if the body cannot be read from the disk. A connection that fails tells
        its own reader.
    """

    def __init__(
        self, body: RequestBody, spool: Spool, connection: ClientConnection, on_failure: Callable[[str], None]
    ) -> None:
        self._body = body
        self._spool = spool
        self._connection = connection
        self._on_failure = on_failure
        self._head_written: Future[None] | None = None
        # Bytes of the body that the connection has.
        self._given = 0
        self._is_stopped = False
        # A disk thread's read that is under way: the body must not be closed meanwhile.
        self.reading: Future[bytes] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the connection has the whole body."""
        return self._given == self._body.size

    def send_head(self, head: bytes) -> None:
        """Send the head, and the body if it is in memory. Raises ``StreamClosedError``: not one byte has been sent."""
        body = self._body
        if body.is_in_file:
            self._head_written = self._connection.send(head)
        else:
            self._connection.send(head, *body.pieces())
            self._given = body.size

    def send_rest(self) -> None:
        """Send a body that is in a file, after `send_head`."""
        if not self.is_done:
            self._continue(self._head_written)

    def stop(self) -> None:
        """Send no more."""
        self._is_stopped = True

    def _continue(self, written: Future[None] | None) -> None:
        if written is None:
            self._read_next()
        else:
            written.add_done_callback(self._read_next)

    def _read_next(self, written: Future[None] | None = None) -> None:
        if self._is_stopped or self.is_done or (written is not None and written.exception() is not None):
            return
        read = partial(self._body.read_at, self._given)
        try:
            self.reading = asyncio.get_running_loop().run_in_executor(self._spool.threads, read)
        except RuntimeError:
            self._on_failure("no thread can be started to read its body from the disk")
            return
        self.reading.add_done_callback(self._on_read)

    def _on_read(self, reading: Future[bytes]) -> None:
        self.reading = None
        # Always: asyncio logs exceptions that nothing has asked for.
        error = reading.exception()
        if self._is_stopped:
            return
        if error is not None:
            self._on_failure(f"its body cannot be read from the disk: {error}")
            return
        data = reading.result()
        try:
            written = self._connection.send(data)
        except StreamClosedError:
            return
        self._given += len(data)
        self._continue(written)
