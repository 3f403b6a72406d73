"""What a client may take of the server: sizes and times, and what it is told when it wants more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.http_cases.responses import parse_responses
from tests.http_cases.row import chunked, get, post, with_line
from tests.http_cases.runner import Recorder
from tests.support.inprocess import BridgeThread, wait_until
from threadbridge import HTTPServer
from threadbridge.http.limits import Limits

SIZES = Limits(max_header_size=2000, max_body_size=1000)
# Kept to about a second more: that often the server looks.
TIMES = Limits(header_timeout=0.3, idle_timeout=0.3, body_timeout=0.3, send_timeout=0.3)


def serving(recorder: Recorder, limits: Limits) -> BridgeThread:
    return BridgeThread(validator(recorder), lambda bridge: HTTPServer(bridge, limits=limits), threads=1)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def small(recorder: Recorder) -> Iterator[BridgeThread]:
    with serving(recorder, SIZES) as server:
        yield server


@pytest.fixture
def hurried(recorder: Recorder) -> Iterator[BridgeThread]:
    with serving(recorder, TIMES) as server:
        yield server


def statuses(received: bytes) -> list[int]:
    return [response.status for response in parse_responses(received, [], at_end=True)]


def to_end(client: socket.socket) -> bytes:
    received = b""
    while part := client.recv(65536):
        received += part
    return received


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"a" * size)


CLOSE = b"Connection: close"
MEGABYTE = 1024 * 1024


def test_a_body_as_large_as_the_limit(small: BridgeThread, recorder: Recorder) -> None:
    assert statuses(small.exchange(post(CLOSE, b"Content-Length: 1000", body=b"a" * 1000))) == [200]
    assert statuses(small.exchange(chunked(chunk(400) + chunk(600) + b"0\r\n\r\n", CLOSE))) == [200]
    assert [len(body) for _, body in recorder.seen] == [1000, 1000]


@pytest.mark.parametrize(
    "request_",
    [
        post(b"Content-Length: 1001"),
        post(b"Content-Length: 1001", b"Expect: 100-continue"),
        # Without its end: the refusal does not wait for it.
        chunked(chunk(400) + chunk(601)),
        chunked(b"400\r\n" + b"a" * 1001),
    ],
)
def test_a_body_over_the_limit_is_refused_as_soon_as_that_is_known(
    request_: bytes, small: BridgeThread, recorder: Recorder
) -> None:
    assert statuses(small.exchange(request_)) == [413]
    assert statuses(small.exchange(get(CLOSE))) == [200]
    assert [environ["REQUEST_METHOD"] for environ, _ in recorder.seen] == ["GET"]


def test_a_head_as_large_as_the_limit_and_a_larger_one(small: BridgeThread, recorder: Recorder) -> None:
    room = 2000 - len(get(CLOSE, b"X-A: "))
    assert statuses(small.exchange(get(CLOSE, b"X-A: " + b"a" * room))) == [200]
    assert statuses(small.exchange(get(CLOSE, b"X-A: " + b"a" * (room + 1)))) == [431]
    # Heads count one by one, not together.
    assert statuses(small.exchange(get(b"X-A: " + b"a" * 1000) * 5 + get(CLOSE))) == [200] * 6
    assert len(recorder.seen) == 7


def test_framing_for_its_own_sake_is_refused(small: BridgeThread, recorder: Recorder) -> None:
    many = chunk(1) * 900 + b"0\r\n\r\n"
    assert statuses(small.exchange(chunked(many, CLOSE))) == [200]
    assert statuses(small.exchange(chunked(b"1;" + b"a" * 2100 + b"\r\na\r\n"))) == [431]
    assert [len(body) for _, body in recorder.seen] == [900]


def test_a_client_that_goes_on_sending_still_reads_its_refusal(small: BridgeThread) -> None:
    with small.send(post(b"Content-Length: 100000000")) as client:
        # The server has refused and closed its side, and yet takes what is on its way: else this would be reset.
        for _ in range(200):
            client.sendall(b"a" * 65536)
        client.shutdown(socket.SHUT_WR)
        assert statuses(to_end(client)) == [413]


def test_a_head_that_does_not_end_in_time(hurried: BridgeThread, recorder: Recorder) -> None:
    with hurried.send(b"GET / HTTP/1.1\r\nHost: exam") as client:
        assert statuses(to_end(client)) == [408]
    assert recorder.seen == []


def test_a_head_that_comes_in_drips_gains_no_time(hurried: BridgeThread) -> None:
    with hurried.send(b"GET / HTTP/1.1\r\nX-A: ") as client:
        client.settimeout(0.05)
        for _ in range(200):
            try:
                assert client.recv(12) == b"HTTP/1.1 408"
                return
            except TimeoutError:
                client.sendall(b"a")
    raise AssertionError("never refused")


@pytest.mark.parametrize(
    "request_", [post(b"Content-Length: 10", body=b"abc"), chunked(b"5\r\nabc"), chunked(b"3\r\nabc\r\n")]
)
def test_a_body_that_stalls(request_: bytes, hurried: BridgeThread, recorder: Recorder) -> None:
    with hurried.send(request_) as client:
        assert statuses(to_end(client)) == [408]
    assert recorder.seen == []


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", get(), get() * 2, with_line(b"HEAD / HTTP/1.0", b"Connection: keep-alive")]
)
def test_an_idle_connection_is_closed_in_silence(sent: bytes, hurried: BridgeThread) -> None:
    with hurried.send(sent) as client:
        assert to_end(client).count(b"HTTP/1.1 ") == sent.count(b" HTTP/1.")


def test_a_client_that_reads_nothing_is_left() -> None:
    closed = []

    class Large:
        def __iter__(self) -> Iterator[bytes]:
            while True:
                yield bytes(1024 * 1024)

        def close(self) -> None:
            closed.append(True)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Large:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Large()

    with (
        BridgeThread(validator(app), lambda bridge: HTTPServer(bridge, limits=TIMES), threads=1) as server,
        server.send(get()),
    ):
        wait_until(lambda: closed == [True], "the application is told to stop")
        wait_until(lambda: not server.bridge.exchanges.open, "the request has ended")


# Memory.


class Uploads:
    """Clients that have sent all of their bodies but the last byte, as far as they were not refused."""

    def __init__(self, server: BridgeThread, stack: ExitStack, sizes: list[int]) -> None:
        sent = [post(CLOSE, b"Content-Length: %d" % (size + 1), body=b"a" * size) for size in sizes]
        self._clients = [stack.enter_context(server.send(each)) for each in sent]
        spool = server.bridge.spool
        wait_until(lambda: spool.memory.taken + spool.taken == sum(map(len, sent)), "all is there")

    def statuses(self) -> list[int]:
        """What they get when they send the last byte."""
        for client in self._clients:
            client.sendall(b"a")
        return [statuses(to_end(client))[0] for client in self._clients]


def status_of_a_head_in_two_pieces(server: BridgeThread, size: int) -> int:
    """What a client gets whose request takes twice as much memory for a moment."""
    head = get(CLOSE, b"X-A: " + b"a" * size)
    memory = server.bridge.spool.memory
    before = memory.taken
    with server.send(head[:size]) as client:
        wait_until(lambda: memory.taken != before, "the first piece is there")
        client.sendall(head[size:])
        return statuses(to_end(client))[0]


def test_bodies_go_to_the_disk_before_they_take_the_memory_from_others(recorder: Recorder) -> None:
    with BridgeThread(validator(recorder), threads=1, memory_size=4 * MEGABYTE) as server, ExitStack() as stack:
        uploads = Uploads(server, stack, [MEGABYTE - 1] * 4 + [10_000] * 3)
        assert [status_of_a_head_in_two_pieces(server, 3000) for _ in range(3)] == [200] * 3
        assert uploads.statuses() == [200] * 7
        assert server.bridge.spool.memory.taken == 0


def test_those_that_hold_the_most_memory_are_refused_for_others(recorder: Recorder) -> None:
    with BridgeThread(validator(recorder), threads=1, memory_size=MEGABYTE // 4) as server, ExitStack() as stack:
        # Too small for files.
        uploads = Uploads(server, stack, [15_000] * 17)
        assert status_of_a_head_in_two_pieces(server, 6000) == 200
        # No more than needed, and an eighth of the whole.
        assert sorted(uploads.statuses()) == [200] * 14 + [503] * 3
        wait_until(lambda: server.bridge.spool.memory.taken == 0, "all of it is given back")
