"""The command line: finds the settings and the application, then serves it; one clear line for what is wrong."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast
from wsgiref.types import WSGIApplication

from threadbridge.cli.options import read_arguments
from threadbridge.common.threads import NOT_STARTED
from threadbridge.crossing.lanes import Lane
from threadbridge.process.logs import set_up_logging
from threadbridge.process.service import Service, end_process
from threadbridge.process.signals import hold_signals
from threadbridge.settings.table import ALL, CommandLineSettings, Resolved, SettingError, resolve
from threadbridge.settings.values import ImportPath
from threadbridge.sockets.inheritance import take_inheritance

if TYPE_CHECKING:
    from threadbridge.process.supervisor import Supervisor

logger = logging.getLogger("threadbridge")


def main() -> int:
    """Serve the application that the command line names: ``threadbridge MODULE:APP``, or ``python -m threadbridge``."""
    name = Path(sys.argv[0]).name
    return _run("python -m threadbridge" if name == "__main__.py" else name, None, {})


def run(application: WSGIApplication, **defaults: Unpack[CommandLineSettings]) -> int:
    """Serve this application as the command line says; give the process's exit status.

    The keywords are settings that apply where neither the command line nor the environment nor the config file
    says otherwise. Status 2 stands for a setting that cannot be used, 1 for an address that cannot be listened on and
    for requests that were cut when the grace period was over. With ``--check``, see `threadbridge.doctor.report.check`.
    """
    return _run(Path(sys.argv[0]).name, application, defaults)


def _run(program: str, application: WSGIApplication | None, defaults: CommandLineSettings) -> int:
    names_application = application is None
    try:
        options, place = read_arguments(program, sys.argv[1:], defaults, names_application=names_application)
        if names_application and not place:
            raise SettingError("MODULE:APP is missing: name the WSGI application, such as myapplication:app")
        resolved = resolve(options, os.environ, defaults)
        settings = resolved.values
        inheritance = take_inheritance()
        supervises = settings["processes"] > 1 and inheritance is None and not settings["check"]
        if inheritance is not None and settings["log_file_prefix"] is not None:
            settings["log_file_prefix"] = inheritance.log_file(settings["log_file_prefix"])
        if supervises:
            # It answers no requests.
            settings["access_log"] = False
        if not settings["check"]:
            # Before the application, which may log while it is imported, and takes its time.
            _set_up_logging(resolved)
            hold_signals()
    except ValueError as error:
        return _refused(program, error)
    if supervises:
        # Not above: the processes that serve do not need it.
        from threadbridge.process.supervisor import Supervisor

        # The application is not its business, but that of the processes.
        return _listen_and_run(program, settings, Supervisor(settings))
    try:
        if application is None:
            application = _load_application(place)
        with_objects = _with_objects(resolved)
        service = Service(application, with_objects, inheritance)
    except ValueError as error:
        return _refused(program, error)
    except KeyboardInterrupt:
        # While the application was imported; later the signal stops the service.
        return 128 + signal.SIGINT
    if settings["check"]:
        # Only now: a server needs none of what the doctor imports.
        from threadbridge.doctor.report import check

        return check(resolved, with_objects, service.lanes)
    status = _listen_and_run(program, settings, service)
    _end_within(service.grace_left)
    return status


def _refused(program: str, error: ValueError) -> int:
    print(f"{program}: {error}; see --help", file=sys.stderr)
    return 2


def _listen_and_run(program: str, settings: CommandLineSettings, life: Service | Supervisor) -> int:
    try:
        life.listen()
    except OSError as error:
        where = error.filename or settings["unix_socket"] or f"{settings['address']}:{settings['port']}"
        print(f"{program}: cannot listen on {where}: {error.strerror or error}", file=sys.stderr)
        return 1
    return life.run()


def _set_up_logging(resolved: Resolved) -> None:
    try:
        set_up_logging(resolved.values)
    except OSError as error:
        raise SettingError(f"{resolved.label('log_file_prefix')}: {error.strerror}") from None


def _with_objects(resolved: Resolved) -> CommandLineSettings:
    """The settings with the objects themselves in place of the texts that stand for them."""
    values = {**resolved.values}
    for name, value in resolved.values.items():
        if isinstance(value, ImportPath):
            values[name] = _load(value, resolved.label(name))
    ALL["client_key"].checked(values["client_key"], resolved.label("client_key"))
    if resolved.origins["lanes"] not in ("default", "program"):
        texts = cast(Sequence[str], values["lanes"])
        values["lanes"] = [_lane(text, resolved.label("lanes"), resolved.values["queue"]) for text in texts]
    return cast(CommandLineSettings, values)


def _lane(text: str, label: str, queue: int) -> Lane:
    name, _, rest = text.partition(":")
    pattern, _, threads = rest.rpartition(":")
    if not threads.isdecimal():
        raise SettingError(f"{label}: expected NAME:PATTERN:THREADS, such as static:/static/*:2")
    try:
        return Lane(name, pattern, threads=int(threads), queue=queue)
    except ValueError as error:
        raise SettingError(f"{label}: {error}") from None


def _load_application(place: str) -> WSGIApplication:
    application = _load(place, place)
    if not callable(application):
        raise SettingError(
            f"{place}: is of the type {type(application).__name__} and cannot be called; expected a WSGI application"
        )
    return cast(WSGIApplication, application)


def _load(place: str, label: str) -> object:
    """The object that stands at ``MODULE:ATTRIBUTE``; raises `SettingError`."""
    module_name, _, path = place.partition(":")
    if not (module_name and path):
        raise SettingError(f"{label}: expected MODULE:ATTRIBUTE, such as myapplication:app")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # noqa: BLE001 - whatever the module raises, it cannot be imported
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module_name}.".startswith(f"{missing}."):
            # A mistake inside the module: whoever mends it wants to know where.
            traceback.print_exc()
        raise SettingError(f"{label}: cannot import {module_name}: {type(error).__name__}: {error}") from None
    for attribute in path.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError as error:
            raise SettingError(f"{label}: {error}") from None
    return found


def _end_within(seconds: float) -> None:
    """Have the process end by then, and a moment more, though threads of the application's own may go on."""

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
