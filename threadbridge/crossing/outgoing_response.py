"""A response on its way from an exchange to the HTTP connection."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.file_source import FilePiece, FileSource
from threadbridge.crossing.response_body import Buffer, Source
from threadbridge.crossing.spool import Spool
from threadbridge.crossing.states import ENDINGS, MOVES, State
from threadbridge.http.response_head import ResponseHead

if TYPE_CHECKING:
    from threadbridge.crossing.socket_relay import SocketRelay

logger = logging.getLogger("threadbridge")

_unreadable = RepeatedLog(logger)

# Compiled, a global that is final is found faster than one of another module, or a member of an enumeration.
_MOVES: Final = MOVES
_ENDINGS: Final = ENDINGS
_RECEIVING: Final = State.RECEIVING
_RESPONDING: Final = State.RESPONDING
_DONE: Final = State.DONE
_monotonic: Final = time.monotonic
_new_lock: Final = threading.Lock


class Connection(Protocol):
    """What an exchange needs of an HTTP connection; `HTTP1Connection` says what the methods mean."""

    context: Any
    refused_with: int
    answers_after_end: bool
    body_held: int

    def set_close_callback(self, callback: Callable[[], None] | None) -> None: ...

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None] | None: ...

    def send(self, pieces: Sequence[Buffer]) -> Future[None] | None: ...

    @property
    def sends_files(self) -> bool: ...

    def send_file(self, descriptor: int, offset: int, size: int) -> tuple[int, Future[None] | None]: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class OutgoingResponse:
    """The response of an exchange on its way to the client, and the state of the exchange: the base of `Exchange`.

    The loop owns everything except the state, which both sides move under a lock.
    """

    # The name in logs.
    id: str
    status = 0
    # By `time.monotonic`, or 0.0: when the response began, and when all ended.
    answered_at = 0.0
    ended_at = 0.0
    # Bytes of the response's body given to the connection.
    sent = 0
    # Its status line and fields, once it has begun.
    head_lines = b""
    _source: Source | FileSource | None = None
    # The socket that the application may take over, if the request asks for a WebSocket; set before it runs.
    relay: SocketRelay | None = None

    def __init__(self, connection: Connection, spool: Spool) -> None:
        self.state = _RECEIVING
        self.connection = connection
        self.spool = spool
        self._lock = _new_lock()

    def move(self, state: State) -> State | None:
        """Go on to ``state`` if that move is legal; return the state that was left, or None. Either side."""
        lock = self._lock
        # Compiled, a `with` takes three times as long. Nothing here raises.
        lock.acquire()
        left = self.state
        is_legal = state in _MOVES[left]
        if is_legal:
            self.state = state
        lock.release()
        return left if is_legal else None

    @property
    def ended(self) -> bool:
        """Whether nothing more can reach the client. Either side."""
        return self.state in _ENDINGS

    def send_head(self, head: ResponseHead, body: bytes, source: Source | FileSource | None) -> None:
        """Send a response: the whole of it, or its beginning and then what the source has; unless it has ended."""
        if not self.move(_RESPONDING):
            if source is not None:
                source.close()
            return
        self._begin_response()
        self._source = source
        written = self._write_head(head, body)
        if source is not None:
            self._pump_after(written)
            return
        self.connection.finish()
        if written is None:
            # It is in the socket's buffer, as most responses are.
            self._on_complete()
        else:
            written.add_done_callback(self._on_complete)

    def _begin_response(self) -> None:
        """Note that the response is about to begin; for `Exchange`."""

    def _write_head(self, head: ResponseHead, body: bytes) -> Future[None] | None:
        self.status = head.status
        self.head_lines = head.lines
        self.answered_at = _monotonic()
        self.sent = len(body)
        return self.connection.send_head(head, body)

    def _pump_after(self, written: Future[None] | None) -> None:
        if written is None:
            # Not at once: a client that reads without pause must not keep others waiting.
            asyncio.get_running_loop().call_soon(self.pump)
        else:
            written.add_done_callback(self.pump)

    def pump(self, written: Future[None] | None = None) -> None:
        """Send what the source has; called again when that has been sent, and when a source that was empty has more."""
        if self.ended:
            return
        assert self._source is not None
        taken = self._source.take()
        if taken is None:
            return
        if isinstance(taken, FilePiece):
            self._send_piece(taken)
        elif callable(taken):
            loop = asyncio.get_running_loop()
            try:
                loop.run_in_executor(self.spool.threads, taken).add_done_callback(self._on_read)
            except RuntimeError:
                # No thread for the disk can be started; that is logged.
                loop.call_later(0.25, self.pump)
        elif taken:
            self._send(taken)
        else:
            self.connection.finish()
            self._on_complete()

    def begin_relay(self) -> bool:
        """Note that the application has taken over its socket, instead of a response; False if all has ended."""
        if not self.move(State.RESPONDING):
            return False
        self._begin_response()
        self.status = 101
        self.answered_at = time.monotonic()
        return True

    def end_relay(self) -> None:
        """End the connection that the application had taken over."""
        self.connection.finish()
        self._on_complete()

    def _on_read(self, data: Future[bytes]) -> None:
        # Always: asyncio logs exceptions that nothing has asked for.
        error = data.exception()
        if self.ended:
            return
        if error is None:
            self._send((data.result(),))
        else:
            _unreadable.log(logging.ERROR, "request %s: cannot read the rest of its response: %s", self.id, error)
            if self.move(State.FAILED):
                self._cut()

    def _send_piece(self, piece: FilePiece) -> None:
        sent, written = self.connection.send_file(piece.descriptor, piece.offset, piece.size)
        self.sent += sent
        assert isinstance(self._source, FileSource)
        self._source.sent(sent)
        self._pump_after(written)

    def _send(self, pieces: Sequence[Buffer]) -> None:
        self.sent += sum(map(len, pieces))
        self._pump_after(self.connection.send(pieces))

    def _cut(self) -> None:
        """Close the connection within the response, after a move to an ending."""
        self.connection.close()
        self._end(self.status)

    def _on_complete(self, written: Future[None] | None = None) -> None:
        if written is not None and written.exception() is not None:
            # The client has left: the close callback ends the exchange.
            return
        if self.move(_DONE):
            self._end(self.status)

    def _end(self, status: int) -> None:
        if self._source is not None:
            self._source.close()
        if self.relay is not None:
            self.sent += self.relay.sent
            self.relay.close()
        self.status = status
        self.ended_at = _monotonic()
