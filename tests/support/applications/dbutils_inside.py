"""A PooledDB that is no attribute of any module, and one that is made only when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

import MySQLdb
from dbutils.pooled_db import PooledDB

from tests.support.applications.mysql_settings import LONG, settings


def create_app(*, lazy: bool = False) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """The application; with ``lazy`` the pool is made by the first request that needs it."""
    pools: list[PooledDB] = []

    def pool() -> PooledDB:
        if not pools:
            pools.append(PooledDB(MySQLdb, maxconnections=3, blocking=True, **settings()))
        return pools[0]

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        result = "page"
        if environ["PATH_INFO"] in ("/query", "/long"):
            with closing(pool().connection()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("SELECT 42" if environ["PATH_INFO"] == "/query" else LONG)
                [result] = cursor.fetchone()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(result).encode()]

    if not lazy:
        pool()
    return app
