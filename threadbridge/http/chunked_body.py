"""Decodes chunked bodies (RFC 9112, section 7.1); their data is never searched, and their framing is bounded."""

from __future__ import annotations

import re
from typing import Final

from threadbridge.http.request_rules import BadRequest, too_large

# The lines between the data. The quantifiers are possessive, so nothing backtracks.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_EXTENSION: Final = rb"[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:" + _EXTENSION + rb")*\r\n").match
_TRAILER: Final = re.compile(rb"(?:(" + _TOKEN + rb"):[\t\x20-\x7e\x80-\xff]*+)?\r\n").match
_FRAMING: Final = (b"content-length", b"transfer-encoding")

# Chunks of one byte need five bytes of framing each; Go's net/http has the same limit.
FRAMING_PER_BYTE: Final = 16
# The longest line with a chunk's size and extensions, or with a trailer.
MAX_LINE: Final = 4096
# How many chunks are decoded before other connections have their turn: about 50 microseconds.
CHUNKS_AT_ONCE: Final = 64
# What comes next.
SIZE: Final = 0
DATA: Final = 1
TRAILERS: Final = 2


class ChunkedBody:
    """Decodes one body; ``max_overhead`` limits its framing, beyond the bytes that a body of its size justifies."""

    def __init__(self, max_body_size: int, max_overhead: int) -> None:
        self._max_body_size = max_body_size
        self._max_overhead = max_overhead
        # Whether the body has ended, its trailers included.
        self.complete = False
        self._next = SIZE
        # Bytes still to come of a chunk.
        self._remaining = 0
        self._overhead = 0
        self._body_size = 0

    def decode(self, data: bytes, position: int) -> tuple[bytes, int, bool]:
        """Decode up to `CHUNKS_AT_ONCE` chunks from this position on.

        Returns their data, the position behind them, and whether there may be more to decode. Trailers are dropped, as
        they may not be merged with headers (RFC 9110, section 6.5.1). Raises `BadRequest`.
        """
        pieces: list[bytes] = []
        start = position
        left = CHUNKS_AT_ONCE
        goes_on = True
        while goes_on and left:
            if self._next == DATA:
                end = min(position + self._remaining, len(data))
                if end > position:
                    pieces.append(data[position:end])
                self._remaining -= end - position
                start += end - position
                position = end
                # The CRLF after the data remains.
                goes_on = not self._remaining and len(data) - position >= 2
                if goes_on:
                    if not data.startswith(b"\r\n", position):
                        raise BadRequest(400, "chunk data is not followed by CRLF (RFC 9112, section 7.1)")
                    position += 2
                    self._next = SIZE
            else:
                left -= 1
                match = self._line(data, position)
                if match is not None:
                    position = match.end()
                goes_on = match is not None and self._end_of_line(match[1])
        # `start` has moved on by the size of the data, which is not overhead.
        self._overhead += position - start
        self._check_overhead(0)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), position, goes_on

    def _line(self, data: bytes, position: int) -> re.Match[bytes] | None:
        """Return the framing line that begins at the position, or None if it is not complete."""
        end = data.find(b"\n", position, position + MAX_LINE) + 1
        size = (end or len(data)) - position
        if not end and size >= MAX_LINE:
            raise _too_much_framing()
        self._check_overhead(size)
        match = (_TRAILER if self._next == TRAILERS else _CHUNK_SIZE)(data, position, end or position)
        if end and match is None:
            raise BadRequest(400, "the chunks are malformed (RFC 9112, section 7.1)")
        return match

    def _end_of_line(self, content: bytes | None) -> bool:
        """Act on a line: a chunk's size, a trailer's name, or None for the empty line. False at the end."""
        if self._next == TRAILERS:
            if content is None:
                self.complete = True
            elif content.lower() in _FRAMING:
                raise BadRequest(400, "a trailer field must not change the framing (RFC 9110, section 6.5.1)")
            return content is not None
        assert content is not None
        self._remaining = int(content, 16)
        self._body_size += self._remaining
        if self._body_size > self._max_body_size:
            raise too_large(self._max_body_size)
        self._next = DATA if self._remaining else TRAILERS
        return True

    def _check_overhead(self, more: int) -> None:
        if self._overhead + more > self._max_overhead + FRAMING_PER_BYTE * self._body_size:
            raise _too_much_framing()


def _too_much_framing() -> BadRequest:
    return BadRequest(431, "the chunked body has too much framing for its data")
