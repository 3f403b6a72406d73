"""One request and its response: the object that crosses between the loop and a worker."""

from __future__ import annotations

import errno
import itertools
import logging
import math
import os
import threading
import time
from asyncio import Future
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from wsgiref.types import WSGIEnvironment

from tornado import httputil

from threadbridge.common.forks import leave
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.cancellation import Cancellation
from threadbridge.crossing.costs import Costs
from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.estimate import Estimate
from threadbridge.crossing.file_source import FileSource
from threadbridge.crossing.hop import Hop
from threadbridge.crossing.lanes import Lane
from threadbridge.crossing.load import LoadReport
from threadbridge.crossing.outgoing_response import Connection, OutgoingResponse
from threadbridge.crossing.replicas import Replica, change_cookie, changed_at
from threadbridge.crossing.request_body import RequestBody
from threadbridge.crossing.response_body import KEPT, Buffer, Channel, piece_size
from threadbridge.crossing.routes import Routes
from threadbridge.crossing.spool import Spool
from threadbridge.crossing.states import State
from threadbridge.http.forwarded import ClientAddress
from threadbridge.http.intermediary import PSEUDONYM
from threadbridge.http.response_head import NEVER_RAN, ResponseHead, response_head
from threadbridge.sql.statements import UNCHANGED

logger = logging.getLogger("threadbridge")

_slow_readers = RepeatedLog(logger)

_numbers: Final = itertools.count(1)
# Compiled, a global that is final is found faster than one of another module, or a member of an enumeration.
_RUNNING: Final = State.RUNNING
_monotonic: Final = time.monotonic


class Shared:
    """What the exchanges of one bridge have in common.

    :param call: calls the application for an exchange and hands over the response; never raises. Worker side.
    :param ended: called once for each exchange, when nothing more can reach its client. Loop side.
    :param load_report: for the responses to trusted peers; None if they get none. Loop side.
    """

    # Set before the first exchange is made.
    hop: Hop

    def __init__(
        self,
        spool: Spool,
        routes: Routes,
        costs: Costs | None,
        cancellation: Cancellation,
        call: Callable[[Exchange], None],
        ended: Callable[[Exchange], None],
        load_report: LoadReport | None,
    ) -> None:
        self.spool = spool
        self.routes = routes
        # None: nothing is learned of them.
        self.costs = costs
        self.cancellation = cancellation
        self.call = call
        self.ended = ended
        # Those from which requests may read: their clients are told when they have changed something.
        self.replicas: tuple[Replica, ...] = ()
        self.load_report = load_report
        # Called before a request that has no trace, if others have one. Worker side.
        self.enter_untraced: Callable[[], object] | None = None
        # Whether responses have a ``Server-Timing``.
        self.tells_timing = False
        # Whether the exchanges keep their environ, for the access log.
        self.keeps_environ = False
        # Whether other processes may run the same application (``wsgi.multiprocess``).
        self.is_multiprocess = True


