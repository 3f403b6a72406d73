"""Finds a request's client, scheme and id in the headers of trusted proxies."""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from tornado.httputil import HTTPHeaders

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

LOOPBACK = ("127.0.0.0/8", "::1")

# The prefix of an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
_MAPPED = bytes(10) + b"\xff\xff"

# Which headers name the client; see `ForwardedHeaders`.
Source: TypeAlias = Literal["auto", "x-real-ip", "x-forwarded-for", "forwarded"]

# All headers that name a client or a scheme, as `HTTPHeaders` spells them. Clients can send them as well as proxies.
_NAMES = ("X-Real-Ip", "X-Scheme", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded")
_KEPT = {
    "auto": frozenset(_NAMES[:4]),
    "x-real-ip": frozenset(_NAMES[:2]),
    "x-forwarded-for": frozenset(_NAMES[2:4]),
    "forwarded": frozenset(_NAMES[4:]),
}

# This includes UUIDs and nginx's $request_id, but nothing special in SQL, in a URL, to a shell or to a terminal.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
# An address, with a port if the proxy adds one; IPv6 may be in brackets as in RFC 3986.
_NODE = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)").fullmatch
_LONGEST_ADDRESS = 45
# RFC 7239, section 4. Its grammar has no white space around semicolons, but proxies send it.
_PAIR = re.compile(
    r"[ \t]*+(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)"
    r'|"((?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+)"))?[ \t]*+([;,]|\Z)'
).match
_LONGEST_FORWARDED = 4096
_ESCAPED = re.compile(r"\\(.)")

# Results for longer texts are not cached: clients choose the texts, and proxies rarely need to send longer ones.
_CACHED_LENGTH = 128


class Peer(NamedTuple):
    """A request's client: its IP address ("" on a Unix socket), ``http`` or ``https``, and its port if known."""

    address: str
    scheme: str
    port: str = ""


def peer_of(context: Any) -> Peer:
    """Return the peer of a connection from its context, Tornado's or this package's."""
    if not isinstance(context.address, tuple):
        return Peer("", context.protocol)
    address = context.remote_ip
    # Tornado's `xheaders` may have replaced the address.
    port = str(context.address[1]) if address == context.address[0] else ""
    # Link-local addresses have a scope, which is removed.
    return Peer(address.partition("%")[0] if "%" in address else address, context.protocol, port)


def client_of(address: str) -> str:
    """Return the client that an IP address belongs to: for IPv6 the /64 network, since one host can use all of it."""
    if ":" not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[len(_MAPPED) :])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


