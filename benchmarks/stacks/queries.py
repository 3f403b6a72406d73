"""The queries of the applications, for each kind of database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LONG_SECONDS = 3.0


class Queries(NamedTuple):
    """Of 2 ms, of 3 s, and for a lock that another connection holds: that one is stopped at once when it is killed."""

    short: str
    long: str
    blocked: str
    # Takes the lock for good; counts the queries that wait for it.
    hold: str
    waiting: str


QUERIES: Mapping[str, Queries] = {
    "mysql": Queries(
        "SELECT SLEEP(0.002)",
        f"SELECT SLEEP({LONG_SECONDS})",
        "SELECT GET_LOCK('held', 60)",
        "SELECT GET_LOCK('held', 60)",
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%GET_LOCK(''held''%' "
        "AND id <> CONNECTION_ID()",
    ),
    "postgresql": Queries(
        "SELECT pg_sleep(0.002)",
        f"SELECT pg_sleep({LONG_SECONDS})",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_advisory_lock(1)",
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_advisory_lock%' AND state = 'active' "
        "AND pid <> pg_backend_pid()",
    ),
}
