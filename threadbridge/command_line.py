"""The command line: Tornado's options, one clear line for a wrong one, then `serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from wsgiref.types import WSGIApplication

from tornado.log import define_logging_options
from tornado.options import Error, OptionParser

from threadbridge.lanes import Lane
from threadbridge.server import serve

LOGGING_LEVELS = ("debug", "info", "warning", "error", "none")


def run(
    application: WSGIApplication,
    *,
    pool: object | None = None,
    lanes: Sequence[Lane] = (),
    port: int = 8000,
    xheaders: bool = False,
    argv: Sequence[str] | None = None,
) -> int:
    """Serve an application as the command line says; give the process's exit status.

    ``port`` and ``xheaders`` are the defaults of the options with these names. Status 2 stands for a wrong option, 1
    for an address that cannot be listened on or requests cut by the end of the grace period.
    """
    options = OptionParser()
    options.define("address", "127.0.0.1", type=str, help="interface to listen on; an empty value is all of them")
    options.define("port", port, type=int, help="TCP port to listen on")
    options.define("queue", 1000, type=int, help="requests that may wait for a thread; the next one is answered 503")
    options.define("grace", 60.0, type=float, help="seconds to answer what is running and queued after SIGTERM")
    options.define(
        "xheaders",
        xheaders,
        type=bool,
        help="believe X-Real-IP, X-Forwarded-For, X-Scheme and X-Forwarded-Proto of loopback and trusted proxies",
    )
    options.define(
        "trusted_proxies", type=str, multiple=True, help="addresses and networks of proxies to be believed too"
    )
    define_logging_options(options)
    arguments = [sys.argv[0], *(sys.argv[1:] if argv is None else argv)]
    try:
        if surplus := options.parse_command_line(arguments, final=False):
            raise Error(f"unexpected argument {surplus[0]!r}")
        if not 0 <= options.port <= 65535:
            raise Error(f"--port={options.port}: expected a number from 0 to 65535")
        if options.logging not in LOGGING_LEVELS:
            raise Error(f"--logging={options.logging}: expected one of {', '.join(LOGGING_LEVELS)}")
        # Only now does Tornado set up the logging, which does not say what is wrong with a level.
        options.run_parse_callbacks()
        return serve(
            application,
            pool=pool,
            lanes=lanes,
            queue=options.queue,
            address=options.address,
            port=options.port,
            grace=options.grace,
            xheaders=options.xheaders,
            trusted_proxies=options.trusted_proxies,
        )
    except (Error, ValueError) as error:
        print(f"{arguments[0]}: {error}; see --help", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{arguments[0]}: cannot listen on {options.address}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