class ForwardedHeaders:
    """Reads the headers in which trusted proxies describe a request's client.

    :param trusted_proxies: IP addresses and networks (``10.0.0.0/8``) to trust, besides loopback. Peers on a Unix
        socket are trusted: the socket's permissions have let them in.
    :param source: the headers that name the client and its scheme:

        - ``x-real-ip``: ``X-Real-IP`` and ``X-Scheme``;
        - ``x-forwarded-for``: ``X-Forwarded-For`` and ``X-Forwarded-Proto``;
        - ``forwarded``: ``Forwarded`` (RFC 7239) with ``for`` and ``proto``;
        - ``auto``: whichever of the first two is present. If both are and contradict each other, neither counts: the
          proxy sets one of them and passes the client's own value of the other on.

    In a list of addresses, the client's is the last that is not a trusted proxy's. Raises ``ValueError`` for a proxy
    that is neither an address nor a network, and for an unknown source.
    """

    def __init__(self, trusted_proxies: Iterable[str] = (), source: Source = "auto") -> None:
        if source not in get_args(Source):
            raise ValueError(f"client_address={source!r}; give one of {', '.join(get_args(Source))}")
        networks = []
        for proxy in (*LOOPBACK, *trusted_proxies):
            try:
                networks.append(ipaddress.ip_network(proxy))
            except ValueError:
                raise ValueError(
                    f"trusted proxy {proxy!r}: expected an IP address or a network such as 10.0.0.0/8"
                ) from None
        self._source: Source = source
        self._removed = [name for name in _NAMES if name not in _KEPT[source]]
        self._contradictions = RepeatedLog(logger)

        self._networks = networks
        self._is_trusted = functools.lru_cache(maxsize=1024)(self._look_up)
        self._nearest = _cached(self._find_nearest)

    def _look_up(self, address: str) -> bool:
        if not address:
            return True
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)

    def _find_nearest(self, forwarded_for: str) -> str:
        """Return the last address that is not a trusted proxy's, or the first of all."""
        address = ""
        for node in reversed(forwarded_for.split(",")):
            named = _address(node.strip(" \t"))
            if not named:
                # The sender of this is the last known address.
                break
            address = named
            if not self._is_trusted(address):
                break
        return address

    def client_of(self, peer: Peer, headers: HTTPHeaders) -> Peer:
        """Return the client that the headers name, or ``peer`` if they name none or are not trusted.

        Headers that do not count are removed, because applications would trust them.
        """
        if not self._is_trusted(peer.address):
            for name in [name for name in headers if name in _NAMES or name.startswith("X-Forwarded-")]:
                del headers[name]
            return peer
        for name in self._removed:
            if name in headers:
                del headers[name]
        if self._source == "forwarded":
            address, scheme = self._of_forwarded(headers)
        else:
            # Of several values, the last is the trusted proxy's own; the others came with the request.
            address = self._agreed(headers, "X-Real-Ip", _last_address, "X-Forwarded-For", self._nearest)
            scheme = self._agreed(headers, "X-Scheme", _last_scheme, "X-Forwarded-Proto", _last_scheme)
        if not address and not scheme:
            return peer
        return Peer(address or peer.address, scheme or peer.scheme, "" if address else peer.port)

    def request_id_of(self, peer: Peer, headers: HTTPHeaders) -> str:
        """Return a trusted proxy's ``X-Request-ID``; "" if there is none, or it is unfit for logs and URLs."""
        if "X-Request-ID" not in headers:
            return ""
        request_id = headers["X-Request-ID"]
        return request_id if _REQUEST_ID(request_id) and self._is_trusted(peer.address) else ""

    def _agreed(
        self,
        headers: HTTPHeaders,
        one: str,
        read_one: Callable[[str], str],
        other: str,
        read_other: Callable[[str], str],
    ) -> str:
        """Return what one header says, or both; if they contradict each other, remove them and return ""."""
        if one not in headers:
            return read_other(headers[other]) if other in headers else ""
        said = read_one(headers[one])
        if other in headers and read_other(headers[other]) != said:
            self._contradictions.log(
                logging.WARNING,
                "a trusted proxy sends %s and %s that contradict each other, so neither is used: set "
                "client_address to the one that the proxy sets, see docs/operating.md",
                one,
                other,
            )
            del headers[one]
            del headers[other]
            return ""
        return said

    def _of_forwarded(self, headers: HTTPHeaders) -> tuple[str, str]:
        address = scheme = ""
        # Each proxy adds an element, perhaps on a line of its own; nothing before a malformed line is trusted.
        for line in reversed(headers.get_list("Forwarded")):
            for element in reversed(_elements(line) or [{}]):
                named = _address(element.get("for", ""))
                if not named:
                    return address, scheme
                address, scheme = named, _last_scheme(element.get("proto", ""))
                if not self._is_trusted(address):
                    return address, scheme
        return address, scheme


def _elements(line: str) -> list[dict[str, str]] | None:
    """Return the elements of a ``Forwarded`` header, each with its parameters; None if it is malformed or too long."""
    if len(line) > _LONGEST_FORWARDED:
        return None
    elements: list[dict[str, str]] = []
    element: dict[str, str] = {}
    position = 0
    while True:
        match = _PAIR(line, position)
        if match is None:
            return None
        name, token, quoted, end = match.groups()
        if name is not None:
            if name.lower() in element:
                return None
            element[name.lower()] = token if token is not None else _ESCAPED.sub(r"\1", quoted)
        if end != ";":
            if element:
                elements.append(element)
            element = {}
            if not end:
                return elements
        position = match.end()


def _cached(read: Callable[[str], str]) -> Callable[[str], str]:
    """Add a cache to a function, with a bound on its size in bytes too."""
    cached = functools.lru_cache(maxsize=1024)(read)

    def bounded(text: str) -> str:
        return cached(text) if len(text) <= _CACHED_LENGTH else read(text)

    return bounded


def _read_address(node: str) -> str:
    match = _NODE(node)
    if match is None:
        return ""
    address = match[1] or match[2] or match[3]
    if len(address) > _LONGEST_ADDRESS:
        return ""
    try:
        # One address has one name, however it is written.
        return str(ipaddress.ip_address(address))
    except ValueError:
        return ""


# The IP address that a proxy names, which may have a port; "" for anything else, such as identifiers that hide the
# address, and addresses with a scope, for which `ipaddress` accepts any text.
_address = _cached(_read_address)


def _read_last_address(values: str) -> str:
    return _read_address(values.rpartition(",")[2].strip(" \t"))


def _read_last_scheme(values: str) -> str:
    scheme = values.rpartition(",")[2].strip(" \t").lower()
    return scheme if scheme in ("http", "https") else ""


_last_address = _cached(_read_last_address)
_last_scheme = _cached(_read_last_scheme)
