"""The kinds of database: a module for each, and others whose names begin like its own. Only they know drivers.

Worker side.
"""

from __future__ import annotations

from collections.abc import Sequence

from threadbridge.database.driver import ConnectionSettings, Database


def database_of(modules: Sequence[str], settings: ConnectionSettings) -> Database | None:
    """The kind of database by the first module that is a known driver's; None if there is none.

    A driver that is not known works, but its statements cannot be stopped.
    """
    for module in modules:
        driver = module.partition(".")[0]
        if driver == "MySQLdb":
            from threadbridge.database.drivers.mysql import MySQL

            return MySQL(driver, settings)
        if driver in ("psycopg", "psycopg2"):
            from threadbridge.database.drivers.postgresql import PostgreSQL

            return PostgreSQL(driver, settings)
    return None
