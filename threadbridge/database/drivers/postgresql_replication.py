"""Replicas of PostgreSQL (hot standbys), by positions in the write-ahead log."""

from __future__ import annotations

import time
from typing import Any

from threadbridge.database.drivers.control_connection import execute

# The time is when the statement came, so before the position is read. The position is that of what is inserted: with
# synchronous_commit=off, a transaction is committed before its record is written.
_POSITION = (
    "SELECT extract(epoch FROM statement_timestamp())::text, pg_current_wal_insert_lsn()::text, "
    "current_setting('wal_block_size')::int, pg_size_bytes(current_setting('wal_segment_size'))"
)
# Bytes of the header of a page of the log, and of that of a segment's first page.
_HEADER, _FIRST_HEADER = 24, 40
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
        now, position, page, segment = execute(primary, _POSITION)
        return float(now), end_of_last_record(position, page, segment)

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


def end_of_last_record(position: str, page: int, segment: int) -> str:
    """Where the log's last record ends, if this is the position for the next one.

    At the end of a page, and so after each ``pg_switch_wal``, that one begins after the next page's header. A standby
    replays no header: it would not reach that position until something else is written.
    """
    high, _, low = position.partition("/")
    number = int(low, 16)
    header = _FIRST_HEADER if number % segment < page else _HEADER
    return f"{high}/{number - header:X}" if number % page == header else position


def _commit_each(connection: Any) -> None:
    """Let no transaction stay open between two looks."""
    if not connection.autocommit:
        connection.rollback()
        connection.autocommit = True
