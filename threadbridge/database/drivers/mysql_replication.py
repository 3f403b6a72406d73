"""Replicas of MySQL and MariaDB, by global transaction ids (GTIDs)."""

from __future__ import annotations

from typing import Any

from threadbridge.database.drivers.control_connection import execute
from threadbridge.database.drivers.mysql_drivers import MySQLDriver
from threadbridge.database.drivers.mysql_errors import is_refused_change

# NOW is when the statement came, so before the position is read.
_POSITION = "SELECT UNIX_TIMESTAMP(NOW(6)), @@{}, @@log_bin"
# Both return 0 if the position is reached, and otherwise something else once the seconds are over. MySQL takes 0 s to
# mean without a limit.
_WAIT = {True: "MASTER_GTID_WAIT(%s, %s)", False: "WAIT_FOR_EXECUTED_GTID_SET(%s, GREATEST(%s, 0.001))"}
# Accounts with these privileges may change a server that is read-only. Others see only their own.
_MAY_WRITE = (
    "SELECT COUNT(*) FROM information_schema.user_privileges WHERE privilege_type IN ('SUPER', 'READ_ONLY ADMIN')"
)


class MySQLReplication:
    """See `Replication`."""

    def __init__(self, driver: MySQLDriver) -> None:
        self._driver = driver

    def _is_mariadb(self, connection: Any) -> bool:
        return "mariadb" in self._driver.server_version(connection).lower()

    def position(self, primary: Any) -> tuple[float, str]:
        is_mariadb = self._is_mariadb(primary)
        now, position, has_log = execute(
            primary, _POSITION.format("gtid_binlog_pos" if is_mariadb else "gtid_executed")
        )
        if not has_log:
            raise ValueError("the primary has no binary log; start it with log_bin")
        if not (is_mariadb or position):
            raise ValueError("the primary has no GTIDs; set gtid_mode=ON")
        return float(now), str(position)

    def has_reached(self, replica: Any, position: str, within: float = 0.0) -> bool:
        sql = f"SELECT @@global.read_only, {_WAIT[self._is_mariadb(replica)]}"
        read_only, waited = execute(replica, sql, position, within)
        if not read_only:
            raise ValueError("the replica is not read-only; SET GLOBAL read_only = 1 there, and in its configuration")
        return bool(waited == 0)

    def is_refused_change(self, error: BaseException) -> bool:
        return isinstance(error, self._driver.error) and is_refused_change(error)

    def forbid_changes(self, connection: Any) -> None:
        """Let the server refuse all changes on a connection, also if the account may change a server that is read-only.

        Other accounts may go on to use temporary tables.
        """
        if self._is_mariadb(connection):
            [may_write] = execute(connection, _MAY_WRITE)
        else:
            # Privileges may be those of roles, which are not in the list.
            [is_refused_to_all] = execute(connection, "SELECT @@global.super_read_only")
            may_write = not is_refused_to_all
        if may_write:
            execute(connection, "SET SESSION TRANSACTION READ ONLY")
