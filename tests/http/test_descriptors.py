"""When file descriptors run out, clients get 503, nothing spins, operators get in, and it is over when it is over."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import requests

from tests.support.admin_site import Site
from tests.support.inprocess import wait_until

LIMIT = 80


def test_more_clients_than_descriptors(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        pid = site.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, hard))
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(2 * LIMIT)]
        wait_until(lambda: "no file descriptors left for new connections" in site.output(), "it is logged")
        before = cpu(pid)
        for _ in range(10):
            assert site.admin("/healthz").status_code == 200
        # Ten answers, and no loop that spins meanwhile.
        assert cpu(pid) - before < 1.0
        assert len(os.listdir(f"/proc/{pid}/fd")) < LIMIT
        # One line, however many clients there were.
        assert site.output().count("no file descriptors left") == 1 and "Traceback" not in site.output()
        # Whoever is refused has a line in the access log.
        wait_until(lambda: '" 503 ' in site.output() and "ending=refused" in site.output(), "refusals are logged")
        for client in idle:
            client.close()
        wait_until(lambda: is_served(site), "clients are served again")


def test_an_application_that_has_opened_all_of_them(tmp_path: Path) -> None:
    with Site(tmp_path) as site, ExitStack() as stack:
        pid = site.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (LIMIT, hard))
        site.occupy(stack, "opens", "/descriptors")
        before = cpu(pid)
        for _ in range(3):
            # Watchers that stay, and one that says nothing, have it for a moment only.
            stack.enter_context(site.admin("/events", stream=True))
            stack.enter_context(socket.create_connection(("127.0.0.1", site.admin_port or 0)))
            assert site.admin("/healthz").text == "ok\n"
            assert requests.get(site.url, timeout=20).status_code == 503
        assert cpu(pid) - before < 1.0
        # A line in ten seconds.
        assert 1 <= site.output().count("no file descriptors left") < 10 and "Traceback" not in site.output()
        site.finish("opens")
        wait_until(lambda: is_served(site), "clients are served again")
        with site.admin("/events", stream=True) as watched:
            events = watched.iter_lines()
            # Longer than with the last descriptor.
            assert [next(events) for _ in range(6)].count(b"") == 3


def is_served(site: Site) -> bool:
    try:
        return requests.get(site.url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
