"""SIGTTIN and SIGTTOU: one process more or less, while clients ask."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from tests.support.inprocess import wait_until
from tests.support.load import Load
from tests.support.supervised import Supervised, said


def test_processes_are_added_and_removed_under_load(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        server = Supervised(tmp_path, "--access_log=false", env={"NOTIFY_SOCKET": str(tmp_path / "notify")}, LINGER=0.1)
        with server:
            first = server.wait_for_both()
            assert b"with 2 processes" in manager.recv(4096)
            with Load(server.port) as load:
                server.process.send_signal(signal.SIGTTIN)
                wait_until(lambda: len(set(load.answers)) == 3, "the third answers too", 30)
                assert b"with 3 processes" in manager.recv(4096)
                [third] = server.pids() - first
                # Two at once, and then one that would leave none.
                server.process.send_signal(signal.SIGTTOU)
                wait_until(said(server, "SIGTTOU: 2 processes from now on"), "it is heard")
                server.process.send_signal(signal.SIGTTOU)
                wait_until(lambda: len(server.pids()) == 1, "one is left", 30)
                assert server.pids() < first and third not in server.pids()
                server.process.send_signal(signal.SIGTTOU)
                wait_until(said(server, "SIGTTOU: there is only one process left, which stays"), "the last one stays")
                server.process.send_signal(signal.SIGTTIN)
                wait_until(lambda: len(set(load.answers[-100:])) == 2, "the new one answers too", 30)
                # All get what they have at the end, the new one's socket included.
                server.process.send_signal(signal.SIGUSR2)
                wait_until(said(server, "all processes are replaced"), "the reload", 30)
            assert load.failures == []
            assert len(server.pids()) == 2
            assert server.stop() == 0
