"""A connection beside the application's, to the lock for which its queries wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import MySQLdb
import psycopg

from benchmarks.database import connect
from benchmarks.stacks.queries import QUERIES


class Witness:
    """Holds the lock."""

    def __init__(self, kind: str, variables: Mapping[str, str]) -> None:
        self._queries = QUERIES[kind]
        self._connection: MySQLdb.Connection | psycopg.Connection = (
            connect(variables)
            if kind == "mysql"
            else psycopg.connect(
                host=variables["PGHOST"], user=variables["PGUSER"], dbname=variables["PGDATABASE"], autocommit=True
            )
        )
        self._row(self._queries.hold)

    def _row(self, sql: str) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(sql)
        return cursor.fetchone()

    @property
    def blocked(self) -> int:
        """How many queries wait for the lock."""
        return int(self._row(self._queries.waiting)[0])

    def close(self) -> None:
        self._connection.close()
