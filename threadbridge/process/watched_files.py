"""The files of an application under development: finds out which of them have changed. A thread of its own.

`watchfiles` only says when to look again; what counts is always the comparison of the files with what they were. So the
two ways, with it and without it, find the same changes.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import translate
from pathlib import Path

logger = logging.getLogger("threadbridge")

# Sources, the templates of Django, Jinja, Mako and Chameleon, and what `threadbridge dev` reads at its start. Any file
# below a directory of the name `TEMPLATES` counts as a template too.
NAMES = ("*.py", "*.html", "*.htm", "*.jinja", "*.jinja2", "*.j2", "*.mako", "*.pt", ".env", ".flaskenv")
TEMPLATES = "templates"
# Seconds between two looks without `watchfiles`; looking may take a tenth of the time.
INTERVAL = 0.2
# Milliseconds between two looks with it at the few files that it does not watch, and how long it collects changes.
TIMEOUT = 500
DEBOUNCE = 50

# The places of `sysconfig` where Python and packages are installed.
INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")

Mark = tuple[int, int, int]


class WatchedFiles:
    """The files below the directories from which the application is imported, and those that the settings include.

    The directories are the current one and those of ``sys.path``, but no installed packages, hidden directories,
    virtual environments or ``node_modules``. Imported modules that are elsewhere count too, unless they are installed.

    :param include: patterns of further files: of names, such as ``*.toml``, below these directories; of paths, if they
        contain a slash; or directories, with all that is in them.
    """

    def __init__(self, include: Sequence[str]) -> None:
        self._installed = tuple({os.path.join(sysconfig.get_path(name), "") for name in INSTALLED})
        self._paths = [os.path.abspath(each) for each in include if "/" in each or os.path.isdir(each)]
        names = [*NAMES, *(each for each in include if "/" not in each and not os.path.isdir(each))]
        self._names = re.compile("|".join(map(translate, names)))
        self.directories = list(dict.fromkeys(map(os.path.realpath, filter(self._is_own, ["", *sys.path]))))
        # These and the directories below them, as of the last look.
        self.entered: list[str] = []
        # The files in these, those that are included, and modules that are elsewhere. A new one of these was imported.
        self._found = dict(self._marks(self._in_directories()))
        self._included = dict(self._marks(self._by_pattern()))
        self._modules = dict(self._marks(self._imported()))

    def changes(self, *, only_others: bool = False) -> list[str]:
        """The files changed, made or removed since the last look; ``only_others``: those outside the directories."""
        changed = []
        if not only_others:
            before, self._found = self._found, dict(self._marks(self._in_directories()))
            changed += _differing(before, self._found)
        before, self._included = self._included, dict(self._marks(self._by_pattern()))
        changed += _differing(before, self._included)
        before, self._modules = self._modules, dict(self._marks(self._imported()))
        changed += [path for path in _differing(before, self._modules) if path in before]
        return list(dict.fromkeys(changed))

    def may_matter(self, path: str) -> bool:
        """Whether a change of this file, or perhaps directory, is worth a look."""
        if self._names.match(os.path.basename(path)) or f"/{TEMPLATES}/" in path:
            return True
        # It may have been a directory, if it is gone.
        return os.path.isdir(path) or not os.path.exists(path)

    def _is_own(self, directory: str) -> bool:
        path = os.path.realpath(directory)
        if path in ("/", str(Path.home())):
            return False
        return os.path.isdir(path) and not self._is_installed(os.path.join(path, ""))

    def _is_installed(self, path: str) -> bool:
        return path.startswith(self._installed) or "/site-packages/" in path or "/dist-packages/" in path

    def _in_directories(self) -> Iterator[str]:
        self.entered = []
        for top in self.directories:
            for directory, inner, names in os.walk(top):
                inner[:] = [name for name in inner if self._is_entered(os.path.join(directory, name), name)]
                self.entered.append(directory)
                has_templates = TEMPLATES in directory.removeprefix(top).split("/")
                for name in names:
                    if has_templates or self._names.match(name):
                        yield os.path.join(directory, name)

    def _is_entered(self, path: str, name: str) -> bool:
        if name.startswith(".") or name in ("__pycache__", "node_modules") or path in self.directories:
            return False
        return not (os.path.exists(os.path.join(path, "pyvenv.cfg")) or self._is_installed(os.path.join(path, "")))

    def _imported(self) -> Iterator[str]:
        for module in list(sys.modules.values()):
            file = getattr(module, "__dict__", {}).get("__file__")
            if isinstance(file, str) and file.endswith(".py") and not self._is_installed(os.path.abspath(file)):
                path = os.path.realpath(file)
                if path not in self._found:
                    yield path

    def _by_pattern(self) -> Iterator[str]:
        for pattern in self._paths:
            for path in glob.iglob(pattern, recursive=True, include_hidden=True):
                if os.path.isdir(path):
                    yield from (
                        os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names
                    )
                else:
                    yield path

    @staticmethod
    def _marks(paths: Iterator[str]) -> Iterator[tuple[str, Mark]]:
        for path in paths:
            # It may have been removed just now.
            with suppress(OSError):
                found = os.stat(path)
                yield path, (found.st_mtime_ns, found.st_size, found.st_ino)


def _differing(before: dict[str, Mark], after: dict[str, Mark]) -> list[str]:
    return [path for path in {**before, **after} if before.get(path) != after.get(path)]


def wait_for_changes(files: WatchedFiles, stop: threading.Event) -> list[str]:
    """Wait until files have changed, and return their paths; none once ``stop`` is set."""
    try:
        from watchfiles import watch
    except ImportError:
        return _poll(files, stop)
    # It would log each event.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    try:
        while not stop.is_set():
            entered = files.entered
            is_first = True
            for events in watch(
                *entered,
                watch_filter=lambda _, path: files.may_matter(path),
                debounce=DEBOUNCE,
                rust_timeout=TIMEOUT,
                yield_on_timeout=True,
                stop_event=stop,
                raise_interrupt=False,
                # It would watch node_modules and virtual environments too.
                recursive=False,
                ignore_permission_denied=True,
            ):
                # At first, for what has changed before it began to watch.
                changed = files.changes(only_others=not events and not is_first)
                is_first = False
                if changed:
                    return changed
                if files.entered != entered:
                    break
    except (OSError, RuntimeError) as error:
        # Such as the limit of inotify watches.
        logger.warning("reload: watchfiles cannot watch the files, so they are looked at again and again: %s", error)
        return _poll(files, stop)
    return []


def _poll(files: WatchedFiles, stop: threading.Event) -> list[str]:
    pause = INTERVAL
    while not stop.wait(pause):
        began = time.monotonic()
        changed = files.changes()
        if changed:
            return changed
        pause = max(INTERVAL, 9 * (time.monotonic() - began))
    return []
