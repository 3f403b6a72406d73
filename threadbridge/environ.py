"""The ``environ`` of a request (PEP 3333, section "environ Variables")."""

from __future__ import annotations

import functools
import sys
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment
from wsgiref.util import FileWrapper

from threadbridge.exchange import Exchange

_DEFAULT_PORTS = {"http": "80", "https": "443"}

_BASE: dict[str, Any] = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "wsgi.file_wrapper": FileWrapper,
}


def environ_of(exchange: Exchange) -> WSGIEnvironment:
    """Build the environ for the application's call. Worker side.

    A header whose name has an underscore is left out, since it would pass for the one with a hyphen; so is ``Proxy``,
    which as ``HTTP_PROXY`` would redirect the application's own HTTP clients; so is ``Transfer-Encoding``, since
    ``wsgi.input`` has the body decoded and ``CONTENT_LENGTH`` tells its length.
    """
    method, target, version = exchange.start_line
    path, _, query = target.partition("?")
    if path == "*":
        # OPTIONS of the whole server.
        path = ""
    scheme = exchange.peer.scheme
    headers = exchange.headers
    authority = headers.get("Host", "")
    host, _, port = authority.rpartition(":")
    if not port.isdigit():
        host, port = authority, _DEFAULT_PORTS[scheme]
    environ = {
        **_BASE,
        "REQUEST_METHOD": method,
        # The bytes of the path as latin-1: PEP 3333, section "Unicode Issues".
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1") if "%" in path else path,
        "QUERY_STRING": query,
        "REQUEST_URI": target,
        "RAW_URI": target,
        "SERVER_PROTOCOL": version,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port,
        "REMOTE_ADDR": exchange.peer.address,
        "wsgi.url_scheme": scheme,
        "wsgi.input": exchange.body.open(),
        "wsgi.errors": sys.stderr,
        "threadbridge.request": exchange.running,
        "waitress.client_disconnected": lambda: exchange.client_has_left,
    }
    for name, value in headers.get_all():
        key = _variable(name)
        if key is None:
            continue
        # Several fields of one name are one list (RFC 9110, section 5.3); cookies are joined by RFC 6265's separator.
        environ[key] = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}" if key in environ else value
    if exchange.body.size or "CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = str(exchange.body.size)
    return environ


@functools.lru_cache(maxsize=1000)
def _variable(name: str) -> str | None:
    """The variable for a header field; None for one that is left out. Clients send the same few again and again."""
    if "_" in name or name in ("Proxy", "Transfer-Encoding"):
        return None
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
