"""Faults of the frontend: signals at any moment, processes that die or stand still, and its clients' worst requests."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.faults.fault import Fault, pause
from tests.faults.site import POOLS, Site


def logs_reopened(site: Site, chance: random.Random) -> None:
    for _ in range(10):
        os.kill(site.frontend.pid, signal.SIGHUP)
        pause(chance, 0, 0.1)


def restarted(site: Site, chance: random.Random) -> None:
    """As for a new version; the pool may be another one then."""
    with site.restarting(chance.choice(POOLS)):
        site.end()


def stopped_in_a_hurry(site: Site, chance: random.Random) -> None:
    """A second signal cuts short what is asked."""
    with site.restarting():
        site.frontend.send_signal(signal.SIGTERM)
        pause(chance, 0, 0.5)
        if site.frontend.poll() is None:
            site.frontend.send_signal(signal.SIGTERM)
        site.frontend.wait(30)


def frontend_killed(site: Site, chance: random.Random) -> None:
    """With several processes it is the supervisor that is killed, and another one is started at once."""
    with site.restarting():
        if site.processes == 1:
            site.kills.append(time.time())
        site.frontend.kill()
        site.frontend.wait()


def crashing_requests(site: Site, chance: random.Random) -> None:
    """More of them than a supervisor would take for a bad start."""
    for _ in range(chance.randrange(1, 13) if site.processes > 1 else 1):
        site.kills.append(time.time())
        if site.processes == 1:
            with site.restarting():
                site.ask(f"/crash?id={site.next_number()}")
                site.frontend.wait(20)
        else:
            site.ask(f"/crash?id={site.next_number()}")
            pause(chance, 0.1, 0.5)
        site.kills.append(time.time())


def forking_requests(site: Site, chance: random.Random) -> None:
    """Children that end in all the ways in which children do, or do not end."""
    for _ in range(chance.randrange(3, 20)):
        if site.ask(f"/fork?id={site.next_number()}") == 500:
            site.wrong.append("a request that forks was answered 500")


# Those that need several processes.


def reloaded(site: Site, chance: random.Random) -> None:
    os.kill(site.frontend.pid, signal.SIGUSR2)
    pause(chance, 2, 8)


def process_killed(site: Site, chance: random.Random) -> None:
    if children := site.children():
        site.kill_child(chance.choice(children))


def process_stands_still(site: Site, chance: random.Random) -> None:
    if children := site.children():
        pid = chance.choice(children)
        # It may be killed for it, and another one takes its place.
        site.kills.append(time.time())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            pause(chance, 0.5, 4)
            os.kill(pid, signal.SIGCONT)


ALWAYS: tuple[Fault, ...] = (
    logs_reopened,
    restarted,
    stopped_in_a_hurry,
    frontend_killed,
    crashing_requests,
    forking_requests,
)
SUPERVISED: tuple[Fault, ...] = (reloaded, process_killed, process_stands_still)
