"""Sends a request's body to another host, at its pace. Loop side."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable

from tornado.iostream import StreamClosedError

from threadbridge.crossing.request_body import RequestBody
from threadbridge.crossing.spool import Spool
from threadbridge.http.client_connection import ClientConnection


class BodySender:
    """One attempt to send a complete body; another attempt has another sender, which begins again.

    :param on_failure: called with the reason if the body cannot be read from the disk. If the connection fails, that
        tells its reader.
    """

    def __init__(
        self, body: RequestBody, spool: Spool, connection: ClientConnection, on_failure: Callable[[str], None]
    ) -> None:
        self._spool = spool
        self._source = body.source()
        self._connection = connection
        self._on_failure = on_failure
        self._is_stopped = False
        # A disk thread's read that is under way: the body must not be closed meanwhile.
        self.reading: Future[bytes] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the connection has the whole body."""
        return self._source.is_at_end and self.reading is None

    def begin(self, head: bytes) -> None:
        """Send the head and, if it is in memory, the body. Raises ``StreamClosedError``: not one byte has been sent."""
        taken = self._source.take()
        if taken is None or callable(taken):
            self._continue(self._connection.send(head))
        else:
            self._connection.send(head, *taken)

    def stop(self) -> None:
        """Send no more."""
        self._is_stopped = True

    def _continue(self, written: Future[None] | None) -> None:
        if written is None:
            self._send_next()
        else:
            written.add_done_callback(self._send_next)

    def _send_next(self, written: Future[None] | None = None) -> None:
        if self._is_stopped or (written is not None and written.exception() is not None):
            return
        taken = self._source.take()
        if not callable(taken):
            return
        try:
            self.reading = asyncio.get_running_loop().run_in_executor(self._spool.threads, taken)
        except RuntimeError:
            # That is logged.
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
        try:
            written = self._connection.send(reading.result())
        except StreamClosedError:
            return
        self._continue(written)
