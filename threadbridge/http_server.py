"""Tornado's `HTTPServer` with this package's HTTP/1.1 connection, time limits and draining."""

from __future__ import annotations

from functools import partial
from typing import Any

from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.iostream import IOStream

from threadbridge.bridge import Bridge
from threadbridge.connection_server import ConnectionServer, Refused, StartRequest, own_port
from threadbridge.http1 import Limits


class HTTPServer(ConnectionServer, TornadoHTTPServer):
    """An HTTP/1.1 server: Tornado's, but stricter in what it accepts, and with a way to stop that loses no request.

    :param request_callback: as for `tornado.httpserver.HTTPServer`: a `Bridge`, a `RuleRouter`, a
        `tornado.web.Application`.
    :param limits: sizes and times that clients must keep to.

    Of Tornado's other parameters ``ssl_options``, ``xheaders``, ``protocol`` and ``trusted_downstream`` have their
    meaning. Loop side.
    """

    def __init__(self, *arguments: Any, **parameters: Any) -> None:
        # As in Tornado's: `initialize` has had them.
        pass

    def initialize(  # type: ignore[override]
        self, request_callback: Any, limits: Limits | None = None, **parameters: Any
    ) -> None:
        """Called by the constructor; see the class."""
        TornadoHTTPServer.initialize(self, request_callback, **parameters)
        start_request: StartRequest = partial(TornadoHTTPServer.start_request, self)
        if isinstance(request_callback, HTTPServerConnectionDelegate) and not self.xheaders:
            # Nothing is to be done in between.
            start_request = request_callback.start_request
        refused: Refused = _forget
        if isinstance(request_callback, Bridge):
            request_callback.servers.append(self)
            refused = request_callback.refused
        ConnectionServer.__init__(self, start_request, refused, limits or Limits(), self.ssl_options)

    def context_of(self, stream: IOStream, address: Any) -> object:
        """Tornado's, which knows ``protocol`` and ``xheaders``."""
        context = _HTTPRequestContext(stream, address, self.protocol, self.trusted_downstream)
        # As in a `RequestContext`.
        context.server_port = own_port(stream)  # type: ignore[attr-defined]
        return context


def _forget(context: object, request_line: str, status: int, sent: int) -> None:
    """Only a bridge keeps records of what was refused."""
