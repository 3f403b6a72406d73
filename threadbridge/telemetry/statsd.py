"""Counts and times of requests for statsd, under the names that gunicorn gives them."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.telemetry.record import Record

logger = logging.getLogger("threadbridge")

# Bytes of a datagram that no Ethernet has to divide.
LARGEST = 1432


class Statsd:
    """Sends the telemetry's records to a statsd server, over UDP: nothing waits for it. A reader; loop side.

    :param address: ``HOST:PORT``. Raises ``ValueError`` if that is no address.
    """

    def __init__(self, address: str) -> None:
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
        for datagram in _datagrams(_lines(records)):
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
