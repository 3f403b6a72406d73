"""Who sent a request, by which scheme and under which id: what a proxy says counts only when the proxy is trusted."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from tornado.httputil import HTTPHeaders

LOOPBACK = ("127.0.0.0/8", "::1")

# UUIDs and nginx's $request_id among them; nothing that means something in SQL, in a URL, to a shell or to a terminal.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch


class Peer(NamedTuple):
    """The client of a request: its IP address ("" on a Unix socket) and ``http`` or ``https``."""

    address: str
    scheme: str


class ForwardedHeaders:
    """Reads what trusted proxies say of a request.

    That is ``X-Real-IP``, ``X-Forwarded-For``, ``X-Scheme``, ``X-Forwarded-Proto`` and ``X-Request-ID``.

    :param trusted_proxies: IP addresses and networks (``10.0.0.0/8``) beside loopback whose word is taken. A peer on a
        Unix socket is trusted: the permissions of the socket have let it in.

    Raises ``ValueError`` when one of them is neither an address nor a network. Loop side.
    """

    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        networks = []
        for proxy in (*LOOPBACK, *trusted_proxies):
            try:
                networks.append(ipaddress.ip_network(proxy))
            except ValueError:
                raise ValueError(
                    f"trusted proxy {proxy!r}: expected an IP address or a network such as 10.0.0.0/8"
                ) from None

        @functools.lru_cache(maxsize=1024)
        def is_trusted(address: str) -> bool:
            if not address:
                return True
            ip = _parse_ip(address)
            return ip is not None and any(ip in network for network in networks)

        self._is_trusted = is_trusted

    def client_of(self, peer: Peer, headers: HTTPHeaders) -> Peer:
        """The client that the headers name, or ``peer`` itself as far as they name none or may not be believed."""
        if not self._is_trusted(peer.address):
            return peer
        address = headers.get("X-Real-IP") or self._nearest_untrusted(headers.get("X-Forwarded-For"))
        scheme = headers.get("X-Scheme") or headers.get("X-Forwarded-Proto") or ""
        # With several values the last is the trusted proxy's own; those before it came with the request.
        scheme = scheme.rpartition(",")[2].strip().lower()
        return Peer(
            address if address and _parse_ip(address) else peer.address,
            scheme if scheme in ("http", "https") else peer.scheme,
        )

    def request_id_of(self, peer: Peer, headers: HTTPHeaders) -> str:
        """The ``X-Request-ID`` that a trusted proxy has given; "" without one that is fit for logs and addresses."""
        request_id = headers.get("X-Request-ID", "")
        return request_id if _REQUEST_ID(request_id) and self._is_trusted(peer.address) else ""

    def _nearest_untrusted(self, forwarded_for: str | None) -> str | None:
        if not forwarded_for:
            return None
        address = ""
        for candidate in reversed(forwarded_for.split(",")):
            address = candidate.strip()
            if not self._is_trusted(address):
                break
        return address


@functools.lru_cache(maxsize=1024)
def _parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
