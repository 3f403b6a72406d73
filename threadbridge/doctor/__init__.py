"""``--check``: finds what will not work, or not well, and says what to do about it."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Level(enum.IntEnum):
    """How serious a finding is; the number is the exit status of ``--check``."""

    OK = 0
    WARNING = 1
    ERROR = 2


class Finding(NamedTuple):
    """The result of one check; ``advice`` says what to do about it, if anything."""

    level: Level
    message: str
    advice: str = ""


ok = partial(Finding, Level.OK)
warning = partial(Finding, Level.WARNING)
error = partial(Finding, Level.ERROR)


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call the function in a thread that does not keep the process alive."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again by `Future.result`
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
