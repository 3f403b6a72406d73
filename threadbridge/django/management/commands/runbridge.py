"""``python manage.py runbridge``: serves the project with threadbridge, for development."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from django.core.management.base import BaseCommand, CommandError

from threadbridge.cli.continuing import continue_as_dev
from threadbridge.cli.environment_files import without_environment_files

APPLICATION = "threadbridge.django.development:make_application()"


class Command(BaseCommand):  # type: ignore[misc]
    """Continues as ``threadbridge dev``, in the same process."""

    help = (
        "Serves the project with threadbridge, for development: runbridge [[ADDRESS:]PORT] [OPTIONS]. "
        "runbridge --help lists the options."
    )

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        """Serve as these arguments say; Django's own have done their work by now."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--settings")
        parser.add_argument("--pythonpath")
        arguments = parser.parse_known_args(argv[2:])[1]
        if arguments and not arguments[0].startswith("-"):
            arguments[:1] = _address(arguments[0])
        continue_as_dev(APPLICATION, arguments, without_environment_files(os.environ))

    def handle(self, *args: object, **options: object) -> NoReturn:
        """For ``call_command``, which has no command line to serve with."""
        raise CommandError("runbridge replaces the process: run it from the command line")


def _address(text: str) -> list[str]:
    """The options for an address as ``runserver`` takes it: ``8001``, ``0:8001`` or ``[::1]:8001``."""
    address, _, port = text.rpartition(":")
    if not port.isdecimal():
        raise CommandError(f"{text}: expected PORT or ADDRESS:PORT, such as 8001 or 127.0.0.1:8001")
    address = address.removeprefix("[").removesuffix("]")
    return [f"--port={port}", *([f"--address={'0.0.0.0' if address == '0' else address}"] if address else [])]
