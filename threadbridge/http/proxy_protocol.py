"""The PROXY protocol, versions 1 and 2: a proxy begins each connection with a header that names its client.

The specification is HAProxy's doc/proxy-protocol.txt. Nothing is guessed, as it demands: a connection must begin with a
header, or has none.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

from threadbridge.http.stream import PushSSLStream, PushStream

# Bytes of a header. Version 1 has at most 107; proxies that send certificates in version 2 need some thousand.
MAX_SIZE = 4096
MAX_LINE = 107

_LINE = b"PROXY "
_PORT = rb"(0|[1-9][0-9]{0,4})"
_FIELDS = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) " + _PORT + b" " + _PORT).fullmatch

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# The signature, the version and command, the family, and the length of what follows.
_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP_4, _TCP_6, _UNIX = 0x00, 0x11, 0x21, 0x31
_TYPE_TLS, _CLIENT_TLS = 0x20, 0x01


class BadProxyHeader(Exception):
    """What a connection begins with is no valid header."""


class ProxyHeader(NamedTuple):
    """What a header says.

    :param size: its bytes.
    :param client: the client's address and port; None if the connection is the proxy's own, such as a health check, or
        the client has no IP address.
    :param server_port: the port that the client has connected to; "" if unknown.
    :param is_tls: whether the client speaks TLS with the proxy. Only version 2 can say so.
    """

    size: int
    client: tuple[str, int] | None = None
    server_port: str = ""
    is_tls: bool = False


def parse(data: bytes) -> ProxyHeader | None:
    """Return the header at the beginning of a connection's bytes, None if it is not complete yet.

    Raises `BadProxyHeader`. If the result is None, all bytes belong to the header.
    """
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _parse_version_2(data)
    if data[: len(_LINE)] == _LINE[: len(data)]:
        return _parse_version_1(data)
    raise BadProxyHeader("it does not begin with the PROXY protocol's header")


def _parse_version_1(data: bytes) -> ProxyHeader | None:
    line, found, _ = data[:MAX_LINE].partition(b"\r\n")
    if not found:
        if len(data) >= MAX_LINE:
            raise BadProxyHeader("its header is longer than 107 bytes")
        return None
    size = len(line) + 2
    if re.match(rb"PROXY UNKNOWN(?: |\Z)", line):
        return ProxyHeader(size)
    fields = _FIELDS(line)
    if fields is None:
        raise BadProxyHeader("its header is not PROXY TCP4 or TCP6 with two addresses and two ports")
    kind = ipaddress.IPv4Address if fields[1] == b"4" else ipaddress.IPv6Address
    try:
        client, _ = (str(kind(fields[number].decode())) for number in (2, 3))
    except ValueError:
        raise BadProxyHeader("an address in its header is malformed") from None
    ports = [int(fields[number]) for number in (4, 5)]
    if max(ports) > 65535:
        raise BadProxyHeader("a port in its header is too large")
    return ProxyHeader(size, (client, ports[0]), str(ports[1]))


def _parse_version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED:
        return None
    command, family = data[12], data[13]
    size = _FIXED + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("the version or the command of its header is unknown")
    if size > MAX_SIZE:
        raise BadProxyHeader(f"its header is longer than {MAX_SIZE} bytes")
    if len(data) < size:
        return None
    if command == _LOCAL or family in (_UNSPECIFIED, _UNIX):
        return ProxyHeader(size)
    length = {_TCP_4: 4, _TCP_6: 16}.get(family)
    if length is None:
        raise BadProxyHeader("its header is not about TCP")
    end = _FIXED + 2 * length + 4
    if size < end:
        raise BadProxyHeader("its header is too short for its addresses")
    client = str(ipaddress.ip_address(data[_FIXED : _FIXED + length]))
    ports = [int.from_bytes(data[start : start + 2], "big") for start in (end - 4, end - 2)]
    is_tls = False
    for kind, value in _values(data[end:size]):
        if kind == _TYPE_TLS:
            if not value:
                raise BadProxyHeader("a value in its header is too short")
            is_tls = bool(value[0] & _CLIENT_TLS)
    return ProxyHeader(size, (client, ports[0]), str(ports[1]), is_tls)


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the types and values that follow the addresses."""
    position = 0
    while position < len(data):
        end = position + 3 + int.from_bytes(data[position + 1 : position + 3], "big")
        if position + 3 > len(data) or end > len(data):
            raise BadProxyHeader("a value in its header is longer than the header")
        yield data[position], data[position + 3 : end]
        position = end


class ProxiedStream(PushStream):
    """A `PushStream` whose connection begins with a header, which is read before anything else."""

    _on_header: Callable[[ProxyHeader], None] | None = None
    _on_bad_header: Callable[[BadProxyHeader], None]
    # The beginning of the header.
    _begun = b""

    def expect_header(
        self, on_header: Callable[[ProxyHeader], None], on_bad_header: Callable[[BadProxyHeader], None]
    ) -> None:
        """Call one of the functions when the header has arrived; the second one must close the stream or answer."""
        self._on_header, self._on_bad_header = on_header, on_bad_header

    def _takes_header(self) -> bool:
        """Read what has arrived of the header; return whether the stream goes on."""
        on_header = self._on_header
        if on_header is None:
            return True
        # Not the methods of an `ssl.SSLSocket`: TLS begins behind the header.
        try:
            data = socket.socket.recv(self.socket, MAX_SIZE, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            self.close(exc_info=error)
            return False
        if not data:
            self.close()
            return False
        try:
            header = parse(self._begun + data)
        except BadProxyHeader as error:
            self._on_header = None
            self._on_bad_header(error)
            return not self.closed()
        # Not more: the kernel keeps what follows for TLS. And not less, or it would report it again and again.
        taken = socket.socket.recv(self.socket, len(data) if header is None else header.size - len(self._begun))
        if header is None:
            self._begun += taken
            return False
        self._on_header, self._begun = None, b""
        on_header(header)
        return not self.closed()

    def _handle_read(self) -> None:
        if self._takes_header():
            super()._handle_read()


class ProxiedSSLStream(PushSSLStream, ProxiedStream):
    """A `ProxiedStream` with TLS behind the header."""

    def _do_ssl_handshake(self) -> None:
        if self._takes_header():
            super()._do_ssl_handshake()
        else:
            self._handshake_reading = not self.closed()
