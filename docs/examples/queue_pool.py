"""A connection pool of one's own, as many applications have it; queue_pool_kind.py lets threadbridge guard it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any


class QueuePool:
    """Hands out at most ``size`` connections, which ``connect()`` makes when they are needed.

    Give each back with ``put``; what it has not committed is rolled back.
    """

    def __init__(self, connect: Callable[[], Any], size: int) -> None:
        self.connect = connect
        self.size = size
        self._places: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(size):
            self._places.put(None)

    def get(self) -> Any:
        """A connection; waits while all are in use. Raises what ``connect`` raises."""
        connection = self._places.get()
        if connection is not None:
            return connection
        try:
            return self.connect()
        except BaseException:
            self._places.put(None)
            raise

    def put(self, connection: Any, *, discard: bool = False) -> None:
        """Take a connection back; ``discard`` closes it instead of keeping it."""
        try:
            if not discard:
                connection.rollback()
        except Exception:
            discard = True
            raise
        finally:
            if discard:
                connection.close()
            self._places.put(None if discard else connection)
