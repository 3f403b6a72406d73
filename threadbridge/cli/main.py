"""The command line: resolves the settings, loads the application and serves it; reports each mistake in one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast
from wsgiref.types import WSGIApplication

from threadbridge.cli.loading import ApplicationError, load_application, load_object
from threadbridge.cli.options import read_arguments
from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.lanes import Lane
from threadbridge.process.ending import end_process
from threadbridge.process.identity import remove_pid_file
from threadbridge.process.logs import begin_in_fork, set_up_logging
from threadbridge.process.service import Service, import_rarely_used
from threadbridge.process.signals import hold_signals
from threadbridge.process.starting import prepare, run_to_its_end
from threadbridge.settings.resolving import Resolved, resolve
from threadbridge.settings.table import ALL, CommandLineSettings, is_supervised
from threadbridge.settings.values import ImportPath, SettingError
from threadbridge.sockets.inheritance import Inheritance, take_inheritance

if TYPE_CHECKING:
    from threadbridge.process.reloader import Reloader
    from threadbridge.process.supervisor import Supervisor

logger = logging.getLogger("threadbridge")

# The defaults of ``threadbridge dev``. A request may stand still for an hour in a debugger, and so may all threads.
DEVELOPERS: CommandLineSettings = {
    "develop": True,
    "reload": True,
    "admin_port": 0,
    "deadline": 3600.0,
    "watchdog": 0,
    "grace": 2.0,
    # The readable log has the SQL of slow requests.
    "slow_log": 0,
    "slow_log_parameters": True,
}


def main() -> int:
    """Serve the application that the command line names: ``threadbridge MODULE:APP``, or ``python -m threadbridge``.

    ``threadbridge dev MODULE:APP`` does so with the defaults for development.
    """
    name = Path(sys.argv[0]).name
    program = "python -m threadbridge" if name == "__main__.py" else name
    if not sys.flags.safe_path and os.getcwd() not in sys.path and "" not in sys.path:
        # As ``python -m`` does: the application is mostly in the current directory.
        sys.path.insert(0, os.getcwd())
    if sys.argv[1:2] == ["dev"]:
        # Not at the top: it is for development only.
        from threadbridge.cli.environment_files import load_environment_files

        before = dict(os.environ)
        read = load_environment_files()
        return _run(f"{program} dev", None, DEVELOPERS, sys.argv[2:], before, read)
    return _run(program, None, {}, sys.argv[1:], os.environ)


def run(application: WSGIApplication, **defaults: Unpack[CommandLineSettings]) -> int:
    """Serve this application as the command line says; return the process's exit status.

    The keywords are the program's defaults. The status is 2 for an unusable setting, and 1 if the address cannot be
    listened on or if requests were cut at the end of the grace period; for ``--check``, see `doctor.report.check`.
    """
    return _run(Path(sys.argv[0]).name, application, defaults, sys.argv[1:], os.environ)


def _run(
    program: str,
    application: WSGIApplication | None,
    defaults: CommandLineSettings,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    environment_files: Sequence[str] = (),
) -> int:
    """See `run`; without an application, the arguments name it.

    :param environment: as it was before the files were read.
    """
    try:
        options, path = read_arguments(program, arguments, defaults, names_application=application is None)
        if application is None and not path:
            raise SettingError("MODULE:APP is missing: name the WSGI application, such as myapplication:app")
        resolved = resolve(options, os.environ, defaults)
        settings = resolved.values
        inheritance = take_inheritance()
        forks = inheritance is not None and inheritance.preloads
        log_file = settings["log_file_prefix"]
        if inheritance is not None and log_file is not None:
            settings["log_file_prefix"] = inheritance.log_file(log_file)
        supervises = is_supervised(settings) and inheritance is None and not settings["check"]
        if supervises:
            # The supervisor answers no requests.
            settings["access_log"] = False
        if not settings["check"]:
            # Before the application is imported, which may log and takes time.
            try:
                if supervises and (settings["user"] or settings["group"]):
                    # Not at the top: few processes give up root.
                    from threadbridge.process.privileges import Identity

                    with Identity(settings).acting():
                        set_up_logging(settings)
                else:
                    set_up_logging(settings, forks=forks)
            except OSError as error:
                raise SettingError(f"{resolved.label('log_file_prefix')}: {error.strerror}") from None
            hold_signals()
        reloader = None
        if settings["reload"] and not settings["check"]:
            if application is not None:
                raise SettingError(
                    "reload: only with MODULE:APP on the command line of threadbridge, which goes on when the "
                    "application cannot be imported; a program of your own can use tornado.autoreload"
                )
            from threadbridge.process.reloader import Reloader

            # Before the application is imported: its files may change while that lasts.
            reloader = Reloader([*settings["reload_include"], *environment_files], environment)
        if supervises:
            # Not at the top: the processes that serve do not need it. Only they load the application.
            from threadbridge.process.supervisor import Supervisor

            service: Service | Supervisor = Supervisor(settings)
        elif reloader is not None:
            service, with_objects = _service_or_stand_in(path, resolved, reloader)
        else:
            if application is None:
                application = cast(WSGIApplication, load_application(path))
            with_objects = _with_objects(resolved)
            pools = None
            if inheritance is not None and inheritance.preloads:
                import_rarely_used(with_objects)
                # Not at the top: only this process needs it.
                from threadbridge.process.forking import fork_when_told

                inheritance, pools = fork_when_told(inheritance, with_objects)
                _log_in_fork(inheritance, resolved, log_file)
            service = Service(application, with_objects, inheritance, name=path, pools=pools)
    except ValueError as error:
        _print_traceback(error)
        print(f"{program}: {error}; see --help", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # While the application was imported; later the signal stops the service.
        return 128 + signal.SIGINT
    if not isinstance(service, Service):
        return _listen_and_run(program, resolved, settings, service, inheritance)
    if settings["develop"] and not settings["check"]:
        from threadbridge.process.development import begin

        begin(service.bridge, settings)
    if settings["check"]:
        # Not at the top: a server does not need it.
        from threadbridge.doctor.report import check

        return check(resolved, with_objects, service.bridge, service.pools)
    status = _listen_and_run(program, resolved, with_objects, service, inheritance)
    _end_within(service.grace_left)
    return status


def _service_or_stand_in(path: str, resolved: Resolved, reloader: Reloader) -> tuple[Service, CommandLineSettings]:
    """The service and its settings; if the application cannot be loaded, a service that shows why.

    Raises `SettingError` if nothing can be served.
    """
    name, tracebacks = "", ""
    try:
        application = cast(WSGIApplication, load_application(path))
        settings = _with_objects(resolved)
        return Service(application, settings, name=path, reloader=reloader), settings
    except ApplicationError as error:
        name, tracebacks = str(error), error.traceback
    except SystemExit as error:
        name = f"{path}: the application ended the process while it was imported: SystemExit: {error}"
    # Not at the top: few processes need it.
    from threadbridge.cli.stand_in import stand_in

    logger.error("%s; waiting until a file changes%s", name, f"\n{tracebacks.rstrip()}" if tracebacks else "")
    # Functions may be in modules of the application.
    values = {key: None if isinstance(value, ImportPath) else value for key, value in resolved.values.items()}
    settings = cast(CommandLineSettings, {**values, "pool": "none"})
    return Service(stand_in(name, tracebacks), settings, name=path, reloader=reloader), settings


def _listen_and_run(
    program: str,
    resolved: Resolved,
    settings: CommandLineSettings,
    service: Service | Supervisor,
    inheritance: Inheritance | None,
) -> int:
    try:
        prepare(service, settings, inheritance)
        if isinstance(settings["on_starting"], ImportPath):
            # Only now that root is given up: the module may be the user's.
            label = resolved.label("on_starting")
            settings["on_starting"] = ALL["on_starting"].check(load_object(settings["on_starting"], label), label)
    except SettingError as error:
        remove_pid_file()
        _print_traceback(error)
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or settings["run_directory"]
        print(f"{program}: cannot listen on {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return run_to_its_end(service, settings, inheritance)


def _print_traceback(error: ValueError) -> None:
    if isinstance(error, ApplicationError):
        print(error.traceback, end="", file=sys.stderr)


def _log_in_fork(inheritance: Inheritance, resolved: Resolved, log_file: str | None) -> None:
    try:
        begin_in_fork(log_file and inheritance.log_file(log_file))
    except OSError as error:
        raise SettingError(f"{resolved.label('log_file_prefix')}: {error.strerror}") from None


def _with_objects(resolved: Resolved) -> CommandLineSettings:
    """The settings, with objects in place of import paths."""
    values: dict[str, object] = {**resolved.values}
    for name, value in values.items():
        if isinstance(value, ImportPath):
            label = resolved.label(name)
            values[name] = ALL[name].check(load_object(value, label), label)
    if resolved.origins["pool"] not in ("default", "program") and isinstance(values["pool"], list):
        values["pool"] = [
            load_object(each, resolved.label("pool", [each])) if isinstance(each, ImportPath) else each
            for each in cast(list[str], values["pool"])
        ]
    for lane in cast(list[Lane], values["lanes"]):
        if isinstance(lane.pool, ImportPath):
            label = f"{resolved.label('lanes', [lane])}: pool"
            lane.pool = load_object(lane.pool, label)
    return cast(CommandLineSettings, values)


def _end_within(seconds: float) -> None:
    """End the process a second after this time at the latest, even if threads of the application go on."""

    def end() -> None:
        names = [thread.name for thread in threading.enumerate() if not thread.daemon]
        names.remove(threading.main_thread().name)
        logger.error("stopped before these threads had ended: %s", ", ".join(names))
        end_process()

    timer = threading.Timer(seconds + 1, end)
    timer.daemon = True
    try:
        timer.start()
    except NOT_STARTED as error:
        logger.warning(
            "waiting for the application's threads without a time limit, because no timer could be started: %s", error
        )
