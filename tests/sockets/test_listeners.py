"""What a process listens on: Unix sockets, TCP ports, shared ports, HTTPS."""

from __future__ import annotations

import errno
import select
import signal
import socket
import ssl
import stat
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests
from tornado.netutil import bind_sockets

from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from tests.support.site_process import Process, entered
from threadbridge.sockets.listeners import leave_new_connections_to_others


def ask_unix(path: Path, target: str = "/") -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


# Unix sockets.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_a_unix_socket_is_served_and_removed(tmp_path: Path, path: Path) -> None:
    with Process(tmp_path, f"--unix_socket={path}", "--unix_socket_mode=620") as server:
        assert f"Serving on unix:{path} (pid {server.process.pid})" in server.output()
        assert stat.filemode(path.stat().st_mode) == "srw--w----"
        assert ask_unix(path).endswith(f"http {server.process.pid}".encode())
        assert server.stop() == 0
        assert not path.exists()


def test_only_the_owner_may_connect_unless_told_otherwise(tmp_path: Path, path: Path) -> None:
    with Process(tmp_path, f"--unix_socket={path}"):
        assert stat.filemode(path.stat().st_mode) == "srw-------"


def test_a_socket_file_that_was_left_behind_is_replaced(tmp_path: Path, path: Path) -> None:
    with Process(tmp_path, f"--unix_socket={path}") as killed:
        killed.process.kill()
        killed.process.wait()
    assert path.is_socket()
    with Process(tmp_path, f"--unix_socket={path}") as server:
        assert ask_unix(path).endswith(f"http {server.process.pid}".encode())


def test_a_socket_in_use_stays_with_its_owner(tmp_path: Path, path: Path) -> None:
    with Process(tmp_path, f"--unix_socket={path}") as owner:
        second = Process(tmp_path, f"--unix_socket={path}").run_to_its_end()
        assert second.returncode == 1
        assert second.stderr == f"python -m threadbridge: cannot listen on {path}: Address already in use\n"
        assert ask_unix(path).endswith(f"http {owner.process.pid}".encode())


def test_a_file_that_is_no_socket_is_spared(tmp_path: Path, path: Path) -> None:
    path.write_text("precious")
    ended = Process(tmp_path, f"--unix_socket={path}").run_to_its_end()
    assert ended.returncode == 1
    assert ended.stderr == f"python -m threadbridge: cannot listen on {path}: Address already in use\n"
    assert path.read_text() == "precious"


def test_a_process_that_drains_leaves_its_successors_socket_alone(tmp_path: Path, path: Path) -> None:
    flag = tmp_path / "flag"
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(ask_unix(path, f"/slow?{flag}")))
    with Process(tmp_path, f"--unix_socket={path}") as old:
        client.start()
        wait_until(lambda: entered(flag), "the old process at work")
        old.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not path.exists(), "the old socket is given up")
        with Process(tmp_path, f"--unix_socket={path}") as new:
            flag.touch()
            assert old.process.wait(30) == 0
            client.join(10)
            assert answers[0].endswith(f"http {old.process.pid}".encode())
            assert ask_unix(path).endswith(f"http {new.process.pid}".encode())


# TCP ports.


@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.0.2.1", "Cannot assign requested address"), ("no.such.host.invalid", "")],
)
def test_an_address_that_cannot_be_had_is_one_clear_line(tmp_path: Path, address: str, reason: str) -> None:
    ended = Process(tmp_path, f"--address={address}", "--port=8000").run_to_its_end()
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"python -m threadbridge: cannot listen on {address}:8000: {reason}")


def test_a_new_process_takes_over_a_shared_port_and_no_request_is_lost(tmp_path: Path) -> None:
    stop = threading.Event()
    answers: list[str] = []
    failures: list[BaseException] = []

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                # A connection for each request: keep-alive would hide what happens to new ones.
                answers.append(requests.get(url, timeout=30).text)
            except requests.RequestException as error:
                failures.append(error)

    port = free_port()
    pids = []
    clients = [threading.Thread(target=ask, args=(f"http://127.0.0.1:{port}",)) for _ in range(2)]
    with ExitStack() as processes:
        old = None
        try:
            for _ in range(4):
                new = Process(tmp_path, "--port={port}", "--reuse_port", "--logging=error", port=port)
                processes.enter_context(new)
                pids.append(new.process.pid)
                if old is None:
                    for client in clients:
                        client.start()
                wait_until(lambda: answers[-1:] == [f"http {pids[-1]}"], "the new process answers")
                assert old is None or old.stop() == 0
                old = new
            alone = len(answers)
            wait_until(lambda: len(answers) >= alone + 20, "the last process answers alone")
        finally:
            stop.set()
            for client in clients:
                if client.is_alive():
                    client.join()
    assert failures == []
    assert set(answers) == {f"http {pid}" for pid in pids}


