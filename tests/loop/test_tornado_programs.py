"""Programs as Tornado's documentation writes them, with a bridge in them: each one started, and asked for a page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.support.inprocess import wait_until
from tests.support.processes import Frontend, free_port
from threadbridge.telemetry.telemetry import BATCH

OPTIONS_EXAMPLE = "docs/examples/tornado_options.py"
ACCESS_LINE = '"GET / HTTP/1.1" 200 '

APPLICATION = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Process", str(os.getpid()))])
    return [b"first version"]
"""


def page(server: Frontend) -> requests.Response:
    return requests.get(server.url, timeout=10)


def program(directory: Path, text: str) -> Frontend:
    """A server whose program is this text, beside `APPLICATION` as the module ``shop``."""
    (directory / "shop.py").write_text(APPLICATION)
    (directory / "program.py").write_text(text)
    return Frontend(("program.py", "{port}"), cwd=directory)


def test_the_options_example_answers_behind_tornado_s_own_server() -> None:
    with Frontend((OPTIONS_EXAMPLE, "--port={port}")) as server:
        forwarded = {"X-Real-Ip": "203.0.113.9", "X-Scheme": "https"}
        assert page(server).text == "Hello 127.0.0.1, by http"
        assert requests.get(server.url, headers=forwarded, timeout=10).text == "Hello 203.0.113.9, by https"
        wait_until(lambda: ACCESS_LINE in server.output(), "the line is written")
        # As with Tornado's server alone, nothing handles the signal.
        assert server.stop() == -signal.SIGTERM


@pytest.mark.parametrize("option", ["--log_file_prefix={log}", "--log_file_prefix={log} --log_rotate_mode=time"])
def test_the_options_example_logs_to_the_file(option: str, tmp_path: Path) -> None:
    log = tmp_path / "site.log"
    with Frontend((OPTIONS_EXAMPLE, "--port={port}", *option.format(log=log).split())) as server:
        assert page(server).status_code == 200
        wait_until(lambda: ACCESS_LINE in log.read_text(), "the line is in the file")
        assert server.output() == ""


def test_the_options_example_logs_to_both_places_when_told_to(tmp_path: Path) -> None:
    log = tmp_path / "site.log"
    with Frontend(
        (OPTIONS_EXAMPLE, "--port={port}", f"--log_file_prefix={log}", "--log_to_stderr", "--log_file_max_size=1000000")
    ) as server:
        assert page(server).status_code == 200
        wait_until(lambda: ACCESS_LINE in log.read_text(), "the line is in the file")
        assert ACCESS_LINE in server.output()


@pytest.mark.parametrize("level", ["warning", "error", "none"])
def test_the_options_example_logs_no_request_above_level_info(level: str) -> None:
    with (
        Frontend((OPTIONS_EXAMPLE, "--port={port}", f"--logging={level}")) as server,
        requests.Session() as session,
    ):
        # Lines are written in batches: when the last of these is answered, those of the others have been.
        for _ in range(BATCH + 1):
            assert session.get(server.url, timeout=10).status_code == 200
        # With the level none Tornado leaves logging alone, and Python shows warnings only.
        assert server.output() == ""


def test_the_options_example_reads_a_configuration_file(tmp_path: Path) -> None:
    configuration = tmp_path / "site.conf"
    server = Frontend(("-c", STARTS_WITH_FILE.format(example=OPTIONS_EXAMPLE), str(configuration)))
    configuration.write_text(f"port = {server.port}\nlogging = 'warning'\n")
    with server:
        assert page(server).text == "Hello 127.0.0.1, by http"
        assert server.output() == ""


# `parse_config_file` in front of `parse_command_line`, as Tornado's documentation has it.
STARTS_WITH_FILE = """
import runpy, sys
from tornado.options import options
example = runpy.run_path("{example}")
options.parse_config_file(sys.argv.pop())
example["main"]()
"""

BIND_AND_START = """
import sys
from threadbridge import Bridge, HTTPServer
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.ioloop import IOLoop
from shop import app

server = {server}(Bridge(app, threads=2))
server.bind(int(sys.argv[1]), "127.0.0.1")
server.start(2)
IOLoop.current().start()
"""

