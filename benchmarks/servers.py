"""The servers to compare, each in one process: ``python -m benchmarks.servers executor MODULE:APP --port=8000``."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pkgutil import resolve_name
from wsgiref.types import WSGIApplication

from tornado.httpserver import HTTPServer
from tornado.wsgi import WSGIContainer

from threadbridge import serve


def threadbridge(application: WSGIApplication, threads: int, port: int) -> None:
    serve(application, threads=threads, port=port)


def wsgicontainer(application: WSGIApplication, threads: int, port: int) -> None:
    asyncio.run(serve_container(WSGIContainer(application), port))


def executor(application: WSGIApplication, threads: int, port: int) -> None:
    asyncio.run(serve_container(WSGIContainer(application, ThreadPoolExecutor(threads)), port))


async def serve_container(container: WSGIContainer, port: int) -> None:
    HTTPServer(container).listen(port, "127.0.0.1")
    await asyncio.Event().wait()


# Each serves the application on the loopback port with so many threads, if it has threads, until the process is killed.
SERVERS: dict[str, Callable[[WSGIApplication, int, int], None]] = {
    "threadbridge": threadbridge,
    "wsgicontainer": wsgicontainer,
    "executor": executor,
}

TITLES = {
    "threadbridge": "threadbridge",
    "wsgicontainer": "WSGIContainer(app)",
    "executor": "WSGIContainer(app, executor)",
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
    options = parser.parse_args()
    SERVERS[options.server](resolve_name(options.application), options.threads, options.port)


if __name__ == "__main__":
    main()
