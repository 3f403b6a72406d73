"""The servers to compare: each one process with ten threads, set as its own documentation advises.

docs/benchmarks.md gives the reason of each choice.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from benchmarks import THREADS
from benchmarks.servers import BACKLOG, command

# Of requests that wait, under overload.
QUEUE = 20
# A few more than are opened.
MOST_CONNECTIONS = 6000
IDLE_SECONDS = 75

MODULE = "benchmarks.application"
SQLALCHEMY = "benchmarks.stacks.flask_application"
DJANGO = "benchmarks.stacks.django_application"
# Behind a middleware that writes the access log.
LOGGED_APPLICATION = "benchmarks.logged:app"
PYTHON = "{environment}/bin/python"
TLS_FILES = ("--certfile={certfile}", "--keyfile={keyfile}")


class Setup(NamedTuple):
    """How all servers are set up for a load.

    :param module: where the application, ``app``, is.
    :param logged: whether they write an access log.
    :param tls: whether they serve HTTPS.
    """

    module: str = MODULE
    logged: bool = False
    tls: bool = False


# The application over HTTP, without an access log.
PLAIN = Setup()


class Contender(NamedTuple):
    """A server. Its access log goes to its standard output or standard error.

    :param name: what it is called on the command line and in results.
    :param packages: what has to be installed beside the application.
    :param command: how it is started, with ``{port}`` in place of the port, ``{environment}`` in place of the
        virtual environment's directory and ``{application}`` in place of the application.
    :param plain: what is added to serve HTTP.
    :param tls: what is added to serve HTTPS, with files in place of ``{certfile}`` and ``{keyfile}``; nothing if its
        command line has no TLS.
    :param quiet: what is added to have no access log.
    :param logged: what is added to have one.
    :param logged_application: what it serves when it has one.
    :param refusing: what is added under overload, so that it refuses requests beyond those that run and `QUEUE` more.
    :param patient: what is added for many idle connections, so that it keeps them as threadbridge does.
    :param is_bound: whether all its threads are bound to one processor.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    plain: tuple[str, ...] = ()
    tls: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()
    logged: tuple[str, ...] = ()
    logged_application: str = f"{MODULE}:app"
    refusing: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()
    is_bound: bool = False


def of_ours(server: str) -> tuple[str, ...]:
    return (PYTHON, *command(server, "{application}", THREADS))


THREADBRIDGE = Contender(
    "threadbridge",
    "threadbridge",
    (),
    (PYTHON, "-m", "threadbridge", "{application}", "--port={port}"),
    tls=TLS_FILES,
    quiet=("--access_log=false",),
    refusing=(f"--queue={QUEUE}",),
)

GTHREAD = Contender(
    "gthread",
    "gunicorn gthread",
    ("gunicorn", "gunicorn_h1c"),
    (
        *(PYTHON, "-m", "gunicorn", "{application}", "--bind=127.0.0.1:{port}"),
        *("--worker-class=gthread", "--workers=1", f"--threads={THREADS}"),
    ),
    tls=TLS_FILES,
    logged=("--access-logfile=-",),
    patient=(f"--worker-connections={MOST_CONNECTIONS}", f"--keep-alive={IDLE_SECONDS}"),
)

CONTENDERS = (
    THREADBRIDGE,
    Contender("wsgicontainer", "WSGIContainer", (), of_ours("wsgicontainer"), tls=TLS_FILES, logged=("--access_log",)),
    Contender("executor", "WSGIContainer(executor)", (), of_ours("executor"), tls=TLS_FILES, logged=("--access_log",)),
    GTHREAD,
    Contender(
        "waitress",
        "waitress",
        ("waitress", "Paste"),
        (
            *(PYTHON, "-m", "waitress", "--listen=127.0.0.1:{port}", f"--threads={THREADS}"),
            # It wants them in front of the application.
            *(
                f"--connection-limit={MOST_CONNECTIONS}",
                "--asyncore-use-poll",
                f"--max-request-body-size={2 * 1024**3}",
            ),
            "{application}",
        ),
        logged_application=LOGGED_APPLICATION,
    ),
    Contender(
        "cheroot",
        "cheroot",
        ("cheroot", "Paste"),
        (
            *(PYTHON, "-m", "cheroot", "{application}", "--bind=127.0.0.1:{port}"),
            *(f"--threads={THREADS}", f"--max-threads={THREADS}", f"--request-queue-size={BACKLOG}"),
        ),
        logged_application=LOGGED_APPLICATION,
        refusing=(f"--accepted-queue-size={QUEUE}", "--accepted-queue-timeout=0"),
        patient=(f"--timeout={IDLE_SECONDS}",),
    ),
    Contender(
        "granian",
        "granian",
        ("granian",),
        (
            *(PYTHON, "-m", "granian", "--interface=wsgi", "--host=127.0.0.1", "--port={port}"),
            *("--workers=1", f"--blocking-threads={THREADS}", "{application}"),
        ),
        # It takes no lower version by default; the others agree on the same one with wrk.
        tls=("--ssl-certificate={certfile}", "--ssl-keyfile={keyfile}"),
        logged=("--access-log",),
        patient=(f"--backlog={MOST_CONNECTIONS}", f"--backpressure={MOST_CONNECTIONS}"),
    ),
    Contender(
        "uwsgi",
        "uWSGI",
        ("uWSGI",),
        (
            *("{environment}/bin/uwsgi", "--http-keepalive", "--http-auto-chunked"),
            *("--module={application}", "--virtualenv={environment}", f"--listen={BACKLOG}"),
            *("--master", "--processes=1", f"--threads={THREADS}"),
            *("--need-app", "--strict", "--single-interpreter", "--vacuum"),
            # Without it SIGTERM means to load everything anew.
            "--hook-master-start=unix_signal:15 gracefully_kill_them_all",
        ),
        plain=("--http=127.0.0.1:{port}",),
        tls=("--https=127.0.0.1:{port},{certfile},{keyfile}",),
        quiet=("--disable-logging",),
    ),
    Contender(
        "a2wsgi",
        "uvicorn + a2wsgi",
        ("uvicorn", "a2wsgi", "uvloop"),
        (PYTHON, "-m", "uvicorn", "benchmarks.asgi:application", "--host=127.0.0.1", "--port={port}"),
        tls=("--ssl-certfile={certfile}", "--ssl-keyfile={keyfile}"),
        quiet=("--no-access-log",),
        refusing=(f"--limit-concurrency={THREADS + QUEUE}",),
        patient=(f"--timeout-keep-alive={IDLE_SECONDS}",),
    ),
    Contender("twisted", "Twisted", ("Twisted",), of_ours("twisted"), logged=("--access_log",)),
)
# threadbridge binds its threads to one processor by itself; these show what the others gain by that.
BOUND = tuple(
    contender._replace(
        name=f"{contender.name}-bound",
        title=f"{contender.title}, bound",
        command=("taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), *contender.command),
        is_bound=True,
    )
    for contender in CONTENDERS
    if contender is not THREADBRIDGE
)
# Against one process, the first shows what the second processor brings; the other is there to compare the memory.
# They are measured only when they are asked for.
ON_REQUEST = (
    THREADBRIDGE._replace(
        name="two-processes", title="threadbridge, 2 processes", command=(*THREADBRIDGE.command, "--processes=2")
    ),
    GTHREAD._replace(
        name="two-workers", title="gunicorn gthread, 2 workers", command=(*GTHREAD.command, "--workers=2")
    ),
)
BY_NAME = {contender.name: contender for contender in (*CONTENDERS, *BOUND, *ON_REQUEST)}
