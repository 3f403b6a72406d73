"""Who may use the operators' port: by which host names, with which token, through which proxies."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from threadbridge.admin.peer_proof import PeerProof
from threadbridge.admin.throttle import Throttle

SHORTEST_TOKEN = 16
# Even sixteen random hexadecimal digits nearly always contain more.
FEWEST_CHARACTERS = 6
# How long a browser stays logged in.
SESSION_DAYS = 0.5


class Access:
    """The rules for one port.

    :param address: the address that the port listens on; it must be loopback if there is no token.
    :param token_file: the path of the file with the token, or None.
    :param names: the host names under which proxies offer the port.
    :param trusted_proxies: addresses and networks, besides loopback, whose headers on scheme and client are believed.

    A page of another site may make its own name point to this machine (DNS rebinding). The operator's browser then
    sends its requests here, but under that name, which is unknown. Raises ``ValueError``.
    """

    def __init__(
        self,
        address: str,
        token_file: str | None,
        names: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        self._public_names = {_name(name) for name in names}
        self._names = {"localhost", *self._public_names}
        self._proxies = [ipaddress.ip_network(proxy) for proxy in trusted_proxies]
        if address:
            self._names.add(address.lower())
        # "" if none is required.
        self.token = _token(token_file) if token_file is not None else ""
        if not self.token and not is_loopback(address):
            raise ValueError(
                f"admin_address {address or 'of all interfaces'} is not loopback: give admin_token_file, a file with "
                f"{SHORTEST_TOKEN} characters or more that nobody can guess"
            )
        # Derived from the token: a session holds in all processes that share the port, and after a restart.
        self.cookie_secret = self.token and hmac.new(self.token.encode(), b"session", hashlib.sha256).hexdigest()
        self.proof = PeerProof(self.token) if self.token else None
        self.throttle = Throttle()

    def add_names(self, names: Iterable[str]) -> None:
        """Accept these host names too."""
        self._names.update(name.lower() for name in names)

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether a ``Host`` header names this port.

        :param local_address: the address of this end of the connection.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or is_loopback(name) or name == local_address

    def names_this_port(self, host: str, local_port: int) -> bool:
        """Whether a ``Host`` header names this port, directly or by a proxy, and not another one of this machine."""
        try:
            parts = urlsplit(f"//{host}")
            port = parts.port or 80
        except ValueError:
            return False
        return parts.hostname in self._public_names or port == local_port

    def scheme_of(self, request: HTTPServerRequest) -> str:
        """The scheme that the browser used; behind a trusted proxy, the one in ``X-Forwarded-Proto``."""
        forwarded = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        believed = forwarded in ("http", "https") and self._is_proxy(request.remote_ip)
        return forwarded if believed else request.protocol

    def client_of(self, request: HTTPServerRequest) -> str:
        """The client's address for the log; behind a trusted proxy, the one in ``X-Forwarded-For`` and the proxy's."""
        address = request.remote_ip or "unix:"
        forwarded = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        if not forwarded or not self._is_proxy(request.remote_ip):
            return address
        return f"{loggable(forwarded)}, by the proxy {address}"

    def _is_proxy(self, address: str | None) -> bool:
        try:
            ip = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        return ip.is_loopback or any(ip in network for network in self._proxies)

    def accepts_token(self, token: str) -> bool:
        """Whether this is the token; always true if none is required."""
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())


def bearer_token(authorization: str) -> str | None:
    """The token in an ``Authorization`` header with the scheme ``Bearer`` (RFC 6750); None with another scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def loggable(text: str) -> str:
    """At most 100 characters of the text, with those replaced that a terminal might interpret."""
    return re.sub(r"[^0-9A-Za-z.:,;/\[\]() _-]", "?", text)[:100]


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"admin_names: {name!r}: expected a host name without a port, such as ops.example.com")
    return name.lower()


def is_loopback(name: str) -> bool:
    """Whether this host name or address always means this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _token(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            status = os.fstat(file.fileno())
            token = file.read().strip()
    except OSError as error:
        raise ValueError(f"admin_token_file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"admin_token_file {path}: expected ASCII characters") from None
    # systemd makes its credentials readable for the group root, through an access control list; the group is empty.
    forbidden = 0o037 if status.st_gid == 0 else 0o077
    if status.st_mode & forbidden:
        raise ValueError(f"admin_token_file {path}: other users may read or change it; chmod 600 {path}")
    advice = "such as the output of: openssl rand -hex 32"
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"admin_token_file {path}: the token has {len(token)} characters; give {SHORTEST_TOKEN} or more, {advice}"
        )
    if len(set(token)) < FEWEST_CHARACTERS:
        raise ValueError(
            f"admin_token_file {path}: the token has only {len(set(token))} different characters; give a random one, "
            f"{advice}"
        )
    return token
