"""A process's life: what systemd hears of it, its log files, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from tests.support.site_process import Process, entered
from threadbridge.process.systemd import watchdog_interval

# The service manager.


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, dict[str, str]]]:
    """A service manager's socket, and the environment that leads to it."""
    name = str(tmp_path / "notify") if request.param == "file" else f"@threadbridge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(10)
        yield listener, {"NOTIFY_SOCKET": name}


def test_the_service_manager_hears_of_start_and_stop(
    tmp_path: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    listener, env = manager
    with Process(tmp_path, "--port={port}", env=env) as server:
        assert listener.recv(4096).decode() == f"READY=1\nSTATUS=Serving on {server.url}/"
        assert requests.get(server.url, timeout=10).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert listener.recv(4096) == b"STOPPING=1\nSTATUS=Stopping, 0 requests to answer"
        assert server.process.wait(30) == 0


def test_the_watchdog_hears_from_a_loop_that_turns_and_from_no_other(
    tmp_path: Path, manager: tuple[socket.socket, dict[str, str]]
) -> None:
    listener, env = manager
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", env={**env, "WATCHDOG_USEC": "300000"}) as server:
        assert listener.recv(4096).startswith(b"READY=1")
        assert [listener.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET /stuck-loop?{flag} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: entered(flag), "the loop is held up")
        listener.settimeout(0.9)
        with pytest.raises(TimeoutError):
            while True:
                # What was sent before is still to be read; it does not last.
                assert listener.recv(4096) == b"WATCHDOG=1"
        flag.touch()
        listener.settimeout(10)
        assert listener.recv(4096) == b"WATCHDOG=1"


def test_the_watchdog_hears_twice_in_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_interval() == 15


def test_another_process_watchdog_is_not_fed(tmp_path: Path, manager: tuple[socket.socket, dict[str, str]]) -> None:
    listener, env = manager
    env = {**env, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with Process(tmp_path, "--port={port}", env=env) as server:
        assert listener.recv(4096).startswith(b"READY=1")
        listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            listener.recv(4096)
        assert server.stop() == 0


def test_a_service_manager_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    with Process(tmp_path, "--port={port}", env={"NOTIFY_SOCKET": str(tmp_path / "gone")}) as server:
        assert requests.get(server.url, timeout=10).status_code == 200
        assert "cannot tell the service manager READY=1" in server.output()
        assert server.stop() == 0


# An event loop that stands still.


def test_the_stacks_are_logged_when_the_loop_stands_still_and_it_goes_on(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", "--watchdog=2") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET /stuck-loop?{flag} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: "no client is served" in server.output(), "the stacks are logged")
        assert "in wait_for" in server.output()
        flag.touch()
        assert requests.get(server.url, timeout=10).status_code == 200
        wait_until(lambda: "the event loop stood still for" in server.output(), "how long it was is logged")
        assert server.stop() == 0


def test_a_deadline_that_passes_while_the_interpreters_lock_is_held(tmp_path: Path) -> None:
    flag = tmp_path / "flag-2"
    with Process(tmp_path, "--port={port}", "--watchdog=2", "--deadline=1", "--threads=3") as server:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow,
            server.begin(f"/slow?{tmp_path / 'other'}") as waiting,
        ):
            wait_until(lambda: entered(tmp_path / "other"), "a thread at work")
            slow.sendall(f"GET /hold-lock?{flag} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
            answers = [b"".join(iter(lambda c=client: c.recv(65536), b"")) for client in (slow, waiting)]  # type: ignore[misc]
        # One answer each, whichever the loop came to first when it could go on.
        assert [answer.count(b"HTTP/1.1 ") for answer in answers] == [1, 1]
        assert answers[1].startswith(b"HTTP/1.1 504 ")
        (tmp_path / "other").touch()
        assert server.stop() == 0
        # Standard error has where the lock was held, from a time when no thread could run.
        assert "Timeout (0:00:01)!" in server.output() and "in app" in server.output()
        assert "the event loop stood still for" in server.output()
        assert len([line for line in server.output().splitlines() if " ending=" in line]) == 2


def test_a_crash_is_logged_with_where_it_happened(tmp_path: Path) -> None:
    with Process(tmp_path, "--port={port}") as server:
        with server.begin("/crash") as client:
            assert client.recv(100) == b""
        assert server.process.wait(30) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in server.output() and "in app" in server.output()


# Signals.

IMPORT = """
import os, signal, time
print("importing", flush=True)
while not os.path.exists("go-on"):
    time.sleep(0.01)
from site_app import app
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_to_all_frontends_does_not_end_one_that_starts(tmp_path: Path, number: signal.Signals) -> None:
    server = Process(tmp_path, "--port={port}")
    (tmp_path / "importing.py").write_text(IMPORT)
    server.command = [part.replace("site_app", "importing") for part in server.command]

    def signal_it() -> None:
        wait_until(lambda: "importing" in server.output(), "it starts", 30)
        server.process.send_signal(number)
        (tmp_path / "go-on").touch()

    with ThreadPoolExecutor() as executor:
        sent = executor.submit(signal_it)
        with server:
            sent.result()
            assert requests.get(server.url, timeout=10).status_code == 200
            # Made up for, now that it can be.
            done = "log files reopened" if number is signal.SIGHUP else "only a supervisor"
            assert f"{number.name}: " in server.output() and done in server.output()
            assert server.stop() == 0


@pytest.mark.parametrize("option", ["--processes=1", "--supervised"])
def test_handlers_of_the_application_that_are_replaced_are_named(tmp_path: Path, option: str) -> None:
    server = Process(tmp_path, "--port={port}", option)
    (tmp_path / "handles.py").write_text(
        "import signal\nfrom site_app import app\n"
        "for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1, signal.SIGUSR2):\n"
        "    signal.signal(number, lambda *_: None)\n"
    )
    server.command = [part.replace("site_app", "handles") for part in server.command]
    with server:
        assert server.stop() == 0
        named = [
            line.split("] ")[1].split(":")[0] for line in server.output().splitlines() if "has replaced the app" in line
        ]
        assert named == ["SIGHUP", "SIGUSR2"] + ["SIGTTIN"] * (option == "--supervised")


# Log files.


@pytest.mark.parametrize("mode", ["size", "time"])
def test_a_hangup_signal_opens_the_log_file_anew(tmp_path: Path, mode: str) -> None:
    prefix, log = tmp_path / "app.log", tmp_path / "app.access.log"
    with Process(tmp_path, "--port={port}", f"--log_file_prefix={prefix}", f"--log_rotate_mode={mode}") as server:
        requests.get(f"{server.url}/before", timeout=10)
        wait_until(lambda: "GET /before" in log.read_text(), "the log is written")
        subprocess.run(["mv", log, f"{log}.1"], check=True)
        server.process.send_signal(signal.SIGHUP)
        wait_until(log.exists, "a new log file")
        requests.get(f"{server.url}/after", timeout=10)
        wait_until(lambda: "GET /after" in log.read_text(), "the new log is written")
        assert "GET /after" not in Path(f"{log}.1").read_text()
        assert server.stop() == 0


def test_a_log_file_that_cannot_be_opened_anew_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    with Process(tmp_path, "--port={port}", f"--log_file_prefix={directory / 'app.log'}") as server:
        directory.rename(tmp_path / "moved")
        server.process.send_signal(signal.SIGHUP)
        kept = tmp_path / "moved" / "app.log"
        wait_until(lambda: f"cannot open {directory / 'app.log'}: No such file" in kept.read_text(), "a complaint")
        assert requests.get(server.url, timeout=10).status_code == 200
        assert server.stop() == 0


# The end.


def test_a_response_that_ends_while_the_process_drains_leaves_no_connection_open(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with (
        Process(tmp_path, "--port={port}") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as idle,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as other,
    ):
        for each in (client, other):
            each.sendall(f"GET /stream?{flag} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            received = each.recv(4096)
            # Kept open, as far as its client knows.
            assert b"200 OK" in received and b"Connection: close" not in received
        server.process.send_signal(signal.SIGTERM)
        # Those that were idle are closed by now.
        assert idle.recv(1) == b""
        flag.touch()
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(4096)
        # A proxy may have sent the next one meanwhile.
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b"".join(iter(lambda: client.recv(4096), b""))
        assert received.startswith(b"HTTP/1.1 200 OK") and b"Connection: close" in received
        assert b"".join(iter(lambda: other.recv(4096), b"")).endswith(b"0\r\n\r\n")
        assert server.process.wait(30) == 0


def test_a_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", "--grace=0.5") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET /slow?{flag} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: entered(flag), "a thread at work")
            assert server.stop(timeout=10) == 1
            assert client.recv(4096) == b""
        assert "stopped while threads of the lane default were at work: 1" in server.output()


def test_requests_that_are_cut_are_cancelled_first(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", "--grace=0.5") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(f"GET /cancellable?{flag} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            wait_until(lambda: entered(flag), "a thread at work")
            assert server.stop(timeout=10) == 1
        assert flag.exists()
        assert "before request" in server.output()
        assert "were at work" not in server.output()


def test_a_thread_of_the_application_itself_has_the_grace_period_too(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", "--grace=30") as server:
        requests.get(f"{server.url}/thread?{flag}", timeout=10)
        wait_until(lambda: entered(flag), "the thread at work")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "every request is answered" in server.output(), "the service has stopped")
        assert server.process.poll() is None
        flag.touch()
        assert server.process.wait(30) == 0


def test_a_thread_of_the_application_itself_does_not_keep_the_process(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Process(tmp_path, "--port={port}", "--grace=0.5") as server:
        requests.get(f"{server.url}/thread?{flag}", timeout=10)
        wait_until(lambda: entered(flag), "the thread at work")
        assert server.stop(timeout=15) == 1
        assert "stopped before these threads had ended: the-applications-own" in server.output()


def test_an_idle_process_stops_cleanly_without_any_grace(tmp_path: Path) -> None:
    with Process(tmp_path, "--port={port}", "--grace=0") as server, requests.Session() as session:
        # A connection that stays open and idle.
        assert session.get(server.url, timeout=10).status_code == 200
        assert server.stop(timeout=15) == 0


def test_an_interrupt_during_the_import_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "threadbridge", "slow_import:app", "--threads=1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 130
