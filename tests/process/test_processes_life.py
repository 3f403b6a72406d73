"""``--processes``: several processes serve, and end together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.end_to_end.test_run import established, refuses
from tests.sockets.test_listeners import ask_unix
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from tests.support.site_process import Process, entered
from tests.support.supervised import Supervised, finish, is_gone, pid_of, said
from threadbridge.settings.table import from_keywords
from threadbridge.sockets.listeners import bind

# Serving.


def test_all_processes_serve_and_the_address_is_said_once(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        assert server.wait_for_both() == server.pids()
        [line] = [line for line in server.output().splitlines() if "Serving on" in line]
        assert line == f"Serving on {server.url}/ (pid {server.process.pid}, 2 processes)"
        assert server.stop() == 0
        assert "Traceback" not in server.output()


def test_a_program_that_calls_serve(tmp_path: Path) -> None:
    program = """
        import os, sys
        from threadbridge import serve

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str(os.getpid()).encode()]

        sys.exit(serve(app, threads=1, processes=2, port={port}))
    """
    server = Supervised(tmp_path)
    (tmp_path / "program.py").write_text(program.replace("\n        ", "\n").replace("{port}", str(server.port)))
    server.command = [sys.executable, "program.py"]
    with server:
        assert server.wait_for_both() == server.pids()
        assert server.stop() == 0


def test_a_unix_socket_is_shared_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Process(tmp_path, f"--unix_socket={path}", "--processes=2") as server:
        assert pid_of(ask_unix(path)) != server.process.pid
        assert server.stop() == 0
        assert not path.exists()


def test_the_kernel_spreads_connections_over_the_processes() -> None:
    [mine], [theirs] = bind(from_keywords({"port": 0}), 2).of_process
    with mine, theirs:
        clients = [socket.create_connection(mine.getsockname()) for _ in range(64)]
        for client in clients:
            client.close()
        for listener in (mine, theirs):
            # By chance it would have none once in 10**19 times.
            listener.setblocking(False)
            listener.accept()[0].close()


# Ending.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_runs_and_what_waits_in_all(number: signal.Signals, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervised(tmp_path) as server:
        pids = server.pids()
        clients = [server.begin(f"/slow?{flag}") for _ in range(40)]
        wait_until(lambda: established(server.port) == 40, "all have arrived")
        wait_until(lambda: entered(flag), "threads at work")
        server.process.send_signal(number)
        wait_until(lambda: refuses(server.port), "the port is closed")
        flag.touch()
        assert {finish(client) for client in clients} == pids
        assert server.process.wait(30) == 0
        assert said(server, "all processes have ended")()


def test_a_request_that_is_cut_in_one_process_is_told_by_the_status(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--grace=0.5") as server:
        client = server.begin(f"/slow?{tmp_path / 'flag'}")
        wait_until(lambda: entered(tmp_path / "flag"), "a thread at work")
        assert server.stop(timeout=20) == 1
        assert finish(client) == 0
        assert said(server, "ended: status 1")() and said(server, "ended: status 0")()


def test_a_second_signal_skips_the_wait(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--grace=600") as server, closing(server.begin(f"/slow?{tmp_path / 'flag'}")):
        wait_until(lambda: entered(tmp_path / "flag"), "a thread at work")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.port), "the port is closed")
        assert server.stop(timeout=20) == 1


def test_all_get_one_signal_when_it_is_sent_to_all(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervised(tmp_path) as server:
        client = server.begin(f"/slow?{flag}")
        wait_until(lambda: entered(flag), "a thread at work")
        # As a terminal does, or systemd. Together with the supervisor's own word it must not count as a second signal.
        for pid in [*server.pids(), server.process.pid]:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: refuses(server.port), "the port is closed")
        flag.touch()
        assert finish(client)
        assert server.process.wait(30) == 0, server.output()


def test_a_process_that_cannot_hear_is_killed_in_the_end(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--grace=0", PATIENCE=0.5) as server:
        pids = server.wait_for_both()
        with closing(server.begin(f"/stuck-loop?{tmp_path / 'flag'}")):
            wait_until(lambda: entered(tmp_path / "flag"), "a loop is held up")
            assert server.stop(timeout=30) == 1
        assert said(server, "did not end when told to: killing it")()
        assert all(is_gone(pid) for pid in pids)


def test_when_the_supervisor_is_killed_the_others_answer_and_end(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervised(tmp_path) as server:
        pids = server.wait_for_both()
        client = server.begin(f"/slow?{flag}")
        wait_until(lambda: entered(flag), "a thread at work")
        server.process.kill()
        wait_until(lambda: refuses(server.port), "the port is closed")
        flag.touch()
        assert finish(client) in pids
        wait_until(lambda: all(is_gone(pid) for pid in pids), "no process is left", 20)
        assert said(server, "the supervisor has died")()


def test_a_stop_while_the_application_is_imported(tmp_path: Path) -> None:
    (tmp_path / "slow_import.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    server = Supervised(tmp_path)
    server.command = [part.replace("site_app", "slow_import") for part in server.command]
    with subprocess.Popen(
        server.command, cwd=tmp_path, env=server.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.terminate()
        assert process.wait(20) == 0


# What cannot be used.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--processes=0"], 2, "--processes=0: expected a number of at least 1"),
        (["--processes=two"], 2, "--processes=two: expected a number of at least 1"),
        (["--pool=site_app:app"], 2, "is not a pool that can be guarded"),
        (["--address=192.0.2.1"], 1, "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_used_is_said_once(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    server = Supervised(tmp_path, *arguments)
    if "--pool=site_app:app" in arguments:
        server.command.remove("--threads=2")
    ended = server.run_to_its_end()
    assert ended.returncode == status
    lines = [line for line in ended.stderr.splitlines() if not re.match(r"\[\w \d{6} ", line)]
    assert len(lines) == 1
    assert message in lines[0]


def test_a_port_in_use_is_one_clear_line_also_when_its_owner_has_several_processes(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, port=port) as owner:
        second = Supervised(tmp_path, port=port).run_to_its_end()
        assert second.returncode == 1
        assert second.stderr == f"python -m threadbridge: cannot listen on 127.0.0.1:{port}: Address already in use\n"
        assert owner.stop() == 0


def test_the_check_needs_no_processes(tmp_path: Path) -> None:
    ended = Supervised(tmp_path, "--check").run_to_its_end()
    assert (ended.returncode, ended.stderr) == (0, "")
