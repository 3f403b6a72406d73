"""From its settings to a process that serves: pid file, listening sockets, user, hook, title. Main thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Unpack
from wsgiref.types import WSGIApplication

from threadbridge.process.identity import remove_pid_file, set_title, write_pid_file
from threadbridge.process.service import Service, import_rarely_used
from threadbridge.settings.table import Settings, from_keywords, is_supervised
from threadbridge.sockets.inheritance import Inheritance, take_inheritance

if TYPE_CHECKING:
    from threadbridge.process.application_pools import ApplicationPools
    from threadbridge.process.supervisor import Supervisor


class Runnable(Protocol):
    """A process that serves, or that supervises those that do."""

    def listen(self) -> None:
        """Bind the addresses. Raises ``OSError``."""

    def give_up_root(self) -> None:
        """Become the user and group of the settings. Raises `SettingError`."""

    def run(self) -> int:
        """Serve until a signal comes; return the exit status."""


def prepare(process: Runnable, settings: Settings, inheritance: Inheritance | None) -> None:
    """Do what comes before a process runs.

    Raises `SettingError` if the pid file cannot be written or the user cannot be changed, and ``OSError`` if an address
    cannot be listened on.
    """
    if inheritance is not None:
        set_title(f"process {inheritance.number}")
        process.listen()
        return
    if is_supervised(settings):
        set_title("supervisor")
    if settings["pid_file"] is not None:
        write_pid_file(settings["pid_file"])
    try:
        process.listen()
        process.give_up_root()
    except BaseException:
        remove_pid_file()
        raise


def run_to_its_end(process: Runnable, settings: Settings, inheritance: Inheritance | None) -> int:
    """Serve until a signal comes; return the exit status. Raises what ``on_starting`` raises."""
    try:
        if inheritance is None and settings["on_starting"] is not None:
            settings["on_starting"]()
        return process.run()
    finally:
        remove_pid_file()


def serve(application: WSGIApplication, **settings: Unpack[Settings]) -> int:
    """Serve a WSGI application until SIGTERM or SIGINT; return the process's exit status.

    Call it in the main thread, which becomes the loop's. The keywords are the settings in docs/settings.md. Without
    ``pool``, the application's pools are found, see docs/pools.md; ``pool="none"`` turns that off. The signal closes
    the port, and running and queued requests are answered: status 0. Requests left when ``grace`` is over, or at a
    second signal, are cut off: status 1. SIGHUP reopens the log files and reads certificates again. With
    ``processes``, each of them runs the program from its beginning to this call, and this process supervises them;
    SIGUSR2 replaces all of them, one after the other. With ``preload``, one process does so and forks the others.

    ``on_start`` is called on the loop, in each process that serves, once connections are accepted. `serve` runs a loop
    of its own: callbacks scheduled before the call, such as a `tornado.ioloop.PeriodicCallback`, never run.

    Raises ``ValueError`` for an unusable setting, ``OSError`` if the address cannot be listened on, and what
    ``on_start`` raises.
    """
    values = from_keywords(settings)
    inheritance = take_inheritance()
    pools: ApplicationPools | None = None
    if inheritance is not None and inheritance.preloads:
        # Imported here because most processes do not need it.
        from threadbridge.process.forking import fork_when_told

        import_rarely_used(values)
        inheritance, pools = fork_when_told(inheritance, values)
    service: Service | Supervisor
    if is_supervised(values) and inheritance is None:
        # Imported here because processes that serve do not need it.
        from threadbridge.process.supervisor import Supervisor

        service = Supervisor(values)
    else:
        service = Service(application, values, inheritance, pools=pools)
    prepare(service, values, inheritance)
    return run_to_its_end(service, values, inheritance)
