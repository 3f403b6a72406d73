"""What HAProxy's agent-check is told of a server, and what hanging clients of the agent hold: nothing."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import requests

from tests.support.admin_site import Site
from tests.support.inprocess import wait_until
from tests.support.processes import Frontend, free_port
from tests.support.site_process import Process, entered
from tests.support.supervised import Supervised
from threadbridge.admin.agent import LONGEST_REASON, MAX_CONNECTIONS, line_for
from threadbridge.admin.health import Readiness

# A pool whose database has gone: the file of its socket is not there.
APPLICATION = """
import MySQLdb
from dbutils.pooled_db import PooledDB

pool = PooledDB(MySQLdb, maxconnections=2, unix_socket="/nowhere/mariadb.sock")

def app(environ, start_response):
    pool.connection()
"""


class Agents(Site):
    """A frontend with an agent port."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.agent_port = free_port()
        super().__init__(directory, f"--agent_port={self.agent_port}", "--threads=4", *arguments)

    def line(self) -> str:
        return line_of(self.agent_port)


def line_of(port: int, said: bytes = b"") -> str:
    """What the agent sends to one who has said this."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(said)
        return b"".join(iter(lambda: client.recv(4096), b"")).decode()


def test_the_weight_is_the_share_of_threads_that_nothing_holds_for_long(tmp_path: Path) -> None:
    with Agents(tmp_path) as site, ExitStack() as stack:
        assert site.line() == "up 100%\n"
        for name, weight in (("a", 75), ("b", 50), ("c", 25), ("d", 1)):
            site.occupy(stack, name)
            wait_until(lambda: site.line() == f"up {weight}%\n", f"up {weight}%")  # noqa: B023 - called at once
        site.finish("a", "b", "c", "d")
        wait_until(lambda: site.line() == "up 100%\n", "all are free again")


def test_reports_in_a_lane_of_their_own_leave_the_weight_alone(tmp_path: Path) -> None:
    with Agents(tmp_path, "--lane=reports:/slow*:1") as site, ExitStack() as stack:
        site.occupy(stack, "report")
        site.occupy(stack, "other", "/cancellable")
        wait_until(lambda: site.line() == "up 75%\n", "only the other one counts")
        site.finish("report", "other")


def test_a_server_that_drains_gets_nothing_more(tmp_path: Path) -> None:
    with Agents(tmp_path) as site, ExitStack() as stack:
        client = site.occupy(stack, "last")
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: site.line() == "up 0%\n", "it drains")
        site.finish("last")
        assert b"200 OK" in client.recv(65536)
        assert site.process.wait(30) == 0


def test_a_server_that_is_not_ready_is_down_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "no_database.py").write_text(APPLICATION)
    port = free_port()
    options = ("--port={port}", f"--agent_port={port}", "--pool=no_database:pool")
    with Frontend(("-m", "threadbridge", "no_database:app", *options), cwd=tmp_path) as site:
        # Nothing has asked for the database yet.
        assert line_of(port) == "up 100%\n"
        assert requests.get(site.url, timeout=30).status_code == 503
        line = line_of(port)
        assert line.startswith("down #database: OperationalError: ") and line.count("\n") == 1
        assert len(line) <= len("down #\n") + LONGEST_REASON


def test_the_processes_of_a_server_are_one(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, f"--agent_port={port}", "--threads=4") as server, ExitStack() as stack:
        server.wait_for_both()
        assert line_of(port) == "up 100%\n"
        flag = tmp_path / "held"
        stack.enter_context(server.begin(f"/slow?{flag}"))
        wait_until(lambda: entered(flag), "it runs")
        # One of the eight threads: 75 and 100 %, whichever process is asked.
        wait_until(lambda: line_of(port) == "up 88%\n", "one thread of eight is held")
        assert {line_of(port) for _ in range(10)} == {"up 88%\n"}
        flag.touch()


def test_findings_are_one_line_that_haproxy_can_read() -> None:
    bad = Readiness(False, False, ("lane pool: ok", "database: a\r\nb\ttab \u2013 ü #" + "x" * 500))
    line = line_for([Readiness(True, False, ()), bad])
    assert line.startswith(b"down #database: a b tab ? ? #xxx") and line.count(b"\n") == 1 and b"\r" not in line
    draining = Readiness(False, True, ("draining",), 70)
    assert line_for([draining, Readiness(True, False, (), 30)]) == b"up 30%\n"
    assert line_for([draining]) == b"up 0%\n"


def test_clients_that_hang_or_send_hold_nothing(tmp_path: Path) -> None:
    with Agents(tmp_path) as site, ExitStack() as stack:
        descriptors = Path(f"/proc/{site.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        hanging = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.agent_port), timeout=30))
            for _ in range(5 * MAX_CONNECTIONS)
        ]
        assert site.line() == "up 100%\n"
        # A text as of "agent-send", and more than anybody reads: the answer must not be lost in a reset.
        assert line_of(site.agent_port, b"shop/app1\n") == "up 100%\n"
        assert line_of(site.agent_port, b"x" * 100_000) == "up 100%\n"
        assert requests.get(site.url, timeout=30).status_code == 200
        assert len(list(descriptors.iterdir())) <= before + 2 * MAX_CONNECTIONS
        wait_until(lambda: len(list(descriptors.iterdir())) <= before + 1, "all are closed, though nobody has left")
        assert all(client.fileno() > 0 for client in hanging)


def test_an_agent_alone_needs_no_operators_port(tmp_path: Path) -> None:
    port = free_port()
    with Process(tmp_path, "--port={port}", f"--agent_port={port}") as server:
        assert line_of(port) == "up 100%\n"
        assert server.stop() == 0


def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = Process(tmp_path, "--port={port}", f"--agent_port={port}").run_to_its_end()
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and f"127.0.0.1:{port}" in ended.stderr


def test_readyz_can_ask_for_a_weight(tmp_path: Path) -> None:
    with Site(tmp_path, "--threads=4") as site, ExitStack() as stack:
        site.occupy(stack, "one")
        wait_until(lambda: "weight: 75%" in site.admin("/readyz?min_weight=1").text, "the weight is known")
        for least in (0, 75, 76, 100):
            answered = site.admin(f"/readyz?min_weight={least}")
            assert answered.status_code == (503 if least > 75 else 200)
            less = f", less than {least}%" if least > 75 else ""
            assert answered.text == f"lane default: ok\nweight: 75%{less}\n"
        assert site.admin("/readyz").text == "lane default: ok\n"
        assert site.admin("/readyz?min_weight=half").status_code == 400
        site.finish("one")
