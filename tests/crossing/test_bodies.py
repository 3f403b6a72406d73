"""Large bodies and slow clients, in both directions: what they cost, and that every byte arrives."""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import os
import random
import re
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.validate import validator

import pytest

from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.site_process import Process
from threadbridge.crossing.spool import PART_PER_CLIENT

PLAIN = [("Content-Type", "text/plain")]
MEGABYTE = 1024 * 1024
# What one client may have of the disk in some tests.
QUOTA = 16 * MEGABYTE
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def digest(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answers with the length and the hash of the request's body."""
    total, seen = 0, hashlib.sha256()
    while piece := environ["wsgi.input"].read(100_000):
        total += len(piece)
        seen.update(piece)
    start_response("200 OK", PLAIN)
    length = environ.get("CONTENT_LENGTH", "none")
    return [f"{length} {total} {seen.hexdigest()}".encode()]


def expected(body: bytes) -> bytes:
    return f"{len(body)} {len(body)} {hashlib.sha256(body).hexdigest()}".encode()


@pytest.mark.parametrize("size", [1, MEGABYTE - 1, MEGABYTE, MEGABYTE + 1, 5 * MEGABYTE])
@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
def test_an_upload_arrives_whole(size: int, framing: str) -> None:
    body = random.Random(size).randbytes(size)
    with BridgeThread(validator(digest), threads=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        for _ in range(2):
            if framing == "chunked":
                pieces = (body[start : start + 70_000] for start in range(0, size, 70_000))
                connection.request("POST", "/", body=pieces, encode_chunked=True)
            else:
                connection.request("POST", "/", body=body)
            assert connection.getresponse().read() == expected(body)
        connection.close()
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")


def test_wsgi_input_is_a_complete_file_in_memory_and_on_disk() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        body: Any = environ["wsgi.input"]
        parts = [body.readline(), body.readline(5), body.read(3), *body.readlines(20), *body, body.read(), body.read(1)]
        start_response("200 OK", PLAIN)
        return parts

    for lines in (20, 400_000):
        body = b"".join(b"%d\n" % number for number in range(lines))
        with BridgeThread(app, threads=1) as server:
            assert server.request("POST", body=body)[1] == body


def test_stalled_uploads_take_no_thread() -> None:
    with BridgeThread(digest, threads=1) as server:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\nConnection: close\r\n\r\n"
        stalled = [server.send(head + bytes(2_000_000)) for _ in range(20)]
        wait_until(lambda: len(server.bridge.exchanges.open) == 20, "all have arrived")
        assert server.bridge.lanes[-1].busy == 0
        assert server.request("POST", body=b"small")[1] == expected(b"small")
        for client in stalled:
            client.sendall(bytes(1_000_000))
        for client in stalled:
            response = http.client.HTTPResponse(client)
            response.begin()
            assert response.read() == expected(bytes(3_000_000))
            client.close()


def test_an_upload_whose_client_leaves_is_thrown_away() -> None:
    gate = threading.Event()
    calls: list[str] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        calls.append(environ["REQUEST_METHOD"])
        assert gate.wait(20)
        start_response("200 OK", PLAIN)
        return [b"done"]

    with BridgeThread(app, threads=1) as server:
        running = server.send(GET)
        wait_until(lambda: calls == ["GET"], "the thread is taken")
        post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n"
        partial, queued = server.send(post + bytes(2_000_000)), server.send(post + bytes(3_000_000))
        wait_until(lambda: server.bridge.lanes[-1].queued == 1, "one upload is complete")
        wait_until(lambda: server.bridge.spool.taken > 3_000_000, "both are on the disk")
        partial.close()
        reset(queued)
        wait_until(lambda: len(server.bridge.exchanges.open) == 1, "both have left")
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")
        gate.set()
        running.close()
    assert calls == ["GET"]


@pytest.mark.parametrize("reason", ["spool", "directory"])
def test_an_upload_without_room_on_the_disk_fails_alone(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if reason == "spool" else tmp_path / "missing"))
    with BridgeThread(digest, threads=1, spool_size=2 * MEGABYTE if reason == "spool" else 2**40) as server:
        response, _ = server.request("POST", body=bytes(4 * MEGABYTE))
        assert response.status == (507 if reason == "spool" else 500)
        assert "cannot write its body to a temporary file" in caplog.text
        assert server.request("POST", body=b"small")[1] == expected(b"small")
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")


def test_uploads_without_room_cost_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with BridgeThread(digest, threads=1, spool_size=2 * MEGABYTE) as server:
        assert [server.request("POST", body=bytes(4 * MEGABYTE))[0].status for _ in range(5)] == [507] * 5
    assert caplog.text.count("cannot write its body to a temporary file") == 1


def test_responses_without_a_disk_cost_one_line_and_wait_for_their_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    size, count = 16 * MEGABYTE, 3
    with BridgeThread(Stream([bytes(MEGABYTE)] * 16), threads=count) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.send(GET)) for _ in range(count)]
        wait_until(
            lambda: sum(map(waits_for_its_client, list(server.bridge.exchanges.open))) == count, "none has a file"
        )
        for client in clients:
            response = http.client.HTTPResponse(client)
            response.begin()
            assert len(response.read()) == size
    assert caplog.text.count("cannot write a response to a temporary file") == 1 and "Traceback" not in caplog.text


