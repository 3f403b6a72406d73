"""Processes are replaced when they have reached a limit, one at a time, and no request is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from tests.support.load import Load
from tests.support.supervised import Supervised, said
from threadbridge.process.child import Child
from threadbridge.process.renewal import YOUNG, Limits
from threadbridge.process.supervisor import Supervisor
from threadbridge.settings.resolving import resolve
from threadbridge.settings.table import from_keywords
from threadbridge.settings.values import SettingError

# Those that take long run on demand.
on_demand = pytest.mark.skipif("RENEWING" not in os.environ, reason="takes long: set RENEWING=1")

MEGABYTE = 1024**2


def test_after_many_requests_all_are_replaced_under_load_one_at_a_time(tmp_path: Path) -> None:
    arguments = ("--max_requests=50", "--max_requests_jitter=20", "--logging=info", "--access_log=false")
    with Supervised(tmp_path, *arguments, YOUNG=0.0, INTERVAL=0.05) as server:
        first, most = server.wait_for_both(), 0
        with Load(server.port) as load:

            def all_are_others() -> bool:
                nonlocal most
                most = max(most, len(server.pids()))
                return len(set(load.answers) - first) >= 2 and not server.pids() & first

            wait_until(all_are_others, "both are replaced", 60)
        assert load.failures == []
        # Two that serve, and the successor of one of them.
        assert most <= 3
        assert all(said(server, f"(pid {pid})", " requests (max_requests=", "replacing it")() for pid in first)
        assert server.stop() == 0


def test_one_process_with_too_much_memory_is_replaced_without_a_gap(tmp_path: Path) -> None:
    server = Supervised(tmp_path, "--processes=1", "--max_memory=100M", YOUNG=0.0, INTERVAL=0.05)
    program = tmp_path / "site_app.py"
    program.write_text(
        program.read_text().replace(
            'path == "/thread":', 'path == "/grow":\n        app.held = b"1" * 10**8\n    elif path == "/thread":'
        )
    )
    with server:
        assert said(server, f"(pid {server.process.pid}, 1 process)")()
        [first] = server.pids()
        with Load(server.port) as load:
            wait_until(lambda: len(load.answers) > 100, "it serves")
            assert "replacing it" not in server.output()
            assert server.ask("/grow") == first
            wait_until(
                lambda: load.answers[-1] != first and server.pids() == {load.answers[-1]}, "another one serves", 30
            )
        assert load.failures == []
        assert said(server, f"(pid {first})", "MB of memory (max_memory=100 MB): replacing it")()
        assert server.stop() == 0


@on_demand
def test_one_supervised_process_is_replaced_when_it_dies_and_reloaded(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--processes=1", "--supervised") as server:
        [first] = server.pids()
        os.kill(first, signal.SIGKILL)
        # It waits in the listening socket, which is the supervisor's.
        second = server.ask()
        assert {second} == server.pids() != {first}
        server.process.send_signal(signal.SIGUSR2)
        wait_until(said(server, "all processes are replaced"), "the reload", 30)
        assert server.ask() not in (first, second)
        assert server.stop() == 0


@on_demand
def test_a_limit_that_cannot_be_kept_leaves_the_old_process_and_is_tried_again(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--processes=1", "--max_age=0.5", YOUNG=0.0, INTERVAL=0.05, RETRY=0.2) as server:
        good = (tmp_path / "site_app.py").read_text()
        (tmp_path / "site_app.py").write_text("raise RuntimeError('a bad version')\n")
        wait_until(said(server, "no new process could be started in place of"), "it fails", 30)
        old = server.ask()
        (tmp_path / "site_app.py").write_text(good)
        wait_until(lambda: server.ask() != old, "it is tried again", 30)
        assert said(server, f"(pid {old})", "s old (max_age=0.5): replacing it")()
        assert server.stop() == 0


class Aged(Child):
    """A process that began to serve some seconds ago, without the process."""

    def __init__(self, seconds: float, *, requests: int = 0, max_requests: int = 0) -> None:
        self.started = self.ready_since = time.monotonic() - seconds
        self.requests, self.max_requests = requests, max_requests
        self.pid = os.getpid()


def test_a_young_process_is_left_alone() -> None:
    limits = Limits(from_keywords({"max_requests": 10, "max_age": 0.1, "max_memory": 1}))
    assert limits.exceeded(Aged(YOUNG - 5, requests=20, max_requests=10)) == ""
    assert limits.exceeded(Aged(YOUNG + 5, requests=10, max_requests=10)) == "10 requests (max_requests=10)"
    assert limits.exceeded(Aged(YOUNG + 5, requests=9, max_requests=10)) == f"{YOUNG + 5:.0f} s old (max_age=0.1)"


def test_the_jitter_differs() -> None:
    limits = Limits(from_keywords({"max_requests": 1000, "max_requests_jitter": 500}))
    assert all(1000 <= limits.requests_of_next() <= 1500 for _ in range(100))
    assert len({limits.requests_of_next() for _ in range(100)}) > 10
    assert not Limits(from_keywords({})).are_set and Limits(from_keywords({})).requests_of_next() == 0


def test_memory_that_is_shared_counts_in_part(tmp_path: Path) -> None:
    shared = b"1" * (64 * MEGABYTE)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        limits = Limits(from_keywords({"max_memory": resident - len(shared) // 4}))
        assert limits.exceeded(Aged(YOUNG)) == ""
        assert "MB of memory" in Limits(from_keywords({"max_memory": MEGABYTE})).exceeded(Aged(YOUNG))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_requests_jitter": "5"}, "max_requests_jitter without max_requests: give both"),
        ({"max_age": "60", "reload": "true"}, "reload and max_age: give one of them"),
        ({"user": "no-such-user"}, "user=no-such-user: there is no user of this name"),
        ({"group": "no-such-group"}, "group=no-such-group: there is no group of this name"),
    ],
)
def test_what_cannot_be_used(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Supervisor(resolve({name: [text] for name, text in settings.items()}, {}, {}).values)
