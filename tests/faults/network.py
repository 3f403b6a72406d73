"""Faults of the line to the database."""

from __future__ import annotations

import random

from tests.faults.fault import Fault, pause
from tests.faults.site import Site


def old_connections_swallowed(site: Site, chance: random.Random) -> None:
    """As a firewall that has forgotten them does: they never pass again, and are reset, if at all, when tried."""
    site.line.swallow(new=False)
    pause(chance, 1, 8)
    if chance.random() < 0.5:
        site.line.cut()


def network_gone(site: Site, chance: random.Random) -> None:
    site.line.swallow(new=True)
    pause(chance, 0.5, 8)
    if chance.random() < 0.5:
        site.line.mend()
    else:
        # Of what was under way nothing is heard any more.
        site.line.swallow(new=False)


def connections_cut(site: Site, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 5)):
        site.line.cut()
        pause(chance, 0.05, 0.5)


def connections_reset(site: Site, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 5)):
        site.line.reset()
        pause(chance, 0.05, 0.5)


def connections_half_closed(site: Site, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 3)):
        site.line.half_close()
        pause(chance, 0.2, 1)


def replies_lost(site: Site, chance: random.Random) -> None:
    site.line.spoil_replies("lose")
    pause(chance, 0.05, 1)
    site.line.mend()


def replies_cut(site: Site, chance: random.Random) -> None:
    site.line.spoil_replies("cut")
    pause(chance, 0.05, 1)
    site.line.mend()


def commits_without_reply(site: Site, chance: random.Random) -> None:
    for _ in range(chance.randrange(5, 30)):
        part = chance.choice((b"COMMIT", b"INSERT INTO ledger", b"amount - 1", b"amount + 1"))
        site.line.lose_reply(part, chance.randrange(0, 5)).happened.wait(0.5)
    site.line.mend()


def network_slow(site: Site, chance: random.Random) -> None:
    site.line.delay(chance.uniform(0.01, 0.2))
    pause(chance, 1, 4)
    site.line.mend()


FAULTS: tuple[Fault, ...] = (
    old_connections_swallowed,
    network_gone,
    connections_cut,
    connections_reset,
    connections_half_closed,
    replies_lost,
    replies_cut,
    commits_without_reply,
    network_slow,
)
