"""A server that is measured: its processes, their memory, and what the database does for it."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.clients import Refused, ask
from benchmarks.contenders import PLAIN, Contender, Setup
from benchmarks.database import ProcessList
from tests.support.hosts import Authority
from tests.support.processes import Frontend

SLOW = 3.0
STARTS_WITHIN = 30.0

_numbers = itertools.count()


class CannotStart(Exception):
    """The server did not come up; the message is what it said."""


class Footprint(NamedTuple):
    """The memory of a process in bytes.

    :param resident: its pages that are in memory (RSS), as ``ps`` and ``top`` show it. A process that was forked does
        not count the pages of libraries that only its parent has used, at the start.
    :param anonymous: those of them that belong to no file: what it has loaded and made, and what it shares of that with
        the process from which it was forked.
    :param proportional: its pages, each divided by the number of processes that have it (PSS).
    :param unique: those that no other process has (USS).
    """

    resident: int
    anonymous: int
    proportional: int
    unique: int


class Subject:
    """A server that runs. ``port`` is where it listens, with TLS if ``tls``; ``process`` is its first process."""

    def __init__(self, frontend: Frontend, variables: Mapping[str, str], *, tls: bool = False) -> None:
        self.port = frontend.port
        self.tls = tls
        self.process: subprocess.Popen[bytes] = frontend.process
        # How long its slow queries take; by this the database's list tells them from those of another server.
        self.slow = round(SLOW + next(_numbers) / 10_000, 4)
        self._variables = variables

    def slow_queries(self) -> int:
        """How many of its slow queries the database runs at this moment."""
        with closing(ProcessList(self._variables)) as database:
            return sum(query.seconds == self.slow for query in database.sleeping())

    def processes(self) -> list[int]:
        """Its processes' ids: the first with all its descendants."""
        found, ahead = [], [self.process.pid]
        while ahead:
            number = ahead.pop()
            found.append(number)
            for children in Path(f"/proc/{number}/task").glob("*/children"):
                with suppress(OSError):
                    ahead += map(int, children.read_text().split())
        return found

    def processor_seconds(self) -> float:
        """The processor time that its processes have taken so far."""
        ticks = 0
        for number in self.processes():
            # The name, in parentheses, may contain anything.
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def footprints(self) -> list[Footprint]:
        """Of each of its processes."""
        return [footprint(number) for number in self.processes()]


def footprint(process: int) -> Footprint:
    def size(*fields: str) -> int:
        return 1024 * sum(kilobytes("smaps_rollup", process, field) for field in fields)

    return Footprint(size("Rss"), size("Anonymous"), size("Pss"), size("Private_Clean", "Private_Dirty"))


def kilobytes(file: str, process: int, field: str) -> int:
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{process}/{file} has no line {field}")


class Memory:
    """How much the processes of a server grow, in bytes, from the construction on."""

    def __init__(self, subject: Subject) -> None:
        self._processes = subject.processes()
        self._before = self._total("VmRSS")
        for number in self._processes:
            # The peak is counted anew from here on.
            Path(f"/proc/{number}/clear_refs").write_text("5")

    @property
    def growth(self) -> int:
        return self._total("VmRSS") - self._before

    @property
    def peak_growth(self) -> int:
        return self._total("VmHWM") - self._before

    def _total(self, field: str) -> int:
        return sum(1024 * kilobytes("status", number, field) for number in self._processes)


@contextmanager
def running(
    contender: Contender,
    environment: Path,
    variables: Mapping[str, str],
    extra: tuple[str, ...] = (),
    setup: Setup = PLAIN,
) -> Iterator[Subject]:
    """Start a server, wait until it answers, and end all its processes after the block. Raises `CannotStart`.

    :param extra: what is added to its command line.
    """
    with ExitStack() as stack:
        application = contender.logged_application if setup.logged else f"{setup.module}:app"
        frontend = Frontend(("{port}",), env={**variables, "APPLICATION": application})
        certfile = keyfile = ""
        if setup.tls:
            authority = Authority(Path(stack.enter_context(TemporaryDirectory()), "tls"))
            certfile, keyfile = map(str, authority.sign("server", "IP:127.0.0.1"))
        log = contender.logged if setup.logged else contender.quiet
        scheme = contender.tls if setup.tls else contender.plain
        frontend.command = [
            part.format(
                port=frontend.port, environment=environment, application=application, certfile=certfile, keyfile=keyfile
            )
            for part in (*contender.command, *scheme, *log, *extra)
        ]
        try:
            stack.enter_context(frontend)
        except (RuntimeError, OSError) as error:
            raise CannotStart(str(error)) from error
        subject = Subject(frontend, variables, tls=setup.tls)
        stack.callback(end, subject)
        wait_for_answer(subject, frontend)
        yield subject


def wait_for_answer(subject: Subject, frontend: Frontend) -> None:
    give_up = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            ask(subject.port, "/started", give_up - time.monotonic(), tls=subject.tls)
            return
        except (OSError, http.client.HTTPException, Refused) as error:
            if subject.process.poll() is not None or time.monotonic() > give_up:
                raise CannotStart(f"{error!r}\n{frontend.output()}") from error
            time.sleep(0.05)


def end(subject: Subject) -> None:
    # Children of a killed process would go on.
    for number in subject.processes():
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
