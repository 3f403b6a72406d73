"""The process's logs: where they go, and the format of their lines. Any thread."""

from __future__ import annotations

import json
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

from tornado.log import LogFormatter, access_log, enable_pretty_logging

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.compiled import is_compiled
from threadbridge.crossing.current import is_cancelled, names_for_logs
from threadbridge.process.standard_error import StandardError, may_block
from threadbridge.settings.table import CommandLineSettings
from threadbridge.telemetry.access_log import AccessLines, iso_time
from threadbridge.telemetry.slow_log import SlowRequest

logger = logging.getLogger("threadbridge")

# The server's loggers, together with their children.
SERVERS = ("threadbridge", "tornado", "asyncio")
# The server's handlers, each with its logger.
installed: list[tuple[logging.Logger, logging.Handler]] = []
# The handler for what cannot be written to the log files, likewise.
_apart: list[tuple[logging.Logger, logging.Handler]] = []

FORMAT = "%(color)s[%(levelname)1.1s %(asctime)s %(place)s%(in_request)s]%(end_color)s %(message)s"


def set_up_logging(settings: CommandLineSettings, *, forks: bool = False) -> None:
    """Set up the root logger as the settings say.

    :param forks: whether the process does not serve, but forks those that do, see `begin_in_fork`.

    Raises ``OSError`` if a log file cannot be opened, and `SettingError` if ``log_config`` cannot be used.
    """
    if settings["log_config"]:
        # Not at the top: few processes have such a file.
        from threadbridge.process.log_config import configure

        configure(settings["log_config"])
        return
    enable_pretty_logging(SimpleNamespace(**settings))
    blocks = may_block(sys.stderr, 2)
    for handler in list(logging.root.handlers):
        if blocks and type(handler) is logging.StreamHandler and handler.stream is sys.stderr:
            logging.root.removeHandler(handler)
            logging.root.addHandler(StandardError())
    if settings["log_file_prefix"] and settings["access_log"]:
        _separate_access_log(settings, os.devnull if forks else access_log_path(settings["log_file_prefix"]))
    for each in (logger, access_log):
        # The application may set another level for the root logger.
        each.setLevel(logging.root.level)
    # Logs what cannot be written to the log files.
    apart = logging.Logger("threadbridge")
    apart.addHandler(StandardError() if blocks else logging.StreamHandler())
    _apart[:] = [(apart, handler) for handler in apart.handlers]
    for handler in [*logging.root.handlers, *access_log.handlers, *apart.handlers]:
        handler.addFilter(RequestIds())
        if is_file := isinstance(handler, logging.FileHandler):
            _report_failures(handler, apart)
        handler.setFormatter(JSONFormatter() if settings["log_json"] else TextFormatter(FORMAT, color=not is_file))
    installed[:] = [(owner, handler) for owner in (logging.root, access_log) for handler in owner.handlers]


def begin_in_fork(log_file_prefix: str | None) -> None:
    """Log as a forked process that serves: to files of its own, if the logs go to files, and with threads of its own.

    Raises ``OSError`` if a log file cannot be opened.
    """
    for owner, handler in [*installed, *_apart]:
        if isinstance(handler, StandardError):
            handler.begin()
        elif isinstance(handler, logging.FileHandler) and log_file_prefix:
            path = access_log_path(log_file_prefix) if owner is access_log else log_file_prefix
            handler.baseFilename = os.path.abspath(path)
            old = handler.setStream(handler._open())
            if old is not None:
                old.close()


def in_format(message: str) -> str:
    """Return a line that is printed rather than logged, as JSON if the logs are in JSON."""
    for _, handler in installed:
        if isinstance(handler.formatter, JSONFormatter):
            return handler.format(logging.LogRecord(logger.name, logging.INFO, __file__, 0, message, None, None))
    return message


