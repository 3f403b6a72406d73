"""The kinds of database. Only these modules know drivers; those of one kind begin with its name. Worker side."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence

from threadbridge.database.driver import ConnectionSettings, Database

logger = logging.getLogger("threadbridge")

# Other packages support drivers by entry points of this group: the name is the driver's top-level module, the object a
# function that takes that name and the `ConnectionSettings`, and returns a `Database`.
GROUP = "threadbridge.drivers"

# By the driver's top-level module.
_BUILT_IN = {
    **dict.fromkeys(("MySQLdb", "pymysql", "mysql", "mariadb"), ("mysql", "MySQL")),
    **dict.fromkeys(("psycopg", "psycopg2"), ("postgresql", "PostgreSQL")),
    # The second is where its function ``connect`` comes from.
    **dict.fromkeys(("sqlite3", "_sqlite3"), ("sqlite", "SQLite")),
}

_Factory = Callable[[str, ConnectionSettings], Database]


def database_of(modules: Sequence[str], settings: ConnectionSettings) -> Database | None:
    """The kind of database for the first of these modules that belongs to a supported driver; None if none does."""
    for module in modules:
        driver = module.partition(".")[0]
        if driver in _BUILT_IN:
            name, kind = _BUILT_IN[driver]
            database: Database = getattr(importlib.import_module(f"{__name__}.{name}"), kind)(driver, settings)
            return database
        factory = _factory_elsewhere(driver)
        if factory is not None:
            return factory(driver, settings)
    return None


@functools.cache
def _factory_elsewhere(driver: str) -> _Factory | None:
    """What another package's entry point for the driver gives; None if there is none, or it cannot be loaded."""
    # It takes a while to load, and few need it.
    from importlib.metadata import entry_points

    # The first of several: the installer of the application decides which packages there are.
    for entry_point in entry_points(group=GROUP, name=driver):
        try:
            factory: _Factory = entry_point.load()
        except Exception as error:  # noqa: BLE001 - whatever the other package raises, the application runs without it
            package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
            logger.error(
                "the entry point %s of %s cannot be loaded, so queries sent with %s cannot be stopped: %r. Upgrade, "
                "repair or uninstall %s",
                *(driver, package, driver, error, package),
            )
            return None
        return factory
    return None
