"""What a fault is: a function that does something to the site, for a while, and undoes it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.faults.site import Site

Fault = Callable[[Site, random.Random], None]


def pause(chance: random.Random, shortest: float, longest: float) -> None:
    """Let the fault last for so many seconds."""
    time.sleep(chance.uniform(shortest, longest))


@contextmanager
def as_root(site: Site) -> Iterator[Any]:
    """A cursor of the database's administrator."""
    connection = site.root()
    try:
        yield connection.cursor()
    finally:
        connection.close()
