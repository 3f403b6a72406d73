"""Servers that have no command line of their own: ``python -m benchmarks.servers executor MODULE:APP --port=8000``."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pkgutil import resolve_name
from wsgiref.types import WSGIApplication

from tornado.httpserver import HTTPServer
from tornado.log import enable_pretty_logging
from tornado.wsgi import WSGIContainer

# More than any benchmark opens at once.
BACKLOG = 1024


def wsgicontainer(application: WSGIApplication, options: argparse.Namespace) -> None:
    asyncio.run(serve_container(WSGIContainer(application), options))


def executor(application: WSGIApplication, options: argparse.Namespace) -> None:
    asyncio.run(serve_container(WSGIContainer(application, ThreadPoolExecutor(options.threads)), options))


async def serve_container(container: WSGIContainer, options: argparse.Namespace) -> None:
    if options.access_log:
        enable_pretty_logging()
    tls = {"certfile": options.certfile, "keyfile": options.keyfile} if options.certfile else None
    HTTPServer(container, ssl_options=tls).listen(options.port, "127.0.0.1", backlog=BACKLOG)
    await asyncio.Event().wait()


def twisted(application: WSGIApplication, options: argparse.Namespace) -> None:
    # Not everybody who runs the others has it.
    from twisted.internet import reactor  # type: ignore[import-not-found]
    from twisted.python.threadpool import ThreadPool  # type: ignore[import-not-found]
    from twisted.web.server import Site  # type: ignore[import-not-found]
    from twisted.web.wsgi import WSGIResource  # type: ignore[import-not-found]

    threads = ThreadPool(options.threads, options.threads)
    reactor.callWhenRunning(threads.start)
    reactor.addSystemEventTrigger("after", "shutdown", threads.stop)
    site = Site(WSGIResource(reactor, threads, application), logPath=b"/dev/stderr" if options.access_log else None)
    reactor.listenTCP(options.port, site, backlog=BACKLOG, interface="127.0.0.1")
    reactor.run()


# Each serves the application on loopback until the process is stopped.
SERVERS: dict[str, Callable[[WSGIApplication, argparse.Namespace], None]] = {
    "wsgicontainer": wsgicontainer,
    "executor": executor,
    "twisted": twisted,
}


def command(server: str, application: str, threads: int) -> tuple[str, ...]:
    """What stands behind ``python`` to start a server, with ``{port}`` in place of the port."""
    return ("-m", "benchmarks.servers", server, application, f"--threads={threads}", "--port={port}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description="Serve an application.")
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("application", help="where the WSGI application is, as MODULE:ATTRIBUTE")
    parser.add_argument("--threads", type=int, default=10, help="how many requests run at once (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="TCP port on loopback (default %(default)s)")
    parser.add_argument("--access_log", action="store_true", help="log each request to standard error")
    parser.add_argument("--certfile", help="serve HTTPS with this certificate; not Twisted")
    parser.add_argument("--keyfile", help="its key")
    options = parser.parse_args()
    SERVERS[options.server](resolve_name(options.application), options)


if __name__ == "__main__":
    main()
