"""The server's side of PEP 3333: a call of a WSGI application."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from wsgiref.types import WSGIApplication
from wsgiref.util import FileWrapper

from threadbridge.common.forks import leave
from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.file_source import FileSource, plain_file
from threadbridge.crossing.response_body import KEPT, MEMORY_LIMIT, ClientDisconnected
from threadbridge.http.response_head import HOP_BY_HOP, ResponseHead, http_date, response_head
from threadbridge.sql.statements import UNCHANGED
from threadbridge.worker.application_values import NO_HEAD, ApplicationError, checked, checked_name, parse_status
from threadbridge.worker.environ import environ_of

if TYPE_CHECKING:
    from threadbridge.worker.file_response import FileResponse
    from threadbridge.worker.file_sending import FileSending

logger = logging.getLogger("threadbridge")
_outage, _excess, _no_socket = RepeatedLog(logger), RepeatedLog(logger), RepeatedLog(logger)


# RFC 9110, section 5.5.
_FIELD_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch

# The hop-by-hop fields that the application has set, each logged once; only the server knows them.
_dropped: set[str] = set()


def call_application(
    application: WSGIApplication,
    exchange: Exchange,
    is_outage: Callable[[BaseException], bool],
    files: FileSending | None = None,
) -> None:
    """Call the application for an exchange and send its response.

    :param files: sends the files that the application returns or names; None: it knows of none.

    Never raises: errors are logged, with a traceback unless they follow from the request's cancellation or an outage of
    the database. The client gets a 500, after an outage a 503 if the request has changed nothing, or a cut connection
    if the head has been sent.
    """
    call = Call(exchange, files)
    try:
        call.run(application)
    except ClientDisconnected:
        logger.info("request %s: stopped, nobody reads its response any more", exchange.id)
    except BaseException as error:
        if exchange.shared.hop.is_copy:
            leave(error)
        outage = outage_behind(error, is_outage)
        if exchange.running.cancelled:
            logger.info("request %s: stopped, because it was cancelled: %r", exchange.id, error)
        elif outage is not None:
            failure = repr(error) if outage is error else f"{error!r} after {outage!r}"
            _outage.log(logging.ERROR, "request %s failed: %s %s: %s", exchange.id, *exchange.start_line[:2], failure)
        else:
            logger.exception("request %s failed: %s %s", exchange.id, *exchange.start_line[:2])
        if not (call.complete or call.has_taken_over(is_failed=True)):
            explain_websocket(exchange)
            exchange.fail(may_be_repeated(exchange.running, outage))


def explain_websocket(exchange: Exchange) -> None:
    """Log the remedy if the application has failed because it was not offered its client's connection."""
    if exchange.relay is None and exchange.headers.get("Upgrade", "").lower() == "websocket":
        _no_socket.log(
            logging.ERROR,
            "request %s: the application failed to open a WebSocket: %s. If it needs its client's connection, as "
            "simple-websocket does, set websockets=N, the number of them at once, and serve it with threadbridge's own "
            "HTTP server: see docs/websockets.md",
            exchange.id,
            exchange.start_line.path,
        )


def outage_behind(error: BaseException, is_outage: Callable[[BaseException], bool]) -> BaseException | None:
    """Find the driver's error that reports an outage of the database in the chain of an exception, or return None.

    Applications and ORMs raise their own exceptions instead of the driver's. The chain is that of tracebacks:
    ``__cause__`` after a ``raise ... from``, otherwise ``__context__``.
    """
    link: BaseException | None = error
    # The chain may be circular.
    for _ in range(100):
        if link is None or is_outage(link):
            return link
        link = link.__cause__ if link.__suppress_context__ else link.__context__
    return None


def may_be_repeated(request: TrackedRequest, outage: BaseException | None) -> bool:
    """Return whether a request that failed with this outage has changed nothing, so that it may be repeated: 503."""
    return outage is not None and not request.cancelled and request.statements.outcome in UNCHANGED


