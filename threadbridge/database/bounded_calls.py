"""Calls that may never return: each in a thread of its own, which is left behind when it takes too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from threadbridge.common.threads import NOT_STARTED
from threadbridge.database.driver import StopFailed

# Threads that may be left behind at a time. Each has perhaps a connection, and memory.
MOST_LEFT_BEHIND = 4

_thread = threading.local()
_Result = TypeVar("_Result")


class NoAnswer(StopFailed):
    """A call that was left behind, for it took too long."""


class BoundedCalls:
    """Calls functions with a limit on the time that the caller waits. For one thread at a time.

    :param timeout: seconds until a call is left behind.

    A driver's own timeouts are not enough: a function of the application's that connects may have none.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._left_behind: list[threading.Thread] = []

    def call(self, function: Callable[[], _Result]) -> _Result:
        """What the function gives.

        Raises `NoAnswer` when it takes too long; `StopFailed` when it raises anything, when too many are left behind,
        and when no thread can be started.
        """
        self._left_behind = [thread for thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= MOST_LEFT_BEHIND:
            raise StopFailed(f"{MOST_LEFT_BEHIND} earlier attempts have not returned")
        results: list[_Result] = []
        errors: list[StopFailed] = []
        done = threading.Event()

        def run() -> None:
            _thread.is_calling = True
            try:
                results.append(function())
            except StopFailed as error:
                errors.append(error)
            except BaseException as error:  # noqa: BLE001 - whatever a function of the application's raises
                errors.append(StopFailed(repr(error)))
            done.set()

        thread = threading.Thread(target=run, name="threadbridge-stopper-call", daemon=True)
        try:
            thread.start()
        except NOT_STARTED as error:
            raise StopFailed(f"no thread for it: {error}") from error
        if not done.wait(self._timeout):
            self._left_behind.append(thread)
            raise NoAnswer(f"no answer within {self._timeout:g} s")
        if errors:
            raise errors[0]
        return results[0]


def is_bounded_call() -> bool:
    """Whether this thread makes such a call. Any thread."""
    calling: bool = getattr(_thread, "is_calling", False)
    return calling
