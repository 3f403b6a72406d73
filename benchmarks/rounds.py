"""Measuring: in each round all servers are started anew and get each load in turn.

So a disturbance of the machine meets all of them, and what differs from one start of a process to the next is in the
spread of the figures.
"""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks import THREADS
from benchmarks.clients import Refused, at_once, keeps_connection
from benchmarks.contenders import PLAIN, Contender, Setup
from benchmarks.subject import CannotStart, Footprint, Memory, Subject, running
from benchmarks.workloads import HELLO, Workload
from benchmarks.wrk import Load, Measured, NoAnswers, run
from tests.support.front_proxies import nginx_with
from tests.support.processes import free_port

MEMORY_STARTS = 3
# Seconds: what is done under load only, such as compiling a regular expression or choosing a processor, is done then.
WARM_UP = 1


class Sample(NamedTuple):
    """What a server did in one round.

    :param processor: the microseconds of processor time for a request.
    :param growth: by how many bytes its memory grew meanwhile, at the most.
    """

    measured: Measured
    processor: float
    growth: int


@dataclass
class Series:
    """A server's samples, one for each round, None for one that failed; and what else is to be said."""

    samples: list[Sample | None] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if sample]

    @property
    def errors(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for sample in self.good:
            for kind, count in sample.measured.errors.items():
                total[kind] = total.get(kind, 0) + count
        return total

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def fail(self, reason: str) -> None:
        self.samples.append(None)
        self.remark(f"failed: {reason}")


class Bench(NamedTuple):
    """Where the servers run; ``cannot`` says of those that could not be installed why."""

    environment: Path
    variables: Mapping[str, str]
    cannot: Mapping[str, str]
    contenders: Sequence[Contender]

    def start(self, contender: Contender, stack: ExitStack, setup: Setup = PLAIN) -> Subject:
        """A server whose threads and database connections are there, and that has been under load for a moment."""
        if contender.name in self.cannot:
            raise CannotStart("it cannot be installed")
        subject = stack.enter_context(running(contender, self.environment, self.variables, setup=setup))
        try:
            at_once(subject.port, "/query?seconds=0.05", THREADS, tls=setup.tls)
            run(subject.port, Load(HELLO, 64), WARM_UP, tls=setup.tls)
        except NoAnswers as error:
            raise CannotStart("it answers nobody under load") from error
        except (OSError, http.client.HTTPException, Refused) as error:
            raise CannotStart(f"its first queries failed: {error!r}") from error
        return subject

    def round(
        self, number: int, workloads: Mapping[str, Workload], results: Mapping[str, Mapping[str, Series]]
    ) -> None:
        """Measure each server once under each load; add it to the results."""
        for setup in dict.fromkeys(workload.setup for workload in workloads.values()):
            chosen = {name: workload for name, workload in workloads.items() if workload.setup == setup}
            with_bound = any(workload.with_bound for workload in chosen.values())
            with ExitStack() as stack:
                subjects: dict[str, Subject | str] = {}
                for contender in self.contenders:
                    if contender.is_bound and not with_bound:
                        continue
                    if setup.tls and not contender.tls:
                        subjects[contender.name] = "no TLS by its command line"
                        continue
                    try:
                        subjects[contender.name] = self.start(contender, stack, setup)
                    except CannotStart as error:
                        print(f"  {contender.name} does not start: {error!s:.500}", flush=True)
                        subjects[contender.name] = "does not start"
                # Another order each round, but the same whenever it is measured: none follows always the same one.
                order = random.Random(number).sample(list(subjects), len(subjects))
                for name, workload in chosen.items():
                    print(f"  {name:13}", end="", flush=True)
                    for server in order:
                        if server not in results[name]:
                            continue
                        series = results[name][server]
                        measure(subjects[server], workload, series)
                        sample = series.samples[-1]
                        shown = f"{sample.measured.rate:.0f}" if sample else "failed"
                        print(f"  {server} {shown}", end="", flush=True)
                    print(flush=True)

    def memory(self, contender: Contender) -> list[Footprint]:
        """The memory of each of the server's processes, when it has answered many and now nobody asks."""
        # Alone: what is shared with other servers would be counted less.
        with ExitStack() as stack:
            subject = self.start(contender, stack)
            return subject.footprints()


def measure(subject: Subject | str, workload: Workload, series: Series) -> None:
    """Put the load on the server; add what came of it to the series. A text says why there is no server."""
    if isinstance(subject, str):
        series.fail(subject)
        return
    load = workload.load
    with ExitStack() as stack:
        port = stack.enter_context(nginx_before(subject.port)) if workload.through_nginx else subject.port
        put(subject, port, load, workload.seconds, series)


def put(subject: Subject, port: int, load: Load, seconds: int, series: Series) -> None:
    """Put the load on the port, behind which the server is; add what came of it to the series."""
    try:
        for path in (load.path, *load.others):
            # It compiles the template too, and the like.
            kept = keeps_connection(port, load.method, path, load.body, tls=subject.tls)
        if load.keep_alive and not kept:
            series.remark("closes connections")
        memory = Memory(subject)
        before = subject.processor_seconds()
        measured = run(port, load, seconds, tls=subject.tls)
        processor = subject.processor_seconds() - before
        growth = memory.peak_growth
    except TimeoutError:
        series.fail("no answer in time")
    except Refused as error:
        series.fail(f"answers with status {error}")
    except NoAnswers:
        series.fail("not one answer")
    except (OSError, http.client.HTTPException) as error:
        series.fail(type(error).__name__)
    else:
        series.samples.append(Sample(measured, processor * 1_000_000 / measured.requests, growth))


@contextmanager
def nginx_before(port: int) -> Iterator[int]:
    """nginx with one process, which keeps connections to the server; the port where it listens."""
    own_port = free_port()
    configuration = f"""http {{
        upstream server {{ server 127.0.0.1:{port}; keepalive 128; }}
        server {{
            listen 127.0.0.1:{own_port} backlog=1024;
            keepalive_requests 1000000;
            location / {{
                proxy_pass http://server;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_set_header Host $http_host;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                proxy_set_header X-Forwarded-Proto $scheme;
            }}
        }}
    }}"""
    with TemporaryDirectory() as directory, nginx_with(Path(directory), own_port, configuration):
        yield own_port