def test_a_listener_about_to_close_leaves_new_connections_to_the_others() -> None:
    with socket.socket() as client:
        [old] = bind_sockets(0, "127.0.0.1", reuse_port=True)
        address = old.getsockname()
        leave_new_connections_to_others(old)
        client.setblocking(False)
        assert client.connect_ex(address) == errno.EINPROGRESS
        [new] = bind_sockets(address[1], "127.0.0.1", reuse_port=True)
        with pytest.raises(BlockingIOError):
            old.accept()
        old.close()
        with new:
            # The client's kernel tries again after a second.
            assert select.select([new], [], [], 10) == ([new], [], [])
            assert new.accept()[1] == client.getsockname()


def test_a_kernel_that_refuses_filters_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """As some do, except for root: a socket whose filter is locked (SO_LOCK_FILTER) refuses them everywhere."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, 44, 1)
        leave_new_connections_to_others(listener)
    assert "may be reset: Operation not permitted" in caplog.text


def test_a_port_is_shared_only_by_those_who_say_so(tmp_path: Path) -> None:
    with Process(tmp_path, "--port={port}", "--reuse_port") as server:
        ended = Process(tmp_path, "--port={port}", port=server.port).run_to_its_end()
        assert ended.returncode == 1
        assert ended.stderr.endswith(f"cannot listen on 127.0.0.1:{server.port}: Address already in use\n")


# HTTPS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cert.pem, key.pem and, encrypted, locked.pem."""
    directory = tmp_path_factory.mktemp("certificate")
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN=localhost"
    files = "-addext subjectAltName=IP:127.0.0.1 -nodes -keyout key.pem -out cert.pem"
    lock = "ec -in key.pem -aes256 -passout pass:secret -out locked.pem"
    for command in (f"{request} {files}", lock):
        subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True)
    return directory


def test_https(tmp_path: Path, certificate: Path) -> None:
    options = (f"--certfile={certificate / 'cert.pem'}", f"--keyfile={certificate / 'key.pem'}")
    with Process(tmp_path, "--port={port}", *options) as server:
        url = f"https://127.0.0.1:{server.port}/"
        assert f"Serving on {url} (pid" in server.output()
        answer = requests.get(url, timeout=10, verify=str(certificate / "cert.pem"))
        assert answer.text == f"https {server.process.pid}"
        assert server.stop() == 0


def test_handshakes_that_fail_cost_a_line_in_ten_seconds(tmp_path: Path, certificate: Path) -> None:
    options = (f"--certfile={certificate / 'cert.pem'}", f"--keyfile={certificate / 'key.pem'}")
    with Process(tmp_path, "--port={port}", *options) as server:
        for _ in range(40):
            with socket.create_connection(("127.0.0.1", server.port), 10) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with suppress(ConnectionResetError):
                    while client.recv(100):
                        pass
        url = f"https://127.0.0.1:{server.port}/"
        assert requests.get(url, timeout=10, verify=str(certificate / "cert.pem")).status_code == 200
        assert server.stop() == 0
        output = server.output()
    assert 1 <= output.count("TLS handshake failed") < 10
    assert "SSL Error" not in output and "Traceback" not in output


def test_a_connection_too_many_is_closed_without_an_answer_where_tls_is_spoken(
    tmp_path: Path, certificate: Path
) -> None:
    options = (f"--certfile={certificate / 'cert.pem'}", f"--keyfile={certificate / 'key.pem'}", "--max_connections=1")
    context = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with Process(tmp_path, "--port={port}", *options) as server:
        address = ("127.0.0.1", server.port)
        with context.wrap_socket(socket.create_connection(address, 10), server_hostname="127.0.0.1") as busy:
            busy.sendall(f"GET /slow?{tmp_path / 'flag'} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: entered(tmp_path / "flag"), "it is busy")
            with socket.create_connection(address, 10) as another:
                assert another.recv(100) == b""
            (tmp_path / "flag").touch()
            assert busy.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(("certfile", "keyfile"), [("key.pem", "cert.pem"), ("cert.pem", "locked.pem")])
def test_a_certificate_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, certificate: Path, certfile: str, keyfile: str
) -> None:
    options = (f"--certfile={certificate / certfile}", f"--keyfile={certificate / keyfile}")
    ended = Process(tmp_path, *options).run_to_its_end()
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"python -m threadbridge: certfile {certificate / certfile} and keyfile")
    assert "expected a certificate and its key in PEM files, unencrypted or with the password in" in line
