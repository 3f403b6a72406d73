"""The application behind Paste's logging middleware, for servers that write no access log of their own."""

from paste.translogger import TransLogger  # type: ignore[import-not-found]

from benchmarks import application

app = TransLogger(application.app)
