"""Health for watchdogs and load balancers: the loop, the workers of each lane, the database."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.admin_site import Site, answer
from tests.inprocess import wait_until
from tests.processes import Frontend, free_port, private_mariadb


def test_workers_that_wait_for_work_or_are_at_it_are_ready(tmp_path: Path) -> None:
    with Site(tmp_path, "--lane=other:/other/*:1") as site, ExitStack() as stack:
        ready = (200, "lane other: ok\nlane default: ok\n")
        answered = site.admin("/readyz")
        assert (answered.status_code, answered.text) == ready
        for name in ("one", "two"):
            site.occupy(stack, name)
        stack.enter_context(site.send("/"))
        wait_until(lambda: site.picture()["counts"]["waiting"] == 1, "all threads are busy, and a request waits")
        answered = site.admin("/readyz")
        assert (answered.status_code, answered.text) == ready
        site.finish("one", "two")


def test_workers_that_do_not_come_back_are_not(tmp_path: Path) -> None:
    # POST requests are not cancelled at their deadline; their threads are stuck as long as the flags are not there.
    with Site(tmp_path, "--deadline=0.5") as site, ExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            clients.append(stack.enter_context(site.send(f"/slow?{tmp_path / name}", "POST")))
        assert [answer(client)[:12] for client in clients] == [b"HTTP/1.1 504"] * 2
        stuck = site.admin("/readyz")
        assert (stuck.status_code, stuck.text) == (503, "lane default: no worker answers\n")
        assert site.admin("/healthz").text == "ok\n"
        site.finish("one", "two")
        wait_until(lambda: site.admin("/readyz").status_code == 200, "the threads are back")


def test_one_that_is_told_to_stop_is_not_ready_but_still_shows_what_runs(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        site.occupy(stack, "one")
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: site.admin("/readyz").status_code == 503, "it drains")
        assert site.admin("/readyz").text == "draining: this process is about to end\n"
        picture = site.picture()
        assert (picture["processes"][0]["draining"], picture["counts"]["running"]) == (True, 1)
        site.finish("one")
        assert site.process.wait(20) == 0


def test_without_a_pool_there_is_no_database_to_ask(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        answered = site.admin("/readyz?db=1")
        assert (answered.status_code, answered.text) == (503, "lane default: ok\ndatabase: there is no pool to ask\n")


@pytest.fixture
def own_mariadb() -> Iterator[dict[str, str]]:
    with private_mariadb() as variables:
        yield variables


def test_the_database_is_asked_without_holding_up_the_loop(own_mariadb: dict[str, str]) -> None:
    port = free_port()
    env = {**own_mariadb, "MYAPPLICATION_POOL_SIZE": "2", "MYAPPLICATION_DIAGNOSTICS": "1"}
    with Frontend(("run.py", "--port={port}", f"--admin_port={port}"), env=env) as frontend, ExitStack() as stack:
        session = stack.enter_context(requests.Session())

        def ask(path: str) -> tuple[int, str]:
            answered = session.get(f"http://127.0.0.1:{port}{path}", timeout=20)
            return answered.status_code, answered.text.splitlines()[-1]

        assert ask("/readyz?db=1") == (200, "database: ok")
        # All connections at work.
        for _ in range(2):
            stack.enter_context(_begun(f"{frontend.url}/query/?report=wait&seconds=50"))
        wait_until(lambda: session.get(f"http://127.0.0.1:{port}/requests.json").text.count("SLEEP") == 2, "both run")
        assert ask("/readyz?db=1") == (200, "database: all 2 connections are in use")

        pid = _server_pid(own_mariadb)
        for row in session.get(f"http://127.0.0.1:{port}/requests.json").json()["requests"]:
            stop = f"http://127.0.0.1:{port}/requests/{row['id']}/cancel"
            assert session.post(stop, headers={"X-Threadbridge": "test"}).status_code == 200
        wait_until(lambda: ask("/readyz?db=1") == (200, "database: ok"), "the connections are back")
        os.kill(pid, signal.SIGSTOP)
        try:
            # While one check waits for the server, the loop answers others.
            waiting = _begun(f"http://127.0.0.1:{port}/readyz?db=1")
            stack.enter_context(waiting)
            assert ask("/healthz") == (200, "ok")
            waiting.wait(20)
            assert waiting.stdout is not None
            assert waiting.stdout.read().endswith(b"database: no connection within 3 s\n")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: ask("/readyz?db=1") == (200, "database: ok"), "the server goes on")


def _begun(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["curl", "-s", "--max-time", "60", url], stdout=subprocess.PIPE)


def _server_pid(mariadb: dict[str, str]) -> int:
    directory = Path(mariadb["MYSQL_UNIX_SOCKET"]).parent
    [path] = directory.rglob("*.pid")
    return int(path.read_text())