class Exchange(OutgoingResponse):
    """One request and its response, from the request's head on.

    The loop owns everything except the state, which both sides move under a lock; the body, which is the worker's once
    the exchange runs; the channel of a streamed response, which has its own lock; `run_at`, `response_status` and
    `thread_id`, which the worker writes; and `worker_is_done` and `adopted_by`, of which the worker writes one and the
    loop the other under the lock. The request's attributes do not change once it is queued,
    and the lane's lock orders the loop's writes before the worker's reads.
    """

    # By `time.monotonic`, or 0.0: when it was queued, and when a worker began.
    queued_at = 0.0
    run_at = 0.0
    # Set on admission.
    lane: Lane
    peer: ClientAddress
    # ``SCRIPT_NAME`` and ``PATH_INFO`` of the environ.
    script_name = ""
    path_info = ""
    client = ""
    is_probe = False
    # Whether the other end of its connection is trusted with the load report.
    peer_is_trusted = False
    # Whether the remote lane of another bridge has sent it, and the seconds that it has left in that case.
    is_forwarded = False
    time_left = math.inf
    # The seconds from when it came to the first proxy until its head was complete here; -1.0 if unknown.
    before = -1.0
    running: TrackedRequest
    # Once it is queued, its lane's schedule changes it, under the lane's lock.
    estimate: Estimate
    # The lanes whose threads are fewer by one while this runs in another.
    adopted_by: tuple[Lane, ...] = ()
    # The status that the worker has given it, or 0.
    response_status = 0
    # Set by the worker; the loop sets the second, too, when no worker will come.
    thread_id: int | None = None
    worker_is_done = False
    # In a remote lane: the host to which it was sent last, and the error type (RFC 9209, section 2.3) if that failed.
    upstream = ""
    upstream_error = ""
    # That of the application's call, which the worker sets if it is kept.
    environ: WSGIEnvironment | None = None
    _forget_cancel: Callable[[], None]
    _channel: Channel | None = None

    def __init__(
        self,
        shared: Shared,
        connection: Connection,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        super().__init__(connection, shared.spool)
        # No other request of this process has this key.
        self.key = "%x-%06x" % (os.getpid(), next(_numbers))  # noqa: UP031 - compiled, f"{number:x}" takes much longer
        # The name in logs. A trusted proxy may give another, which need not be unique.
        self.id = self.key
        self.started = _monotonic()
        self.start_line = start_line
        self.headers = headers
        # The response to HEAD has no body (RFC 9110, section 9.3.2).
        self.is_head = start_line.method == "HEAD"
        self.shared = shared
        self.body = RequestBody(shared.spool)
        self._hop = shared.hop

    def on_connection_close(self) -> None:
        """End the exchange: its client has left, or its connection refuses the body or a slow reader. Loop side."""
        refused_with = self.connection.refused_with
        if self._stop(State.REFUSED if refused_with else State.ABANDONED):
            self._end(refused_with or 499)

    def adopt_by(self, lane: Lane) -> None:
        """Count in another lane, whose connection it has taken, until it has run. Loop side."""
        lane.adopt(self)
        with self._lock:
            # Either the worker, when it ends, sees the lane, or this sees that it has ended.
            is_running = not self.worker_is_done
            if is_running:
                self.adopted_by += (lane,)
        if not is_running:
            lane.release(self)

    def shed(self) -> None:
        """Answer 503 to a request that will not run, for example because its lane is full. Loop side."""
        if self._stop(State.SHED):
            self._answer_plainly(HTTPStatus.SERVICE_UNAVAILABLE)

    def expire(self) -> None:
        """Answer 504 because the deadline has passed; cancel the request if its method allows that. Loop side."""
        if self._stop(State.EXPIRED):
            self._answer_plainly(HTTPStatus.GATEWAY_TIMEOUT)

    def refuse_body(self, error: Exception) -> None:
        """Answer 507 if the disk has no room for the body, or 500 after another error. Loop side."""
        if self._stop(State.FAILED):
            message = "request %s: cannot write its body to a temporary file: %r"
            self.spool.request_log.log(logging.ERROR, message, self.id, error)
            is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            self._answer_plainly(HTTPStatus.INSUFFICIENT_STORAGE if is_full else HTTPStatus.INTERNAL_SERVER_ERROR)

    def _stop(self, ending: State) -> bool:
        left = self.move(ending)
        if left is State.QUEUED:
            self.lane.withdraw(self)
        if left in (State.RECEIVING, State.QUEUED):
            self.worker_is_done = True
            self.body.discard()
            self.shared.routes.never_ran(self.running.route, self.is_probe)
        elif left is not None and self.is_cancellable:
            self.shared.cancellation.cancel(self.running)
        return left is not None

    @property
    def is_cancellable(self) -> bool:
        """Whether it is cancelled when its client leaves or its deadline passes. Loop side."""
        # What a WebSocket's messages do is not known: it counts as a method that changes something.
        method = "POST" if self.status == 101 else self.start_line.method
        return self.is_forwarded or self.shared.cancellation.applies_to(method)

    # The worker runs the application.

    def is_abandoned(self) -> bool:
        """Return whether its client has left before it was answered. Either side."""
        return self.state is State.ABANDONED

    def claim(self) -> bool:
        """Begin to run; False when the exchange has ended in the queue. Worker side."""
        return self.move(_RUNNING) is not None

    def run(self) -> None:
        """Call the application. Worker side."""
        self.thread_id = threading.get_ident()
        self.run_at = _monotonic()
        self.running.enter()
        trace = self.running.trace
        if trace is not None:
            trace.enter(self.queued_at, self.lane.name)
        elif self.shared.enter_untraced is not None:
            self.shared.enter_untraced()
        try:
            self.shared.call(self)
            self.shared.routes.ran(self.running.route, self.is_probe)
        finally:
            if self._hop.is_copy:
                leave()
            try:
                if trace is not None:
                    trace.leave()
                self.running.leave()
            finally:
                try:
                    self._learn_cost()
                finally:
                    with self._lock:
                        self.worker_is_done = True
                        adopted_by = self.adopted_by
                    for lane in adopted_by:
                        lane.release(self)
                    self.body.close()

    def _learn_cost(self) -> None:
        costs = self.shared.costs
        if costs is None or self.estimate.route is None:
            return
        took = _monotonic() - self.run_at
        # What was cut short, or has failed, tells only that it would have taken at least so long.
        if (0 < self.response_status < 500 and not self.running.cancelled) or took > self.estimate.cautious:
            costs.learn(self.estimate, took, self.running.statements.seconds)

    def respond(self, head: ResponseHead, body: bytes) -> None:
        """Send a whole response, in one hop. Worker side."""
        self.response_status = head.status
        if len(body) > KEPT:
            # On this side, so that other workers count it before the loop finds that the client does not read.
            self.spool.unread.add(len(body))
            self._hop.post(self._send_large, head, body)
        else:
            self._hop.post(self.send_head, head, body, None)

    def respond_with_file(self, head: ResponseHead, file: FileSource) -> None:
        """Send a response whose body is a file; this takes no thread of the lane. Worker side."""
        self.response_status = head.status
        self._hop.post(self.send_head, head, b"", file)

    def start_stream(self, head: ResponseHead, chunk: Buffer) -> None:
        """Send the head and the beginning of the body; raises as `Channel.put`. Worker side."""
        self.response_status = head.status
        self._channel = Channel(
            self.spool,
            self.client,
            wake=lambda: self._hop.post(self.pump),
            is_wanted=lambda: self.lane.queued > 0,
            cut=lambda: self._hop.post(self._cut_slow_reader),
        )
        size = piece_size(self.spool)
        self._hop.post(self.send_head, head, bytes(chunk[:size]), self._channel)
        if len(chunk) > size:
            self.stream(memoryview(chunk)[size:])

    def stream(self, chunk: Buffer) -> None:
        """Send a piece of the body when the client has read enough of it; raises as `Channel.put`. Worker side."""
        assert self._channel is not None, "start_stream comes first"
        if self._hop.is_copy:
            leave()
        self._channel.put(chunk)

    def end_stream(self) -> None:
        """Complete the body. Worker side."""
        assert self._channel is not None, "start_stream comes first"
        self._channel.complete()

    def fail(self, may_be_repeated: bool) -> None:
        """Answer 500, or 503 if the request may be repeated; after the head, cut the connection. Worker side."""
        self.response_status = 500
        self._hop.post(self._fail, may_be_repeated)

    def change_cookie(self) -> str | None:
        """Return the cookie that tells the client that it has changed something, if there are replicas. Either side."""
        if not self.shared.replicas:
            return None
        outcome = self.running.statements.outcome
        if outcome in UNCHANGED:
            return None
        return change_cookie(self.shared.replicas, outcome == "committed", changed_at(self.headers))

    def _send_large(self, head: ResponseHead, body: bytes) -> None:
        try:
            self.send_head(head, body, None)
        finally:
            # The connection counts what could not be sent yet.
            self.spool.unread.add(-len(body))

    # Another host runs it, and the loop forwards it: all these are on the loop.

    def run_elsewhere(self, cancel: Callable[[], None]) -> None:
        """Run a queued exchange, of which bytes have been sent to another host; ``cancel()`` stops it there."""
        self.claim()
        self.run_at = _monotonic()
        self._forget_cancel = self.running.on_cancel(lambda: self._hop.post(cancel), wait=False)

    def came_back(self, status: int) -> None:
        """Note that the other host has nothing more to do for it; ``status`` is 0 if it has not answered."""
        self._forget_cancel()
        self.response_status = status
        self._learn_cost()
        self.worker_is_done = True

    def fail_elsewhere(self, error: str, status: HTTPStatus = HTTPStatus.BAD_GATEWAY) -> None:
        """Answer with this status and the error type (RFC 9209, section 2.3); cut a response that has begun."""
        left = self.move(State.FAILED)
        if left is not None:
            self.upstream_error = error
        if left is State.RESPONDING:
            self._cut()
        elif left is not None:
            self._answer_plainly(status)

    def refuse_loop(self) -> None:
        """Answer 502: bridges have forwarded it to each other."""
        if self._stop(State.FAILED):
            self.upstream_error = "proxy_loop_detected"
            self._answer_plainly(HTTPStatus.BAD_GATEWAY)

    def server_timing(self) -> str:
        """The value of ``Server-Timing`` (W3C) for a response that begins now: milliseconds. Either side."""
        now = _monotonic()
        run_at = self.run_at or now
        times = [("before", self.before)] if self.before >= 0.0 else []
        if self.queued_at:
            times.append(("wait", run_at - self.queued_at))
        if self.run_at:
            times += [("run", now - run_at), ("database", self.running.statements.seconds_until(now))]
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in times)

    def _begin_response(self) -> None:
        # Before the response: the client's next request on this route should find its lane.
        self.running.is_answered = True
        if not self.lane.upstream:
            self.shared.routes.ran(self.running.route, self.is_probe)

    def _cut_slow_reader(self) -> None:
        """End a response whose client reads too slowly while other requests wait for its thread."""
        if self._stop(State.REFUSED):
            _slow_readers.log(
                logging.WARNING,
                "request %s: cut, its client reads too slowly: it has used up its share of spool_size, and other "
                "requests need the thread",
                self.id,
            )
            self.connection.close()
            self._end(HTTPStatus.REQUEST_TIMEOUT.value)

    def _fail(self, may_be_repeated: bool = False) -> None:
        left = self.move(State.FAILED)
        if left is State.RESPONDING:
            self._cut()
        elif left is not None:
            self._begin_response()
            self._answer_plainly(HTTPStatus(503 if may_be_repeated else 500))

    def _answer_plainly(self, status: HTTPStatus) -> None:
        body = f"{status.value} {status.phrase}: {status.description}\n".encode()
        fields = [("Content-Type", "text/plain; charset=utf-8"), ("X-Request-ID", self.id)]
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            fields.append(("Retry-After", str(self.lane.retry_after(self))))
        if self.state is State.SHED:
            fields.append(NEVER_RAN)
        if (cookie := self.change_cookie()) is not None:
            fields.append(("Set-Cookie", cookie))
        if self.shared.tells_timing and self.queued_at:
            fields.append(("Server-Timing", self.server_timing()))
        if self.upstream_error:
            fields.append(("Proxy-Status", f"{PSEUDONYM}; error={self.upstream_error}"))
        head = response_head(status.value, status.phrase, fields, len(body))
        self._write_head(head, b"" if self.is_head else body)
        self.connection.finish()
        self._end(status.value)

    def _write_head(self, head: ResponseHead, body: bytes) -> Future[None] | None:
        report = self.shared.load_report
        if report is not None:
            line = report.line_after(head.status, _monotonic() - self.run_at if self.run_at else 0.0)
            if self.peer_is_trusted:
                head = ResponseHead(head.status, head.lines + line, head.length, head.close)
        return super()._write_head(head, body)

    def _end(self, status: int) -> None:
        super()._end(status)
        self.shared.ended(self)
