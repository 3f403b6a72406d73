"""What an intermediary changes in the messages that it forwards (RFC 9110, section 7.6)."""

from __future__ import annotations

import math
from typing import Final

from tornado.httputil import HTTPHeaders

from threadbridge.http.forwarded import ClientAddress
from threadbridge.http.response_head import HOP_BY_HOP, NEVER_RAN, ResponseHead, http_date, response_head
from threadbridge.http.response_parser import Response

# In requests to other hosts: the milliseconds that are left to answer. Envoy's name: no standard has one.
TIME_LEFT: Final = "X-Envoy-Expected-Rq-Timeout-Ms"
# In requests to other hosts: the name of the lane that sends them. The host runs such a request itself, and cancels it
# whatever its method is when the connection closes: the sender decides. So it holds only between the two ends of a
# connection, and is named in ``Connection`` (RFC 9110, section 7.6.1): proxies replace that field, so that a client
# cannot send it through a proxy that the host trusts.
SENT_BY_LANE: Final = "X-Threadbridge-Lane"
# The intermediary's name in ``Via`` and ``Proxy-Status``.
PSEUDONYM: Final = "threadbridge"
# How many bridges may forward a request. One that trusts the bridge before it runs the request itself.
MAX_HOPS: Final = 3

# What is not forwarded, or is replaced, as `HTTPHeaders` spells it.
_OWN: Final = (
    *("Host", "Content-Length", "Expect", "X-Request-Id", "Via", TIME_LEFT, SENT_BY_LANE),
    *("X-Real-Ip", "X-Scheme", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"),
)
_LEFT_OUT: Final = frozenset({*_OWN, *("-".join(map(str.capitalize, name.split("-"))) for name in HOP_BY_HOP)})
# What is left out of responses. The load is that of the other host, of which it tells only this one.
_NOT_FOR_CLIENTS: Final = HOP_BY_HOP | {"endpoint-load-metrics"}
# A request with one of these methods has a content, though an empty one (RFC 9110, section 8.6).
_WITH_CONTENT: Final = frozenset({"POST", "PUT", "PATCH"})


def forwarded_request(
    method: str,
    target: str,
    headers: HTTPHeaders,
    *,
    authority: str,
    client: ClientAddress,
    request_id: str,
    length: int,
    time_left: float,
    lane: str,
) -> bytes:
    """Return the head of a request to another host, for one whose body has arrived.

    :param authority: for ``Host`` if the client, of HTTP/1.0, has sent none.
    :param length: bytes of the body.
    :param time_left: seconds to answer.
    """
    of_connection = _options(headers["Connection"]) if "Connection" in headers else ()
    host = headers.get("Host", authority)
    fields = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    for name, value in headers.get_all():
        if name not in _LEFT_OUT and not (of_connection and name.lower() in of_connection):
            fields.append(f"{name}: {value}")
    if length or method in _WITH_CONTENT or "Content-Length" in headers:
        fields.append(f"Content-Length: {length}")
    if client.address:
        fields.append(f"X-Forwarded-For: {client.address}")
    # Only a trusted proxy's is left, which may say that clients use another host.
    forwarded_host = headers.get("X-Forwarded-Host", host)
    via = f"{headers['Via']}, " if "Via" in headers else ""
    fields += (
        f"X-Forwarded-Proto: {client.scheme}",
        f"X-Forwarded-Host: {forwarded_host}",
        f"X-Request-ID: {request_id}",
        f"Via: {via}1.1 {PSEUDONYM}",
        f"{TIME_LEFT}: {max(1, int(1000 * time_left))}",
        f"{SENT_BY_LANE}: {lane}",
        f"Connection: {SENT_BY_LANE}",
        "\r\n",
    )
    return "\r\n".join(fields).encode("latin-1")


def forwarded_response(response: Response) -> ResponseHead:
    """Return the head of a response that another host has sent, for the client."""
    left_out = _NOT_FOR_CLIENTS
    connection = response.value_of("connection")
    if connection:
        left_out = _NOT_FOR_CLIENTS | _options(connection)
    fields = [
        (name, value)
        for name, value in response.fields
        if (small := name.lower()) not in left_out and small != "content-length"
    ]
    if not response.value_of("date"):
        # RFC 9110, section 6.6.1.
        fields.append(("Date", http_date()))
    # Not allowed with this status (RFC 9110, section 8.6), but some servers send it.
    length = None if response.status == 204 else response.length
    return response_head(response.status, response.reason, fields, length)


def seconds_left(headers: HTTPHeaders) -> float:
    """Return the seconds that `TIME_LEFT` says are left; infinity if it says nothing that can be read."""
    text = headers.get(TIME_LEFT, "")
    return int(text) / 1000 if len(text) <= 12 and text.isascii() and text.isdigit() else math.inf


def is_sent_by_lane(headers: HTTPHeaders) -> bool:
    """Return whether the remote lane of another bridge has sent a request over this very connection."""
    return SENT_BY_LANE in headers and SENT_BY_LANE.lower() in _options(headers.get("Connection", ""))


def never_ran(response: Response) -> bool:
    """Return whether a host says that it has refused a request without running it."""
    name, value = NEVER_RAN
    return response.status == 503 and response.value_of(name.lower()) == value


def hops(headers: HTTPHeaders) -> int:
    """Return how many bridges have forwarded a request, according to ``Via`` (RFC 9110, section 7.6.3)."""
    # The protocol, who received it, and perhaps a comment.
    return sum(element.split()[1:2] == [PSEUDONYM] for element in headers.get("Via", "").split(","))


def _options(connection: str) -> set[str]:
    """Return the options in a ``Connection`` field, in lower case."""
    return {option.strip("\t ") for option in connection.lower().split(",")}
