"""The head of a response, made on the side where there is time for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class ResponseHead(NamedTuple):
    """A status line and header fields as bytes, each line with its end; and what a connection must know of them.

    ``Connection`` and ``Transfer-Encoding`` are the connection's, which adds them.
    """

    status: int
    lines: bytes
    # The Content-Length, which is among the lines.
    length: int | None
    # Whether the connection is to be closed after the response.
    close: bool = False


def response_head(status: int, reason: str, fields: Iterable[tuple[str, str]], length: int | None) -> ResponseHead:
    """A head of these fields and, unless ``length`` is None, a ``Content-Length``. Either side.

    Raises ``ValueError`` for a CR, LF or NUL in one of them, and for what is not latin-1.
    """
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in fields]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    lines.append("")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
        raise ValueError("a CR, LF or NUL in the status or in a header")
    return ResponseHead(status, head.encode("latin-1"), length)
