"""When no thread can be started the server answers what it can, and is well as soon as threads can be started again."""

from __future__ import annotations

import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, free_port
from tests.support.site_process import Process, entered
from threadbridge.common.worker_threads import WorkerThreads
from threadbridge.sockets.inheritance import VARIABLE, Inheritance, Supervision

AS_SOMEBODY = ("setpriv", "--reuid=54321", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")

pytestmark = [
    pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not installed"),
    pytest.mark.skipif(
        os.getuid() == 0 and shutil.which("setpriv") is None,
        reason="root has no limit of threads, and there is no setpriv",
    ),
]


class Limited(Process):
    """A server whose user has a limit of threads; root has none."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        super().__init__(directory, "--port={port}", "--lane=other:/other*:2", "--queue_timeout=1", *arguments)
        if os.getuid() == 0:
            directory.chmod(0o777)
            self.command = [*AS_SOMEBODY, *self.command]

    @contextmanager
    def no_more_threads(self) -> Iterator[None]:
        """Inside the block the server can start no thread."""
        self._limit_threads("1")
        try:
            yield
        finally:
            _, most = resource.getrlimit(resource.RLIMIT_NPROC)
            if self.process.poll() is None:
                self._limit_threads("unlimited" if most == resource.RLIM_INFINITY else str(most))

    def _limit_threads(self, count: str) -> None:
        # As the server's own user: root may lack the capability to limit others.
        command = ["prlimit", f"--pid={self.process.pid}", f"--nproc={count}:"]
        subprocess.run([*AS_SOMEBODY, *command] if os.getuid() == 0 else command, check=True)

    def send(self, path: str, method: str = "GET", body: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), 20)
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        return client

    def status(self, path: str, method: str = "GET", body: bytes = b"") -> int:
        return status_of(self.send(path, method, body))


def status_of(client: socket.socket) -> int:
    with client:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status


def test_a_lane_without_threads_refuses_and_serves_again_by_itself(tmp_path: Path) -> None:
    with Limited(tmp_path) as server:
        assert server.status("/") == 200
        with server.no_more_threads():
            assert [status_of(client) for client in [server.send("/other", "POST") for _ in range(5)]] == [503] * 5
            # A lane that has a thread serves all its requests with it.
            assert [status_of(client) for client in [server.send("/") for _ in range(5)]] == [200] * 5
        waiting = [server.send("/other", "POST") for _ in range(5)]
        assert [status_of(client) for client in waiting] == [200] * 5
        assert server.stop() == 0
        assert server.output().count("no thread threadbridge-other can be started") == 1
        assert "threads threadbridge-other can be started again" in server.output()
        assert "Traceback" not in server.output()


def test_readyz_is_true_about_a_lane_without_threads(tmp_path: Path) -> None:
    port = free_port()
    with Limited(tmp_path, f"--admin_port={port}") as server:

        def ready() -> tuple[int, list[str]]:
            answered = requests.get(f"http://127.0.0.1:{port}/readyz", timeout=20)
            return answered.status_code, answered.text.splitlines()

        healthy = (200, ["lane other: ok", "lane default: ok"])
        assert server.status("/") == 200
        with server.no_more_threads():
            # Nobody has needed one yet.
            assert ready() == healthy
            assert server.status("/other", "POST") == 503
            assert ready() == (503, ["lane other: no thread can run", "lane default: ok"])
            assert server.status("/") == 200
        # Without any request, which a load balancer would not send.
        wait_until(lambda: ready() == healthy, "threads can be started again")


def test_what_waits_for_a_first_thread_is_served_without_another_request(tmp_path: Path) -> None:
    with Limited(tmp_path, "--queue_timeout=20") as server:
        with server.no_more_threads():
            waiting = server.send("/other", "POST")
            wait_until(lambda: "can be started" in server.output(), "the server has tried")
        assert status_of(waiting) == 200


def test_a_thread_that_cannot_help_leaves_what_others_have_claimed_alone(tmp_path: Path) -> None:
    # A thread that takes a request asks for another one for the next; that must not cost the one it has taken.
    with Limited(tmp_path, "--queue_timeout=20") as server:
        assert server.status("/") == 200
        flag = tmp_path / "flag"
        with server.no_more_threads():
            first = server.send(f"/slow?{flag}", "POST")
            wait_until(lambda: entered(flag), "the only thread is at work")
            others = [server.send("/", "POST") for _ in range(5)]
            wait_until(lambda: "can be started" in server.output(), "the server has tried")
            flag.touch()
            assert [status_of(client) for client in (first, *others)] == [200] * 6


def test_a_cancellation_waits_for_its_thread(tmp_path: Path) -> None:
    with Limited(tmp_path) as server:
        assert server.status("/") == 200
        flag = tmp_path / "flag"
        with server.no_more_threads():
            client = server.send(f"/cancellable?{flag}")
            wait_until(lambda: entered(flag), "it runs")
            client.close()
            wait_until(
                lambda: "no thread threadbridge-cancel can be started" in server.output(), "the server has tried"
            )
            assert not flag.exists()
        wait_until(flag.exists, "it is cancelled")
        assert server.stop() == 0


def test_a_body_that_no_thread_can_write_out_is_refused(tmp_path: Path) -> None:
    with Limited(tmp_path) as server:
        body = bytes(3 * 1024**2)
        assert server.status("/") == 200
        with server.no_more_threads(), socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
            client.sendall(body[: 1024**2 + 1])
            assert client.recv(12) == b"HTTP/1.1 503"
            assert server.status("/") == 200
        assert server.status("/", "POST", body) == 200
        assert server.stop() == 0


def test_it_stops_without_another_thread(tmp_path: Path) -> None:
    with Limited(tmp_path) as server:
        assert server.status("/") == 200
        flag = tmp_path / "flag"
        with server.no_more_threads():
            running = server.send(f"/slow?{flag}", "POST")
            wait_until(lambda: entered(flag), "it runs")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "SIGTERM: stopping" in server.output(), "it has been told")
            flag.touch()
            assert status_of(running) == 200
            assert server.process.wait(20) == 0
        assert "stopped, every request is answered" in server.output()
        assert "Traceback" not in server.output()


def test_a_process_takes_what_its_supervisor_hands_it_without_another_thread() -> None:
    channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stacks_file, supervision = os.memfd_create("stacks"), os.memfd_create("supervision")
    Supervision(processes=9, failures=2, reloaded=False).write(supervision)
    inheritance = Inheritance(7, os.getpid(), theirs, [], [], None, stacks_file, start_limit=0, supervision=supervision)
    program = (
        "from threadbridge.sockets.inheritance import Supervision, take_inheritance; inherited = take_inheritance(); "
        "print(inherited.number, *Supervision.read(inherited.supervision))"
    )
    command = ["prlimit", "--nproc=1:1", sys.executable, "-c", program]
    with channel, theirs:
        ended = subprocess.run(
            [*AS_SOMEBODY, *command] if os.getuid() == 0 else command,
            env={**os.environ, VARIABLE: inheritance.as_text(), "PYTHONPATH": str(ROOT)},
            pass_fds=inheritance.descriptors(),
            capture_output=True,
            text=True,
            timeout=30,
        )
    os.close(stacks_file)
    os.close(supervision)
    assert ended.stdout == "7 9 2 False\n"
    [line] = ended.stderr.splitlines()
    assert line.startswith("cannot start the thread that notices the supervisor's death")


def test_a_new_thread_waits_until_there_is_memory_for_it() -> None:
    class Full(set[int]):
        had = 0

        def add(self, number: int) -> None:
            self.had += 1
            if self.had < 3:
                raise MemoryError
            super().add(number)

    lock, threads, ran = threading.Lock(), Full(), threading.Semaphore(0)

    def work() -> None:
        ran.release()
        with lock:
            workers.release()

    workers = WorkerThreads("test", 1, work, lock)
    workers._executor._initargs = (threads,)
    for _ in range(2):
        with lock:
            assert workers.call()
        assert ran.acquire(timeout=10)
    assert len(threads) == 1
    workers.close()
    workers.join()