FORK_PROCESSES = """
import asyncio, sys
from threadbridge import Bridge, HTTPServer
from tornado.httpserver import HTTPServer as TornadoHTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from shop import app

sockets = bind_sockets(int(sys.argv[1]), "127.0.0.1")
fork_processes(2)

async def main():
    server = {server}(Bridge(app, threads=2))
    server.add_sockets(sockets)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("text", [BIND_AND_START, FORK_PROCESSES])
@pytest.mark.parametrize("server_class", ["HTTPServer", "TornadoHTTPServer"])
def test_both_forked_processes_serve_and_the_parent_replaces_one(text: str, server_class: str, tmp_path: Path) -> None:
    with program(tmp_path, text.format(server=server_class)) as server:
        seen: set[int] = set()

        def answered_by_two() -> bool:
            answer = page(server)
            assert answer.text == "first version"
            seen.add(int(answer.headers["X-Process"]))
            return len(seen) == 2

        wait_until(answered_by_two, "both have answered", 30)
        assert server.process.pid not in seen
        killed = seen.pop()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: f"pid {killed}) killed by signal 9, restarting" in server.output(), "it was replaced")
        wait_until(answered_by_two, "the new one has answered too", 30)
        # The parent must not replace those that are killed now.
        server.process.send_signal(signal.SIGSTOP)
        parent = server.process.pid
        for process in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            os.kill(int(process), signal.SIGKILL)
        server.stop(signal.SIGKILL)


AUTORELOAD = """
import sys
from threadbridge import Bridge, HTTPServer
from tornado import autoreload
from tornado.ioloop import IOLoop
from shop import app

server = HTTPServer(Bridge(app, threads=2))
server.listen(int(sys.argv[1]), "127.0.0.1")
autoreload.start(check_time=50)
IOLoop.current().start()
"""

AUTORELOAD_UNDER_SERVE = """
import sys
from threadbridge import serve
from tornado import autoreload
from shop import app

sys.exit(serve(app, threads=2, port=int(sys.argv[1]), on_start=lambda: autoreload.start(check_time=50)))
"""


@pytest.mark.parametrize("text", [AUTORELOAD, AUTORELOAD_UNDER_SERVE])
def test_a_changed_module_is_loaded_by_autoreload(text: str, tmp_path: Path) -> None:
    def has_changed() -> bool:
        try:
            if page(server).text == "the second version":
                return True
        except requests.ConnectionError:
            # It starts again, on the same port.
            return False
        # Again: a change before the first look at the file is not seen.
        os.utime(module)
        return False

    with program(tmp_path, text) as server:
        assert page(server).text == "first version"
        module = tmp_path / "shop.py"
        module.write_text(APPLICATION.replace("first version", "the second version"))
        wait_until(has_changed, "the new version answers", 30)
        # It has become another program in the same process.
        assert page(server).headers["X-Process"] == str(server.process.pid)


def test_the_periodic_example_ticks_while_serve_runs() -> None:
    with Frontend(("docs/examples/periodic.py", "{port}")) as server:
        wait_until(lambda: int(page(server).text.removesuffix(" ticks")) > 2, "it ticks")
        assert "never run" not in server.output()
        assert server.stop() == 0


ON_START_FAILS = """
import sys
from threadbridge import serve
from shop import app

def fail():
    raise LookupError("as told")

serve(app, threads=2, port=int(sys.argv[1]), on_start=fail)
"""


def test_serve_raises_what_on_start_raises(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    ended = subprocess.run(
        [sys.executable, "-c", ON_START_FAILS, str(free_port())],
        cwd=tmp_path,
        env=Frontend(()).env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("LookupError: as told\n")
    assert ended.stdout == ""


ON_START_IN_PROCESSES = """
import os, sys
from threadbridge import serve
from shop import app

serve(app, threads=2, port=int(sys.argv[1]), processes=2, on_start=lambda: print("started", os.getpid(), flush=True))
"""


def test_each_process_calls_on_start(tmp_path: Path) -> None:
    with program(tmp_path, ON_START_IN_PROCESSES) as server:
        wait_until(lambda: server.output().count("started ") == 2, "both have called it")
        started = {int(line.split()[1]) for line in server.output().splitlines() if line.startswith("started ")}
        assert len(started) == 2 and server.process.pid not in started
        assert server.stop() == 0


BEFORE_SERVE = """
import sys
from threadbridge import serve
from tornado.ioloop import PeriodicCallback
from shop import app

PeriodicCallback(lambda: print("ticks", flush=True), 10).start()
sys.exit(serve(app, threads=2, port=int(sys.argv[1])))
"""


def test_callbacks_scheduled_before_serve_are_named_in_the_log(tmp_path: Path) -> None:
    with program(tmp_path, BEFORE_SERVE) as server:
        assert page(server).status_code == 200
        assert server.output().count("callbacks were scheduled on an IOLoop before serve() was called") == 1
        assert "ticks" not in server.output()
        assert server.stop() == 0
