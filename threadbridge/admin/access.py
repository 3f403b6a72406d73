"""Who may use the operators' port: by which host names, with which token, through which proxies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
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
# Seconds for which the addresses of a name are remembered, and the names of which they are.
LOOKED_UP_FOR = 60.0
MOST_NAMES = 100


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
        # The addresses of names under which others have asked, and until when (monotonic) they are remembered.
        self._looked_up: dict[str, tuple[list[str], float]] = {}

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether a ``Host`` header names this host: this end of the connection has that address."""
        name, _ = _host_and_port(host)
        return name in self.names or is_loopback(name) or name == local_address

    async def names_this_port(self, host: str, local_address: str, local_port: int) -> bool:
        """Whether a ``Host`` header names this port, directly or by a proxy, and not another one or another machine's.

        :param local_address: that of this end of the connection.
        """
        name, port = _host_and_port(host)
        if name in self._public_names:
            return True
        if not local_address:
            # The sender has left.
            return False
        # Without a port, it is that of HTTP or HTTPS.
        if port != local_port and not (port == 0 and local_port in (80, 443)):
            return False
        if _is_address(name):
            return ip_address(name) == ip_address(local_address)
        if is_loopback(name):
            return is_loopback(local_address)
        addresses = await self._addresses_of(name)
        # On many systems, the host's own name stands for a loopback address there.
        is_own = name.partition(".")[0] == socket.gethostname().partition(".")[0].lower()
        return local_address in addresses or (is_own and any(map(is_loopback, addresses)))

    async def _addresses_of(self, name: str) -> list[str]:
        now = time.monotonic()
        found, until = self._looked_up.get(name, ([], 0.0))
        if now >= until:
            with suppress(OSError, UnicodeError):
                answers = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
                found = [str(answer[4][0]) for answer in answers]
            if len(self._looked_up) >= MOST_NAMES:
                self._looked_up.clear()
            self._looked_up[name] = found, now + LOOKED_UP_FOR
        return found

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
    return ip_address(name).is_loopback if _is_address(name) else name.lower() == "localhost"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _host_and_port(host: str) -> tuple[str, int]:
    """The parts of a ``Host`` header; "" if it is malformed, and 0 if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "", parts.port or 0
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
