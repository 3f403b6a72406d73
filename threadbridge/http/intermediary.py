"""What an intermediary changes in the messages that it forwards (RFC 9110, section 7.6)."""

from __future__ import annotations

import math

from tornado.httputil import HTTPHeaders

from threadbridge.http.forwarded import ClientAddress
from threadbridge.http.response_head import HOP_BY_HOP, NEVER_RAN, ResponseHead, http_date, response_head
from threadbridge.http.response_parser import Response

# In requests to other hosts: the milliseconds that are left to answer. Envoy's name: no standard has one.
TIME_LEFT = "X-Envoy-Expected-Rq-Timeout-Ms"
# In requests to other hosts: the name of the lane that sends them. The host runs such a request itself, and cancels it
# whatever its method is when the connection closes: the sender decides.
SENT_BY_LANE = "X-Threadbridge-Lane"
# The intermediary's name in ``Via`` and ``Proxy-Status``.
PSEUDONYM = "threadbridge"
# How many bridges may forward a request: each of them that trusts the one before runs it itself.
MAX_HOPS = 3

# As `HTTPHeaders` spells them: what is not forwarded, or is replaced.
_OWN = (
    *("Host", "Content-Length", "Expect", "X-Request-Id", "Via", TIME_LEFT, SENT_BY_LANE),
    *("X-Real-Ip", "X-Scheme", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded"),
)
_LEFT_OUT = frozenset({*_OWN, *("-".join(map(str.capitalize, name.split("-"))) for name in HOP_BY_HOP)})
# A request with one of these methods has a content, though an empty one (RFC 9110, section 8.6).
_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})


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
    named = headers["Connection"].lower().split(",") if "Connection" in headers else ()
    of_connection = {option.strip("\t ") for option in named}
    host = headers.get("Host", authority)
    fields = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    for name, value in headers.get_all():
        if name not in _LEFT_OUT and not (of_connection and name.lower() in of_connection):
            fields.append(f"{name}: {value}")
    if length or method in _WITH_CONTENT or "Content-Length" in headers:
        fields.append(f"Content-Length: {length}")
    if client.address:
        fields.append(f"X-Forwarded-For: {client.address}")
    # A trusted proxy may have said that clients use another host; untrusted ones' headers have been removed.
    forwarded_host = headers.get("X-Forwarded-Host", host)
    via = f"{headers['Via']}, " if "Via" in headers else ""
    fields += (
        f"X-Forwarded-Proto: {client.scheme}",
        f"X-Forwarded-Host: {forwarded_host}",
        f"X-Request-ID: {request_id}",
        f"Via: {via}1.1 {PSEUDONYM}",
        f"{TIME_LEFT}: {max(1, int(1000 * time_left))}",
        f"{SENT_BY_LANE}: {lane}",
        "\r\n",
    )
    return "\r\n".join(fields).encode("latin-1")


def forwarded_response(response: Response) -> ResponseHead:
    """Return the head of a response that another host has sent, for the client."""
    left_out = HOP_BY_HOP
    connection = response.value_of("connection")
    if connection:
        left_out = HOP_BY_HOP | {option.strip("\t ") for option in connection.lower().split(",")}
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


def never_ran(response: Response) -> bool:
    """Return whether a host says that it has refused a request without running it."""
    name, value = NEVER_RAN
    return response.status == 503 and response.value_of(name.lower()) == value


def hops(headers: HTTPHeaders) -> int:
    """Return how many bridges have forwarded a request, as far as ``Via`` tells."""
    return headers["Via"].count(PSEUDONYM) if "Via" in headers else 0
