"""The hot path compiled to C: which modules that are, and how a source tree finds what was compiled of it.

``scripts/setup.sh`` compiles; docs/performance.md says why these modules. As a program this prints `directory`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableSequence
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import source_hash
from pathlib import Path

# All that a request goes through, but for what applications or the disk keep waiting. Left out are classes that derive
# from exceptions or enumerations of Python's own, which mypyc does not know.
MODULES = (
    "access_log",
    "bridge",
    "chunked_body",
    "current",
    "environ",
    "exchange",
    "fair_queue",
    "forwarded",
    "history",
    "hop",
    "http_date",
    "http1",
    "http1_parser",
    "lane_choice",
    "lanes",
    "late_changes",
    "mysql_session",
    "record",
    "request_body",
    "response_head",
    "routes",
    "sending",
    "sql_effects",
    "statements",
    "totals",
    "watch",
    "wsgi",
)

# The package, with the sources.
PACKAGE = Path(__file__).parent
# One directory for each state of the sources that was compiled: no other state ever finds it.
PLACE = PACKAGE.parent / "build" / "compiled"

# The environment variable that is 0 for a process that is to run the sources: debuggers and profilers show only these.
SWITCH = "THREADBRIDGE_COMPILED"


def directory() -> Path:
    """Where these very sources, compiled for this very Python, are or would be."""
    sources = sorted(PACKAGE.glob("*.py"))
    # All of them, for what is compiled relies on the types of what is not.
    texts = b"".join(b"%b\0%b\0" % (source.name.encode(), source.read_bytes()) for source in sources)
    return PLACE / f"{source_hash(texts).hex()}-{sys.implementation.cache_tag}"


def prefer_compiled(path: MutableSequence[str]) -> None:
    """Have a package's modules, whose ``__path__`` this is, come from `directory` where they are there.

    Not if ``THREADBRIDGE_COMPILED=0`` is in the environment.
    """
    if PLACE.is_dir() and os.environ.get(SWITCH) != "0":
        compiled = directory() / PACKAGE.name
        if compiled.is_dir():
            path.insert(0, str(compiled))


def is_compiled() -> bool:
    """Whether this process runs the compiled modules."""
    return str(sys.modules["threadbridge.bridge"].__file__).endswith(EXTENSION_SUFFIXES[0])


def has_others() -> bool:
    """Whether only other states of the sources, or for another Python, have been compiled."""
    return not directory().is_dir() and any(entry.is_dir() for entry in PLACE.glob("*"))


if __name__ == "__main__":
    print(directory())
