"""The drain delay: after the signal to stop, /readyz fails while new requests are still accepted."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.support.admin_site import Site
from tests.support.inprocess import wait_until
from tests.support.processes import free_port
from tests.support.supervised import Supervised, said


def is_ready(port: int) -> bool:
    return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200


def is_closed(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def test_during_the_drain_delay_new_requests_are_accepted(tmp_path: Path) -> None:
    with Site(tmp_path, "--drain_delay=600") as site:
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: site.admin("/readyz").status_code == 503, "it drains")
        for _ in range(3):
            assert requests.get(site.url, timeout=30).ok
        site.process.send_signal(signal.SIGTERM)
        assert site.process.wait(30) == 0
        with pytest.raises(requests.ConnectionError):
            requests.get(site.url, timeout=30)


def test_the_drain_delay_ends_by_itself(tmp_path: Path) -> None:
    with Site(tmp_path, "--drain_delay=0.2") as site, ExitStack() as stack:
        site.occupy(stack, "one")
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_closed(site.port), "the port closes")
        site.finish("one")
        assert site.process.wait(30) == 0


def test_several_processes_accept_requests_during_the_drain_delay(tmp_path: Path) -> None:
    port = free_port()
    with Supervised(tmp_path, f"--admin_port={port}", "--drain_delay=600") as server:
        before = server.wait_for_both()
        # Replacing them takes no delay.
        server.process.send_signal(signal.SIGUSR2)
        server.wait_for_both(without=before)
        wait_until(said(server, "all processes are replaced"), "replaced")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_ready(port), "it drains")
        assert all(requests.get(server.url, timeout=30).ok for _ in range(8))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
