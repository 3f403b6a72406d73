"""Who may use the operators' port: by which host names, with which token, through which proxies."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from threadbridge.admin.proof import Proof
from threadbridge.admin.throttle import Throttle
from threadbridge.common.private_file import read_private_file
from threadbridge.http.forwarded import ClientAddress, ForwardedHeaders

SHORTEST_TOKEN = 16
# Even sixteen random hexadecimal digits nearly always contain more.
FEWEST_CHARACTERS = 6
# How long a browser stays logged in.
SESSION_DAYS = 0.5


class Access:
    """The rules for the port at this address; raises ``ValueError``. Without a token, the address must be loopback.

    :param names: the host names under which proxies offer the port. Others are refused, to block DNS rebinding.
    :param trusted_proxies: addresses and networks, besides loopback, whose headers on scheme and client are believed.
    """

    def __init__(
        self, address: str, token_file: str | None, names: Iterable[str] = (), trusted_proxies: Iterable[str] = ()
    ) -> None:
        self._public_names = {_name(name) for name in names}
        # Accepted besides loopback and the address of the connection.
        self.names = {*self._public_names, address.lower()} - {""}
        self._forwarded = ForwardedHeaders(trusted_proxies, "x-forwarded-for")
        # "" if none is required.
        self.token = _token(token_file) if token_file is not None else ""
        if not self.token and not is_loopback(address):
            raise ValueError(
                f"admin_address {address or 'of all interfaces'} is not loopback: give admin_token_file, a file with "
                f"{SHORTEST_TOKEN} characters or more that nobody can guess"
            )
        # Derived from the token: a session holds in all processes that share the port, and after a restart.
        self.cookie_secret = self.token and hmac.new(self.token.encode(), b"session", hashlib.sha256).hexdigest()
        self.proof = Proof(self.token) if self.token else None
        self.throttle = Throttle()

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether a ``Host`` header names this host: this end of the connection has that address."""
        name, _ = _host_and_port(host)
        return name in self.names or is_loopback(name) or name == local_address

    def names_this_port(self, host: str, local_port: int) -> bool:
        """Whether a ``Host`` header names this port, directly or by a proxy, and not another one of this machine."""
        name, port = _host_and_port(host)
        return name in self._public_names or port == local_port

    def client_of(self, request: HTTPServerRequest) -> ClientAddress:
        """The client's address and scheme; behind a trusted proxy, those in ``X-Forwarded-For`` and ``-Proto``."""
        return self._forwarded.client_of(ClientAddress(request.remote_ip or "", request.protocol), request.headers)

    def operator_of(self, request: HTTPServerRequest) -> str:
        """The client's address for the log, and the proxy's."""
        address = self.client_of(request).address
        return address if address == request.remote_ip else f"{address}, by the proxy {request.remote_ip}"


def loggable(text: str) -> str:
    """At most 100 characters of the text, with those replaced that a terminal might interpret."""
    return re.sub(r"[^0-9A-Za-z.:,;/\[\]() _-]", "?", text)[:100]


def is_loopback(name: str) -> bool:
    """Whether this host name or address always means this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _host_and_port(host: str) -> tuple[str, int]:
    """The parts of a ``Host`` header; "" and 0 if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port or 80
    except ValueError:
        return "", 0


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"admin_names: {name!r}: expected a host name without a port, such as ops.example.com")
    return name.lower()


def _token(path: str) -> str:
    token = read_private_file(path, "admin_token_file")
    if len(token) < SHORTEST_TOKEN:
        problem = f"the token has {len(token)} characters; give {SHORTEST_TOKEN} or more"
    elif len(set(token)) < FEWEST_CHARACTERS:
        problem = f"the token has only {len(set(token))} different characters; give a random one"
    else:
        return token
    raise ValueError(f"admin_token_file {path}: {problem}, such as the output of: openssl rand -hex 32")
