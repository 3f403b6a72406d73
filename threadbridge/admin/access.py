"""Who may use the operators' port: under which names it is asked, and by which token. Loop side."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

SHORTEST_TOKEN = 16
# Random hexadecimal digits have more, even only sixteen of them.
FEWEST_CHARACTERS = 6
SESSION = 12 * 3600


class Access:
    """The rules for one port.

    :param address: what the port listens on; one that is not loopback needs a token.
    :param token_file: the file with the token, or None.
    :param names: the host names by which proxies lead here.
    :param trusted_proxies: addresses and networks, besides loopback, whose word on scheme and client is taken.

    A page elsewhere may have its own name point to this machine (DNS rebinding): its requests then come from the
    operator's browser, but under that name, which is not one of these. Raises ``ValueError``.
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
        self.token = _token(token_file) if token_file is not None else ""
        if not self.token and not is_loopback(address):
            raise ValueError(
                f"admin_address {address or 'of all interfaces'} is not loopback: give admin_token_file, a file with "
                f"{SHORTEST_TOKEN} characters or more that nobody can guess"
            )

    def add_names(self, names: Iterable[str]) -> None:
        """Serve under these names too."""
        self._names.update(name.lower() for name in names)

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether the request's ``Host`` names this port; ``local_address`` is where its connection has arrived."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or is_loopback(name) or name == local_address

    def is_own_place(self, host: str, arrived_at: tuple[str, int]) -> bool:
        """Whether ``Host`` names this very port, directly or by a proxy, and not another one of the same machine."""
        try:
            place = urlsplit(f"//{host}")
            port = place.port or 80
        except ValueError:
            return False
        return place.hostname in self._public_names or port == arrived_at[1]

    def scheme_of(self, request: HTTPServerRequest) -> str:
        """``https`` if the browser used that, as far as a trusted proxy says so."""
        said = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
        return said if said in ("http", "https") and self._is_proxy(request.remote_ip) else request.protocol

    def client_of(self, request: HTTPServerRequest) -> str:
        """The address of who asks, for the log; behind a trusted proxy also that which the proxy names."""
        address = request.remote_ip or "unix:"
        said = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        if not said or not self._is_proxy(request.remote_ip):
            return address
        return f"{loggable(said)}, by the proxy {address}"

    def _is_proxy(self, address: str | None) -> bool:
        try:
            ip = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        return ip.is_loopback or any(ip in network for network in self._proxies)

    def accepts_token(self, token: str) -> bool:
        """Whether this is the token; always when there is none."""
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())

    def accepts(self, authorization: str, session: str) -> bool:
        """Whether the ``Authorization`` header or the session's cookie shows that the operator knows the token."""
        token = bearer_token(authorization)
        if not self.token or (token is not None and self.accepts_token(token)):
            return True
        until = session.partition(".")[0]
        if not (until.isascii() and until.isdecimal() and len(until) < 12 and int(until) > time.time()):
            return False
        return hmac.compare_digest(session.encode(), self._session(int(until)).encode())

    def new_session(self) -> str:
        """What the cookie of an operator who has given the token holds; other processes with the token accept it."""
        return self._session(int(time.time()) + SESSION)

    def _session(self, until: int) -> str:
        proof = hmac.new(self.token.encode(), f"operator's session until {until}".encode(), hashlib.sha256)
        return f"{until}.{proof.hexdigest()}"


def bearer_token(authorization: str) -> str | None:
    """The token in an ``Authorization`` header of the scheme ``Bearer`` (RFC 6750); None if it has another one."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def loggable(text: str) -> str:
    """The text with nothing in it that means anything to a terminal, and not too much of it."""
    return re.sub(r"[^0-9A-Za-z.:,;/\[\]() _-]", "?", text)[:100]


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError(f"admin_names: {name!r}: expected a host name without a port, such as ops.example.com")
    return name.lower()


def is_loopback(name: str) -> bool:
    """Whether this name or address can mean nothing but this machine."""
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
    # systemd's credentials are readable by the group root, by an access control list; nobody is in that.
    not_for_all = 0o037 if status.st_gid == 0 else 0o077
    if status.st_mode & not_for_all:
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