def waits_for_its_client(exchange: Any) -> bool:
    return exchange._channel is not None and not exchange._channel._may_spill


class Stream:
    """An application that yields the given pieces; ``made`` counts them, ``closed`` the calls of close()."""

    def __init__(self, pieces: Iterable[bytes], length: int | None = None) -> None:
        self.made = 0
        self.closed = 0
        self._pieces = pieces
        self._length = length

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/":
            start_response("200 OK", PLAIN)
            return [b"quick"]
        headers = [*PLAIN] if self._length is None else [*PLAIN, ("Content-Length", str(self._length))]
        start_response("200 OK", headers)
        return self

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.made += 1
            yield piece

    def close(self) -> None:
        self.closed += 1


def read_all(client: socket.socket) -> bytes:
    response = http.client.HTTPResponse(client)
    response.begin()
    try:
        return response.read()
    finally:
        client.close()


def pieces_of(size: int, seed: int, largest: int) -> list[bytes]:
    source = random.Random(seed)
    pieces = []
    while size:
        count = min(size, source.randint(1, largest))
        pieces.append(source.randbytes(count))
        size -= count
    return pieces


@pytest.mark.parametrize("announced", [True, False])
def test_a_stalled_download_within_the_limit_takes_no_thread(announced: bool) -> None:
    pieces = pieces_of(8 * MEGABYTE, 1, 200_000)
    app = Stream(pieces, 8 * MEGABYTE if announced else None)
    with BridgeThread(app, threads=1) as server:
        clients = [server.send(GET) for _ in range(3)]
        wait_until(lambda: app.closed == 3, "all three are made, though none is read")
        assert server.request(path="/quick")[1] == b"quick"
        for client in clients:
            assert read_all(client) == b"".join(pieces)
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")


def stands_still(progress: Callable[[], int]) -> Callable[[], bool]:
    """A condition: the progress has been the same for 20 looks."""
    looks = [0, -1]

    def condition() -> bool:
        now = progress()
        looks[0] = looks[0] + 1 if now == looks[1] else 0
        looks[1] = now
        return looks[0] >= 20

    return condition


@pytest.mark.parametrize("quota", [QUOTA, 0])
def test_a_stalled_download_beyond_the_limit_stops_the_application(quota: int) -> None:
    pieces = pieces_of(40 * MEGABYTE, 2, 100_000)
    app = Stream(pieces)
    with BridgeThread(app, threads=1, spool_size=quota * PART_PER_CLIENT) as server:
        client = server.send(GET)
        wait_until(stands_still(lambda: app.made), "the application waits")
        made = sum(map(len, pieces[: app.made]))
        # What the kernel's socket buffers took comes on top.
        assert made < quota + 8 * MEGABYTE
        assert server.bridge.spool.taken == quota
        assert read_all(client) == b"".join(pieces)
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")
        assert app.closed == 1


def test_a_client_that_leaves_a_stalled_download_frees_everything() -> None:
    app = Stream([bytes(MEGABYTE)] * 100)
    with BridgeThread(app, threads=1, spool_size=QUOTA * PART_PER_CLIENT) as server:
        client = server.send(GET)
        wait_until(stands_still(lambda: app.made), "the application waits")
        client.close()
        wait_until(lambda: app.closed == 1, "close() is called")
        wait_until(lambda: server.bridge.spool.taken == 0, "the disk space is given back")
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
        assert server.request(path="/quick")[1] == b"quick"


def test_a_reader_now_fast_now_slow_gets_every_byte() -> None:
    pieces = pieces_of(60 * MEGABYTE, 3, 600_000)
    app = Stream(pieces)
    with BridgeThread(app, threads=1, spool_size=QUOTA * PART_PER_CLIENT) as server:
        client = server.send(GET)
        response = http.client.HTTPResponse(client)
        response.begin()
        received = b""
        for _ in range(4):
            wait_until(stands_still(lambda: app.made), "the application waits")
            received += response.read(14 * MEGABYTE)
        received += response.read()
        client.close()
        assert received == b"".join(pieces)


