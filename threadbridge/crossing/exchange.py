"""One request and its response: the object that crosses between the loop and a worker."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import threading
import time
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from tornado import httputil

from threadbridge.common.forks import leave
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import RunningRequest
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.request_body import RequestBody
from threadbridge.crossing.response_body import KEPT, Buffer, Channel, FileSource, Source, piece_size
from threadbridge.crossing.spool import Spool, SpoolFullError
from threadbridge.crossing.states import ENDINGS, MOVES, State
from threadbridge.http.forwarded import ClientAddress
from threadbridge.http.response_head import ResponseHead, response_head

logger = logging.getLogger("threadbridge")

slow_readers, _unreadable = RepeatedLog(logger), RepeatedLog(logger)

# Seconds until a thread for the disk is asked for again when none could be started.
NO_THREAD_PAUSE = 0.25

_numbers = itertools.count(1)


class Connection(Protocol):
    """What an exchange needs of an HTTP connection; `HTTP1Connection` says what the methods mean."""

    context: Any
    refused_with: int
    answers_after_end: bool
    body_held: int

    def set_close_callback(self, callback: Callable[[], None] | None) -> None: ...

    def send_head(self, head: ResponseHead, chunk: bytes) -> Future[None] | None: ...

    def send(self, pieces: Sequence[Buffer]) -> Future[None] | None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class Dispatcher(Protocol):
    """What an exchange needs of the bridge that made it."""

    spool: Spool
    # Whether the application may run in other processes too.
    multiprocess: bool

    def admit(self, exchange: Exchange) -> None: ...

    def reconsider(self, probe: Exchange) -> None: ...

    def queue(self, exchange: Exchange) -> None: ...

    def run(self, exchange: Exchange) -> None: ...

    def cancel(self, exchange: Exchange) -> None: ...

    def cancels(self, exchange: Exchange) -> bool: ...

    def never_ran(self, exchange: Exchange) -> None: ...

    def answered(self, exchange: Exchange) -> None: ...

    def ended(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request and its response: a `tornado.httputil.HTTPMessageDelegate`, by its methods.

    It is no subclass of that: compiled, attributes of a class of its own are found without a look at any dictionary.

    The loop owns everything but three pieces: the state, which both sides move under a lock; the body, which is the
    worker's once the exchange is running; and the channel of a streamed response, which has a lock of its own. A worker
    reads the request's attributes; they do not change once the exchange is queued, and the lane's lock orders the
    loop's writes before the worker's reads.
    """

    status = 0
    # When its head had come, when it was queued, when a worker began, when the response began, when all ended; 0.0: it
    # has not.
    started = 0.0
    queued_at = 0.0
    run_at = 0.0
    answered_at = 0.0
    ended_at = 0.0
    # Bytes of the response's body that were given to the connection.
    sent = 0
    # Set by the bridge when the head is known.
    lane: Lane
    peer: ClientAddress
    client = ""
    is_probe = False
    running: RunningRequest
    # Seconds, from the end of the request to the beginning of the response.
    time_allowed: float
    # Set by the worker; that it is done also by the loop, when no worker will come.
    thread_id: int | None = None
    worker_is_done = False
    start_line: httputil.RequestStartLine
    headers: httputil.HTTPHeaders
    _channel: Channel | None = None
    _source: Source | None = None

    def __init__(self, bridge: Dispatcher, hop: Hop, connection: Connection) -> None:
        # No other request of this process has this key.
        self.key = "%x-%06x" % (os.getpid(), next(_numbers))  # noqa: UP031 - compiled, f"{number:x}" takes much longer
        # The name in logs: the bridge takes that of a trusted proxy, if there is one, which others may have too.
        self.id = self.key
        self.state = State.RECEIVING
        self.spool = bridge.spool
        self.body = RequestBody(bridge.spool)
        self.connection = connection
        self._bridge = bridge
        self._hop = hop
        self._lock = threading.Lock()

    def move(self, state: State) -> State | None:
        """Go on to ``state`` if that is legal; the state that was left, or None when it was not. Either side."""
        with self._lock:
            left = self.state
            if state not in MOVES[left]:
                return None
            self.state = state
            return left

    @property
    def ended(self) -> bool:
        """Whether nothing more can reach the client. Either side."""
        return self.state in ENDINGS

    # The request comes in.

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Choose the lane; refuse the request before its body is read when the lane is full. Loop side."""
        assert isinstance(start_line, httputil.RequestStartLine)
        self.start_line = start_line
        self.headers = headers
        self.started = time.monotonic()
        self._bridge.admit(self)
        if not self.lane.has_room_for(self.client):
            self.shed()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Keep a piece of the body; nothing more is read before the awaitable, if any, is done. Loop side."""
        try:
            written = self.body.append(chunk, self.client)
        except RuntimeError:
            # No thread for the disk can be started, which is logged.
            self.shed()
            return None
        self.connection.body_held = self.body.held
        return None if written is None else self._spooled(written)

    async def _spooled(self, written: Future[None]) -> None:
        try:
            await written
        except Exception as error:  # noqa: BLE001 - it is logged, and the request must end
            if self._stop(State.FAILED):
                self.spool.request_log.log(
                    logging.ERROR, "request %s: cannot write its body to a temporary file: %r", self.id, error
                )
                full = isinstance(error, SpoolFullError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
                self._answer_plainly(HTTPStatus.INSUFFICIENT_STORAGE if full else HTTPStatus.INTERNAL_SERVER_ERROR, {})
        if not self.ended:
            self.connection.body_held = self.body.held

    def finish(self) -> None:
        """The request is complete: queue it, if the lane has not become full meanwhile. Loop side."""
        self.connection.answers_after_end = not self._bridge.cancels(self)
        try:
            written = self.body.complete()
        except RuntimeError:
            # As in `data_received`.
            self.shed()
            return
        if written is None:
            self._queue()
            return
        # The end of the body goes to the disk first. Nothing is returned to wait for: Tornado's own server does not.
        self.connection.set_close_callback(self.on_connection_close)
        asyncio.ensure_future(self._queue_after(written))  # noqa: RUF006 - the body keeps what the task waits for

    async def _queue_after(self, written: Future[None]) -> None:
        await self._spooled(written)
        if not self.ended:
            self._queue()

    def _queue(self) -> None:
        if self.is_probe:
            self._bridge.reconsider(self)
        if not self._makes_room():
            self.shed()
        elif self.move(State.QUEUED):
            self.queued_at = time.monotonic()
            self.running.deadline = self.queued_at + self.time_allowed
            self.connection.set_close_callback(self.on_connection_close)
            self._bridge.queue(self)

    def _makes_room(self) -> bool:
        """Whether the lane has room for it, if need be in place of another request, which is refused. Loop side."""
        if self.lane.has_room():
            return True
        displaced = self.lane.displace(self.client)
        if displaced is None:
            return False
        assert isinstance(displaced, Exchange)
        displaced.shed()
        return True

    def change_lane(self, lane: Lane) -> None:
        """Go to another lane; if it runs already, only let another thread of its lane work beside it. Loop side."""
        if self.state is State.RECEIVING:
            self.lane = lane
        elif not self.lane.withdraw(self):
            self.lane.replace(self)
        else:
            self.lane = lane
            if self._makes_room():
                self._bridge.queue(self)
            else:
                self.shed()

    def on_connection_close(self) -> None:
        """The client has left: a waiting request is not run, a running one is cancelled. Loop side."""
        # Or the connection has refused what came of the body, and answered that itself.
        refused_with = self.connection.refused_with
        if self._stop(State.REFUSED if refused_with else State.ABANDONED):
            self._ended(refused_with or 499)

    def shed(self) -> None:
        """Refuse a request that the lane has no room for, or has kept waiting for too long: 503. Loop side."""
        if self._stop(State.SHED):
            self._answer_unavailable()

    def expire(self) -> None:
        """Give up a request that was not answered by its deadline: 504, and cancelled. Loop side."""
        if self._stop(State.EXPIRED):
            self._answer_plainly(HTTPStatus.GATEWAY_TIMEOUT, {})

    def _stop(self, ending: State) -> bool:
        left = self.move(ending)
        if left is State.QUEUED:
            self.lane.withdraw(self)
        if left in (State.RECEIVING, State.QUEUED):
            self.worker_is_done = True
            self.body.discard()
            self._bridge.never_ran(self)
        elif left is not None:
            self._bridge.cancel(self)
        return left is not None

    @property
    def client_has_left(self) -> bool:
        """Whether nobody is left to read a response. Either side."""
        return self.state is State.ABANDONED

    @property
    def is_multiprocess(self) -> bool:
        """Whether the application may run in other processes too. Either side."""
        return self._bridge.multiprocess

    @property
    def is_copy(self) -> bool:
        """Whether the application has forked this process, and it is not the one that serves. Worker side."""
        return self._hop.is_copy

    # A worker runs the application.

    def claim(self) -> bool:
        """Take the exchange out of the queue to run it; False when it has ended there. Worker side."""
        return self.move(State.RUNNING) is not None

    def run(self) -> None:
        """Have the bridge call the application. Worker side."""
        self.thread_id = threading.get_ident()
        self.run_at = time.monotonic()
        self.running.enter()
        try:
            self._bridge.run(self)
        finally:
            if self._hop.is_copy:
                leave()
            self.running.leave()
            self.worker_is_done = True
            self.body.close()

    def respond(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole response, in one hop. Worker side."""
        if len(body) > KEPT:
            # Now: workers must know of it before the loop has found out that the client does not take it.
            self.spool.unread.add(len(body))
            self._hop.post(self._send_large, head, body)
        else:
            self._hop.post(self._send_head, head, body, None)

    def respond_with_file(self, head: ResponseHead, file: FileSource) -> None:
        """Send a response whose body is a file, which takes no thread of the lane. Worker side."""
        self._hop.post(self._send_head, head, b"", file)

    def start_stream(self, head: ResponseHead, chunk: Buffer) -> None:
        """Send the head and what there is of the body; `stream` and `end_stream` follow. Worker side.

        Raises `ClientDisconnected` as `stream` does.
        """
        self._channel = Channel(
            self.spool,
            self.client,
            wake=lambda: self._hop.post(self._pump),
            is_wanted=lambda: self.lane.queued > 0,
            cut=lambda: self._hop.post(self._cut_slow_reader),
        )
        size = piece_size(self.spool)
        self._hop.post(self._send_head, head, bytes(chunk[:size]), self._channel)
        if len(chunk) > size:
            self.stream(memoryview(chunk)[size:])

    def stream(self, chunk: Buffer) -> None:
        """Send a piece of the body, after waiting until the client has read enough of the others. Worker side.

        Raises `ClientDisconnected` when the client has left, also while waiting.
        """
        assert self._channel is not None, "start_stream comes first"
        if self._hop.is_copy:
            leave()
        self._channel.put(chunk)

    def end_stream(self) -> None:
        """Say that the body is complete. Worker side."""
        assert self._channel is not None, "start_stream comes first"
        self._channel.complete()

    def fail(self, may_be_repeated: bool) -> None:
        """The application failed: answer 500, or cut the connection when a head is out already. Worker side.

        :param may_be_repeated: answer 503 instead: it was the database that failed, and the request has done nothing.
        """
        self._hop.post(self._fail, may_be_repeated)

    # The response goes out.

    def _send_large(self, head: ResponseHead, body: bytes) -> None:
        try:
            self._send_head(head, body, None)
        finally:
            # What could not leave is in the connection's account.
            self.spool.unread.add(-len(body))

    def _send_head(self, head: ResponseHead, body: bytes, source: Source | None) -> None:
        if not self.move(State.RESPONDING):
            if source is not None:
                source.close()
            return
        self._bridge.answered(self)
        self._source = source
        written = self._write_head(head, body)
        if source is not None:
            self._pump_after(written)
            return
        self.connection.finish()
        if written is None:
            # Most responses fit into the socket's buffer, and have left.
            self._on_complete()
        else:
            written.add_done_callback(self._on_complete)

    def _write_head(self, head: ResponseHead, body: bytes) -> Future[None] | None:
        self.status = head.status
        self.answered_at = time.monotonic()
        self.sent = len(body)
        return self.connection.send_head(head, body)

    def _pump_after(self, written: Future[None] | None) -> None:
        if written is None:
            # Not at once: a client that reads without pause must not keep the loop from the others.
            asyncio.get_running_loop().call_soon(self._pump)
        else:
            written.add_done_callback(self._pump)

    def _pump(self, written: Future[None] | None = None) -> None:
        """Write what there is of the body; runs again when that has left, or when there is more. Loop side."""
        if self.ended:
            return
        assert self._source is not None
        taken = self._source.take()
        if taken is None:
            return
        if callable(taken):
            loop = asyncio.get_running_loop()
            try:
                loop.run_in_executor(self.spool.threads, taken).add_done_callback(self._fetched)
            except RuntimeError:
                # No thread for the disk can be started, which is logged.
                loop.call_later(NO_THREAD_PAUSE, self._pump)
        elif taken:
            self._send(taken)
        else:
            self.connection.finish()
            self._on_complete()

    def _fetched(self, data: Future[bytes]) -> None:
        if self.ended:
            return
        error = data.exception()
        if error is None:
            self._send((data.result(),))
        else:
            _unreadable.log(logging.ERROR, "request %s: cannot read the rest of its response: %s", self.id, error)
            self._fail()

    def _send(self, pieces: Sequence[Buffer]) -> None:
        self.sent += sum(map(len, pieces))
        self._pump_after(self.connection.send(pieces))

    def _cut_slow_reader(self) -> None:
        """Its client takes too long for what a thread waits to send, and others wait for the thread."""
        if self._stop(State.REFUSED):
            slow_readers.log(
                logging.WARNING,
                "request %s: cut, its client reads too slowly: it has used up its share of spool_size, and other "
                "requests need the thread",
                self.id,
            )
            self.connection.close()
            self._ended(HTTPStatus.REQUEST_TIMEOUT.value)

    def _on_complete(self, written: Future[None] | None = None) -> None:
        if written is not None and written.exception() is not None:
            # The client has left; the close callback says so.
            return
        if self.move(State.DONE):
            self._ended(self.status)

    def _fail(self, may_be_repeated: bool = False) -> None:
        left = self.move(State.FAILED)
        if left is State.RESPONDING:
            self.connection.close()
            self._ended(self.status)
        elif left is not None:
            self._bridge.answered(self)
            if may_be_repeated:
                self._answer_unavailable()
            else:
                self._answer_plainly(HTTPStatus.INTERNAL_SERVER_ERROR, {})

    def _answer_unavailable(self) -> None:
        self._answer_plainly(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(self.lane.retry_after())})

    def _answer_plainly(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        body = f"{status.value} {status.phrase}: {status.description}\n".encode()
        fields = (*headers.items(), ("Content-Type", "text/plain; charset=utf-8"), ("X-Request-ID", self.id))
        head = response_head(status.value, status.phrase, fields, len(body))
        self._write_head(head, b"" if self.is_head else body)
        self.connection.finish()
        self._ended(status.value)

    @property
    def is_head(self) -> bool:
        """Whether the response must have no body because the method is HEAD (RFC 9110, section 9.3.2). Either side."""
        return self.start_line.method == "HEAD"

    def _ended(self, status: int) -> None:
        if self._source is not None:
            self._source.close()
        self.status = status
        self.ended_at = time.monotonic()
        self._bridge.ended(self)
