"""``--check`` on the database: whether it answers, and the checks for its kind."""

from __future__ import annotations

from collections.abc import Iterator

from threadbridge.database.driver import ConnectionSettings
from threadbridge.database.drivers import database_of
from threadbridge.doctor import Finding, error, in_thread, ok, warning
from threadbridge.doctor.mysql import Load, MySQLChecks, advice

# Seconds that connecting, and each check, may take.
TIME_LIMIT = 5.0
# The package of the driver for which there are more checks.
MYSQL = "MySQLdb"

_NO_ANSWER = error(
    f"the database has not answered within {TIME_LIMIT:g} s",
    "check whether its host is up and not overloaded, and whether a firewall drops packets to it",
)


def check_database(settings: ConnectionSettings, load: Load) -> Iterator[tuple[str, Finding]]:
    """Check the database of a pool: subjects and findings. No step takes much longer than `TIME_LIMIT`.

    :param settings: how the pool connects. The check does so too, as the pool itself may wait without a limit.
    """
    try:
        connection = in_thread(lambda: settings.connect(*settings.args, **settings.kwargs)).result(TIME_LIMIT)
    except TimeoutError:
        yield "database", _NO_ANSWER
        return
    except Exception as failure:  # noqa: BLE001 - whatever the driver raises, there is no connection
        yield "database", error(f"cannot connect: {_described(failure)}", _advice(failure))
        return
    driver = _driver_of(type(connection))
    if database_of([driver], settings) is None:
        yield (
            "database",
            warning(
                f"answers, but queries sent with the driver {driver} cannot be stopped",
                "use another driver: mysqlclient (MySQLdb), psycopg or psycopg2",
            ),
        )
    elif driver != MYSQL:
        yield "database", ok(f"answers; there are no further checks for the driver {driver}")
    else:
        for subject, check in MySQLChecks(driver, settings, connection, load).all.items():
            try:
                yield subject, in_thread(check).result(TIME_LIMIT)
            except TimeoutError:
                yield subject, _NO_ANSWER
                return
            except Exception as failure:  # noqa: BLE001 - a check that fails is a finding too
                yield subject, error(f"cannot be checked: {_described(failure)}", _advice(failure))


def _described(failure: Exception) -> str:
    """The error's text, with the database's error number if it has one."""
    if len(failure.args) == 2 and isinstance(failure.args[0], int):
        return f"{failure.args[1]} (error {failure.args[0]})"
    return f"{type(failure).__name__}: {failure}"


def _advice(failure: Exception) -> str:
    if _driver_of(type(failure)) == MYSQL:
        return advice(failure)
    return "check whether the database runs, and whether its address, user and password are right"


def _driver_of(kind: type) -> str:
    """The package of the driver that defines the class, or from whose class the application derived it."""
    packages = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return MYSQL if MYSQL in packages else packages[0]
