"""The kinds of database. Only these modules know drivers; those of one kind begin with its name. Worker side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from threadbridge.database.driver import ConnectionSettings, Database


def database_of(modules: Sequence[str], settings: ConnectionSettings) -> Database | None:
    """The kind of database for the first of these modules that belongs to a supported driver; None if none does."""
    for module in modules:
        driver = module.partition(".")[0]
        if driver == "MySQLdb":
            from threadbridge.database.drivers.mysql import MySQL

            return MySQL(driver, settings)
        if driver in ("psycopg", "psycopg2"):
            from threadbridge.database.drivers.postgresql import PostgreSQL

            return PostgreSQL(driver, settings)
    return None


def noting_unfinished(note: Callable[[Any], None]) -> contextlib.AbstractContextManager[None]:
    """Call ``note`` with each connection that this thread makes meanwhile and whose driver already waits on it."""
    if "MySQLdb" not in sys.modules:
        return contextlib.nullcontext()
    from threadbridge.database.drivers.mysql_connecting import noting_unfinished

    return noting_unfinished(note)
