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

    Whoever calls it has made sure that there is no CR, LF or NUL in them. Raises ``UnicodeEncodeError`` for what is not
    latin-1.
    """
    lines = [f"HTTP/1.1 {status} {reason}\r\n", *[f"{name}: {value}\r\n" for name, value in fields]]
    if length is not None:
        lines.append(f"Content-Length: {length}\r\n")
    return ResponseHead(status, "".join(lines).encode("latin-1"), length)
