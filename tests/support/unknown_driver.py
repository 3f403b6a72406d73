"""A driver that threadbridge does not know: sqlite3's connections in disguise."""

from __future__ import annotations

import sqlite3
from typing import Any

apilevel, threadsafety, paramstyle = "2.0", 1, "qmark"
Error = sqlite3.Error
OperationalError = sqlite3.OperationalError
InterfaceError = sqlite3.InterfaceError
InternalError = sqlite3.InternalError


class Connection:
    """Not derived from sqlite3's, by which it would be recognised."""

    def __init__(self, database: str) -> None:
        self._connection = sqlite3.connect(database, check_same_thread=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


connect = Connection
