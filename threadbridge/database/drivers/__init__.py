"""The kinds of database. Only these modules know drivers; those of one kind begin with its name. Worker side."""

from __future__ import annotations

from collections.abc import Sequence

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