def test_a_large_list_body_is_not_kept_in_memory_by_a_slow_client() -> None:
    body = random.Random(4).randbytes(12 * MEGABYTE)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [body]

    with BridgeThread(app, threads=1) as server:
        client = server.send(GET)
        wait_until(lambda: server.bridge.spool.taken > 4 * MEGABYTE, "it is on the disk")
        wait_until(lambda: server.bridge.lanes[-1].busy == 0, "the thread is free")
        assert read_all(client) == body


class Files:
    """Sends ``path`` from ``position`` by wsgi.file_wrapper; notes each close() and its thread."""

    def __init__(self, path: Path, position: int = 0, length: int | None = None) -> None:
        self.closed: list[str] = []
        self._path = path
        self._position = position
        self._length = length

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/":
            start_response("200 OK", PLAIN)
            return [b"quick"]
        file = io.FileIO(self._path)
        file.seek(self._position)
        closed = self.closed

        class Noting(io.BufferedReader):
            def close(self) -> None:
                if not self.closed:
                    closed.append(threading.current_thread().name)
                super().close()

        headers = [*PLAIN] if self._length is None else [*PLAIN, ("Content-Length", str(self._length))]
        start_response("200 OK", headers)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](Noting(file), 4096)
        return wrapped


@pytest.mark.parametrize(("position", "length"), [(0, None), (1000, None), (1000, 5_000_000)])
def test_a_file_takes_no_thread(position: int, length: int | None, tmp_path: Path) -> None:
    content = random.Random(5).randbytes(20 * MEGABYTE)
    (tmp_path / "file").write_bytes(content)
    app = Files(tmp_path / "file", position, length)
    with BridgeThread(app, threads=1) as server:
        clients = [server.send(GET) for _ in range(3)]
        wait_until(lambda: len(app.closed) == 3, "the worker is done with all three")
        assert all(name.startswith("threadbridge-default") for name in app.closed)
        assert server.request(path="/quick")[1] == b"quick"
        assert server.bridge.spool.taken == 0
        for client in clients:
            assert read_all(client) == content[position:][:length]
        response, body = server.request("HEAD")
        assert body == b"" and response.status == 200
    assert len(app.closed) == 4


def test_files_that_shrink_while_they_are_sent_are_cut_with_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tornado.access")
    path = tmp_path / "file"
    path.write_bytes(bytes(20 * MEGABYTE))
    app = Files(path)
    with BridgeThread(app, threads=1) as server:
        clients = [server.send(GET) for _ in range(3)]
        wait_until(lambda: len(app.closed) == 3, "the sending has begun")
        os.truncate(path, 10 * MEGABYTE)
        for client in clients:
            with pytest.raises(http.client.IncompleteRead):
                read_all(client)
    assert len([message for message in caplog.messages if "shorter while it was being sent" in message]) == 1
    assert len(re.findall(f'"GET / HTTP/1.1" 200 {10 * MEGABYTE} .* ending=failed', caplog.text)) == 3


@pytest.mark.parametrize("change", ["removed", "renamed", "replaced"])
def test_a_file_whose_name_goes_while_it_is_sent_is_sent_to_its_end(change: str, tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    content = random.Random(7).randbytes(20 * MEGABYTE)
    path.write_bytes(content)
    other.write_bytes(b"new")
    app = Files(path)
    with BridgeThread(app, threads=1) as server:
        client = server.send(GET)
        wait_until(lambda: bool(app.closed), "the sending has begun")
        if change == "removed":
            path.unlink()
        elif change == "renamed":
            path.rename(other)
        else:
            other.rename(path)
        assert read_all(client) == content


def test_something_like_a_file_is_read_by_its_methods() -> None:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(bytes(3 * MEGABYTE)))
        return wrapped

    with BridgeThread(app, threads=1) as server:
        assert server.request()[1] == bytes(3 * MEGABYTE)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_client_that_resets_its_upload_is_noticed(tmp_path: Path, loop: str) -> None:
    head = b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1500000\r\n\r\n"
    with Process(tmp_path, "--port={port}", f"--loop={loop}") as server:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                # More than is read at once, so that the reset arrives while some of it waits.
                client.sendall(head + bytes(1_400_000))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Long before the body's time is over.
        wait_until(lambda: server.output().count('"POST /reset HTTP/1.1" 499') == 10, "all of them are noticed")
