"""Finds a request's client, scheme and id in the headers of trusted proxies."""

from __future__ import annotations

import functools
import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from tornado.httputil import HTTPHeaders

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

LOOPBACK: tuple[str, ...] = ("127.0.0.0/8", "::1")

# Which headers name the client; see `ForwardedHeaders`.
ClientHeaders: TypeAlias = Literal["auto", "x-real-ip", "x-forwarded-for", "forwarded"]

# All headers that name a client or a scheme, as `HTTPHeaders` spells them. Clients can send them as well as proxies.
_NAMES: Final = ("X-Real-Ip", "X-Scheme", "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded")
_KEPT: Final = {"auto": _NAMES[:4], "x-real-ip": _NAMES[:2], "x-forwarded-for": _NAMES[2:4], "forwarded": _NAMES[4:]}

# This includes UUIDs and nginx's $request_id, but nothing special in SQL, in a URL, to a shell or to a terminal.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
# An address, with a port if the proxy adds one; IPv6 may be in brackets as in RFC 3986. Identifiers that hide the
# address do not match, nor addresses with a scope, for which `ipaddress` accepts any text.
_NODE: Final = re.compile(
    r"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,45})\])(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})"
).fullmatch
# RFC 7239, section 4. Its grammar has no white space around semicolons, but proxies send it.
_PAIR: Final = re.compile(
    r"[ \t]*+(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]++)"
    r'|"((?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+)"))?[ \t]*+([;,]|\Z)'
).match
_LONGEST_FORWARDED: Final = 4096
_ESCAPED: Final = re.compile(r"\\(.)")


def _cached(read: Callable[[str], str]) -> Callable[[str], str]:
    """Add a cache to a function. Clients choose the texts, so results for longer ones are not cached."""
    cached = functools.lru_cache(maxsize=1024)(read)

    def bounded(text: str) -> str:
        return cached(text) if len(text) <= 128 else read(text)

    return bounded


class ClientAddress:
    """A client's IP address ("" on a Unix socket), its scheme (``http`` or ``https``), and its port if known.

    Not changed once made. Compiled, the attributes of a `NamedTuple` or of a data class would be slower.
    """

    def __init__(self, address: str, scheme: str, port: str = "") -> None:
        self.address = address
        self.scheme = scheme
        self.port = port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientAddress) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"ClientAddress({self.address!r}, {self.scheme!r}, {self.port!r})"


def peer_of(context: Any) -> ClientAddress:
    """Return the other end of a connection from its context, Tornado's or this package's."""
    if not isinstance(context.address, tuple):
        return ClientAddress("", context.protocol)
    address = context.remote_ip
    # Tornado's `xheaders` may have replaced the address.
    port = str(context.address[1]) if address == context.address[0] else ""
    # Link-local addresses have a scope, which is removed.
    return ClientAddress(address.partition("%")[0] if "%" in address else address, context.protocol, port)


