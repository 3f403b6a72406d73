"""Several addresses, inherited sockets, and those that systemd passes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.sockets.test_listeners import ask_unix
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from tests.support.site_process import Process, entered
from threadbridge.settings.values import Address, address_of

# Runs a command with the sockets that follow, in the way of systemd: descriptors from 3 on, for this very process.
AS_SYSTEMD = """
import os, sys
count = int(sys.argv[1])
held = [os.dup(int(number)) for number in sys.argv[2:2 + count]]
high = [os.dup2(each, 100 + place) for place, each in enumerate(held)]
for place, each in enumerate(high):
    os.dup2(each, 3 + place)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=":".join(["shop.socket"] * count))
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Passed(Process):
    """A process to which sockets are passed: as systemd does it, or under the numbers that they have here."""

    def __init__(self, directory: Path, *arguments: str, sockets: list[socket.socket], as_systemd: bool = True) -> None:
        # The title of a process would take the place of its variables in `/proc`.
        super().__init__(directory, *arguments, env={"SPT_NOENV": "1"})
        self._numbers = [each.fileno() for each in sockets]
        if as_systemd:
            numbers = map(str, self._numbers)
            self.command = [sys.executable, "-c", AS_SYSTEMD, str(len(sockets)), *numbers, *self.command]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.env,
            cwd=self.cwd,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=self._numbers,
        )
        wait_until(lambda: "Serving on" in self.output() or self.process.poll() is not None, "ready")


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
        listener.bind((address, 0))
        listener.listen(100)
        yield listener


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("shop.example.com:80", Address("shop.example.com", 80)),
        (":8000", Address("", 8000)),
        ("[::1]:8000", Address("::1", 8000)),
        ("[fe80::1%eth0]:8000", Address("fe80::1%eth0", 8000)),
        ("unix:/run/shop.sock", Address(path="/run/shop.sock")),
        ("unix:///run/shop.sock", Address(path="/run/shop.sock")),
        ("fd:3", Address(descriptor=3)),
        ("fd://3", Address(descriptor=3)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text", ["8000", "127.0.0.1", "::1:8000", "a:65536", "a:-1", "unix:", "fd:x", "http://a:1", ""]
)
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        address_of(text)


def test_all_addresses_are_served(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "s"
    with listening() as inherited:
        addresses = (f"127.0.0.1:{port}", f"[::1]:{port}", f"unix:{path}", f"fd:{inherited.fileno()}")
        options = [f"--bind={address}" for address in addresses]
        urls = [f"http://{host}/" for host in (*addresses[:2], f"127.0.0.1:{inherited.getsockname()[1]}")]
        with Passed(tmp_path, *options, sockets=[inherited], as_systemd=False) as server:
            expected = f"http {server.process.pid}"
            assert [requests.get(url, timeout=30).text for url in urls] == [expected] * 3
            assert ask_unix(path).endswith(expected.encode())
            assert f"Serving on {urls[0]} and {urls[1]} and unix:{path} and {urls[2]} (pid" in server.output()
            assert server.stop() == 0
            assert not path.exists()


def test_processes_share_what_they_cannot_open_several_times(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "s"
    with Process(tmp_path, f"--bind=127.0.0.1:{port}", f"--bind=unix:{path}", "--processes=2") as server:
        pids = {requests.get(f"http://127.0.0.1:{port}/", timeout=30).text for _ in range(40)}
        assert len(pids) == 2
        assert ask_unix(path).rpartition(b"\r\n\r\n")[2].decode() in pids
        assert server.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--bind=192.0.2.1:8000", "cannot listen on 192.0.2.1:8000: Cannot assign requested address"),
        ("--bind=fd:0", "cannot listen on fd:0: "),
    ],
)
def test_one_that_cannot_be_had_is_one_clear_line(tmp_path: Path, option: str, error: str) -> None:
    path = tmp_path / "s"
    ended = Process(tmp_path, f"--bind=unix:{path}", option).run_to_its_end()
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"python -m threadbridge: {error}")
    # What had been opened before it.
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--bind=8000"], "--bind=8000: expected HOST:PORT"),
        (["--bind=:1", "--port=2"], "bind and port: give one of them"),
        (["--bind=:1", "--unix_socket=/run/s"], "bind and unix_socket: give one of them"),
    ],
)
def test_contradictions_are_one_clear_line(tmp_path: Path, options: list[str], error: str) -> None:
    ended = Process(tmp_path, *options).run_to_its_end()
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"python -m threadbridge: {error}")


