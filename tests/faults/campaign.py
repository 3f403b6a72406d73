"""The campaign: random load, random faults on top of it, then all checks."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults import checks
from tests.faults.crowd import Crowd
from tests.faults.faults import ALWAYS, EXCLUSIVE, SUPERVISED, Fault
from tests.faults.site import Site

# How many faults there may be at the same time.
AT_ONCE = 2
# What pools the application may have, besides the usual one.
POOLS: Sequence[dict[str, Any]] = (
    *({}, {}, {"maxusage": 5}, {"ping": 7}),
    *({"ping": 0}, {"maxcached": 2}, {"blocking": True}),
)


@dataclass
class Outcome:
    """What a campaign has found.

    :param violations: broken promises, each in a line or more.
    :param history: which faults there were, and when.
    """

    seed: int
    violations: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


class Campaign:
    """One run: ``Campaign(seed, processes=2).run(seconds=60)``. The same seed makes the same choices.

    :param report: called with a line of progress every few seconds.
    """

    def __init__(self, seed: int, *, processes: int = 2, report: Callable[[str], None] = print) -> None:
        self._chance = random.Random(seed)
        self._processes = processes
        self._report = report
        self.outcome = Outcome(seed)
        self._active: set[Fault] = set()
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def run(self, seconds: float, transfers: int = 0) -> Outcome:
        """Go on for so long, and until there were so many transfers."""
        pool = self._chance.choice(POOLS)
        self._note(f"pool {pool}")
        with Site(self._processes, pool) as site:
            crashes = 1 if self._processes > 1 else 0
            with Crowd(site.port, 24, self.outcome.seed, crashes=crashes) as crowd:
                self._compose(site, crowd, seconds, transfers)
                # Those that are asked are answered before anything is looked at.
            self._check(site, crowd)
            self.outcome.answers = dict(sorted(crowd.answers.items()))
        return self.outcome

    def _note(self, what: str) -> None:
        self.outcome.history.append(f"{time.monotonic() - self._started:7.1f} {what}")

    def _compose(self, site: Site, crowd: Crowd, seconds: float, transfers: int) -> None:
        end = time.monotonic() + seconds
        reported = 0.0
        threads: list[threading.Thread] = []
        while (time.monotonic() < end or crowd.transfers < transfers) and not crowd.wrong:
            time.sleep(self._chance.uniform(0.2, 2.5))
            if site.frontend.poll() is not None:
                self.outcome.violations.append(f"the frontend has ended: {site.output()[-1000:]}")
                break
            fault = self._choose()
            if fault is not None:
                threads.append(self._begin(fault, site))
            if time.monotonic() - reported > 5:
                reported = time.monotonic()
                done = sum(crowd.answers.values())
                active = ", ".join(sorted(each.__name__ for each in self._active)) or "no fault"
                self._report(
                    f"{reported - self._started:6.0f} s: {done} requests, {crowd.transfers} transfers done; {active}"
                )
        for thread in threads:
            thread.join(60)
        self.outcome.violations += crowd.wrong

    def _choose(self) -> Fault | None:
        faults = [*ALWAYS, *(SUPERVISED if self._processes > 1 else ())]
        fault = self._chance.choice(faults)
        with self._lock:
            if len(self._active) >= AT_ONCE or fault in self._active:
                return None
            if any(fault in group and group & self._active for group in EXCLUSIVE):
                return None
            self._active.add(fault)
        return fault

    def _begin(self, fault: Fault, site: Site) -> threading.Thread:
        chance = random.Random(self._chance.random())

        def run() -> None:
            self._note(f"{fault.__name__} begins")
            try:
                fault(site, chance)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no fault of the server's
                self._note(f"{fault.__name__} could not be made: {error!r}")
            self._note(f"{fault.__name__} ends")
            with self._lock:
                self._active.discard(fault)

        thread = threading.Thread(target=run, name=fault.__name__, daemon=True)
        thread.start()
        return thread

    def _check(self, site: Site, crowd: Crowd) -> None:
        wrong = self.outcome.violations
        wrong += [line for line in crowd.wrong if line not in wrong]
        if site.frontend.poll() is None:
            wrong += checks.full_strength(site)
            wrong += checks.nothing_left(site)
            wrong += checks.leaks(site)
            wrong += checks.clean_end(site)
        wrong += checks.money(site, crowd)
        wrong += checks.access_log(site, crowd)
        wrong += checks.logs(site)
