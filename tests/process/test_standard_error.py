"""A standard error, or standard output, that nobody reads: the service goes on, and says what could not be logged."""

from __future__ import annotations

import fcntl
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.inprocess import wait_until
from tests.support.processes import ROOT
from tests.support.site_process import Process
from threadbridge.process.standard_error import KEPT_SIZE

REFERER = "http://localhost/" + 8000 * "x"
# Enough for what a pipe, or a socket, and the server keep, and as much again.
REQUESTS = 2 * KEPT_SIZE // len(REFERER)


class Unread(Process):
    """A server whose standard error, and standard output, are read when the test says so."""

    def __init__(self, directory: Path, *arguments: str, kind: str = "pipe", fill_stdout: bool = False) -> None:
        super().__init__(directory, "--port={port}", *arguments)
        self._reader, self._writer = ends(kind)
        self._stdout, self._full = ends(kind)
        if fill_stdout:
            fill(self._full)
        self._text = b""
        self._reading = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, env=self.env, cwd=self.cwd, stdout=self._full, stderr=self._writer
        )
        os.close(self._writer)
        os.close(self._full)
        wait_until(self._listens, "it listens", 30)

    def _listens(self) -> bool:
        assert self.process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except ConnectionRefusedError:
            return False
        return True

    def ask(self, requests: range) -> list[int]:
        """Ask for `/?NUMBER` so often, one after the other; the statuses."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        statuses = []
        for number in requests:
            connection.request("GET", f"/?{number}", headers={"Referer": REFERER})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        return statuses

    def read(self) -> None:
        """Begin to read standard error."""
        self._reading.start()

    def read_to_its_end(self) -> str:
        """All that came there, when there is nobody left who writes."""
        self._reading.join(20)
        assert not self._reading.is_alive()
        return self._text.decode()

    def close_reader(self) -> None:
        os.close(self._reader)

    def children(self) -> set[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return {int(pid) for pid in path.read_text().split()}

    def _read(self) -> None:
        while part := os.read(self._reader, 65536):
            self._text += part

    def output(self) -> str:
        return self._text.decode(errors="replace")


def ends(kind: str) -> tuple[int, int]:
    """Where to read, and where to write."""
    if kind == "pipe":
        return os.pipe()
    # As of a service whose output goes to systemd's journal.
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def fill(writer: int) -> None:
    flags = fcntl.fcntl(writer, fcntl.F_GETFL)
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x")
    except BlockingIOError:
        fcntl.fcntl(writer, fcntl.F_SETFL, flags)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_requests_are_answered_and_each_line_that_is_lost_is_counted(kind: str, tmp_path: Path) -> None:
    with Unread(tmp_path, kind=kind) as server:
        assert server.ask(range(REQUESTS)) == REQUESTS * [200]
        server.read()
        wait_until(lambda: "lines of the log were lost" in server.output(), "it says so")
        assert server.ask(range(REQUESTS, REQUESTS + 1)) == [200]
        assert server.stop() == 0
        log = server.read_to_its_end()
    logged = [int(number) for number in re.findall(r'"GET /\?(\d+) ', log)]
    [lost] = [int(number) for number in re.findall(r"^\[E .* (\d+) lines of the log were lost", log, re.MULTILINE)]
    # Those that came when there was no room, one after the other: the first tell how it began.
    first_lost = next(number for number in range(REQUESTS) if number not in logged)
    assert logged == [*range(first_lost), *range(first_lost + lost, REQUESTS + 1)]


def test_it_stops_though_nobody_reads(tmp_path: Path) -> None:
    with Unread(tmp_path, fill_stdout=True) as server:
        assert server.ask(range(REQUESTS)) == REQUESTS * [200]
        assert server.stop() == 0


def test_it_serves_on_when_the_reader_has_gone(tmp_path: Path) -> None:
    with Unread(tmp_path) as server:
        server.close_reader()
        assert server.ask(range(100)) == 100 * [200]
        assert server.stop() == 0


def test_a_supervisor_does_its_work_though_nobody_reads(tmp_path: Path) -> None:
    with Unread(tmp_path, "--processes=2", "--grace=5", fill_stdout=True) as server:
        threads = [threading.Thread(target=server.ask, args=(range(REQUESTS),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        before = server.children()
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(server.children() - before) == 1, "another takes its place")
        assert server.ask(range(10)) == 10 * [200]
        assert server.stop() == 0


FORKS = """
import logging, os, sys
from threadbridge.process.standard_error import StandardError

logging.basicConfig(handlers=[StandardError()], level="INFO", format="%(message)s")
for number in range(200):
    logging.info("%d %s", number, 1000 * "x")
print("logged", flush=True)
pid = os.fork()
if not pid:
    logging.info("the child")
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_process_writes_its_own_lines_only() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        # By now more is kept than a pipe holds.
        assert process.stdout.readline() == b"logged\n"
        lines = process.stderr.read().decode().splitlines()
        assert process.wait(20) == 0
    assert sorted(line.split(" x")[0] for line in lines) == sorted([*map(str, range(200)), "the child"])


CONFIGURES = """
import logging, logging.config
from threadbridge.process.standard_error import StandardError

logging.basicConfig(handlers=[StandardError()], level="INFO", format="%(message)s")
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
for number in range(1000):
    logging.info("%d %s", number, 1000 * "x")
"""


def test_all_lines_are_written_before_the_end_though_a_configuration_has_closed_the_handler() -> None:
    ended = subprocess.run([sys.executable, "-c", CONFIGURES], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert [line.split()[0] for line in ended.stderr.splitlines()] == [str(number) for number in range(1000)]
