"""How the applications connect."""

import os

# A query that computes for minutes, as a report may.
LONG = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"


def settings() -> dict[str, str]:
    """The keywords of ``MySQLdb.connect``."""
    with open(os.environ["MYSQL_PASSWORD_FILE"]) as file:
        password = file.read().strip()
    return {
        "unix_socket": os.environ["MYSQL_UNIX_SOCKET"],
        "user": os.environ["MYSQL_USER"],
        "password": password,
        "database": os.environ["MYSQL_DATABASE"],
    }
