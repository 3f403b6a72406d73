"""run.py and serve() as processes: options, signals, exit status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT, Frontend

# Two threads. /slow waits for a file to appear, so that the test decides when it is answered.
APPLICATION = """
import os, sys, time
from threadbridge import serve

def app(environ, start_response):
    path = environ["QUERY_STRING"]
    if environ["PATH_INFO"] == "/slow":
        open(path + ".entered", "a").write("x")
        while not os.path.exists(path):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"answered"]

sys.exit(serve(app, threads=2, port={port}, grace=%s))
"""


def frontend(grace: float) -> Frontend:
    return Frontend(("-c", APPLICATION.replace("%s", str(grace))))


def entered(flag: Path) -> int:
    marks = flag.with_name(flag.name + ".entered")
    return marks.stat().st_size if marks.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_runs_and_what_waits(number: signal.Signals, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with frontend(grace=30) as server, ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(requests.get, f"{server.url}/slow?{flag}", timeout=30) for _ in range(8)]
        wait_until(lambda: entered(flag) == 2, "both threads at work")
        wait_until(lambda: established(server.port) == 8, "six more have arrived")
        server.process.send_signal(number)
        wait_until(lambda: refuses(server.port), "the port is closed")
        flag.touch()
        responses = [answer.result() for answer in answers]
        assert [response.text for response in responses] == ["answered"] * 8
        assert {response.headers["Connection"] for response in responses} == {"close"}
        assert server.process.wait(30) == 0


def test_a_second_signal_skips_the_wait(tmp_path: Path) -> None:
    with frontend(grace=600) as server, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(requests.get, f"{server.url}/slow?{tmp_path / 'flag'}", timeout=30)
        wait_until(lambda: entered(tmp_path / "flag") == 1, "a thread at work")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.port), "the port is closed")
        assert server.stop(signal.SIGTERM) == 1
        assert isinstance(answer.exception(), requests.ConnectionError)
        assert "before request" in server.output()


def test_the_end_of_the_grace_period_cuts_what_is_left(tmp_path: Path) -> None:
    with frontend(grace=0.2) as server, ThreadPoolExecutor(1) as clients:
        answer = clients.submit(requests.get, f"{server.url}/slow?{tmp_path / 'flag'}", timeout=30)
        wait_until(lambda: entered(tmp_path / "flag") == 1, "a thread at work")
        assert server.stop(signal.SIGTERM) == 1
        assert isinstance(answer.exception(), requests.ConnectionError)


def established(port: int) -> int:
    """How many TCP connections to this port of 127.0.0.1 the kernel has, seen from the server's end."""
    local = f"0100007F:{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(1 for line in lines if line.split()[1] == local and line.split()[3] == "01")


def refuses(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--port=abc"], 2, "abc"),
        (["--port=99999"], 2, "--port=99999: expected a number from 0 to 65535"),
        (["--nonsense=1"], 2, "No such option '--nonsense'"),
        (["surplus"], 2, "Got unexpected extra argument (surplus)"),
        (["--trusted-proxies=proxy"], 2, "trusted proxy 'proxy'"),
        (["--logging=loud"], 2, "loud"),
    ],
)
def test_a_wrong_option_is_one_clear_line(arguments: list[str], status: int, message: str) -> None:
    ended = subprocess.run([sys.executable, "run.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == status
    assert message in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "run.py", f"--port={port}"], cwd=ROOT, capture_output=True, text=True, timeout=30
        )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"run.py: cannot listen on 127.0.0.1:{port}: Address already in use"]


def test_logs_go_where_they_always_went(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    with Frontend(("run.py", "--port={port}", f"--log_file_prefix={log}", "--logging=info")) as server:
        assert requests.get(server.url, timeout=10).status_code == 200
        assert f"Serving on {server.url}/" in server.output()
        assert server.stop() == 0
    assert '"GET / HTTP/1.1" 200 ' in (tmp_path / "app.access.log").read_text()
    assert "stopped, every request is answered" in log.read_text() and "GET /" not in log.read_text()
