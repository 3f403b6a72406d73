"""The application that ``APPLICATION`` names, in a2wsgi's wrapper: for servers of the asynchronous interface."""

import os
from pkgutil import resolve_name

from a2wsgi import WSGIMiddleware  # type: ignore[import-not-found]

from benchmarks import THREADS

application = WSGIMiddleware(resolve_name(os.environ["APPLICATION"]), workers=THREADS)
