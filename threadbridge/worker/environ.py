"""The ``environ`` of a request (PEP 3333, section "environ Variables")."""

from __future__ import annotations

import functools
import sys
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment
from wsgiref.util import FileWrapper

from threadbridge.crossing.exchange import Exchange
from threadbridge.crossing.states import State

_BASE: dict[str, Any] = {
    "SERVER_SOFTWARE": "threadbridge",
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
    "wsgi.file_wrapper": FileWrapper,
}


def environ_of(exchange: Exchange) -> WSGIEnvironment:
    """Build the environ for the application's call.

    Three kinds of headers are left out: names with an underscore, which would look like the name with a hyphen;
    ``Proxy``, which as ``HTTP_PROXY`` would redirect the application's own HTTP clients; and ``Transfer-Encoding``,
    since ``wsgi.input`` has the decoded body and ``CONTENT_LENGTH`` its length.
    """
    method, target, version = exchange.start_line
    _, _, query = target.partition("?")
    scheme = exchange.peer.scheme
    headers = exchange.headers
    # IPv6 addresses have colons too, in brackets. The port may be empty (RFC 3986, section 3.2.3).
    authority = headers.get("Host", "")
    host, colon, port = authority.rpartition(":")
    if not colon or (port and not port.isdigit()):
        host, port = authority, ""
    if not authority:
        # The port that the client has connected to; "" on a Unix socket, or if the server does not tell it.
        port = str(getattr(exchange.connection.context, "server_port", ""))
    environ = {
        **_BASE,
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": exchange.script_name,
        "PATH_INFO": exchange.path_info,
        "QUERY_STRING": query,
        "REQUEST_URI": target,
        "RAW_URI": target,
        "SERVER_PROTOCOL": version,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or ("443" if scheme == "https" else "80"),
        "REMOTE_ADDR": exchange.peer.address,
        "wsgi.multiprocess": exchange.shared.is_multiprocess,
        "wsgi.url_scheme": scheme,
        "wsgi.input": exchange.body.open(),
        "wsgi.errors": sys.stderr,
        "threadbridge.request": exchange.running,
        "waitress.client_disconnected": lambda: exchange.state is State.ABANDONED,
    }
    if exchange.peer.port:
        environ["REMOTE_PORT"] = exchange.peer.port
    if scheme == "https":
        environ["HTTPS"] = "on"
        environ.update(getattr(exchange.connection.context, "tls_variables", ()))
    for name, value in headers.get_all():
        key = _variable(name)
        if key is None:
            continue
        # Fields with one name form a list (RFC 9110, section 5.3), except cookies (RFC 6265, section 5.4).
        environ[key] = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}" if key in environ else value
    if exchange.body.size or "CONTENT_LENGTH" in environ:
        environ["CONTENT_LENGTH"] = str(exchange.body.size)
    return environ


def path_info_of(target: str) -> str:
    """Decode the path of a target in origin form, its bytes as latin-1 (PEP 3333, "Unicode Issues"). Either side."""
    path = target.partition("?")[0]
    if "%" in path:
        return unquote_to_bytes(path).decode("latin-1")
    # OPTIONS for the whole server has no path.
    return "" if path == "*" else path


@functools.lru_cache(maxsize=1000)
def _variable(name: str) -> str | None:
    """Return the variable for a header field; None for one that is left out."""
    if "_" in name or name in ("Proxy", "Transfer-Encoding"):
        return None
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key
