"""The head of a response: its status line and header fields as bytes. Either side."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from email.utils import formatdate
from itertools import chain
from typing import Final

from tornado.httputil import HTTPHeaders, ResponseStartLine

# The fields of one connection (RFC 9110, section 7.6.1): neither an application nor another server sets them here.
_OF_PROXIES: Final = ("proxy-authenticate", "proxy-authorization", "proxy-connection")
HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", *_OF_PROXIES}
)

# In 503 responses: the request has not run, so that a proxy may send it elsewhere, even a POST. HTTP/2 has
# REFUSED_STREAM for this (RFC 9113, section 8.7), but HTTP/1.1 has nothing.
NEVER_RAN: Final = ("X-Threadbridge-Ran", "no")

_UNSAFE: Final = re.compile(r"[\r\n\0]").search

# The latest `http_date`: one tuple, so that no thread ever sees one second with the text of another.
_latest = (0, "")


class ResponseHead:
    """A status line and header fields, each line with its CRLF; and what a connection must know about them.

    The connection itself adds ``Connection`` and ``Transfer-Encoding``. Not changed once it has crossed to the loop.

    :param length: the Content-Length, which is among the lines.
    :param close: whether the connection must close after the response.
    """

    def __init__(self, status: int, lines: bytes, length: int | None, close: bool = False) -> None:
        self.status = status
        self.lines = lines
        self.length = length
        self.close = close


def response_head(status: int, reason: str, fields: Iterable[tuple[str, str]], length: int | None) -> ResponseHead:
    """Make a head of these fields and, unless ``length`` is None, a ``Content-Length``.

    The fields contain no CR, LF or NUL. Raises ``UnicodeEncodeError`` for text that is not latin-1.
    """
    pieces = ["HTTP/1.1 ", str(status), " ", reason]
    for name, value in fields:
        pieces += ("\r\n", name, ": ", value)
    if length is not None:
        pieces += ("\r\nContent-Length: ", str(length))
    pieces.append("\r\n")
    return ResponseHead(status, "".join(pieces).encode("latin-1"), length)


def head_from_tornado(start_line: ResponseStartLine, headers: HTTPHeaders) -> ResponseHead:
    """Make a head from the arguments of `tornado.httputil.HTTPConnection.write_headers`.

    Leaves out ``Transfer-Encoding`` and, except with status 101, ``Connection``. Raises ``ValueError`` for a CR, LF or
    NUL in the status or a header, and for a ``Content-Length`` that is not all digits.
    """
    left_out = ("Transfer-Encoding", "Content-Length", "Connection" if start_line.code != 101 else "")
    fields = [(name, value) for name, value in headers.get_all() if name not in left_out]
    if any(_UNSAFE(text) for text in (start_line.reason, *chain.from_iterable(fields))):
        raise ValueError("a CR, LF or NUL in the status or in a header")
    length = headers.get("Content-Length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise ValueError(f"Content-Length is {length!r}; expected digits")
    head = response_head(start_line.code, start_line.reason, fields, None if length is None else int(length))
    head.close = headers.get("Connection", "").lower() == "close"
    return head


def http_date() -> str:
    """Return the current time for the ``Date`` header (RFC 9110, section 6.6.1), formatted once a second."""
    global _latest
    now = int(time.time())
    second, text = _latest
    if second != now:
        text = formatdate(now, usegmt=True)
        _latest = (now, text)
    return text
