"""Twisted's WSGI server with as many threads as the others: ``python -m benchmarks.hazards.twisted_server PORT``."""

from __future__ import annotations

import sys

from twisted.internet import reactor  # type: ignore[import-not-found]
from twisted.python.threadpool import ThreadPool  # type: ignore[import-not-found]
from twisted.web.server import Site  # type: ignore[import-not-found]
from twisted.web.wsgi import WSGIResource  # type: ignore[import-not-found]

from benchmarks.hazards import THREADS
from benchmarks.hazards.application import app

threads = ThreadPool(THREADS, THREADS)
reactor.callWhenRunning(threads.start)
reactor.addSystemEventTrigger("after", "shutdown", threads.stop)
reactor.listenTCP(int(sys.argv[1]), Site(WSGIResource(reactor, threads, app)), interface="127.0.0.1")
reactor.run()
