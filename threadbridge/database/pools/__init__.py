"""The kinds of pools: recognises a pool by the package that defines its class, and makes its guard. Worker side."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from threadbridge.crossing.current import TrackedRequest
from threadbridge.database.guard import Guard
from threadbridge.database.pools.kind import FoundPool, PoolKind

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger("threadbridge")

# Other packages can offer a kind by an entry point in this group, named like the package that defines the pools' class.
GROUP = "threadbridge.pools"
# The packages that define pools, and the modules that know these.
KINDS = {
    "dbutils": "threadbridge.database.pools.dbutils_kind",
    "sqlalchemy": "threadbridge.database.pools.sqlalchemy_kind",
    "flask_sqlalchemy": "threadbridge.database.pools.sqlalchemy_kind",
    "django": "threadbridge.database.pools.django_kind",
    "psycopg_pool": "threadbridge.database.pools.psycopg_pool_kind",
    "mysql": "threadbridge.database.pools.mysql_connector_kind",
    # The drivers themselves, for connections in no pool.
    "MySQLdb": "threadbridge.database.pools.driver_kind",
    "pymysql": "threadbridge.database.pools.driver_kind",
}


def make_guards(pool: object, on_ask: Callable[[Guard, TrackedRequest], None], **options: Any) -> list[Guard]:
    """Guard a pool, or several; closes the guards again if one of them fails. Raises what `pools_in` raises.

    :param pool: see `pools_in`.
    :param on_ask: called on the worker side with each request that asks for a connection, and the guard of its pool.
    :param options: the options of `Guard`.
    """
    guards: list[Guard] = []
    try:
        for found in pools_in(pool):
            guards.append(_guarded(found, on_ask, options))
    except BaseException:
        for guard in guards:
            guard.close()
        raise
    return guards


def _guarded(found: FoundPool, on_ask: Callable[[Guard, TrackedRequest], None], options: dict[str, Any]) -> Guard:
    guard: Guard = found.kind.guard(found.pool, on_ask, **options)
    if found.name:
        guard.name = f"{guard.name} ({found.name})"
        guard.key = found.name
    return guard


def pools_in(value: object) -> list[FoundPool]:
    """The pools that a value of the setting ``pool`` means, each once.

    It may be a pool, an object that has several, a function without parameters that returns one, ``"django"`` for the
    databases of Django's settings, ``"django:ALIAS"`` for one of them, ``"none"``, the module of a driver or its name
    for connections in no pool, or a sequence of these. Raises ``ValueError`` for anything else, and for a pool that
    cannot be guarded.
    """
    found = {id(each.pool): each for each in _pools_in(value)}
    for each in found.values():
        # Raises for one that cannot be guarded.
        each.size  # noqa: B018
    return list(found.values())


def _pools_in(value: object) -> Iterator[FoundPool]:
    if type(value) is FoundPool:
        yield value
    elif type(value) in (list, tuple):
        for each in cast(list[object], value):
            yield from _pools_in(each)
    elif type(value) is str and value.partition(":")[0] == "django":
        yield from recognised(_django_databases(value.partition(":")[2]))
    elif value != "none" or type(value) is not str:
        if type(value) is str and value in _offers():
            value = _module(value)
        found = recognised(value)
        if not found and _is_function(value):
            made = _made_by(value)
            found = recognised(made)
            if not found:
                raise _unknown(made, f"{_shown(value)}() returned {made!r}, which")
        if not found:
            raise _unknown(value, f"pool={value!r}")
        yield from found


def recognised(value: object) -> list[FoundPool]:
    """The pools that an object is or has; none if its class is of no known package."""
    kind = kind_from(value.__name__) if type(value) is ModuleType else kind_of(type(value))
    return [FoundPool(pool, kind, name) for name, pool in kind.pools_of(value).items()] if kind is not None else []


def kind_of(cls: type) -> PoolKind | None:
    """The kind of pool that may be an instance of the class; None if the class is of no known package.

    Not by ``isinstance``: proxies such as werkzeug's ``LocalProxy`` and Django's ``SimpleLazyObject`` would run the
    application's functions.
    """
    for base in cls.__mro__:
        module = base.__dict__.get("__module__")
        # A class may have a property or the like there.
        if type(module) is str and (kind := kind_from(module.partition(".")[0])) is not None:
            return kind
    return None


def loaded_kinds() -> list[PoolKind]:
    """The kinds whose packages this process has imported."""
    kinds = (kind_from(package) for package in _offers() if package in sys.modules)
    # A package may be known by two names.
    return list({id(kind): kind for kind in kinds if kind is not None}.values())


@cache
def kind_from(package: str) -> PoolKind | None:
    """The kind of the pools whose classes are from this package."""
    if package not in _offers():
        return None
    offer = _offers()[package]
    try:
        return cast(PoolKind, offer.load())
    except Exception as error:  # noqa: BLE001 - whatever the module raises, its pools are not guarded
        logger.error(
            "pools of %s are not guarded, because %s cannot be imported: %r; install versions that fit together, see "
            "docs/pools.md",
            *(package, offer.value, error),
        )
        return None


@cache
def _offers() -> Mapping[str, EntryPoint]:
    """By package; those of this project are not declared as entry points, so that its source tree is enough."""
    # Not above: it takes more than a megabyte, and with ``pool=none`` it is not needed.
    from importlib.metadata import EntryPoint, entry_points

    known = (EntryPoint(package, module, GROUP) for package, module in KINDS.items())
    return {each.name: each for each in (*known, *entry_points(group=GROUP))}


def _django_databases(alias: str) -> object:
    database = sys.modules.get("django.db")
    if database is None:
        raise ValueError("pool=django: the application has not imported django.db; give the application's own pool")
    if alias and alias not in database.connections:
        known = ", ".join(database.connections)
        raise ValueError(f"pool=django:{alias}: Django's settings have no database of this name, but {known}")
    return database.connections[alias] if alias else database.connections


def _module(name: str) -> ModuleType:
    # The application may import it later.
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"pool={name}: {error}") from error


def _is_function(value: object) -> bool:
    try:
        inspect.signature(cast(Callable[[], object], value)).bind()
    except (TypeError, ValueError):
        return False
    return True


def _made_by(function: object) -> object:
    try:
        return cast(Callable[[], object], function)()
    except Exception as error:
        raise ValueError(f"pool: {_shown(function)} raised {type(error).__name__}: {error}") from error


def _shown(function: object) -> str:
    return getattr(function, "__qualname__", repr(function))


def _unknown(value: object, subject: str) -> ValueError:
    if kind_of(type(value)) is not None:
        cls = type(value)
        advice = f"a {cls.__module__}.{cls.__qualname__} is none"
    else:
        advice = f"there is support for {', '.join(sorted(KINDS))}, and for others by entry points in the group {GROUP}"
    return ValueError(
        f"{subject} is not a pool that can be guarded ({advice}); give the pool object itself, a function that returns "
        "it, or leave pool out and give threads="
    )
