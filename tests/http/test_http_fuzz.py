"""Random streams of requests, valid and not, in random pieces: what is accepted is what h11 reads, to the byte.

It lasts for 5 s, 20 s where ``CI`` is set, or as long as ``FUZZ_SECONDS`` says. ``FUZZ_SEED`` repeats a run; the
seed is printed when it fails.

The server may refuse what h11, which is more lenient, accepts. It must not accept anything that h11 refuses, nor
find another end to a request: that is how requests are smuggled past a proxy. The streams leave out what the server
accepts on purpose and h11 does not: white space before a chunk extension (RFC 9112, section 7.1.1) and HTTP/1.2.
"""

from __future__ import annotations

import os
import random
import re
import time

import h11

from threadbridge.http.parser import HeadReader, RequestParser
from threadbridge.http.request_rules import BadRequest

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20" if os.environ.get("CI") else "5"))
SEED = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(10**9)))

LARGEST = 65536
# Methods, targets and bodies of the requests that were accepted, in order.
Accepted = list[tuple[bytes, bytes, bytes]]

FIELDS = [
    b"Accept: */*",
    b"X-Empty:",
    b"Cookie: a=b; c=d",
    b"Expect: 100-continue",
    b"Connection: keep-alive",
    b"Connection: close",
    b"X-Long: " + b"x" * 300,
]
NASTY = [
    b"Content-Length: 3",
    b"Content-Length: +3",
    b"Content-Length: 3, 3",
    b"Content-Length: 0x3",
    b"Content-Length : 3",
    b" Content-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4",
    b"X-Folded: a\r\n b",
    b"X\x00: a",
    b"X: \x00",
    b"X: a\rb",
    b"Host: other",
]
BYTES = b'\r\n\t :;,\x00\x0b\x7f\x800a5fgG"=-'


def a_body(chance: random.Random) -> tuple[list[bytes], bytes]:
    """The fields that announce a body, and its bytes."""
    body = chance.randbytes(chance.choice((0, 1, 5, 16, 300, 5000)))
    if chance.random() < 0.3:
        # What ends a head, and what could pass for another request.
        body = chance.choice(
            (b"\r\n\r\n", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        ) * chance.randrange(1, 9)
    kind = chance.random()
    if kind < 0.3:
        return [], b""
    if kind < 0.6:
        return [b"Content-Length: %d" % len(body)], body
    framed, start = [], 0
    while start < len(body):
        size = chance.choice((1, 2, 7, 100, 4000))
        piece = body[start : start + size]
        number = (b"%x", b"%X", b"0%x")[chance.randrange(3)] % len(piece)
        framed.append(number + chance.choice((b"", b"", b";a=b", b';a="b"')) + b"\r\n" + piece + b"\r\n")
        start += size
    framed.append(
        b"0" + chance.choice((b"", b";last")) + b"\r\n" + chance.choice((b"", b"", b"X-Trailer: a\r\n")) + b"\r\n"
    )
    return [b"Transfer-Encoding: chunked"], b"".join(framed)


def a_stream(chance: random.Random) -> bytes:
    """Some requests behind one another, with or without mistakes in them."""
    stream = b""
    for _ in range(chance.randrange(1, 4)):
        fields, body = a_body(chance)
        fields += chance.sample(FIELDS, chance.randrange(3))
        if chance.random() < 0.15:
            fields.append(chance.choice(NASTY))
        chance.shuffle(fields)
        version = chance.choice((b"1.1", b"1.1", b"1.1", b"1.0"))
        line = chance.choice((b"GET", b"POST", b"PUT", b"DELETE")) + b" /%d HTTP/" % chance.randrange(100) + version
        stream += b"\r\n".join([line, b"Host: a", *fields, b"", b""]) + body
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, 3)):
            position = chance.randrange(len(stream))
            new = bytes(chance.choices(BYTES, k=chance.randrange(3)))
            stream = stream[:position] + new + stream[position + chance.randrange(2) :]
    return stream


def ours(stream: bytes, chance: random.Random) -> tuple[Accepted, bool]:
    """What the server's parser accepts, and whether it refuses what follows that."""
    parser = RequestParser(HeadReader(), LARGEST, LARGEST)
    accepted: Accepted = []
    body = b""
    while stream:
        size = chance.choice((1, 3, 50, len(stream), len(stream)))
        parser.feed(stream[:size])
        stream = stream[size:]
        while True:
            try:
                has_more = parser.parse()
            except BadRequest:
                return accepted, True
            request = parser.request
            if request is None:
                break
            body += request.body
            request.body = b""
            if request.complete:
                assert request.start_line is not None
                method, path, version = request.start_line
                accepted.append((method.encode(), path.encode(), body))
                body = b""
                # h11 ends a connection after HTTP/1.0, whatever the client wants.
                if not request.keep_alive or version == "HTTP/1.0":
                    return accepted, False
                parser.next()
            elif not has_more:
                break
    return accepted, False


def reference(stream: bytes) -> Accepted:
    """The same of h11."""
    accepted: Accepted = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST)
        # One empty line in front is to be ignored (RFC 9112, section 2.2), which h11 does not.
        connection.receive_data(stream.removeprefix(b"\r\n"))
        body = b""
        try:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return accepted
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                return accepted
            accepted.append((request.method, request.target, body))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
        except h11.RemoteProtocolError:
            return accepted
        if connection.our_state is not h11.DONE:
            return accepted
        stream, _ = connection.trailing_data


# White space between a chunk's size and its extension, which RFC 9112, section 7.1.1, allows.
UNKNOWN_TO_H11 = re.compile(rb"[0-9A-Fa-f][ \t]+;").search


def test_what_is_accepted_is_what_h11_reads() -> None:
    streams = whole = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        chance = random.Random(f"{SEED}-{streams}")
        stream = a_stream(chance)
        streams += 1
        if UNKNOWN_TO_H11(stream):
            continue
        accepted, refused = ours(stream, chance)
        expected = reference(stream)
        # The server may have refused what h11 went on with; what it has accepted is the same.
        assert accepted == expected[: len(accepted)], (
            f"FUZZ_SEED={SEED}, stream {streams}",
            stream,
            accepted,
            expected,
        )
        assert refused or len(accepted) == len(expected), (
            f"FUZZ_SEED={SEED}, stream {streams}",
            stream,
            accepted,
            expected,
        )
        # However it is cut into pieces.
        assert ours(stream, chance) == (accepted, refused), (f"FUZZ_SEED={SEED}, stream {streams}", stream)
        whole += bool(accepted)
    assert whole > streams / 4 > 50
