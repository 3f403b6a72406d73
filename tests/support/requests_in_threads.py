"""Requests without a server: threads that serve one each, and what they do with connections."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from threadbridge.crossing.current import TrackedRequest


@contextmanager
def running(deadline: float | None = None) -> Iterator[TrackedRequest]:
    """A request that this thread serves."""
    request = TrackedRequest("test", deadline)
    request.enter()
    try:
        yield request
    finally:
        request.leave()


class InThread:
    """Runs a function in a thread of its own; has what came of it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._function = function
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def in_request(function: Callable[[], Any]) -> tuple[TrackedRequest, InThread]:
    """Runs a function in a thread that serves a request."""
    request = TrackedRequest("test", None)

    def run() -> Any:
        request.enter()
        try:
            return function()
        finally:
            request.leave()

    return request, InThread(run)


def waits(pool: Any, number: int = 1) -> Callable[[], bool]:
    return lambda: len(pool._lock._waiters) == number


def one(connection: Any, sql: str = "SELECT 1") -> Any:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]