def _report_failures(handler: logging.FileHandler, apart: logging.Logger) -> None:
    """Log write errors of this handler elsewhere, in a few lines instead of a traceback for each record."""
    failed = RepeatedLog(apart)

    def handle_error(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            text = "cannot write to the log file %s, so lines are lost: %s"
            failed.log(logging.ERROR, text, handler.baseFilename, error.strerror)
        else:
            logging.Handler.handleError(handler, record)

    handler.handleError = handle_error  # type: ignore[method-assign]


def access_log_path(log_file_prefix: str) -> str:
    """The access log's file: ``app.access.log`` for ``app.log``."""
    return f"{log_file_prefix.removesuffix('.log')}.access.log"


def _separate_access_log(settings: CommandLineSettings, path: str) -> None:
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.addFilter(AccessLogFilter(wanted=False))
    files = {"log_file_prefix": path, "log_to_stderr": False}
    enable_pretty_logging(SimpleNamespace(**{**settings, **files}), access_log)
    for handler in access_log.handlers:
        # Programs read this file, and Tornado's own handlers, such as WebSockets, log there in another format.
        handler.addFilter(AccessLogFilter(wanted=True))


class AccessLogFilter:
    """Passes only the lines of the access log, or all but these."""

    knows_access_lines = True

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return isinstance(record.msg, AccessLines) is self._wanted


class RequestIds(logging.Filter):
    """Sets ``request_id`` and ``traceparent`` on log records: the request's names, or "". For your own handlers too."""

    knows_access_lines = True

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        request_id, traceparent = names_for_logs()
        if not hasattr(record, "request_id"):
            record.request_id = request_id
        if not hasattr(record, "traceparent"):
            record.traceparent = traceparent
        return True


def _place(record: logging.LogRecord) -> str:
    """The module and line that logged the record; "" if they are unknown."""
    # Compiled functions are not on Python's stack, so their records would show the function that called them.
    is_servers_own = record.name.partition(".")[0] == logger.name
    return "" if is_servers_own and is_compiled() else f"{record.module}:{record.lineno}"


class TextFormatter(LogFormatter):
    """Tornado's format, with the request's id in the prefix; access log lines have no prefix."""

    knows_access_lines = True

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        if isinstance(record.msg, AccessLines):
            return record.msg.text
        request_id = getattr(record, "request_id", "")
        record.place = _place(record) or record.name
        traceparent = getattr(record, "traceparent", "")
        record.in_request = "".join(f" {name}" for name in (request_id, traceparent) if name)
        return super().format(record)


class JSONFormatter(logging.Formatter):
    """A JSON object for each log record, or for each request in an access log record."""

    knows_access_lines = True

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        if isinstance(record.msg, AccessLines):
            return record.msg.json
        fields: dict[str, object] = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", ""),
        }
        if traceparent := getattr(record, "traceparent", ""):
            fields["traceparent"] = traceparent
        if isinstance(record.msg, SlowRequest):
            fields |= {"message": "slow request", **record.msg.fields()}
        else:
            fields |= {"message": record.getMessage(), "place": _place(record)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def reopen_log_files() -> None:
    """Continue in new files if log files, including the application's, have been moved away, as logrotate does."""
    for each in (logging.root, *logging.root.manager.loggerDict.values()):
        for handler in each.handlers if isinstance(each, logging.Logger) else ():
            # Without a stream, it opens the file with its first line.
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                try:
                    _reopen(handler, handler.stream.fileno())
                except OSError as error:
                    logger.error("SIGHUP: cannot open %s: %s", handler.baseFilename, error.strerror)
    logger.info("SIGHUP: log files reopened")


def _reopen(handler: logging.FileHandler, descriptor: int) -> None:
    path = handler.baseFilename
    if not os.path.exists(path) or not os.path.samestat(os.fstat(descriptor), os.stat(path)):
        # With "w", two handlers with the same file would overwrite each other's lines.
        handler.mode = "a"
        old = handler.setStream(handler._open())
        if old is not None:
            old.close()


def restore_logging() -> None:
    """Undo what the application's logging configuration has done to the server's logs, and log that. Any thread.

    Unless told otherwise, `logging.config` disables all existing loggers, and it replaces the root logger's handlers.
    The server's handler for standard error returns only if the application has given the root logger no other.
    """
    disabled, missing = _silenced()
    if disabled or missing:
        # Perhaps another thread is configuring logging just now. It holds the lock that this waits for.
        logging.getLogger("threadbridge")
        disabled, missing = _silenced()
    for each in disabled:
        each.disabled = False
    for owner, handler in missing:
        owner.addHandler(handler)
    if disabled or missing:
        logger.warning(
            "the application's logging configuration switched the server's logs off; they are on again. Configure with "
            "disable_existing_loggers=False to avoid that"
        )


def _silenced() -> tuple[list[logging.Logger], list[tuple[logging.Logger, logging.Handler]]]:
    """Return the server's loggers that are disabled, and its handlers that are missing, with their loggers."""
    disabled = [
        each
        for name, each in list(logging.root.manager.loggerDict.items())
        if name.partition(".")[0] in SERVERS and isinstance(each, logging.Logger) and each.disabled
    ]
    ours = [handler for _, handler in installed]
    missing = [
        (owner, handler)
        for owner, handler in installed
        if handler not in owner.handlers
        and (isinstance(handler, logging.FileHandler) or all(other in ours for other in owner.handlers))
    ]
    return disabled, missing


def demote_errors_of_cancelled_requests() -> None:
    """Log what the application logs as an error of a cancelled request at the level INFO, in one line.

    A query stopped because the client left or the deadline passed is no error of the application, but frameworks log it
    with a traceback, and mail or report it. This replaces the record factory, for all loggers and handlers.
    """
    previous = logging.getLogRecordFactory()

    def make(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = previous(*args, **keywords)
        # `logging.makeLogRecord` makes records without a level and a name, and then sets them.
        if (record.levelno or 0) >= logging.ERROR and is_cancelled() and record.name.partition(".")[0] not in SERVERS:
            error = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] is not None else ""
            note = f" (the request was cancelled){error}"
            record.msg = f"{record.msg}{note.replace('%', '%%') if record.args else note}"
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return record

    logging.setLogRecordFactory(make)
