"""What a kind of pool is: the functions that its module must offer, and what several kinds share. Worker side."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard


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


def watch_constructor(cls: Any, on_new: Callable[[Any], None]) -> None:
    """Call ``on_new`` with each object of the class that is made from now on: for packages without such an event."""
    construct = cls.__init__

    @functools.wraps(construct)
    def construct_and_tell(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        on_new(self)

    cls.__init__ = construct_and_tell


def check_free(method: object) -> None:
    """Raise ``ValueError`` if a guard that is not closed has replaced this method of a pool."""
    owner = getattr(method, "__self__", None)
    if isinstance(owner, Guard) and not owner.closed:
        raise ValueError("this pool belongs to another Bridge already; give both applications to one, or two pools")


def check_names(library: str, supported: str, used: Mapping[Any, str], differing: Iterable[str] = ()) -> None:
    """Raise ``ValueError`` if a library lacks names, most of them private, that its guard uses.

    :param used: the names, by the objects that have them; a class also has the attributes that its methods set.
    :param differing: whatever else it lacks.
    """
    missing = [
        *differing,
        *(name for owner, names in used.items() for name in names.split() if not _has(owner, name)),
    ]
    if missing:
        raise ValueError(
            f"{library} has no {', '.join(missing)}; threadbridge supports {supported}: install one of these versions, "
            "or leave the pool out by pool=none and give threads="
        )


def _has(owner: object, name: str) -> bool:
    return hasattr(owner, name) or (isinstance(owner, type) and name in _set_by_methods(owner))


@functools.cache
def _set_by_methods(cls: type) -> frozenset[str]:
    members = [member for base in cls.__mro__ for member in vars(base).values()]
    # `watch_constructor` wraps one.
    methods = [inspect.unwrap(member) for member in members if inspect.isfunction(member)]
    return frozenset(
        each.argval for method in methods for each in dis.get_instructions(method) if each.opname == "STORE_ATTR"
    )


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
