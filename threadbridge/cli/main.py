"""The command line: resolves the settings, loads the application and serves it; reports each mistake in one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast
from wsgiref.types import WSGIApplication

from threadbridge.cli.loading import load_application, load_object
from threadbridge.cli.options import read_arguments
from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.lanes import Lane
from threadbridge.process.logs import set_up_logging
from threadbridge.process.service import Service, end_process
from threadbridge.process.signals import hold_signals
from threadbridge.settings.table import ALL, CommandLineSettings, Resolved, resolve
from threadbridge.settings.values import ImportPath, SettingError
from threadbridge.sockets.inheritance import take_inheritance

if TYPE_CHECKING:
    from threadbridge.process.supervisor import Supervisor

logger = logging.getLogger("threadbridge")


def main() -> int:
    """Serve the application that the command line names: ``threadbridge MODULE:APP``, or ``python -m threadbridge``."""
    name = Path(sys.argv[0]).name
    return _run("python -m threadbridge" if name == "__main__.py" else name, None, {})


def run(application: WSGIApplication, **defaults: Unpack[CommandLineSettings]) -> int:
    """Serve this application as the command line says; return the process's exit status.

    The keywords are the program's defaults. The status is 2 for an unusable setting, and 1 if the address cannot be
    listened on or if requests were cut at the end of the grace period; for ``--check``, see `doctor.report.check`.
    """
    return _run(Path(sys.argv[0]).name, application, defaults)


def _run(program: str, application: WSGIApplication | None, defaults: CommandLineSettings) -> int:
    try:
        options, path = read_arguments(program, sys.argv[1:], defaults, names_application=application is None)
        if application is None and not path:
            raise SettingError("MODULE:APP is missing: name the WSGI application, such as myapplication:app")
        resolved = resolve(options, os.environ, defaults)
        settings = resolved.values
        inheritance = take_inheritance()
        if inheritance is not None and settings["log_file_prefix"] is not None:
            settings["log_file_prefix"] = inheritance.log_file(settings["log_file_prefix"])
        supervises = settings["processes"] > 1 and inheritance is None and not settings["check"]
        if supervises:
            # The supervisor answers no requests.
            settings["access_log"] = False
        if not settings["check"]:
            # Before the application is imported, which may log and takes time.
            try:
                set_up_logging(settings)
            except OSError as error:
                raise SettingError(f"{resolved.label('log_file_prefix')}: {error.strerror}") from None
            hold_signals()
        if supervises:
            # Not at the top: the processes that serve do not need it. Only they load the application.
            from threadbridge.process.supervisor import Supervisor

            service: Service | Supervisor = Supervisor(settings)
        else:
            if application is None:
                application = cast(WSGIApplication, load_application(path))
            with_objects = _with_objects(resolved)
            service = Service(application, with_objects, inheritance, name=path)
    except ValueError as error:
        print(f"{program}: {error}; see --help", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # While the application was imported; later the signal stops the service.
        return 128 + signal.SIGINT
    if not isinstance(service, Service):
        return _listen_and_run(program, settings, service)
    if settings["check"]:
        # Not at the top: a server does not need it.
        from threadbridge.doctor.report import check

        return check(resolved, with_objects, service.bridge, service.pools)
    status = _listen_and_run(program, settings, service)
    _end_within(service.grace_left)
    return status


def _listen_and_run(program: str, settings: CommandLineSettings, service: Service | Supervisor) -> int:
    try:
        service.listen()
    except OSError as error:
        where = error.filename or settings["run_directory"]
        print(f"{program}: cannot listen on {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return service.run()


def _with_objects(resolved: Resolved) -> CommandLineSettings:
    """The settings, with objects in place of import paths."""
    values: dict[str, object] = {**resolved.values}
    for name, value in values.items():
        if isinstance(value, ImportPath):
            label = resolved.label(name)
            values[name] = ALL[name].check(load_object(value, label), label)
    if resolved.origins["pool"] not in ("default", "program"):
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
