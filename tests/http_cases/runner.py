"""Plays a row of the table to a server, on a raw socket, and compares all that comes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.http_cases.responses import Incomplete, Response, parse_responses
from tests.http_cases.row import Row, get
from tests.support.inprocess import BridgeThread

# How long to wait for what the server owes; it owes everything at once.
TIMEOUT = 5
PLAIN = [("Content-Type", "text/plain")]
PROBE = get(b"Connection: close", path=b"/probe")


class Recorder:
    """A WSGI application that keeps what it is told; its path chooses how it answers."""

    def __init__(self) -> None:
        self.seen: list[tuple[WSGIEnvironment, bytes]] = []

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = b"".join(iter(lambda: environ["wsgi.input"].read(65536), b""))
        self.seen.append((environ, body))
        path = environ["PATH_INFO"]
        if path == "/stream":
            start_response("200 OK", PLAIN)
            return (part for part in (b"first, ", b"second"))
        if path in ("/204", "/304"):
            start_response(f"{path[1:]} Without A Body", [])
            return []
        body = expected_body(path)
        start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
        return [body]


def expected_body(path: str) -> bytes:
    """What the recorder answers for this path, to other methods than HEAD."""
    if path == "/stream":
        return b"first, second"
    return b"" if path in ("/204", "/304", "/empty") else path.encode("latin-1")


@dataclass(frozen=True)
class Outcome:
    """All that came of a row's bytes, in order."""

    interim: int
    responses: tuple[Response, ...]
    stayed_open: bool
    seen: tuple[tuple[WSGIEnvironment, bytes], ...]


class Conversation:
    """A client's connection: what is sent, and what has come back."""

    def __init__(self, server: BridgeThread, methods: list[str]) -> None:
        self.received = b""
        self.closed = False
        self._methods = methods
        self._socket = server.connect()
        self._socket.settimeout(TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = server.loop

    def send(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Send; cut in pieces at these places, each sent only after the server has read the one before."""
        start = 0
        for end in [*sorted(cuts), len(data)]:
            try:
                self._socket.sendall(data[start:end])
            except (BrokenPipeError, ConnectionResetError):
                # The server has refused and closed. What it does not take any more is lost, as for any client.
                return
            if end < len(data):
                asyncio.run_coroutine_threadsafe(_turns(), self._loop).result(TIMEOUT)
            start = end

    def half_close(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def read(self, final: int, interim: int = 0) -> None:
        """Read until so many responses have come."""
        while not self._has(final, interim) and not self.closed:
            self._read_some()

    def read_to_end(self) -> None:
        """Read until the server closes the connection."""
        while not self.closed:
            self._read_some()

    def responses(self) -> list[Response]:
        """What has been received; raises `Incomplete`."""
        return parse_responses(self.received, self._methods, self.closed)

    def leave(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read_some(self) -> None:
        try:
            part = self._socket.recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing more within {TIMEOUT} s, and not closed, behind {self.received!r}") from None
        self.received += part
        self.closed = not part

    def _has(self, final: int, interim: int) -> bool:
        try:
            responses = self.responses()
        except Incomplete:
            return False
        interims = sum(response.is_interim for response in responses)
        return interims >= interim and len(responses) - interims >= final


async def _turns() -> None:
    # One to find the socket readable, one to read, one to deal with what was read.
    for _ in range(3):
        await asyncio.sleep(0)


def play(
    row: Row, server: BridgeThread, recorder: Recorder, cuts: Collection[int] = (), behind: bytes = b""
) -> Outcome:
    """Send the row's bytes, and these behind them; wait until all that could come of them has come.

    A request of our own comes last: on the same connection, to see that it is open, or on another. Since the server has
    one thread, the application has by then seen what it will see.
    """
    recorder.seen.clear()
    conversation = Conversation(server, [call.method for call in row.calls])
    try:
        conversation.send(row.sent + behind, cuts)
        if row.then:
            conversation.read(final=len(row.calls) - 1, interim=1)
            conversation.send(row.then)
        if row.half_closes:
            conversation.half_close()
        if not row.closes:
            conversation.read(final=len(row.calls))
            conversation.send(PROBE)
        conversation.read_to_end()
        responses = conversation.responses()
    finally:
        conversation.leave()
    if row.closes:
        server.exchange(PROBE)
    paths = [environ["PATH_INFO"] for environ, _ in recorder.seen]
    assert paths[-1:] == ["/probe"], f"the application saw {paths}, and the client {conversation.received!r}"
    final = [response for response in responses if not response.is_interim]
    stayed_open = not row.closes and final[-1].body == b"/probe"
    return Outcome(
        interim=len(responses) - len(final),
        responses=tuple(final[:-1] if stayed_open else final),
        stayed_open=stayed_open,
        seen=tuple(recorder.seen[:-1]),
    )


def check(row: Row, outcome: Outcome) -> None:
    """Assert that this came of the row's bytes, and nothing else."""
    assert len(outcome.seen) == len(row.calls), [environ["PATH_INFO"] for environ, _ in outcome.seen]
    for call, (environ, body) in zip(row.calls, outcome.seen, strict=True):
        expected = {
            "REQUEST_METHOD": call.method,
            "PATH_INFO": call.path,
            "QUERY_STRING": call.query,
            **call.environ,
        }
        assert {name: environ.get(name) for name in expected} == expected
        assert body == call.body
    answers = outcome.responses[: len(row.calls)]
    assert len(answers) == len(row.calls), outcome.responses
    for call, answer in zip(row.calls, answers, strict=True):
        assert answer.status == (int(call.path[1:]) if call.path in ("/204", "/304") else 200), answer
        assert answer.body == (b"" if call.method == "HEAD" else expected_body(call.path))
    assert outcome.interim in row.interim
    assert outcome.stayed_open == (not row.closes)
    _check_refusal(row, outcome.responses[len(row.calls) :])
    for name, value in row.answer.items():
        assert answers[-1].headers.get(name) == value, answers[-1]


def _check_refusal(row: Row, refusals: tuple[Response, ...]) -> None:
    if row.may_be_silent and not refusals:
        return
    assert len(refusals) == bool(row.refusal), refusals
    for refusal in refusals:
        assert refusal.status in row.refusal, refusal
        # RFC 9112, section 9.6.
        assert refusal.headers.get("Connection") == "close", refusal
