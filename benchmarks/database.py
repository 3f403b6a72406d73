"""The private database beside the servers: the table they read, and a look at which slow queries run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import MySQLdb
import sqlalchemy


class Sleeping(NamedTuple):
    """A ``SELECT SLEEP(seconds)`` that runs: the server's number of the query, and since when it runs."""

    query_id: int
    seconds: float
    milliseconds: float


def connect(variables: Mapping[str, str]) -> Any:
    """A connection beside the application's pool; each statement is committed at once."""
    return MySQLdb.connect(
        unix_socket=variables["MYSQL_UNIX_SOCKET"],
        user=variables["MYSQL_USER"],
        password=Path(variables["MYSQL_PASSWORD_FILE"]).read_text(encoding="utf-8").strip(),
        database=variables["MYSQL_DATABASE"],
        autocommit=True,
    )


def with_url(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, with the database's URL for SQLAlchemy."""
    url = sqlalchemy.URL.create(
        "mysql+mysqldb",
        variables["MYSQL_USER"],
        Path(variables["MYSQL_PASSWORD_FILE"]).read_text(encoding="utf-8").strip(),
        database=variables["MYSQL_DATABASE"],
        query={"unix_socket": variables["MYSQL_UNIX_SOCKET"]},
    )
    return {**variables, "DATABASE_URL": url.render_as_string(hide_password=False)}


def fill(variables: Mapping[str, str]) -> None:
    """Make the table that the short query reads."""
    with closing(connect(variables)) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("CREATE OR REPLACE TABLE words (id INT PRIMARY KEY, word VARCHAR(20) NOT NULL)")
        cursor.execute("INSERT INTO words SELECT seq, CONCAT('word ', seq) FROM seq_1_to_1000")


class ProcessList:
    """The database's own list of what it does, read on a connection beside the application's pool."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._connection = connect(variables)

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