class Call:
    """A call of a WSGI application, whose values may be of any type: they are checked here, in PEP 3333's terms."""

    def __init__(self, exchange: Exchange, files: FileSending | None) -> None:
        self.complete = False
        self._exchange = exchange
        self._files = files
        # The header by which the application has named a file, in lower case, and its value.
        self._redirect: tuple[str, str] | None = None
        self._status = 0
        self._reason = ""
        # The headers given to `start_response`, without Content-Length.
        self._fields: list[tuple[str, str]] | None = None
        self._length: int | None = None
        self._names: set[str] = set()
        self._has_body = True
        # The bytes of the announced Content-Length that are still to come; None if there is none.
        self._remaining: int | None = None
        self._head_sent = False

    def run(self, application: WSGIApplication) -> None:
        """Call the application and send its response; raises its exceptions, and `ApplicationError`."""
        environ = environ_of(self._exchange)
        if self._exchange.shared.keeps_environ:
            self._exchange.environ = environ
        relay = self._exchange.relay
        if relay is not None:
            # The name under which simple-websocket looks for it first.
            environ["werkzeug.socket"] = relay.open()
        try:
            result: Any = application(environ, self._start_response)
        except ConnectionError:
            # With this, which Werkzeug's server ignores, Flask-SocketIO ends a call whose socket it has used.
            if not self.has_taken_over(is_failed=False):
                raise
            return
        try:
            if self.has_taken_over(is_failed=self._status >= 500):
                # What it returns stands for the response that it has sent itself.
                pass
            elif isinstance(result, (list, tuple)):
                self._send_list(result)
            elif self._files is not None and self._files.is_file(result):
                assert self._fields is not None
                self._send_response(self._files.respond(self._exchange, result, self._status, self._fields))
            elif not (isinstance(result, FileWrapper) and self._send_wrapped(result)):
                self._send_iterable(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def has_taken_over(self, *, is_failed: bool) -> bool:
        """Note that the call has ended; return whether the application has used its socket instead of a response."""
        relay = self._exchange.relay
        if relay is None or not relay.end(is_failed=is_failed):
            return False
        self.complete = True
        self._exchange.response_status = 101
        return True

    def _send_list(self, chunks: Any) -> None:
        """Send a complete body, with its length and in one hop."""
        body = b"".join(map(checked, chunks))
        # For HEAD, an empty list does not tell the length of GET's body (RFC 9110, section 8.6).
        is_known = bool(body) or not self._exchange.is_head
        if is_known and self._fields is not None and self._remaining is None and not self._head_sent:
            self._announce(len(body))
        if body:
            self._send(body)
        self._finish()

    def _send_iterable(self, result: Any) -> None:
        try:
            chunks = iter(result)
        except TypeError:
            hint = "; is it a factory of applications?" if callable(result) else ""
            raise ApplicationError(
                f"the application returned {result!r}; expected an iterable of bytes{hint}"
            ) from None
        for chunk in chunks:
            if self.complete:
                self._log_excess(chunk)
                return
            # An empty chunk does not send the head: the application may still change it.
            if checked(chunk):
                self._send(chunk)
        self._finish()

    def _send_wrapped(self, wrapper: FileWrapper) -> bool:
        """Send a regular file without this thread (PEP 3333, "Optional Platform-Specific File Handling")."""
        if self._head_sent or not self._has_body or self._redirect is not None:
            return False
        if self._fields is None:
            raise ApplicationError(NO_HEAD)
        try:
            descriptor, offset, size = plain_file(wrapper.filelike)
        except (AttributeError, OSError):
            # Only file-like: it is read by its methods.
            return False
        if self._remaining is None:
            self._announce(size)
        elif size < self._remaining:
            raise ApplicationError(
                f"the file has {size} bytes from its position on, but Content-Length is {self._remaining}"
            )
        else:
            size = self._remaining
        head = self._head_to_send()
        assert head is not None
        self.complete = True
        # The application may close its own at once.
        self._respond_with(head, os.dup(descriptor), offset, size)
        return True

    def _respond_with(self, head: ResponseHead, descriptor: int, offset: int, size: int) -> None:
        exchange = self._exchange
        source = FileSource(exchange.spool, descriptor, offset, size, may_send=exchange.connection.sends_files)
        exchange.respond_with_file(head, source)

    def _send_redirect(self, header: str, value: str) -> None:
        """Send the file that the application has named in place of its body."""
        assert self._files is not None and self._fields is not None
        self._send_response(self._files.redirect(self._exchange, header, value, self._status, self._fields))

    def _send_response(self, response: FileResponse) -> None:
        if response.status != self._status:
            self._status, self._reason = response.status, HTTPStatus(response.status).phrase
        self._fields, self._length = response.fields, response.length
        self._names = {name.lower() for name, _ in response.fields}
        head = self._head_to_send()
        assert head is not None
        self.complete = True
        # The application may go on with a body of its own, which is not sent.
        self._has_body = False
        if response.descriptor < 0:
            self._exchange.respond(head, response.body)
        else:
            assert response.length is not None
            self._respond_with(head, response.descriptor, response.offset, response.length)

    def _start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        if exc_info is not None:
            try:
                if self._head_sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._fields is not None:
            raise ApplicationError("start_response was called twice; the second call must pass exc_info")
        if not isinstance(status, str):
            raise ApplicationError(f"the status is {status!r}; expected a str, such as '200 OK'")
        self._status, self._reason = parse_status(status)
        self._has_body = not self._exchange.is_head and self._status not in (204, 205, 304)
        self._fields = []
        self._names = set()
        self._redirect = None
        self._length = self._remaining = None
        for name, value in headers:
            if not (isinstance(name, str) and isinstance(value, str)):
                raise ApplicationError(f"header {name!r}: {value!r}; expected a name and a value, both str")
            if not _FIELD_VALUE(value):
                raise ApplicationError(
                    f"header {name}: {value!r} has a control character or one beyond latin-1 (RFC 9110, section 5.5)"
                )
            small = checked_name(name)
            self._names.add(small)
            if small in HOP_BY_HOP:
                self._log_dropped(name)
            elif small == "content-length":
                if not (value.isascii() and value.isdigit()):
                    raise ApplicationError(f"Content-Length is {value!r}; expected digits")
                if self._length is not None and self._length != int(value):
                    raise ApplicationError(f"Content-Length is {self._length} and {value}; give it once")
                self._length = self._remaining = int(value)
            elif self._files is not None and small in self._files.headers:
                if self._status not in (204, 205, 304, 412, 416):
                    self._redirect = small, value.strip(" \t")
            else:
                # Django's cookies begin with a space, which does not belong to the value (RFC 9110, section 5.5).
                self._fields.append((name, value.strip(" \t")))
        return self._write

    def _write(self, data: Any) -> None:
        if self.complete:
            self._log_excess(data)
        elif checked(data) or not self._head_sent:
            # Even an empty first piece sends the head (PEP 3333, "The start_response() Callable").
            self._send(data)

    def _send(self, data: bytes) -> None:
        """Send a piece of the body, with the head before the first."""
        if self._redirect is not None:
            self._send_redirect(*self._redirect)
            return
        head = self._head_to_send()
        if not self._has_body:
            data = b""
            self.complete = True
        elif self._remaining is not None:
            if len(data) > self._remaining:
                self._log_excess(data)
                data = data[: self._remaining]
            self._remaining -= len(data)
            self.complete = self._remaining == 0
        if head is None:
            self._exchange.stream(data)
        elif self.complete and (
            len(data) <= KEPT or (len(data) <= MEMORY_LIMIT and not self._exchange.spool.unread.is_full)
        ):
            self._exchange.respond(head, data)
            return
        else:
            self._exchange.start_stream(head, data)
        if self.complete:
            self._exchange.end_stream()

    def _finish(self) -> None:
        """End the response."""
        if self.complete:
            return
        if self._redirect is not None:
            self._send_redirect(*self._redirect)
        elif self._head_sent:
            if self._remaining:
                raise ApplicationError(f"the body is {self._remaining} bytes shorter than its Content-Length")
            self._exchange.end_stream()
            self.complete = True
        elif self._has_body and self._remaining:
            raise ApplicationError(f"there is no body, but Content-Length is {self._remaining}")
        else:
            if self._has_body:
                self._length = 0
            head = self._head_to_send()
            assert head is not None
            self.complete = True
            self._exchange.respond(head, b"")

    def _head_to_send(self) -> ResponseHead | None:
        """Return the head the first time, then None."""
        if self._head_sent:
            return None
        if self._fields is None:
            raise ApplicationError(NO_HEAD)
        self._head_sent = True
        if self._status >= 500:
            explain_websocket(self._exchange)
        if "date" not in self._names:
            self._fields.append(("Date", http_date()))
        if "server" not in self._names:
            self._fields.append(("Server", "threadbridge"))
        if "x-request-id" not in self._names:
            self._fields.append(("X-Request-ID", self._exchange.id))
        if (cookie := self._exchange.change_cookie()) is not None:
            self._fields.append(("Set-Cookie", cookie))
        if self._exchange.shared.tells_timing:
            # In addition to the application's own: the fields form a list.
            self._fields.append(("Server-Timing", self._exchange.server_timing()))
        # Always: 204 has no length (RFC 9110, section 8.6), and 205 an empty body (15.3.6).
        if self._status == 204:
            self._length = None
        elif self._status == 205:
            self._length = 0
        return response_head(self._status, self._reason, self._fields, self._length)

    def _announce(self, length: int) -> None:
        if self._status not in (204, 205, 304):
            self._length = self._remaining = length

    def _log_dropped(self, name: str) -> None:
        if name.lower() not in _dropped:
            _dropped.add(name.lower())
            logger.warning(
                "request %s: the application sets the header %s, which only the server may set (RFC 9110, section "
                "7.6.1), so it is not sent: %s; this is logged once",
                self._exchange.id,
                name,
                self._exchange.start_line.path,
            )

    def _log_excess(self, data: Any) -> None:
        if data and self._has_body:
            message = "request %s: the body is longer than its Content-Length; the excess was not sent"
            _excess.log(logging.ERROR, message, self._exchange.id)
