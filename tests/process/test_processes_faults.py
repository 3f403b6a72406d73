"""``--processes`` when something is very wrong: requests that crash, loops that hang, a supervisor that dies."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import closing
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from tests.support.site_process import entered
from tests.support.supervised import Supervised, finish, is_gone, said
from threadbridge.process.supervisor import DELAYS


def starts(server: Supervised) -> int:
    return server.output().count(" starts\n")


# A request that crashes the process.


def test_requests_that_crash_do_not_end_the_service(tmp_path: Path) -> None:
    server = Supervised(tmp_path, DELAYS=(0.0,))
    crashes = 2 * len(DELAYS) + 4
    with server:
        for crash in range(crashes):
            with server.begin("/crash") as client:
                # One that the kernel gives to a process which dies is served by the next one in its place.
                assert client.recv(100) == b"", f"crash {crash} was answered"
        wait_until(lambda: starts(server) == 2 + crashes, "each that has crashed is replaced", 30)
        assert server.wait_for_both() == server.pids()
        output = server.output()
        assert output.count("killed by SIGABRT") == crashes
        assert output.count('File "', output.index("Fatal Python error: Aborted")) >= crashes, "where it crashed"
        assert "in app" in output
        assert server.stop() == 0


def test_a_crash_loop_does_not_slow_down_the_other_replacement(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        victim, other = server.wait_for_both()
        for _ in range(3):
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda v=victim: victim_of(server, other) not in (0, v), "it is replaced", 30)  # type: ignore[misc]
            victim = victim_of(server, other)
        os.kill(other, signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        wait_until(said(server, "ended too soon 4 times in a row: next try in 2 s"), "one waits", 30)
        # It is the one that has died for the first time.
        assert said(server, "starts")() and "ended too soon 1 times" not in server.output()
        server.wait_for_both(without={victim, other})
        assert server.stop() == 0


def victim_of(server: Supervised, other: int) -> int:
    return next(iter(server.pids() - {other}), 0)


# A process that stands still.


def test_a_process_that_holds_the_interpreters_lock_is_killed_after_its_stacks_are_logged(tmp_path: Path) -> None:
    flag = tmp_path / "flag-600"
    with Supervised(tmp_path, "--watchdog=2") as server:
        pids = server.wait_for_both()
        with closing(server.begin(f"/hold-lock?{flag}")) as client:
            wait_until(flag.exists, "the lock is held")
            # As many as go to both processes: those for the one that hangs wait for the one that takes its place.
            clients = [server.begin("/") for _ in range(10)]
            assert all(finish(each) for each in clients)
            assert client.recv(100) == b""
        assert len(server.wait_for_both() & pids) == 1
        output = server.output()
        assert said(server, "its event loop has stood still for", "killing it")()
        assert output.index("killing it") < output.index("in app") < output.index("killed by SIGKILL")
        assert server.stop() == 0


def test_a_process_whose_loop_is_blocked_logs_its_stacks_itself_and_is_killed(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervised(tmp_path, "--watchdog=2") as server:
        pids = server.wait_for_both()
        with closing(server.begin(f"/stuck-loop?{flag}")):
            wait_until(lambda: entered(flag), "a loop is held up")
            wait_until(said(server, "killed by SIGKILL"), "the supervisor notices", 30)
        assert len(server.wait_for_both() & pids) == 1
        output = server.output()
        assert output.index("no client is served") < output.index("in wait_for") < output.index("killing it")
        assert server.stop() == 0


def test_a_process_that_is_suspended_is_replaced(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--watchdog=2") as server:
        suspended, other = server.wait_for_both()
        os.kill(suspended, signal.SIGSTOP)
        clients = [server.begin("/") for _ in range(20)]
        answers = {finish(client) for client in clients}
        assert answers == server.pids() and other in answers and suspended not in answers
        assert said(server, f"(pid {suspended}) is suspended")()
        assert server.stop() == 0


def test_all_that_were_suspended_together_go_on(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--watchdog=2") as server:
        pids = server.wait_for_both()
        everybody = [server.process.pid, *pids]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        # Longer than the watchdog waits.
        time.sleep(2.5)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: server.output().count("the event loop stood still for") == 2, "both have noticed", 30)
        assert server.wait_for_both() == pids
        assert "killing it" not in server.output()
        assert server.stop() == 0


def test_all_that_get_their_turn_only_now_and_then_go_on(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--watchdog=4") as server:
        pids = server.wait_for_both()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        # Together longer than the watchdog waits, but each of them much shorter; the supervisor has a turn after each.
        # Only half a second of each counts against the processes: a loaded machine may add 2 s.
        for _ in range(3):
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(1.5)
            server.process.send_signal(signal.SIGCONT)
            time.sleep(0.1)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: server.output().count("the event loop stood still for") == 2, "both have noticed", 30)
        assert server.wait_for_both() == pids
        assert "killing it" not in server.output()
        assert server.stop() == 0


def test_a_process_that_hangs_while_it_starts_is_killed(tmp_path: Path) -> None:
    # The stacks are written 3 s after the interpreter has started, which takes 2 s on a very loaded machine.
    with Supervised(tmp_path, "--watchdog=1.5") as server:
        pids = server.wait_for_both()
        program = tmp_path / "site_app.py"
        program.write_text("import time\n\ndef hang():\n    time.sleep(600)\n\nhang()\n")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "does not accept connections after 6 s: killing it"), "it is noticed", 30)
        wait_until(said(server, "a new process could not be started: the old ones stay"), "the reload fails", 30)
        assert said(server, "site_app.py", "in hang")()
        assert server.wait_for_both() == server.pids() == pids
        assert server.stop() == 0


# A supervisor that dies.


def test_after_the_supervisors_death_the_next_one_starts_while_requests_are_answered(tmp_path: Path) -> None:
    flag, port, admin_port = tmp_path / "flag", free_port(), free_port()
    with Supervised(tmp_path, f"--admin_port={admin_port}", port=port) as server:
        pids = server.wait_for_both()
        client = server.begin(f"/slow?{flag}")
        wait_until(lambda: entered(flag), "a thread at work")
        server.process.kill()
        server.process.wait()
        # Both have seen it, and one of them still answers the slow request.
        wait_until(lambda: server.output().count("the supervisor has died") == 2, "the processes notice")
        with Supervised(tmp_path, f"--admin_port={admin_port}", port=port) as successor:
            assert not successor.wait_for_both() & pids
            with socket.create_connection(("127.0.0.1", admin_port), timeout=10) as operator:
                operator.sendall(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert operator.recv(100).startswith(b"HTTP/1.1 200")
            assert not flag.exists()
            flag.touch()
            assert finish(client) in pids
            wait_until(lambda: all(is_gone(pid) for pid in pids), "the old ones end", 20)
            assert successor.stop() == 0


def test_a_process_that_still_starts_ends_with_its_supervisor(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        pids = server.wait_for_both()
        (tmp_path / "site_app.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "importing"), "a new process is on its way", 30)
        [new] = server.pids() - pids
        server.process.kill()
        wait_until(lambda: all(is_gone(pid) for pid in {new, *pids}), "no process is left", 20)
