"""The campaign: random load, random faults on top of it, then all checks."""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import checks, database, frontend, limits, network
from tests.faults.crowd import Crowd
from tests.faults.fault import Fault
from tests.faults.site import POOLS, Site, Unavailable

# How many faults there may be at the same time, each of another group: those of one group use the same means.
AT_ONCE = 3
# A fault that has failed so often, and never could be made, is broken itself.
OFTEN = 3
CLIENTS = 24
GROUPS: Sequence[Sequence[Fault]] = (
    network.FAULTS,
    database.SERVER,
    database.STATEMENTS,
    (*frontend.ALWAYS, *limits.FAULTS),
)


@dataclass
class Outcome:
    """What a campaign has found.

    :param violations: broken promises, each in a line or more.
    :param history: which faults there were, and when.
    :param skipped: the faults that could not be made here, and why.
    :param logs: the directory with all that the frontend has logged; None if no promise was broken.
    """

    seed: int
    violations: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    faults: int = 0
    logs: Path | None = None


class Campaign:
    """One run: ``Campaign(seed, processes=2).run(seconds=60)``. The same seed makes the same choices.

    :param only: the names of the faults to choose from; all if there are none.
    :param without: the names of faults to leave out.
    :param report: called with a line of progress every few seconds.
    """

    def __init__(
        self,
        seed: int,
        *,
        processes: int = 2,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
        report: Callable[[str], None] = print,
    ) -> None:
        self._chance = random.Random(seed)
        self._processes = processes
        self._report = report
        self.outcome = Outcome(seed)
        groups = [*GROUPS[:-1], (*GROUPS[-1], *(frontend.SUPERVISED if processes > 1 else ()))]
        self._groups = [
            [fault for fault in group if (not only or fault.__name__ in only) and fault.__name__ not in without]
            for group in groups
        ]
        # By the number of the group.
        self._active: dict[int, Fault] = {}
        self._lock = threading.Lock()
        # How often each fault was made, and how often that failed, as it may while others last.
        self._made: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._started = time.monotonic()

    def run(self, seconds: float, transfers: int = 0) -> Outcome:
        """Go on for so long, and until there were so many transfers."""
        pool, over_tcp = self._chance.choice(POOLS), self._chance.random() < 0.5
        cancel = self._chance.choice(("safe", "safe", "all"))
        self._note(f"pool {pool} over {'TCP' if over_tcp else 'a Unix socket'}, cancel={cancel}")
        with Site(self._processes, pool, over_tcp=over_tcp, cancel=cancel) as site:
            memory = checks.memory(site)
            with Crowd(site.port, CLIENTS, self.outcome.seed) as crowd:
                self._compose(site, crowd, seconds, transfers)
            # All that was asked is answered by now.
            self._check(site, crowd, memory)
            self.outcome.answers = dict(sorted(crowd.answers.items()))
            if self.outcome.violations:
                self.outcome.logs = Path(tempfile.mkdtemp(prefix="campaign-"))
                site.keep_output(self.outcome.logs)
        return self.outcome

    def _note(self, what: str) -> None:
        self.outcome.history.append(f"{time.monotonic() - self._started:7.1f} {what}")

    def _compose(self, site: Site, crowd: Crowd, seconds: float, transfers: int) -> None:
        end = time.monotonic() + seconds
        reported = 0.0
        threads: list[threading.Thread] = []
        readiness = checks.Readiness()
        while (time.monotonic() < end or crowd.transfers < transfers) and not (crowd.wrong or site.wrong):
            time.sleep(self._chance.uniform(0.2, 2))
            if site.frontend.poll() is not None and not site.is_restarting:
                site.wrong.append(f"the frontend has ended: {site.output()[-1000:]}")
            number = self._chance.randrange(len(self._groups))
            chance = random.Random(self._chance.random())
            if self._groups[number] and len(self._active) < AT_ONCE and number not in self._active:
                threads.append(self._begin(number, self._chance.choice(self._groups[number]), site, chance))
            site.wrong += readiness.look(site, crowd)
            if time.monotonic() - reported > 5:
                reported = time.monotonic()
                done = sum(crowd.answers.values())
                active = ", ".join(sorted(each.__name__ for each in list(self._active.values()))) or "no fault"
                self._report(
                    f"{reported - self._started:6.0f} s: {done} requests, {crowd.transfers} transfers done; {active}"
                )
        for thread in threads:
            thread.join(90)
            if thread.is_alive():
                site.wrong.append(f"{thread.name} has not ended")

    def _begin(self, group: int, fault: Fault, site: Site, chance: random.Random) -> threading.Thread:
        name = fault.__name__
        with self._lock:
            self._active[group] = fault

        def run() -> None:
            self._note(f"{name} begins")
            try:
                fault(site, chance)
            except Unavailable as error:
                if name not in self.outcome.skipped:
                    self.outcome.skipped[name] = str(error)
                    self._report(f"skipped: {name}: {error}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no fault of the server's
                self._note(f"{name} could not be made: {error!r}")
                self._failed[name] += 1
            else:
                self._made[name] += 1
            self._note(f"{name} ends")
            with self._lock:
                del self._active[group]

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def _check(self, site: Site, crowd: Crowd, memory: int) -> None:
        wrong = self.outcome.violations
        seen = {line.split()[1] for line in self.outcome.history}
        if site.frontend.poll() is None:
            wrong += checks.full_strength(site)
            wrong += checks.nothing_left(site)
            wrong += checks.leaks(site, memory)
            wrong += checks.clean_end(site)
        wrong += crowd.wrong
        wrong += site.wrong
        wrong += checks.money(site, crowd)
        wrong += checks.outcomes(site, crowd)
        wrong += checks.statuses(crowd, seen)
        wrong += checks.access_log(site, crowd)
        wrong += checks.logs(site, seen)
        never = [name for name, count in self._failed.items() if count >= OFTEN and not self._made[name]]
        wrong += [f"{name} could not be made, {self._failed[name]} times" for name in never]
        self.outcome.faults = self._made.total()
