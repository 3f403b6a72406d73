"""The servers to compare: each one process with ten threads, set as its own documentation advises."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.hazards import THREADS
from benchmarks.servers import command

# Of requests that wait, under overload.
QUEUE = 20
# Of connections, a few more than are opened.
MOST_CONNECTIONS = 6000
IDLE_SECONDS = 75

MODULE = "benchmarks.hazards.application"
APPLICATION = f"{MODULE}:app"
PYTHON = "{environment}/bin/python"


class Contender(NamedTuple):
    """A server.

    :param packages: what has to be installed beside the application.
    :param command: how it is started, with ``{port}`` in place of the port and ``{environment}`` in place of the
        virtual environment's directory.
    :param refusing: what is added under overload, so that it refuses requests beyond those that run and `QUEUE` more.
    :param patient: what is added for many idle connections, so that it keeps them as threadbridge does.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    refusing: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()


THREADBRIDGE = Contender(
    "threadbridge",
    (),
    (PYTHON, "-m", "threadbridge", APPLICATION, f"--pool={MODULE}:pool", "--port={port}"),
    refusing=(f"--queue={QUEUE}",),
)

CONTENDERS = (
    THREADBRIDGE,
    Contender("WSGIContainer", (), (PYTHON, *command("wsgicontainer", APPLICATION, THREADS))),
    Contender("with executor", (), (PYTHON, *command("executor", APPLICATION, THREADS))),
    Contender(
        "gunicorn",
        ("gunicorn",),
        (
            *(PYTHON, "-m", "gunicorn", APPLICATION, "--bind=127.0.0.1:{port}"),
            *("--worker-class=gthread", "--workers=1", f"--threads={THREADS}"),
        ),
        patient=(f"--worker-connections={MOST_CONNECTIONS}", f"--keep-alive={IDLE_SECONDS}"),
    ),
    Contender(
        "waitress",
        ("waitress",),
        (
            *(PYTHON, "-m", "waitress", "--listen=127.0.0.1:{port}", f"--threads={THREADS}"),
            # It wants them in front of the application.
            *(
                f"--connection-limit={MOST_CONNECTIONS}",
                "--asyncore-use-poll",
                f"--max-request-body-size={2 * 1024**3}",
            ),
            APPLICATION,
        ),
    ),
    Contender(
        "cheroot",
        ("cheroot",),
        (
            *(PYTHON, "-m", "cheroot", APPLICATION, "--bind=127.0.0.1:{port}"),
            *(f"--threads={THREADS}", f"--max-threads={THREADS}"),
        ),
        refusing=(f"--accepted-queue-size={QUEUE}", "--accepted-queue-timeout=0"),
        patient=(f"--timeout={IDLE_SECONDS}",),
    ),
    Contender(
        "granian",
        ("granian",),
        (
            *(PYTHON, "-m", "granian", "--interface=wsgi", "--host=127.0.0.1", "--port={port}"),
            *("--workers=1", f"--blocking-threads={THREADS}", APPLICATION),
        ),
        patient=(f"--backlog={MOST_CONNECTIONS}", f"--backpressure={MOST_CONNECTIONS}"),
    ),
    Contender(
        "uWSGI",
        ("uWSGI",),
        (
            *("{environment}/bin/uwsgi", "--http-socket=127.0.0.1:{port}", f"--module={APPLICATION}"),
            *("--virtualenv={environment}", "--master", "--processes=1", f"--threads={THREADS}"),
            *("--need-app", "--strict", "--single-interpreter", "--vacuum", "--disable-logging"),
            # Without it SIGTERM means to load everything anew.
            "--hook-master-start=unix_signal:15 gracefully_kill_them_all",
        ),
    ),
    Contender(
        "a2wsgi",
        ("uvicorn", "a2wsgi", "uvloop"),
        (PYTHON, "-m", "uvicorn", "benchmarks.hazards.asgi:application", "--host=127.0.0.1", "--port={port}"),
        refusing=(f"--limit-concurrency={THREADS + QUEUE}",),
        patient=(f"--timeout-keep-alive={IDLE_SECONDS}",),
    ),
    Contender("Twisted", ("Twisted",), (PYTHON, "-m", "benchmarks.hazards.twisted_server", "{port}")),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
