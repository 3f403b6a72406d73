"""Calls that may never return: each runs in a thread of its own, which is abandoned if it takes too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from threadbridge.common.threads import NOT_STARTED
from threadbridge.database.driver import StopFailed
from threadbridge.database.stopper_thread import NAME

# Abandoned threads that may be running at a time; each uses memory, and perhaps a connection.
MAX_ABANDONED = 4

_Result = TypeVar("_Result")


class NoAnswer(StopFailed):
    """A call took too long and was abandoned."""


class BoundedCalls:
    """Gives each call ``timeout`` seconds, as the application may connect without a timeout. For one thread."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._abandoned: list[threading.Thread] = []

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Call the function and return its result. Raises `NoAnswer` if it takes too long, otherwise `StopFailed`."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= MAX_ABANDONED:
            raise StopFailed(f"{MAX_ABANDONED} earlier attempts have not returned")
        outcome: Future[_Result] = Future()

        def run() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # noqa: BLE001 - whatever the application's function raises
                outcome.set_exception(error if isinstance(error, StopFailed) else StopFailed(repr(error)))

        thread = threading.Thread(target=run, name=f"{NAME}-call", daemon=True)
        try:
            thread.start()
        except NOT_STARTED as error:
            raise StopFailed(f"no thread for it: {error}") from error
        try:
            return outcome.result(self._timeout)
        except TimeoutError:
            self._abandoned.append(thread)
            raise NoAnswer(f"no answer within {self._timeout:g} s") from None