@functools.lru_cache(maxsize=1024)
def client_of(address: str) -> str:
    """Return the client that an IP address belongs to: for IPv6 the /64 network, since one host can use all of it."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ip.ipv4_mapped or ipaddress.ip_network((int(ip), 64), strict=False))


class TrustedProxies:
    """The IP addresses and networks of trusted proxies: those given, and loopback. Unix sockets are included.

    Raises ``ValueError`` for a proxy that is neither an address nor a network (``10.0.0.0/8``).
    """

    def __init__(self, proxies: Iterable[str]) -> None:
        self._networks = []
        for proxy in (*LOOPBACK, *proxies):
            try:
                self._networks.append(ipaddress.ip_network(proxy))
            except ValueError:
                raise ValueError(
                    f"trusted proxy {proxy!r}: expected an IP address or a network such as 10.0.0.0/8"
                ) from None
        self.include = functools.lru_cache(maxsize=1024)(self._look_up)

    def _look_up(self, address: str) -> bool:
        # Peers on a Unix socket have no address; the socket's permissions have let them in.
        if not address:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        ip = getattr(ip, "ipv4_mapped", None) or ip
        return any(ip in network for network in self._networks)


class ForwardedHeaders:
    """Reads the headers in which trusted proxies describe a request's client.

    :param source: the headers that name the client and its scheme: ``x-real-ip`` (and ``X-Scheme``),
        ``x-forwarded-for`` (and ``X-Forwarded-Proto``), ``forwarded`` (RFC 7239), or ``auto``: either of the first two.
        If they contradict each other, neither counts: the proxy sets one and passes on the client's value of the other.

    In a list of addresses, the client's is the last that is not a trusted proxy's. Raises ``ValueError`` for an unknown
    source, and as `TrustedProxies` does.
    """

    def __init__(self, trusted_proxies: Iterable[str] = (), source: ClientHeaders = "auto") -> None:
        if source not in get_args(ClientHeaders):
            raise ValueError(f"client_address={source!r}; give one of {', '.join(get_args(ClientHeaders))}")
        self._source: ClientHeaders = source
        self._removed = [name for name in _NAMES if name not in _KEPT[source]]
        self._contradictions = RepeatedLog(logger)
        self._is_trusted = TrustedProxies(trusted_proxies).include
        self._is_loopback = TrustedProxies(()).include
        self._addresses = {"X-Real-Ip": _last_address, "X-Forwarded-For": _cached(self._nearest)}

    def _nearest(self, forwarded_for: str) -> str:
        """Return the last address that is not a trusted proxy's, or the first of all."""
        address = ""
        for node in reversed(forwarded_for.split(",")):
            named = _address(node.strip(" \t"))
            if not named:
                # What sent this is the last known address.
                break
            address = named
            if not self._is_trusted(address):
                break
        return address

    def client_of(self, peer: ClientAddress, headers: HTTPHeaders) -> ClientAddress:
        """Return the client that the headers name, or ``peer`` if they name none or are not trusted.

        Headers that do not count are removed, because applications would trust them.
        """
        if not self._is_trusted(peer.address):
            remove_forwarded(headers)
            return peer
        for name in self._removed:
            if name in headers:
                del headers[name]
        if self._source == "forwarded":
            address, scheme = self._of_forwarded(headers)
        else:
            # Of several values, the last is the trusted proxy's own; the others came with the request.
            address, scheme = self._agreed(headers, self._addresses), self._agreed(headers, _SCHEMES)
        if not address and not scheme:
            return peer
        return ClientAddress(address or peer.address, scheme or peer.scheme, "" if address else peer.port)

    def trusts(self, peer: ClientAddress) -> bool:
        """Return whether a peer is a trusted proxy."""
        return self._is_trusted(peer.address)

    def is_local(self, peer: ClientAddress) -> bool:
        """Return whether a peer is a process of this host."""
        return self._is_loopback(peer.address)

    def request_id_of(self, peer: ClientAddress, headers: HTTPHeaders) -> str:
        """Return a trusted proxy's ``X-Request-ID``; "" if there is none, or it is unfit for logs and URLs."""
        if "X-Request-ID" not in headers:
            return ""
        request_id = headers["X-Request-ID"]
        return request_id if _REQUEST_ID(request_id) and self._is_trusted(peer.address) else ""

    def _agreed(self, headers: HTTPHeaders, readers: Mapping[str, Callable[[str], str]]) -> str:
        """Return what these headers say; if they contradict each other, remove them and return ""."""
        said = {name: read(headers[name]) for name, read in readers.items() if name in headers}
        if len(said) == 2 and len(set(said.values())) == 2:
            self._contradictions.log(
                logging.WARNING,
                "a trusted proxy sends %s and %s, which contradict each other, so neither is used: set client_address "
                "to the one that the proxy sets, see docs/operating.md",
                *said,
            )
            for name in said:
                del headers[name]
            return ""
        return next(iter(said.values()), "")

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


def remove_forwarded(headers: HTTPHeaders) -> None:
    """Remove what only a proxy may say of a client."""
    names = (*_NAMES, "X-Script-Name")
    for name in [name for name in headers if name in names or name.startswith("X-Forwarded-")]:
        del headers[name]


def _elements(line: str) -> list[dict[str, str]] | None:
    """Return the elements of a ``Forwarded`` header, each with its parameters; None if it is malformed or too long."""
    if len(line) > _LONGEST_FORWARDED:
        return None
    elements: list[dict[str, str]] = [{}]
    position, end = 0, ";"
    while end:
        match = _PAIR(line, position)
        if match is None:
            return None
        name, token, quoted, end = match.groups()
        if name is not None:
            if name.lower() in elements[-1]:
                return None
            elements[-1][name.lower()] = token if token is not None else _ESCAPED.sub(r"\1", quoted)
        if end == ",":
            elements.append({})
        position = match.end()
    return [element for element in elements if element]


@_cached
def _address(node: str) -> str:
    """Return the IP address that a proxy names; "" for anything else."""
    match = _NODE(node)
    if match is None:
        return ""
    try:
        # One address has one name, however it is written.
        return str(ipaddress.ip_address(match[1] or match[2] or match[3]))
    except ValueError:
        return ""


@_cached
def _last_address(values: str) -> str:
    return _address(values.rpartition(",")[2].strip(" \t"))


@_cached
def _last_scheme(values: str) -> str:
    scheme = values.rpartition(",")[2].strip(" \t").lower()
    return scheme if scheme in ("http", "https") else ""


_SCHEMES: Final = {"X-Scheme": _last_scheme, "X-Forwarded-Proto": _last_scheme}
