"""Checks that a database of Django's is one that the guard knows, and describes it."""

from __future__ import annotations

from typing import Any

from django.db import connections

from threadbridge.database.pools.kind import check_names

# Names of a ``DatabaseWrapper`` that Django does not document, although backends and debugging tools use them: the
# methods that `DatabaseHooks` wraps, and the rest.
WRAPPED = (
    "get_connection_params get_new_connection connect make_cursor make_debug_cursor commit rollback set_autocommit "
    "is_usable close"
)
_USED = "execute_wrappers Database connection in_atomic_block settings_dict vendor wrap_database_errors"
# Of those that may have psycopg's pool: Django's pools, by their aliases.
_OF_POOLED = "_connection_pools"


def check(wrapper: Any) -> None:
    """Raise ``ValueError`` if this Django lacks a name that the guard uses."""
    of_pooled = _OF_POOLED if hasattr(type(wrapper), "pool") else ""
    used = {wrapper: f"{WRAPPED} {_USED} {of_pooled}", connections: "create_connection"}
    check_names("Django's connections", "Django 4.2 to 5.2", used)


def describe(wrapper: Any) -> str:
    """A database, for operators: without its password and options."""
    settings = wrapper.settings_dict
    host = settings["HOST"] or settings["OPTIONS"].get("unix_socket") or ""
    port = f":{settings['PORT']}" if settings["PORT"] else ""
    place = f"{host}{port}/{settings['NAME']}" if host else str(settings["NAME"])
    return f"Django database {wrapper.alias!r}: {wrapper.vendor} {place}"
