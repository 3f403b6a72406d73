"""A look at which of the slow queries run on a database server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb


class Sleeping(NamedTuple):
    """A ``SELECT SLEEP(seconds)`` that runs: the server's number of the query, and since when it runs."""

    query_id: int
    seconds: float
    milliseconds: float


class ProcessList:
    """The database's own list of what it does, read on a connection beside the application's pool."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._connection: Any = MySQLdb.connect(
            unix_socket=variables["MYSQL_UNIX_SOCKET"],
            user=variables["MYSQL_USER"],
            password=Path(variables["MYSQL_PASSWORD_FILE"]).read_text(encoding="utf-8").strip(),
            autocommit=True,
        )

    def sleeping(self) -> list[Sleeping]:
        """The queries of the report ``wait`` that run at this moment."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT QUERY_ID, REGEXP_SUBSTR(INFO, '[0-9.]+'), TIME_MS FROM information_schema.PROCESSLIST"
                " WHERE INFO LIKE 'SELECT SLEEP(%'"
            )
            return [Sleeping(int(number), float(text), float(elapsed)) for number, text, elapsed in cursor.fetchall()]

    def close(self) -> None:
        self._connection.close()
