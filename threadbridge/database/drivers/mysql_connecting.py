"""Finds MySQL connections that their driver has not finished, so that a thread that waits on one can be freed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from MySQLdb.connections import Connection


class _ThisThread(threading.local):
    # What to call with the connection that the thread is making.
    note: Callable[[Any], None] | None = None


_this_thread = _ThisThread()
_set_character_set = Connection.set_character_set


def _note_and_set_character_set(connection: Any, *args: Any, **kwargs: Any) -> Any:
    """The driver's method, which it also calls once for each new connection, as the first without a time limit."""
    note, _this_thread.note = _this_thread.note, None
    if note is not None:
        try:
            note(connection)
        except BaseException:
            # Nobody else can: the exception ends the driver's constructor.
            connection.close()
            raise
    return _set_character_set(connection, *args, **kwargs)


Connection.set_character_set = _note_and_set_character_set


@contextlib.contextmanager
def noting_unfinished(note: Callable[[Any], None]) -> Iterator[None]:
    """See `drivers.noting_unfinished`. What ``note`` raises ends the connecting."""
    _this_thread.note = note
    try:
        yield
    finally:
        _this_thread.note = None
