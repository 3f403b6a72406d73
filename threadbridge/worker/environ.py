"""The ``environ`` of a request (PEP 3333, section "environ Variables")."""

from __future__ import annotations

import functools
import sys
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment
from wsgiref.util import FileWrapper

from threadbridge.crossing.exchange import Exchange
from threadbridge.http.fields import lines_of

# A copy of a dictionary that has its keys already is made faster than one to which they are added.
_TEMPLATE: Final[dict[str, Any]] = {
    "SERVER_SOFTWARE": "threadbridge",
    "REQUEST_METHOD": "",
    "SCRIPT_NAME": "",
    "PATH_INFO": "",
    "QUERY_STRING": "",
    "REQUEST_URI": "",
    "RAW_URI": "",
    "SERVER_PROTOCOL": "",
    "SERVER_NAME": "",
    "SERVER_PORT": "",
    "REMOTE_ADDR": "",
    "wsgi.version": (1, 0),
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.url_scheme": "",
    "wsgi.input": None,
    "wsgi.input_terminated": True,
    "wsgi.errors": None,
    "wsgi.file_wrapper": FileWrapper,
    "threadbridge.request": None,
    "waitress.client_disconnected": None,
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
    environ = _TEMPLATE.copy()
    environ["REQUEST_METHOD"] = method
    environ["SCRIPT_NAME"] = exchange.script_name
    environ["PATH_INFO"] = exchange.path_info
    environ["QUERY_STRING"] = query
    environ["REQUEST_URI"] = environ["RAW_URI"] = target
    environ["SERVER_PROTOCOL"] = version
    environ["SERVER_NAME"] = host or "localhost"
    environ["SERVER_PORT"] = port or ("443" if scheme == "https" else "80")
    environ["REMOTE_ADDR"] = exchange.peer.address
    environ["wsgi.multiprocess"] = exchange.shared.is_multiprocess
    environ["wsgi.url_scheme"] = scheme
    environ["wsgi.input"] = exchange.body.open()
    environ["wsgi.errors"] = sys.stderr
    environ["threadbridge.request"] = exchange.running
    environ["waitress.client_disconnected"] = exchange.is_abandoned
    if exchange.peer.port:
        environ["REMOTE_PORT"] = exchange.peer.port
    if scheme == "https":
        environ["HTTPS"] = "on"
        environ.update(getattr(exchange.connection.context, "tls_variables", ()))
    for name, values in lines_of(headers).items():
        key = _variable(name)
        if key is not None:
            # Fields with one name form a list (RFC 9110, section 5.3), except cookies (RFC 6265, section 5.4).
            environ[key] = values[0] if len(values) == 1 else ("; " if key == "HTTP_COOKIE" else ",").join(values)
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
