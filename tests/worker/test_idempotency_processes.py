"""Processes that share a store of outcomes, crash or are forked."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.forking import is_alive
from tests.support.idempotent import detail
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend

PAYING = """
import os, sys, time

def app(environ, start_response):
    flag = environ["QUERY_STRING"]
    with open("runs", "a") as runs:
        runs.write("run\\n")
    if flag in ("never", "flag"):
        open(flag + ".entered", "w").close()
        while not os.path.exists(flag):
            time.sleep(0.01)
    answer = os.getpid()
    if flag.startswith("fork"):
        answer = os.fork()
        if not answer:
            while not os.path.exists("answered"):
                time.sleep(0.01)
            if flag == "fork-exit":
                sys.exit(0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer).encode()]
"""


@pytest.fixture
def paying(tmp_path: Path) -> Callable[[], Frontend]:
    (tmp_path / "paying.py").write_text(PAYING)
    options = ("--threads=4", "--idempotent_path=/pay*", "--idempotency_store=outcomes.sqlite")
    return lambda: Frontend(("-m", "threadbridge", "paying:app", "--port={port}", *options), cwd=tmp_path)


def ask(server: Frontend, key: str, flag: str = "") -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    with closing(connection):
        # Through a proxy, all would come under one name.
        connection.request("POST", f"/pay?{flag}", body=b"1", headers={"Idempotency-Key": key, "Host": "site"})
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def test_after_a_crash_in_the_middle_nothing_is_run_again(paying: Callable[[], Frontend], tmp_path: Path) -> None:
    with paying() as server:
        assert ask(server, "before")[0] == 200
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(
                b"POST /pay?never HTTP/1.1\r\nHost: site\r\nContent-Length: 1\r\nIdempotency-Key: crashed\r\n\r\n1"
            )
            wait_until(lambda: (tmp_path / "never.entered").exists(), "it runs")
            server.stop(signal.SIGKILL)
    with paying() as server:
        status, body, headers = ask(server, "crashed", "never")
        assert status == 409 and "Retry-After" not in headers
        assert "its process ended before it had answered" in detail(body)
        assert ask(server, "before")[2]["Idempotency-Replayed"] == "true"
        assert (tmp_path / "runs").read_text() == "run\n" * 2
        assert ask(server, "after")[0] == 200


def test_processes_share_what_they_know(paying: Callable[[], Frontend], tmp_path: Path) -> None:
    with paying() as one, paying() as other:
        results: list[tuple[int, bytes, http.client.HTTPMessage]] = []
        barrier = threading.Barrier(16)

        def client(server: Frontend, number: int) -> None:
            barrier.wait(10)
            results.append(ask(server, f"shared-{number}"))

        clients = [threading.Thread(target=client, args=([one, other][n % 2], n // 4)) for n in range(16)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert {status for status, _, _ in results} <= {200, 409}
        assert (tmp_path / "runs").read_text() == "run\n" * 4
        for number in range(4):
            answers = [ask(server, f"shared-{number}") for server in (one, other)]
            assert [status for status, _, _ in answers] == [200, 200] and answers[0][1] == answers[1][1]
        # What runs in one is known in the other, with the process that runs it.
        thread = threading.Thread(target=ask, args=(one, "slow", "flag"))
        thread.start()
        wait_until(lambda: (tmp_path / "flag.entered").exists(), "it runs")
        status, _, headers = ask(other, "slow", "flag")
        assert (status, headers["Retry-After"]) == (409, "1")
        (tmp_path / "flag").touch()
        thread.join()
        assert ask(other, "slow", "flag")[:2] == (200, str(one.process.pid).encode())


@pytest.mark.parametrize("how", ["fork-exit", "fork-return"])
def test_a_forked_child_leaves_the_answer_alone(paying: Callable[[], Frontend], tmp_path: Path, how: str) -> None:
    with paying() as server:
        first = ask(server, "k", how)
        assert first[0] == 200
        (tmp_path / "answered").touch()
        wait_until(lambda: not is_alive(int(first[1])), "the child has ended")
        again = ask(server, "k", how)
        assert again[:2] == first[:2] and again[2]["Idempotency-Replayed"] == "true"
        assert ask(server, "other")[0] == 200