def test_systemds_sockets_outlive_the_process_and_no_connection_is_refused(tmp_path: Path) -> None:
    answers: list[str] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                answers.append(requests.get(url, timeout=60).text)
            except requests.RequestException as error:
                failures.append(error)

    with listening() as first, listening("::1") as second:
        client = threading.Thread(target=ask, args=(f"http://127.0.0.1:{first.getsockname()[1]}/",))
        pids = []
        try:
            for _ in range(2):
                with Passed(tmp_path, "--port=1", sockets=[first, second]) as server:
                    pids.append(server.process.pid)
                    if not client.is_alive():
                        client.start()
                    wait_until(lambda: answers[-1:] == [f"http {pids[-1]}"], "the new process answers")
                    other = requests.get(f"http://[::1]:{second.getsockname()[1]}/", timeout=30)
                    assert other.text == f"http {pids[-1]}"
                    assert server.stop() == 0
                    assert f"and http://[::1]:{second.getsockname()[1]}/ (pid" in server.output()
        finally:
            stop.set()
            # It may be waiting for the next process.
            with suppress(OSError):
                first.shutdown(socket.SHUT_RDWR)
            client.join(60)
    # The last one may have been cut by the end of this test.
    assert len(failures) <= 1
    assert set(answers) == {f"http {pid}" for pid in pids}


def test_a_supervisor_shares_systemds_socket_and_hides_it_from_its_processes(tmp_path: Path) -> None:
    with listening() as listener, Passed(tmp_path, "--processes=2", sockets=[listener]) as server:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        pid = int(requests.get(url, timeout=30).text.split()[1])
        assert pid != server.process.pid
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"SPT_NOENV" in environment and b"LISTEN_" not in environment
        assert server.stop() == 0
        # It still listens.
        socket.create_connection(listener.getsockname()).close()


def test_sockets_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with Process(tmp_path, "--port={port}", env={"LISTEN_FDS": "1", "LISTEN_PID": "1"}) as server:
        assert requests.get(server.url, timeout=30).text == f"http {server.process.pid}"


def test_a_passed_socket_that_does_not_listen_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as idle, Passed(tmp_path, sockets=[idle]) as server:
        assert server.process.wait(30) == 1
        assert server.output() == (
            "python -m threadbridge: cannot listen on the socket shop.socket of systemd: expected a listening stream "
            "socket (in systemd: ListenStream=, and Accept=no)\n"
        )


def test_systemd_itself_passes_the_socket(tmp_path: Path) -> None:
    port, flag = free_port(), tmp_path / "flag"
    server = Process(tmp_path)
    names = ("PYTHONPATH", "TMPDIR", "PYTHONUNBUFFERED", "THREADBRIDGE_COMPILED")
    variables = [f"--setenv={name}={server.env[name]}" for name in names if name in server.env]
    server.command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *variables, *server.command]
    clients: list[socket.socket] = []

    def connects() -> bool:
        with suppress(ConnectionRefusedError):
            clients.append(socket.create_connection(("127.0.0.1", port), 30))
        return bool(clients)

    server.process = subprocess.Popen(server.command, cwd=tmp_path, stderr=server._output)
    try:
        wait_until(connects, "systemd listens")
        with clients[0] as client:
            # The first connection starts the server, which has the same pid.
            client.sendall(f"GET /slow?{flag} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: entered(flag), "the request runs")
            server.process.send_signal(signal.SIGTERM)
            flag.touch()
            answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert answer.endswith(f"http {server.process.pid}".encode())
        assert server.process.wait(30) == 0
    finally:
        server.__exit__(None, None, None)
