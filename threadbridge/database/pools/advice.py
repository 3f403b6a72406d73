"""What ``--check`` says about a pool's own settings: each kind of pool knows which of them work badly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class PoolLoad(NamedTuple):
    """The load that a pool must bear."""

    # How many requests may use it at once.
    threads: int
    # Seconds that a request may take until its response begins.
    deadline: float
    # Seconds after which the database closes an idle connection; None if it never does, or that is not known.
    idle_timeout: float | None = None


class Advice(NamedTuple):
    """A setting of a pool that works badly, why, and what to do about it."""

    setting: str
    problem: str
    remedy: str


def closed_while_idle(setting: str, load: PoolLoad, remedy: str) -> Iterator[Advice]:
    """Advice on a pool that does not test its connections, if the database closes idle ones."""
    if load.idle_timeout is not None:
        yield Advice(
            setting,
            f"the database closes connections that have been idle for {load.idle_timeout:g} s, but the pool hands them "
            "out without testing them: requests fail after a quiet time",
            remedy,
        )


def waits_too_long(setting: str, timeout: float | None, size: int, load: PoolLoad) -> Iterator[Advice]:
    """Advice on the time for which a request may wait for a connection, if there are more threads than connections."""
    if size and load.threads > size and (timeout is None or timeout >= load.deadline):
        how_long = "without a limit" if timeout is None else f"for {timeout:g} s"
        yield Advice(
            setting,
            f"{load.threads} threads share {size} connections, and a request may wait {how_long} for one, but its "
            f"deadline is after {load.deadline:g} s: it is answered 504, and its thread is busy until then",
            f"set {setting} to less than the deadline, such as {load.deadline / 6:g}",
        )
