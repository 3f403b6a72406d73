"""Counts of requests as OpenTelemetry's conventions for HTTP want them. Loop side.

https://opentelemetry.io/docs/specs/semconv/http/http-metrics/
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from threadbridge.crossing.exchange import Exchange
from threadbridge.telemetry.record import Record
from threadbridge.telemetry.totals import Distribution

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})


def known_method(method: str) -> str:
    """The value of ``http.request.method``: clients could otherwise make any number of them. Either side."""
    return method if method in METHODS else "_OTHER"


class HttpDurations:
    """How long requests took from the end of their head until their end, by method, scheme and status.

    A WebSocket is left out: it ends when its client has had enough.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str, int], Distribution] = {}

    def read(self, records: Sequence[Record]) -> None:
        """A reader of the telemetry. What was refused unread was no request, as far as is known."""
        found = self.found
        for record in records:
            if record.lane and record.status != 101:
                key = (record.method, record.scheme, record.status)
                distribution = found.get(key)
                if distribution is None:
                    key = (known_method(record.method), record.scheme, record.status)
                    distribution = found.setdefault(key, Distribution())
                distribution.add(record.total)


def active_requests(exchanges: Iterable[Exchange]) -> dict[tuple[str, str], int]:
    """Count requests that have not ended, by method and scheme."""
    counts: dict[tuple[str, str], int] = {}
    for exchange in exchanges:
        key = (known_method(exchange.start_line.method), exchange.peer.scheme)
        counts[key] = counts.get(key, 0) + 1
    return counts
