"""One process's life: it listens, says so, serves, drains when told to stop, and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence
from wsgiref.types import WSGIApplication

from tornado.netutil import bind_sockets

from threadbridge.bridge import Bridge
from threadbridge.http_server import HTTPServer
from threadbridge.lanes import Lane

logger = logging.getLogger("threadbridge")


def serve(
    application: WSGIApplication,
    *,
    pool: object | None = None,
    threads: int | None = None,
    lanes: Sequence[Lane] = (),
    queue: int = 1000,
    address: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 60.0,
    xheaders: bool = False,
    trusted_proxies: Iterable[str] = (),
) -> int:
    """Serve a WSGI application until SIGTERM or SIGINT; give the process's exit status.

    Prints one line with the address once connections are accepted. On the signal the port is closed, and what is
    running or queued is answered.

    :param address: the interface to listen on; ``""`` is all of them. Default loopback only.
    :param port: the TCP port; 0 chooses a free one. Default 8000.
    :param grace: seconds that running and queued requests have after the signal. Default 60. What is left by then is
        cut, and the exit status is 1; a second signal has the same effect at once.

    The other parameters are `Bridge`'s. Raises ``ValueError`` as `Bridge` does, and ``OSError`` when the address cannot
    be listened on. Call it in the main thread, which becomes the loop's.
    """
    bridge = Bridge(
        application,
        pool=pool,
        threads=threads,
        lanes=lanes,
        queue=queue,
        xheaders=xheaders,
        trusted_proxies=trusted_proxies,
    )
    sockets = bind_sockets(port, address)
    clean = asyncio.run(_live(bridge, sockets, grace))
    if not clean:
        # The interpreter would wait for the threads that are left, however long their queries take.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(1)
    return 0


async def _live(bridge: Bridge, sockets: list[socket.socket], grace: float) -> bool:
    """Serve until a signal comes; whether everything had ended within the grace period."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("%s again: stopping at once", number.name)
            hurry.set()
        else:
            logger.info("%s: stopping, %d requests to answer", number.name, len(bridge.exchanges))
            stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    server = HTTPServer(bridge)
    server.add_sockets(sockets)
    for listener in sockets:
        print(f"Serving on {_url(listener)} (pid {os.getpid()})", flush=True)
    await stop.wait()

    server.stop()
    drained = asyncio.ensure_future(_drain(bridge, server))
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait((drained, hurried), timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if drained.done():
        logger.info("stopped, every request is answered")
        return True
    drained.cancel()
    for exchange in list(bridge.exchanges):
        logger.error("stopped before request %s was answered: %s", exchange.id, exchange.start_line.path)
    return False


async def _drain(bridge: Bridge, server: HTTPServer) -> None:
    await server.drain()
    bridge.close()
    # Applications may go on after their response is out, in `close()`. The waiting thread is a daemon, so that a worker
    # that never ends holds up neither the loop nor the interpreter's end.
    joined = asyncio.Event()
    loop = asyncio.get_running_loop()

    def join() -> None:
        bridge.join()
        loop.call_soon_threadsafe(joined.set)

    threading.Thread(target=join, name="threadbridge-join", daemon=True).start()
    await joined.wait()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
