"""``--processes``: one that dies is replaced, a reload replaces all, and nobody notices."""

from __future__ import annotations

import http.client
import os
import select
import signal
import socket
from pathlib import Path

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.inprocess import wait_until
from tests.support.load import Load
from tests.support.processes import free_port
from tests.support.site_process import entered
from tests.support.supervised import Supervised, finish, said

REQUESTS = 3000


def make_imports_fail(directory: Path) -> None:
    with (directory / "site_app.py").open("a") as file:
        file.write("\nraise RuntimeError('a bad version')\n")


# A process dies.


def test_a_process_that_is_killed_under_load_is_replaced_and_the_other_goes_on(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--logging=error") as server:
        victim, other = server.wait_for_both()
        with Load(server.port) as load:
            wait_until(lambda: set(load.answers) == {victim, other}, "both answer")
            os.kill(victim, signal.SIGKILL)
            before = len(load.answers)
            wait_until(lambda: set(load.answers[before:]) - {victim, other} != set(), "a new process answers", 30)
        # Cut is what the dead process had accepted: at most one request of each client.
        assert len(load.failures) <= 4
        assert other in load.answers[before:]
        assert said(server, f"(pid {victim}) ended: killed by SIGKILL")()
        assert server.stop() == 0


def test_connections_that_a_dead_process_had_not_accepted_are_served(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        stopped, other = server.wait_for_both()
        os.kill(stopped, signal.SIGSTOP)
        # The kernel makes connections for it all the same.
        clients = [server.begin("/") for _ in range(30)]
        ready: list[socket.socket] = []

        def half_are_answered() -> bool:
            ready[:] = select.select(clients, [], [], 0)[0]
            return len(ready) >= 3

        wait_until(half_are_answered, "the other process answers those that it got")
        os.kill(stopped, signal.SIGKILL)
        answers = [finish(client) for client in clients]
        [new] = server.pids() - {other}
        assert set(answers) == {other, new}


def test_a_process_that_somebody_stops_is_replaced(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        stopped, other = server.wait_for_both()
        os.kill(stopped, signal.SIGTERM)
        assert other in server.wait_for_both(without={stopped})
        assert said(server, f"(pid {stopped}) ended: status 0")()


def test_a_process_that_cannot_start_any_more_is_tried_until_it_can(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        victim, other = server.wait_for_both()
        program = tmp_path / "site_app.py"
        good = program.read_text()
        make_imports_fail(tmp_path)
        os.kill(victim, signal.SIGKILL)
        wait_until(said(server, "has ended too soon 2 times in a row: next try in 0.5 s"), "it is tried again", 30)
        assert other in server.pids()
        program.write_text(good)
        assert other in server.wait_for_both(without={victim})
        assert server.stop() == 0


# A reload.


def test_reloads_under_load_lose_no_request(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--logging=error") as server:
        pids = [server.wait_for_both()]
        with Load(server.port) as load:
            while len(load.answers) < REQUESTS:
                server.process.send_signal(signal.SIGUSR2)
                wait_until(lambda: not pids[-1] & server.pids() and len(server.pids()) == 2, "all are replaced", 60)
                pids.append(server.pids())
            wait_until(lambda: set(load.answers[-100:]) == pids[-1], "the last ones answer")
        assert load.failures == []
        assert set(load.answers) == set().union(*pids)
        assert server.stop() == 0


def test_a_reload_waits_for_what_runs_and_brings_the_new_version(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with Supervised(tmp_path) as server:
        pids = server.wait_for_both()
        clients = [server.begin(f"/slow?{flag}") for _ in range(20)]
        wait_until(lambda: entered(flag), "a thread at work")
        program = tmp_path / "site_app.py"
        program.write_text(program.read_text().replace('"200 OK"', '"200 New"'))
        # To all, as `systemctl kill` does: only the supervisor acts on it.
        for pid in [*pids, server.process.pid]:
            os.kill(pid, signal.SIGUSR2)
        wait_until(said(server, "supervisor: stopping"), "an old process is told to stop", 30)
        assert len(server.pids()) == 3
        flag.touch()
        assert {finish(client) for client in clients} <= pids | server.pids()
        wait_until(said(server, "all processes are replaced"), "the reload is done", 30)
        assert not pids & server.pids()
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().reason == "New"
        connection.close()
        refusal = "only a supervisor (--processes, --supervised) can reload"
        wait_until(lambda: server.output().count(refusal) == 2, "both have said so", 30)


def test_a_reload_of_what_cannot_be_started_changes_nothing(tmp_path: Path) -> None:
    admin = free_port()
    with Supervised(tmp_path, f"--admin_port={admin}") as server:

        def metrics() -> tuple[float, ...]:
            """Processes that should be ready, those that were replaced, and whether the last reload worked."""
            text = requests.get(f"http://127.0.0.1:{admin}/metrics", timeout=30).text
            values = {
                sample.name: sample.value for each in text_string_to_metric_families(text) for sample in each.samples
            }
            names = ("processes", "process_failures_total", "last_reload_successful")
            return tuple(values[f"threadbridge_{name}"] for name in names)

        pids = server.wait_for_both()
        assert metrics() == (2, 0, 1)
        working = (tmp_path / "site_app.py").read_text()
        make_imports_fail(tmp_path)
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "a new process could not be started: the old ones stay"), "the reload fails", 30)
        assert server.wait_for_both() == server.pids() == pids
        assert metrics() == (2, 0, 0)
        (tmp_path / "site_app.py").write_text(working)
        os.kill(min(pids), signal.SIGKILL)
        server.wait_for_both(without={min(pids)})
        assert metrics() == (2, 1, 0)
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "all processes are replaced"), "the reload works", 30)
        assert metrics() == (2, 1, 1)
        assert server.stop() == 0


# What comes before all signals are heeded.
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, lambda *args: None)
open("importing", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
"""


def test_a_process_that_misses_the_signal_while_it_starts_ends_once_it_serves(tmp_path: Path) -> None:
    with Supervised(tmp_path) as server:
        server.wait_for_both()
        with (tmp_path / "site_app.py").open("a") as file:
            file.write(DEAF)
        server.process.send_signal(signal.SIGUSR2)
        wait_until((tmp_path / "importing").exists, "a new process imports the application")
        server.process.send_signal(signal.SIGTERM)
        wait_until(said(server, "SIGTERM: stopping 3 processes"), "it is told to end")
        wait_until(lambda: len(server.pids()) == 1, "the old ones end")
        (tmp_path / "go").touch()
        assert server.process.wait(30) == 0
        assert "killing it" not in server.output()
