"""What becomes of a forwarded request when a host fails or refuses it, and what is never repeated."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from tests.support.inprocess import BridgeThread, reset, wait_until
from tests.support.processes import free_port
from tests.support.raw_server import OK, RawServer, answering
from tests.support.remote_lane import NEVER_RAN, application, frontend, hosts, record_of
from threadbridge.common import forks

BAD = {
    "no HTTP": (b"hello\r\n\r\n", "http_protocol_error"),
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "http_protocol_error",
    ),
    "another protocol": (b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "http_protocol_error"),
    "a head without end": (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "http_protocol_error"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "connection_terminated"),
    "nothing": (b"", "connection_terminated"),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("sent", "error"), BAD.values(), ids=BAD)
def test_a_bad_answer_gives_502_and_is_not_repeated(
    sent: bytes, error: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RawServer(answering(sent, keeps=False)) as far,
        RawServer(answering(OK)) as other,
        frontend(far.url, other.url) as near,
    ):
        # Whose turn it is does not matter.
        answers = [near.request(method, "/far/")[0] for _ in range(2)]
        [bad] = [answer for answer in answers if answer.status == 502]
        assert bad.headers["Proxy-Status"] == f"threadbridge; error={error}"
        assert len(far.requests) == len(other.requests) == 1
        [record] = [found for found in (record_of(near), record_of(near)) if found.status == 502]
        assert (record.ending, record.upstream, record.upstream_error) == ("failed", far.url, error)
        assert f"may have run on {far.url}" in caplog.text
        # It is left out.
        assert near.request(method, "/far/")[0].status == 200
        assert len(far.requests) == 1
        wait_until(lambda: near.bridge.lanes[0].busy == 0, "nothing is left")


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nZ",
    ],
)
def test_a_response_cut_short_is_cut_short_for_the_client(sent: bytes) -> None:
    with RawServer(answering(sent, keeps=False)) as far, frontend(far.url) as near:
        answer = near.exchange(b"GET /far/ HTTP/1.1\r\nHost: a\r\n\r\n")
        # Neither the length nor the last chunk is reached.
        assert b"half" in answer and not answer.endswith((b"0\r\n\r\n", b"half" * 2))
        assert (record := record_of(near)).ending == "failed" and record.upstream_error
        assert len(far.requests) == 1


def test_no_host_can_be_reached() -> None:
    with frontend(f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}") as near:
        for _ in range(2):
            response, _ = near.request("POST", "/far/", body=b"x")
            assert response.status == 503 and response.headers["X-Threadbridge-Ran"] == "no"
            assert int(response.headers["Retry-After"]) >= 1
            assert response.headers["Proxy-Status"] == "threadbridge; error=destination_unavailable"
            record = record_of(near)
            assert (record.ending, record.has_run, record.upstream_error) == ("shed", False, "destination_unavailable")
        # The others are served.
        assert near.request("GET", "/")[0].status == 200


def test_a_host_that_was_down_gets_requests_again(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    caplog.set_level(logging.INFO, "threadbridge")
    with RawServer(answering(OK)) as other, frontend(f"http://127.0.0.1:{port}", other.url) as near:
        for _ in range(20):
            assert near.request("POST", "/far/", body=b"x")[0].status == 200
        host = hosts(near)[0]
        assert not host.is_up and host.failed == 1
        assert f"http://127.0.0.1:{port} is left out" in caplog.text
        with BridgeThread(application, threads=1) as far:
            host._origin = host._origin._replace(port=far.port)
            wait_until(lambda: near.request("POST", "/far/", body=b"x")[0].status == 200 and host.is_up, "it is back")
            assert "answers again" in caplog.text
            wait_until(
                lambda: near.request("GET", "/far/")[0].status == 200 and host.answered > 5, "it takes its share"
            )


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_request_that_a_host_refused_unrun_goes_to_the_next(size: int) -> None:
    with (
        RawServer(answering(NEVER_RAN)) as full,
        BridgeThread(application, threads=1) as far,
        frontend(full.url, f"http://127.0.0.1:{far.port}") as near,
    ):
        for _ in range(4):
            response, body = near.request("POST", "/far/", body=b"x" * size)
            assert response.status == 200 and json.loads(body)["length"] == size
        refused, answered = hosts(near)
        assert (refused.refused, refused.failed, answered.answered) == (len(full.requests), 0, 4)
        # It is full, not broken.
        assert len(full.requests) >= 2 and refused.is_up


def test_a_refusal_before_the_body_has_been_sent_leaves_it_whole_for_the_next_host() -> None:
    body = os.urandom(6_000_000)
    digests: list[str] = []

    def digest(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        digests.append(hashlib.sha256(environ["wsgi.input"].read()).hexdigest())
        start_response("200 OK", [])
        return []

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        BridgeThread(digest, threads=1) as far,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}", f"http://127.0.0.1:{far.port}") as near,
    ):
        for size in (0, 1, 1000, 200_000, 1_500_000):
            # Its turn, if it is the first of the two again.
            near.loop.call_soon_threadsafe(setattr, next(iter(near.bridge.forwarding.upstreams.values())), "_next", 1)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(near.request, "POST", "/far/", body)
                full, _ = listener.accept()
                with full:
                    # So much of it has been read when the refusal comes.
                    received = len(full.recv(1))
                    while received < size:
                        received += len(full.recv(65536))
                    full.sendall(NEVER_RAN)
                    assert answer.result()[0].status == 200
        assert digests == [hashlib.sha256(body).hexdigest()] * 5
        wait_until(lambda: near.bridge.spool.taken == 0, "the disk is free")


def test_if_all_hosts_refuse_the_client_gets_their_answer() -> None:
    with (
        RawServer(answering(NEVER_RAN)) as one,
        RawServer(answering(NEVER_RAN)) as other,
        frontend(one.url, other.url) as near,
    ):
        response, body = near.request("POST", "/far/", body=b"x")
        assert (response.status, body) == (503, b"full")
        assert (response.headers["Retry-After"], response.headers["X-Threadbridge-Ran"]) == ("7", "no")
        assert len(one.requests) == len(other.requests) == 1


def test_a_503_that_may_have_run_goes_to_the_client() -> None:
    sent = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"
    with RawServer(answering(sent)) as one, RawServer(answering(sent)) as other, frontend(one.url, other.url) as near:
        response, _ = near.request("GET", "/far/")
        assert (response.status, response.headers["Retry-After"]) == (503, "9")
        assert len(one.requests) + len(other.requests) == 1


def test_a_full_bridge_says_that_a_request_has_not_run() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def wait(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        entered.set()
        assert go_on.wait(20)
        start_response("200 OK", [])
        return [b"far"]

    with BridgeThread(wait, threads=1, queue=0) as full, BridgeThread(application, threads=2) as far:
        client = full.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert entered.wait(30)
        response, _ = full.request("POST", "/")
        assert (response.status, response.headers["X-Threadbridge-Ran"]) == (503, "no")
        with frontend(f"http://127.0.0.1:{full.port}", f"http://127.0.0.1:{far.port}") as near:
            for _ in range(4):
                assert json.loads(near.request("POST", "/far/", body=b"x" * 200_000)[1])["length"] == 200_000
            assert hosts(near)[0].refused >= 1
        go_on.set()
        client.close()


def test_a_host_that_closes_all_connections_at_once_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a balancer without a server behind it: it must not get one connection after the other."""
    accepted = 0
    connects = forks.connects

    def reset_all() -> None:
        nonlocal accepted
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                accepted += 1
                reset(client)

    def connects_late(stream: Any) -> None:
        """Gives this host's reset the time to arrive before anything is sent."""
        connects(stream)
        if stream.socket.getpeername() == listener.getsockname():
            poll = select.poll()
            poll.register(stream.socket, 0)
            assert poll.poll(10_000)

    monkeypatch.setattr(forks, "connects", connects_late)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        RawServer(answering(OK)) as other,
        frontend(f"http://127.0.0.1:{listener.getsockname()[1]}", other.url) as near,
        ThreadPoolExecutor(1) as pool,
    ):
        pool.submit(reset_all)
        closing, answering_host = hosts(near)
        # Its turn, if it is the first of the two again.
        near.loop.call_soon_threadsafe(setattr, next(iter(near.bridge.forwarding.upstreams.values())), "_next", 1)
        assert near.request("POST", "/far/", body=b"x")[0].status == 200
        assert (accepted, closing.failed, closing.is_up, answering_host.answered) == (1, 1, False, 1)
        listener.shutdown(socket.SHUT_RDWR)


def test_a_body_that_cannot_be_read_is_no_failure_of_the_host(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(client: socket.socket, request: bytes) -> bool:
        # The body has been read from the disk once. From now on there is no thread for that.
        near.bridge.spool.threads.shutdown()
        client.sendall(NEVER_RAN)
        return True

    with RawServer(refuse) as full, RawServer(answering(OK)) as other, frontend(full.url, other.url) as near:
        # Its turn, if it is the first of the two again.
        near.loop.call_soon_threadsafe(setattr, next(iter(near.bridge.forwarding.upstreams.values())), "_next", 1)
        response, _ = near.request("POST", "/far/", body=b"x" * 3_000_000)
        assert response.status == 500
        assert response.headers["Proxy-Status"] == "threadbridge; error=proxy_internal_error"
        assert "cannot be forwarded: no thread can be started" in caplog.text
        refused, second = hosts(near)
        assert (refused.refused, second.failed) == (1, 0) and second.is_up
        wait_until(lambda: (near.bridge.lanes[0].busy, second.connections) == (0, 0), "nothing is left")
        wait_until(lambda: near.bridge.spool.taken == 0, "the disk is free")
