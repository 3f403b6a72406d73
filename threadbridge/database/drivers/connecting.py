"""Finds connections that their driver has not finished making, so that a thread that waits on one can be freed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# The drivers that may wait without a limit once they have a socket: the module and the class of their connection, and
# the method of that class which they call first from then on. Some limit the time of the handshake, but not of the
# statements that they then send by themselves; PyMySQL's handshake has no limit but ``read_timeout``.
_DRIVERS = (
    ("MySQLdb.connections", "Connection", "set_character_set"),
    ("pymysql.connections", "Connection", "_get_server_information"),
    ("mysql.connector.connection", "MySQLConnection", "_do_handshake"),
    ("mariadb.connections", "Connection", "_check_closed"),
)


class _ThisThread(threading.local):
    # What to call with the connection that the thread is making.
    note: Callable[[Any], None] | None = None


_this_thread = _ThisThread()
# Of `_DRIVERS`, those whose method is replaced. No lock: `_replace` does nothing the second time.
_replaced: set[tuple[str, str, str]] = set()


@contextlib.contextmanager
def noting_unfinished(note: Callable[[Any], None]) -> Iterator[None]:
    """Call ``note`` with the first connection that this thread makes meanwhile, before its driver waits on it.

    What ``note`` raises ends the connecting.
    """
    for each in _DRIVERS:
        # The application may import a driver at any time; MySQLdb imports this module with the first connection.
        if each not in _replaced and each[0].rpartition(".")[0] in sys.modules:
            _replace(*each)
            _replaced.add(each)
    _this_thread.note = note
    try:
        yield
    finally:
        _this_thread.note = None


def is_noting() -> bool:
    """Whether this thread is about to make a connection for a guard."""
    return _this_thread.note is not None


def _replace(module: str, kind: str, name: str) -> None:
    # Not from `sys.modules`, which may have what another thread has not imported completely yet.
    owner = getattr(importlib.import_module(module), kind)
    method = getattr(owner, name)
    if getattr(method, "notes_connection", False):
        return

    @functools.wraps(method)
    def note_and_call(connection: Any, *args: Any, **kwargs: Any) -> Any:
        note = _this_thread.note
        if note is not None:
            _this_thread.note = None
            try:
                note(connection)
            except BaseException:
                # No other code can: the exception ends the driver's constructor.
                connection.close()
                raise
        return method(connection, *args, **kwargs)

    note_and_call.notes_connection = True  # type: ignore[attr-defined]
    setattr(owner, name, note_and_call)
