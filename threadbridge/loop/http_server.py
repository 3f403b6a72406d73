"""Tornado's `HTTPServer` with this package's HTTP/1.1 parser, time limits and draining."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.httpserver import _HTTPRequestContext
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.iostream import IOStream
from tornado.routing import RuleRouter
from tornado.web import Application

from threadbridge.http.limits import Limits
from threadbridge.http.server import ConnectionServer, Refused, StartRequest
from threadbridge.http.socket_stream import SocketStream
from threadbridge.http.stream import PushStream, check_tornado
from threadbridge.loop.bridge import Bridge

# Tornado's parameters that set a field of `Limits`.
_LIMITS = {
    "max_header_size": "max_header_size",
    "max_body_size": "max_body_size",
    "idle_connection_timeout": "idle_timeout",
}
# What to use instead of Tornado's other parameters.
_INSTEAD = {
    "body_timeout": "to Tornado it is the time for a whole body; use limits=Limits(transfer_timeout=...) for that, or "
    "limits=Limits(body_timeout=...) for the longest pause in a body",
    "no_keep_alive": "send the header Connection: close with each response, or turn keep-alive off in the proxy",
    "decompress_request": "bodies are passed on as they arrive; decompress them in the handler",
    "chunk_size": "leave it out; bodies are delivered as they arrive",
    "max_buffer_size": "leave it out; use limits=Limits(max_body_size=...) to limit the size of bodies",
}


class HTTPServer(ConnectionServer, TornadoHTTPServer):
    """A `tornado.httpserver.HTTPServer` that accepts only valid requests and can stop without losing one.

    ``request_callback`` may be a `Bridge`, a `tornado.routing.RuleRouter`, a `tornado.web.Application` or a function.
    ``ssl_options``, ``xheaders``, ``protocol`` and ``trusted_downstream`` mean what they mean to Tornado's server;
    ``max_header_size``, ``max_body_size`` and ``idle_connection_timeout`` set fields of ``limits``. All other
    parameters of Tornado's raise ``ValueError``, as do those three together with ``limits``.

    When constructed, the server looks for bridges in the rules of routers and applications, and in the ``fallback`` of
    a `tornado.web.FallbackHandler`, but not behind a router class of your own. Their metrics include its connections.
    The first of them records the requests that the server refuses, and sets how much memory incoming requests and
    unread responses may take.
    """

    def __init__(self, *arguments: Any, **parameters: Any) -> None:
        # Tornado's `Configurable` has already passed the arguments to `initialize`.
        pass

    def initialize(  # type: ignore[override]
        self, request_callback: Any, limits: Limits | None = None, **parameters: Any
    ) -> None:
        check_tornado()
        limits = _limits(limits, parameters)
        TornadoHTTPServer.initialize(self, request_callback, **parameters)
        start_request: StartRequest = partial(TornadoHTTPServer.start_request, self)
        if isinstance(request_callback, HTTPServerConnectionDelegate) and not self.xheaders:
            start_request = request_callback.start_request
        refused: Refused = _forget
        memory = unread = None
        proxies = list(self.trusted_downstream or ())
        bridges = list(dict.fromkeys(_bridges(request_callback)))
        if bridges:
            refused = bridges[0].telemetry.refused
            memory, unread = bridges[0].spool.memory, bridges[0].spool.unread
        for bridge in bridges:
            bridge.servers.append(self)
            proxies += bridge.trusted_proxies
        ConnectionServer.__init__(self, start_request, refused, limits, self.ssl_options, memory, unread, proxies)

    def context_of(self, stream: SocketStream | PushStream, address: Any) -> object:
        """Return Tornado's own context, which supports ``protocol`` and ``xheaders``."""
        context = _HTTPRequestContext(cast(IOStream, stream), address, self.protocol, self.trusted_downstream)
        context.server_port = self.own_port(stream)  # type: ignore[attr-defined]
        return context


def _bridges(target: object) -> Iterator[Bridge]:
    """Find the bridges to which a callback can route requests."""
    if isinstance(target, Bridge):
        yield target
    elif isinstance(target, Application):
        yield from _bridges(target.default_router)
    elif isinstance(target, RuleRouter):
        for rule in target.rules:
            yield from _bridges(rule.target)
            yield from _bridges(rule.target_kwargs.get("fallback"))


def _limits(limits: Limits | None, parameters: dict[str, Any]) -> Limits:
    """Take the parameters that set limits out of ``parameters``; raises ``ValueError`` for unsupported ones."""
    given = {name: parameters.pop(name) for name in (*_LIMITS, *_INSTEAD) if name in parameters}
    # To Tornado None and False mean its default.
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    for name, value in given.items():
        if name in _INSTEAD:
            raise ValueError(f"HTTPServer does not support {name}={value!r}: {_INSTEAD[name]}")
        if limits is not None:
            raise ValueError(f"{name}={value!r} besides limits: give limits=Limits({_LIMITS[name]}={value!r}, ...)")
    return limits or Limits(**{_LIMITS[name]: value for name, value in given.items()})


def _forget(context: object, request_line: str, status: int, sent: int) -> None:
    """Ignore a refused request: there is no bridge to record it."""
