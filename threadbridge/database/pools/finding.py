"""Finds the pools that an application has made, and notices those that it makes later."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable

from threadbridge.database.pools import kind_of, loaded_kinds
from threadbridge.database.pools.kind import FoundPool, PoolKind

logger = logging.getLogger("threadbridge")


def find_pools() -> list[FoundPool]:
    """All pools of this process, each once.

    Call it when the application has been imported. It looks at all objects that the garbage collector knows, because
    few pools are attributes of a module.
    """
    if not loaded_kinds():
        return []
    # Not those that the application has dropped, but those that it has frozen.
    gc.unfreeze()
    gc.collect()
    kinds: dict[type, PoolKind | None] = {}
    found: dict[int, FoundPool] = {}
    for value in gc.get_objects():
        cls = type(value)
        kind = kinds[cls] if cls in kinds else kinds.setdefault(cls, kind_of(cls))
        if kind is None:
            continue
        try:
            pools = kind.pools_of(value)
        except Exception as error:  # noqa: BLE001 - whatever another package's kind raises, the others are found
            logger.error("objects of %s cannot be searched for pools: %r", cls, error)
            kinds[cls] = None
            continue
        for name, pool in pools.items():
            # The object that has several knows their names.
            if name or id(pool) not in found:
                found[id(pool)] = FoundPool(pool, kind, name)
    return list(found.values())


def watch_for_pools(known: list[FoundPool], on_later: Callable[[FoundPool], None]) -> None:
    """Call ``on_later`` once with each pool that is made, or first used, from now on; in the thread that does so.

    Only pools of packages that have been imported by now are noticed.
    """
    lock = threading.Lock()
    # Some applications make an engine for each tenant, and drop it again.
    seen = weakref.WeakSet(pool.pool for pool in known)

    def watch(kind: PoolKind) -> None:
        def on_new(pool: object) -> None:
            with lock:
                if pool in seen:
                    return
                seen.add(pool)
            on_later(FoundPool(pool, kind))

        kind.watch(on_new)

    for kind in loaded_kinds():
        watch(kind)
