"""The environment variables in a developer's files, ``.env`` and ``.flaskenv``, as ``flask run`` reads them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress

FILES = (".env", ".flaskenv")


def load_environment_files() -> list[str]:
    """Set the variables in these files, in this directory or the nearest one above it, unless set; return the paths."""
    try:
        import dotenv
    except ImportError:
        if any(map(os.path.isfile, FILES)):
            print("note: there is a file .env or .flaskenv, but python-dotenv is not installed", file=sys.stderr)
        return []
    paths = [path for name in FILES if (path := dotenv.find_dotenv(name, usecwd=True))]
    for path in paths:
        dotenv.load_dotenv(path, encoding="utf-8")
    return paths


def without_environment_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables less those that have been set from these files: a process that starts again reads them itself."""
    with suppress(ImportError):
        import dotenv

        read: dict[str, str | None] = {}
        for name in FILES:
            path = dotenv.find_dotenv(name, usecwd=True)
            read = {**(dotenv.dotenv_values(path, encoding="utf-8") if path else {}), **read}
        return {name: text for name, text in environment.items() if read.get(name) != text}
    return dict(environment)
