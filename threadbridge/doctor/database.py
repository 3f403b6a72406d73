"""``--check`` on the database: whether it answers, and the checks for its kind."""

from __future__ import annotations

from collections.abc import Generator

from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import database_of
from threadbridge.database.drivers.mysql_drivers import DRIVERS
from threadbridge.doctor import Finding, error, in_thread, ok, warning
from threadbridge.doctor.load import Load
from threadbridge.doctor.mysql import MySQLChecks, advice
from threadbridge.doctor.postgresql import DRIVERS as POSTGRESQL
from threadbridge.doctor.postgresql import PostgreSQLChecks

# Seconds that connecting, and each check, may take.
TIME_LIMIT = 5.0
# The packages of the drivers for MySQL.
MYSQL = frozenset(DRIVERS)
# The arguments of drivers that say where the server is.
_ADDRESS = ("host", "port", "unix_socket", "dsn", "conninfo", "service", "database_url")

_NO_ANSWER = error(
    f"the database has not answered within {TIME_LIMIT:g} s",
    "check whether its host is up and not overloaded, and whether a firewall drops packets to it",
)


def server_of(settings: ConnectionSettings) -> object:
    """What is the same for all pools that connect to the same server, as far as their settings tell."""
    address = [settings.kwargs.get(name) for name in _ADDRESS]
    known = settings.args[:1] or any(address)
    return repr([settings.args[:1], address] if known else [settings.connect, settings.kwargs])


def check_database(settings: ConnectionSettings, load: Load) -> Generator[tuple[str, Finding], None, float | None]:
    """Check a pool's database: yields subjects and findings. No step takes much longer than `TIME_LIMIT`.

    Returns the seconds after which the database closes an idle connection; None if it never does, or that is not known.
    """
    # Connect as the pool does, but not through the pool, which may wait without a limit.
    try:
        connection = in_thread(lambda: settings.connect(*settings.args, **settings.kwargs)).result(TIME_LIMIT)
    except TimeoutError:
        yield "database", _NO_ANSWER
        return None
    except Exception as failure:  # noqa: BLE001 - whatever the driver raises, there is no connection
        yield "database", error(f"cannot connect: {_described(failure)}", _advice(failure))
        return None
    driver = _driver_of(type(connection))
    if database_of([driver], settings) is None:
        yield (
            "database",
            warning(
                f"answers, but queries sent with the driver {driver} cannot be stopped",
                "use another driver: mysqlclient, PyMySQL, mysql-connector, mariadb, psycopg, psycopg2 or sqlite3",
            ),
        )
        return None
    if driver not in (*MYSQL, *POSTGRESQL):
        yield "database", ok(f"answers; there are no further checks for the driver {driver}")
        return None
    is_mysql = driver in MYSQL
    checks = MySQLChecks(driver, settings, connection, load) if is_mysql else PostgreSQLChecks(connection, load)
    for subject, check in checks.all.items():
        try:
            yield subject, in_thread(check).result(TIME_LIMIT)
        except TimeoutError:
            yield subject, _NO_ANSWER
            break
        except Exception as failure:  # noqa: BLE001 - a check that fails is a finding too
            yield subject, error(f"cannot be checked: {_described(failure)}", _advice(failure))
    return checks.idle_timeout


def _described(failure: Exception) -> str:
    """The error's text, with the database's error number if it has one."""
    if len(failure.args) == 2 and isinstance(failure.args[0], int):
        return f"{failure.args[1]} (error {failure.args[0]})"
    return f"{type(failure).__name__}: {failure}"


def _advice(failure: Exception) -> str:
    if _driver_of(type(failure)) in MYSQL:
        return advice(failure)
    return "check whether the database runs, and whether its address, user and password are right"


def _driver_of(kind: type) -> str:
    """The package of the driver that defines the class, or from whose class the application derived it."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return next((package for package in packages if package in MYSQL), packages[0])
