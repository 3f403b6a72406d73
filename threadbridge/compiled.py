"""The hot path, compiled to C by ``scripts/setup.sh``: its modules, and how a source tree finds them compiled."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import source_hash
from pathlib import Path
from types import ModuleType

# All that a request passes through, except code that waits for applications or the disk. mypyc cannot compile classes
# that derive from Python's own exceptions or enumerations; modules with such classes are left out.
MODULES = (
    "crossing.cancellation",
    "crossing.cost_cells",
    "crossing.costs",
    "crossing.estimate",
    "crossing.current",
    "crossing.exchange",
    "crossing.fair_queue",
    "crossing.hop",
    "crossing.lanes",
    "crossing.load",
    "crossing.outgoing_response",
    "crossing.pace",
    "crossing.request_body",
    "crossing.recent_use",
    "crossing.replicas",
    "crossing.routes",
    "crossing.schedule",
    "database.drivers.mysql_session",
    "http.accepting",
    "http.chunked_body",
    "http.client_connection",
    "http.connection",
    "http.connections",
    "http.context",
    "http.fields",
    "http.forwarded",
    "http.intermediary",
    "http.parser",
    "http.request_rules",
    "http.request_start",
    "http.response_head",
    "http.response_parser",
    "http.server_connection",
    "http.socket_stream",
    "http.transfer",
    "loop.admission",
    "loop.body_sender",
    "loop.bridge",
    "loop.exchanges",
    "loop.forwarding",
    "loop.lane_choice",
    "loop.receiver",
    "loop.upstream",
    "loop.watch",
    "sql.effects",
    "sql.statements",
    "telemetry.access_log",
    "telemetry.history",
    "telemetry.http_metrics",
    "telemetry.record",
    "telemetry.sampling",
    "telemetry.totals",
    "worker.application_values",
    "worker.environ",
    "worker.wsgi",
)

PACKAGE = Path(__file__).parent
# One directory for each compiled state of the sources; other states never find it.
BUILD_DIRECTORY = PACKAGE.parent / "build" / "compiled"

# The environment variable that makes a process run the sources if it is 0; debuggers and profilers show only these.
SWITCH = "THREADBRIDGE_COMPILED"


def directory() -> Path:
    """Where exactly these sources, compiled for this Python, are or would be."""
    sources = sorted(PACKAGE.rglob("*.py"))
    # All of them, because compiled modules rely on the types of the others.
    texts = b"".join(b"%b\0%b\0" % (source.name.encode(), source.read_bytes()) for source in sources)
    # As in ".cpython-313t-x86_64-linux-gnu.so": `sys.implementation.cache_tag` is the same without the global lock.
    return BUILD_DIRECTORY / f"{source_hash(texts).hex()}-{EXTENSION_SUFFIXES[0].split('.')[1]}"


# Not derived from MetaPathFinder: to import importlib.abc takes each process several milliseconds.
class CompiledFinder:
    """Finds the compiled modules of the package before their sources."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        package, _, _ = fullname.rpartition(".")
        if package.partition(".")[0] != PACKAGE.name:
            return None
        spec = PathFinder.find_spec(fullname, [str(self._directory.joinpath(*package.split(".")))])
        # A directory alone looks like a package.
        return spec if spec is not None and spec.has_location else None


def prefer_compiled() -> None:
    """Make Python import this package's modules from `directory` if they are there, unless `SWITCH` is 0."""
    if BUILD_DIRECTORY.is_dir() and os.environ.get(SWITCH) != "0":
        compiled = directory()
        if compiled.is_dir():
            sys.meta_path.insert(0, CompiledFinder(compiled))


def is_compiled() -> bool:
    """Whether this process runs the compiled modules."""
    return str(sys.modules["threadbridge.loop.bridge"].__file__).endswith(EXTENSION_SUFFIXES[0])


def has_others() -> bool:
    """Whether only other states of the sources have been compiled, or only for another Python."""
    return not directory().is_dir() and any(entry.is_dir() for entry in BUILD_DIRECTORY.glob("*"))


if __name__ == "__main__":
    # For scripts/setup.sh.
    print(directory())
