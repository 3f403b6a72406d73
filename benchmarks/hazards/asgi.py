"""The application for servers of the asynchronous interface, in a2wsgi's wrapper."""

from a2wsgi import WSGIMiddleware  # type: ignore[import-not-found]

from benchmarks.hazards import THREADS
from benchmarks.hazards.application import app

application = WSGIMiddleware(app, workers=THREADS)
