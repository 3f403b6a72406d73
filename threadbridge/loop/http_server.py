"""Tornado's `HTTPServer` with this package's HTTP/1.1 connection, time limits and draining."""

from __future__ import annotations

from functools import partial
from typing import Any

from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.iostream import IOStream

from threadbridge.http.connection import Limits
from threadbridge.http.server import ConnectionServer, Refused, StartRequest, own_port
from threadbridge.http.stream import check_tornado
from threadbridge.loop.bridge import Bridge

# The fields of `Limits` that Tornado's parameters stand for.
_LIMITS = {
    "max_header_size": "max_header_size",
    "max_body_size": "max_body_size",
    "idle_connection_timeout": "idle_timeout",
}
# What to do in place of Tornado's other parameters.
_INSTEAD = {
    "body_timeout": "it is the time for a whole body there; limits=Limits(body_timeout=...) is the longest pause in it",
    "no_keep_alive": "send the header Connection: close with each response, or limit connections in the proxy",
    "decompress_request": "bodies are passed on as they come; decompress those with Content-Encoding in the handler",
    "chunk_size": "leave it out; bodies are delivered as they arrive",
    "max_buffer_size": "leave it out; limits bound what is kept of a request",
}


class HTTPServer(ConnectionServer, TornadoHTTPServer):
    """An HTTP/1.1 server: Tornado's, but stricter in what it accepts, and with a way to stop that loses no request.

    :param request_callback: as for `tornado.httpserver.HTTPServer`: a `Bridge`, a `RuleRouter`, a
        `tornado.web.Application`.
    :param limits: sizes and times that clients must keep to.

    Of Tornado's other parameters ``ssl_options``, ``xheaders``, ``protocol`` and ``trusted_downstream`` have their
    meaning, and ``max_header_size``, ``max_body_size`` and ``idle_connection_timeout`` stand for fields of ``limits``.
    Raises ``ValueError`` for the others, and for one of these together with ``limits``. Loop side.
    """

    def __init__(self, *arguments: Any, **parameters: Any) -> None:
        # As in Tornado's: `initialize` has had them.
        pass

    def initialize(  # type: ignore[override]
        self, request_callback: Any, limits: Limits | None = None, **parameters: Any
    ) -> None:
        """Called by the constructor; see the class."""
        check_tornado()
        limits = _limits(limits, parameters)
        TornadoHTTPServer.initialize(self, request_callback, **parameters)
        start_request: StartRequest = partial(TornadoHTTPServer.start_request, self)
        if isinstance(request_callback, HTTPServerConnectionDelegate) and not self.xheaders:
            # Nothing is to be done in between.
            start_request = request_callback.start_request
        refused: Refused = _forget
        memory = unread = None
        proxies = list(self.trusted_downstream or ())
        if isinstance(request_callback, Bridge):
            request_callback.servers.append(self)
            refused = request_callback.refused
            memory, unread = request_callback.spool.memory, request_callback.spool.unread
            proxies += request_callback.trusted_proxies
        ConnectionServer.__init__(self, start_request, refused, limits, self.ssl_options, memory, unread, proxies)

    def context_of(self, stream: IOStream, address: Any) -> object:
        """Tornado's, which knows ``protocol`` and ``xheaders``."""
        context = _HTTPRequestContext(stream, address, self.protocol, self.trusted_downstream)
        # As in a `RequestContext`.
        context.server_port = own_port(stream)  # type: ignore[attr-defined]
        return context


def _limits(limits: Limits | None, parameters: dict[str, Any]) -> Limits:
    """The limits that Tornado's parameters, which are taken out, stand for; raises ``ValueError``."""
    given = {name: parameters.pop(name) for name in (*_LIMITS, *_INSTEAD) if name in parameters}
    # None and False stand for Tornado's own default there.
    given = {name: value for name, value in given.items() if value not in (None, False)}
    for name, value in given.items():
        if name in _INSTEAD:
            raise ValueError(f"HTTPServer does not know {name}={value!r}: {_INSTEAD[name]}")
        if limits is not None:
            raise ValueError(f"{name}={value!r} besides limits: give limits=Limits({_LIMITS[name]}={value!r}, ...)")
    return limits or Limits(**{_LIMITS[name]: value for name, value in given.items()})


def _forget(context: object, request_line: str, status: int, sent: int) -> None:
    """Only a bridge keeps records of what was refused."""
