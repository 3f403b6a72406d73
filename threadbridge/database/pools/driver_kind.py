"""A driver whose connections are in no pool, as a `PoolKind`: the pool is the driver's module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.driver import MODULES, DriverGuard


def pools_of(value: Any) -> Mapping[str, Any]:
    return {"": value} if type(value) is ModuleType and value.__name__ in MODULES else {}


def size(pool: Any) -> int:
    return 0


def describe(pool: Any) -> str:
    return f"connections of {pool.__name__} in no pool, unlimited"


def guard(pool: Any, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> Guard:
    return DriverGuard(pool, on_ask, **options)


def watch(on_new: Callable[[Any], None]) -> None:
    """A driver is guarded only where the settings name it."""


def close_idle(pool: Any) -> None:
    """There is none: the application has them all."""
