"""What a kind of pool is: the functions that its module must offer, and what several kinds share. Worker side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard


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


class PoolKind(Protocol):
    """What a module must offer for a kind of pool; docs/pools.md has an example.

    Several threads may call it at once.
    """

    def pools_of(self, value: Any) -> Mapping[str, Any]:
        """The pools that a value has, by their names in it; a pool itself is ``{"": value}``, anything else ``{}``.

        The value's class, or one of its base classes, is from the kind's package. All such objects of the process are
        tried, so it must be fast and must not change anything.
        """

    def size(self, pool: Any) -> int:
        """How many connections a pool hands out at once; 0: unlimited.

        Raises ``ValueError``, which says why and what to do, if the pool cannot be guarded.
        """

    def describe(self, pool: Any) -> str:
        """The pool and its size in a few words, without passwords."""

    def guard(self, pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
        """Put a guard round the pool; the options are those of `Guard`."""

    def watch(self, on_new: Callable[[Any], None]) -> None:
        """Call ``on_new`` from now on with each pool that is made, or is used for the first time, in any thread.

        It may be called again with the same pool. Do nothing if the package has no way to notice.
        """

    def close_idle(self, pool: Any) -> None:
        """Close the pool's idle connections; this process does not use the pool. Any error may be raised."""

    def advice(self, pool: Any, load: PoolLoad) -> Iterable[Advice]:
        """What ``--check`` says about the pool's own settings. A kind may do without this function."""


@dataclass(frozen=True)
class FoundPool:
    """A pool with its kind; ``name`` is its name in the object that has it, or ""."""

    pool: Any
    kind: PoolKind
    name: str = ""

    @property
    def size(self) -> int:
        """How many connections it hands out at once; 0: unlimited."""
        return self.kind.size(self.pool)

    def advice(self, load: PoolLoad) -> Iterable[Advice]:
        """Which of the pool's own settings work badly, as far as its kind knows."""
        return self.kind.advice(self.pool, load) if hasattr(self.kind, "advice") else ()

    def __str__(self) -> str:
        return f"{self.kind.describe(self.pool)} ({self.name})" if self.name else self.kind.describe(self.pool)


def watch_constructor(cls: Any, on_new: Callable[[Any], None]) -> None:
    """Call ``on_new`` with each object of the class that is made from now on: for packages without such an event."""
    construct = cls.__init__

    @functools.wraps(construct)
    def construct_and_tell(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        on_new(self)

    cls.__init__ = construct_and_tell


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
