"""A connection to another HTTP/1.1 server, kept from one request to the next. Loop side."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from asyncio import Future
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from tornado.iostream import StreamClosedError

from threadbridge.common import forks
from threadbridge.http.response_parser import BadResponse, Response, ResponseParser
from threadbridge.http.stream import PushSSLStream, PushStream

# Seconds to look up a name, and then to connect, over all addresses of the host together.
CONNECT_TIME: Final = 1.0
# A host that has vanished without a word is noticed after 5 + 3 * 3 s of silence, or 10 s after bytes were sent to it.
_KEEP_ALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 3))
_UNACKNOWLEDGED: Final = 10_000


class Origin(NamedTuple):
    """The scheme, host and port of a server (RFC 9110, section 4.3.1)."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def origin_of(url: str) -> Origin:
    """Return the origin that a URL without a path names. Raises ``ValueError``."""
    expected = f"{url!r}; expected http://HOST:PORT or https://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    is_host = parts.hostname is not None and re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", parts.hostname)
    if parts.scheme not in ("http", "https") or not is_host or port == 0 or parts.path not in ("", "/"):
        raise ValueError(expected)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(expected)
    return Origin(parts.scheme, parts.hostname or "", port or (443 if parts.scheme == "https" else 80))


class ResponseReader(Protocol):
    """Who has sent a request, and is told of the response."""

    def on_response(self, response: Response, body: bytes, complete: bool) -> None:
        """Take the response's head, and what has come with it of its body."""

    def on_body(self, body: bytes, complete: bool) -> None:
        """Take another piece of the body; it may be empty at the end."""

    def on_failure(self, error: str, reason: str) -> None:
        """Note that the response will not be complete: an error type of RFC 9209, and the reason in words."""


class ClientConnection:
    """A connection that is idle, or carries one request and its response.

    :param on_close: called once, when it has closed for whatever reason.
    """

    def __init__(self, stream: PushStream, on_close: Callable[[ClientConnection], None]) -> None:
        self._stream = stream
        self._on_close = on_close
        self._parser = ResponseParser()
        self._reader: ResponseReader | None = None
        # When it was kept, by the loop's time; set by its owner.
        self.idle_since = 0.0
        stream.set_close_callback(self._on_stream_closed)
        stream.receive(self._on_data, self._on_end)

    @property
    def is_usable(self) -> bool:
        """Whether the server has neither closed an idle connection nor sent anything that nobody has asked for."""
        if self._stream.closed():
            return False
        try:
            # Not the method of an `ssl.SSLSocket`: with TLS, bytes of the record layer mean that it is being closed.
            socket.socket.recv(self._stream.socket, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def begin(self, reader: ResponseReader, is_head: bool) -> None:
        """Expect the response to a request, whose method is HEAD or is not."""
        self._reader = reader
        self._parser.begin(is_head)

    def send(self, *pieces: bytes | memoryview) -> Future[None] | None:
        """Send bytes; returns a future if they have not left. Raises ``StreamClosedError``: none of them were sent."""
        return self._stream.send(pieces)

    def pause_reading(self) -> None:
        """Leave the response in the kernel until `resume_reading`."""
        self._stream.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._stream.resume_reading()

    def release(self) -> bool:
        """Let go of the reader, whose response is complete; returns whether the connection may carry another."""
        self._reader = None
        self._stream.resume_reading()
        is_idle = not self._stream.closed() and not self._stream.writing()
        return is_idle and self._parser.complete and self._parser.keep_alive

    def close(self) -> None:
        """Close it; its reader is not told."""
        self._reader = None
        self._stream.close()

    def _on_data(self, data: bytes) -> None:
        reader, parser = self._reader, self._parser
        if reader is None or parser.complete:
            # Nobody has asked for this.
            self.close()
            return
        had_head = parser.response is not None
        try:
            body = parser.parse(data)
        except BadResponse as error:
            self._fail("http_protocol_error", str(error))
            return
        response = parser.response
        if response is None:
            return
        if not had_head:
            reader.on_response(response, body, parser.complete)
        elif body or parser.complete:
            reader.on_body(body, parser.complete)

    def _on_end(self) -> bool:
        reader = self._reader
        if reader is not None and self._parser.end():
            reader.on_body(b"", True)
        # False: close.
        return False

    def _fail(self, error: str, reason: str) -> None:
        reader, self._reader = self._reader, None
        self._stream.close()
        if reader is not None:
            reader.on_failure(error, reason)

    def _on_stream_closed(self) -> None:
        self._on_close(self)
        if self._reader is not None:
            error = self._stream.error
            is_begun = self._parser.response is not None
            reason = f"the connection was lost ({error})" if error is not None else "the connection was closed"
            self._fail(
                "http_response_incomplete" if is_begun else "connection_terminated",
                f"{reason} {'within the response' if is_begun else 'before a response came'}",
            )


@lru_cache(maxsize=1)
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _set_up(stream: PushStream) -> None:
    stream.set_nodelay(True)
    sock = stream.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
    # While a client is slow, the loop does not watch it.
    forks.connects(stream)


async def addresses_of(origin: Origin, resolver: Executor) -> Sequence[tuple[int, Any]]:
    """Return the families and addresses of a server; names are looked up in a thread. Raises ``OSError``."""
    look_up = partial(socket.getaddrinfo, origin.host, origin.port, type=socket.SOCK_STREAM)
    try:
        ipaddress.ip_address(origin.host)
    except ValueError:
        try:
            found = await asyncio.get_running_loop().run_in_executor(resolver, look_up)
        except (RuntimeError, UnicodeError) as error:
            # No thread can be started for it; or it is no name.
            raise OSError(f"its name cannot be looked up: {error}") from None
    else:
        found = look_up(flags=socket.AI_NUMERICHOST)
    return [(each[0], each[4]) for each in found]


async def connect(origin: Origin, resolver: Executor) -> PushStream:
    """Connect to a server; looking up its name and connecting take `CONNECT_TIME` each at most. Raises ``OSError``."""
    try:
        async with asyncio.timeout(CONNECT_TIME):
            addresses = await addresses_of(origin, resolver)
    except TimeoutError:
        raise TimeoutError(f"its name was not resolved within {CONNECT_TIME:g} s") from None
    failure = OSError("its name has no address")
    for family, where in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        stream = PushSSLStream(sock, ssl_options=_tls_context()) if origin.scheme == "https" else PushStream(sock)
        try:
            async with asyncio.timeout(CONNECT_TIME / len(addresses)):
                await stream.connect(where, server_hostname=origin.host)
            if stream.closed():
                raise StreamClosedError(real_error=stream.error)
            _set_up(stream)
            return stream
        except asyncio.CancelledError:
            stream.close()
            raise
        except TimeoutError:
            failure = TimeoutError(f"no connection within {CONNECT_TIME / len(addresses):g} s")
        except (StreamClosedError, OSError) as error:
            real = error.real_error if isinstance(error, StreamClosedError) else error
            failure = real if isinstance(real, OSError) else OSError("the connection was closed at once")
        stream.close()
    raise failure
