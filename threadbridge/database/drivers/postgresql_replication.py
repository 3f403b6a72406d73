"""Replicas of PostgreSQL (hot standbys), by positions in the write-ahead log."""

from __future__ import annotations

import time
from typing import Any

from threadbridge.database.drivers.control_connection import execute

# The time is when the statement came, so before the position is read. The position is that of what is inserted: with
# synchronous_commit=off, a transaction is committed before its record is written.
_POSITION = "SELECT extract(epoch FROM statement_timestamp())::text, pg_current_wal_insert_lsn()::text"
_REACHED = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn() >= %s::pg_lsn"
# Seconds between two questions whether a position is reached: the server has no function that waits for it.
_INTERVAL = 0.05
_READ_ONLY_TRANSACTION = "25006"


class PostgreSQLReplication:
    """See `Replication`."""

    def position(self, primary: Any) -> tuple[float, str]:
        _commit_each(primary)
        [is_standby] = execute(primary, "SELECT pg_is_in_recovery()")
        if is_standby:
            raise ValueError("the application's own pool leads to a standby; give it the primary's address")
        now, position = execute(primary, _POSITION)
        return float(now), str(position)

    def has_reached(self, replica: Any, position: str, within: float = 0.0) -> bool:
        _commit_each(replica)
        latest = time.monotonic() + within
        while True:
            is_standby, is_reached = execute(replica, _REACHED, position)
            if not is_standby:
                raise ValueError("the replica is a primary itself; give the lane's pool the address of a standby")
            if is_reached or time.monotonic() >= latest:
                return bool(is_reached)
            time.sleep(_INTERVAL)

    def is_refused_change(self, error: BaseException) -> bool:
        # psycopg2 has the latter.
        return _READ_ONLY_TRANSACTION in (getattr(error, "sqlstate", None), getattr(error, "pgcode", None))


def _commit_each(connection: Any) -> None:
    """Let no transaction stay open between two looks."""
    if not connection.autocommit:
        connection.rollback()
        connection.autocommit = True
