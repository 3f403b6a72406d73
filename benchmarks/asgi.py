"""The application for servers of the asynchronous interface, in a2wsgi's wrapper."""

from a2wsgi import WSGIMiddleware  # type: ignore[import-not-found]

from benchmarks import THREADS
from benchmarks.application import app

application = WSGIMiddleware(app, workers=THREADS)
