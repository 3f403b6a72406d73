"""A row of the HTTP table: the bytes a client sends, and all that may come of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """A request as the application must see it; `tests.http_cases.runner.Recorder` answers it by its path."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    body: bytes = b""
    # More of the environ; None: the application must not see the key at all.
    environ: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Bytes in, outcome out."""

    name: str
    # The section of the RFC (or of PEP 3333) that demands or permits the outcome.
    section: str
    sent: bytes
    # The application's calls, in order; each is answered.
    calls: tuple[Call, ...] = ()
    # The statuses permitted for the one refusal that comes after those answers; empty: nothing is refused.
    refusal: frozenset[int] = frozenset()
    # Whether the server may also close the connection without that refusal.
    may_be_silent: bool = False
    closes: bool = False
    # Sent as soon as "100 Continue" has come.
    then: bytes = b""
    # How many "100 Continue" may come.
    interim: frozenset[int] = frozenset({0})
    # Headers of the last answer; None: it must not have that header.
    answer: Mapping[str, str | None] = field(default_factory=dict)
    # Whether the client ends its side of the connection behind the bytes.
    half_closes: bool = False


def accepted(
    name: str,
    section: str,
    sent: bytes,
    *calls: Call,
    closes: bool = False,
    then: bytes = b"",
    interim: tuple[int, ...] = (0,),
    answer: Mapping[str, str | None] | None = None,
) -> Row:
    """Every request reaches the application, as these calls (one ordinary GET unless told), and is answered."""
    return Row(
        name,
        section,
        sent,
        calls or (Call(),),
        closes=closes,
        then=then,
        interim=frozenset(interim),
        answer=answer or {},
    )


def refused(name: str, section: str, sent: bytes, *statuses: int, after: tuple[Call, ...] = ()) -> Row:
    """Refused with one of the statuses (400 unless told), closed, not passed on; ``after`` are good ones before it."""
    return Row(name, section, sent, after, refusal=frozenset(statuses or (400,)), closes=True)


def broken_off(name: str, section: str, sent: bytes) -> Row:
    """The client leaves in the middle of its request: not passed on; a 400 may say so."""
    return Row(name, section, sent, refusal=frozenset({400}), may_be_silent=True, closes=True, half_closes=True)


def with_line(line: bytes, *fields: bytes) -> bytes:
    """A request with this request line."""
    return b"\r\n".join([line, b"Host: example.org", *fields, b"", b""])


def get(*fields: bytes, path: bytes = b"/") -> bytes:
    """A GET with these header lines behind Host."""
    return with_line(b"GET " + path + b" HTTP/1.1", *fields)


def get_1_0(*fields: bytes, path: bytes = b"/") -> bytes:
    """A GET of an HTTP/1.0 client."""
    return with_line(b"GET " + path + b" HTTP/1.0", *fields)


def bare(*lines: bytes) -> bytes:
    """A request of exactly these lines, without a Host of our own."""
    return b"\r\n".join([*lines, b"", b""])


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A POST with these header lines, and the body as it stands."""
    return with_line(b"POST / HTTP/1.1", *fields) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    """A POST in chunks, framed as they stand."""
    return post(b"Transfer-Encoding: chunked", *fields, body=body)
