"""What the bridge must know of a DBUtils ``PooledDB``."""

from __future__ import annotations


def pool_size(pool: object) -> int:
    """How many connections a ``PooledDB`` hands out at once; 0 when it is unlimited. Loop side.

    DBUtils keeps the number in a private attribute and offers no other way to ask for it. Raises ``ValueError`` when
    the object has none.
    """
    size = getattr(pool, "_maxconnections", None)
    if not isinstance(size, int):
        raise ValueError(
            f"pool={pool!r} is not a PooledDB of DBUtils as this version of threadbridge knows it; give the pool "
            "object itself, or leave pool out and give threads="
        )
    return size
