"""What the errors of the MySQL drivers mean, by their numbers, which the server and the C client libraries define."""

from __future__ import annotations

from threadbridge.database.drivers.mysql_drivers import INTERRUPTED, MySQLDriver

# ER_QUERY_INTERRUPTED; MariaDB's ER_STATEMENT_TIMEOUT; MySQL's ER_QUERY_TIMEOUT.
STATEMENT_ERRORS = frozenset({INTERRUPTED, 1969, 3024})
# The client's: CR_CONNECTION_ERROR, CR_CONN_HOST_ERROR, CR_UNKNOWN_HOST, CR_SERVER_GONE_ERROR, CR_SERVER_LOST and its
# extended twin. The server's: ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, ER_SERVER_SHUTDOWN,
# ER_CONNECTION_KILLED.
OUTAGE_ERRORS = frozenset({2002, 2003, 2005, 2006, 2013, 2055, 1040, 1203, 1053, 1927})
# The server keeps the connection, but cannot do its work. ER_UNKNOWN_COM_ERROR: this Galera node is not in the cluster
# now. ER_ERROR_DURING_COMMIT: the cluster or the disk is gone, and it is not known what was committed.
# ER_READ_ONLY_MODE: InnoDB writes nothing, as on a replica or after a failed start. ER_USER_LIMIT_REACHED: the account
# has reached its limit of connections, or of statements per hour. ER_OPTION_PREVENTS_STATEMENT, if the option makes the
# server read-only.
ER_READ_ONLY_MODE = 1836
UNABLE_ERRORS = frozenset({1047, 1180, ER_READ_ONLY_MODE, 1226})
ER_NO_SUCH_THREAD = 1094
ER_UNKNOWN_SYSTEM_VARIABLE = 1193
# MariaDB's.
ER_NO_SUCH_QUERY = 1957
ER_OPTION_PREVENTS_STATEMENT = 1290
ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION = 1792


def number_of(error: BaseException) -> int | None:
    """The number of a driver's error; None if it has none."""
    # Some drivers have this attribute, others begin the error's arguments with the number.
    number = getattr(error, "errno", None)
    if number is None and error.args:
        number = error.args[0]
    return number if isinstance(number, int) else None


def is_statement_error(driver: MySQLDriver, error: BaseException) -> bool:
    """See `Database`."""
    return isinstance(error, driver.error) and number_of(error) in STATEMENT_ERRORS


def is_outage(driver: MySQLDriver, error: BaseException) -> bool:
    """See `Database`."""
    if is_lost(driver, error):
        return True
    number = number_of(error)
    if not isinstance(error, driver.error) or number is None:
        return False
    return number in UNABLE_ERRORS or _is_read_only(error)


def _is_read_only(error: BaseException) -> bool:
    # MySQL has --super-read-only, --read-only and --innodb-read-only; MariaDB spells some of them differently.
    is_prevented = number_of(error) == ER_OPTION_PREVENTS_STATEMENT
    return is_prevented and "read-only" in str(error).replace("_", "-").lower()


def is_refused_change(error: BaseException) -> bool:
    """Whether the driver's error means that nothing may be changed on this server, or in this session."""
    return number_of(error) in (ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, ER_READ_ONLY_MODE) or _is_read_only(error)


def is_lost(driver: MySQLDriver, error: BaseException) -> bool:
    """See `Database`."""
    return isinstance(error, driver.error) and (number_of(error) in OUTAGE_ERRORS or driver.is_lost(error))
