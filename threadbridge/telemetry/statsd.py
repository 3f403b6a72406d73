"""Counts and times of requests for statsd, under the names that gunicorn gives them."""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from threadbridge.common.repeated_log import RepeatedLog

if TYPE_CHECKING:
    from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")

# What would end a name, or a line, or begin another field of it.
_PREFIX = re.compile(r"[A-Za-z0-9_./-]*").fullmatch
_TAGS = re.compile(r"[^|\s]*").fullmatch
# Bytes of a datagram that no Ethernet has to divide.
LARGEST = 1432


class Statsd:
    """Sends the telemetry's records to a statsd server, over UDP: nothing waits for it. A reader; loop side.

    :param address: ``HOST:PORT``.
    :param prefix: comes before each name, with a dot.
    :param tags: DogStatsD's, such as ``env:prod,team:shop``.

    Raises ``ValueError`` for what cannot be used.
    """

    def __init__(self, address: str, prefix: str = "", tags: str = "") -> None:
        if not _PREFIX(prefix):
            raise ValueError(f"statsd_prefix={prefix!r}: expected letters, digits, and any of _./-")
        if not _TAGS(tags):
            raise ValueError(f"dogstatsd_tags={tags!r}: expected tags such as env:prod,team:shop, without | and spaces")
        self._prefix = f"{prefix.rstrip('.')}." if prefix else ""
        self._suffix = f"|#{tags}" if tags else ""
        host, _, port = address.rpartition(":")
        try:
            if not host or not port.isdigit():
                raise ValueError("expected HOST:PORT, such as 127.0.0.1:8125")
            family, kind, protocol, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[0]
        except (ValueError, OSError) as error:
            raise ValueError(f"statsd={address!r}: {error}") from None
        self._address = address
        self._where = where
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)
        self._failed = RepeatedLog(logger)

    def __call__(self, records: Sequence[Record]) -> None:
        self._send(_lines(records))

    def gauge(self, name: str, value: int) -> None:
        """Send the present value of something that goes up and down."""
        self._send([f"{name}:{value}|g"])

    def _send(self, lines: Iterable[str]) -> None:
        for datagram in _datagrams(f"{self._prefix}{line}{self._suffix}" for line in lines):
            try:
                # Not connected: one that nobody receives must not make the next one fail.
                self._socket.sendto(datagram, self._where)
            except OSError as error:
                self._failed.log(logging.WARNING, "cannot send to statsd at %s: %s", self._address, error.strerror)

    def close(self) -> None:
        """Send no more."""
        self._socket.close()


def _lines(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        # A WebSocket ends when its client has had enough.
        if record.status != 101:
            yield f"gunicorn.request.duration:{1000 * record.total:.3f}|ms"
    yield f"gunicorn.requests:{len(records)}|c"
    for status, count in Counter(record.status for record in records).items():
        yield f"gunicorn.request.status.{status}:{count}|c"


def _datagrams(lines: Iterable[str]) -> Iterator[bytes]:
    """Put as many lines into each datagram as it holds."""
    datagram = b""
    for line in lines:
        encoded = line.encode()
        if datagram and len(datagram) + 1 + len(encoded) > LARGEST:
            yield datagram
            datagram = b""
        datagram += b"\n" + encoded if datagram else encoded
    yield datagram
