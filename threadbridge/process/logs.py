"""The process's logs: where they go, and what their lines look like."""

from __future__ import annotations

import json
import logging
import os
import sys
from types import SimpleNamespace

from tornado.log import LogFormatter, access_log, enable_pretty_logging

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.compiled import is_compiled
from threadbridge.crossing.current import current_or_none
from threadbridge.process.standard_error import StandardError, may_block
from threadbridge.settings.table import CommandLineSettings
from threadbridge.telemetry.access_log import AccessLines, iso_time
from threadbridge.telemetry.slow_log import SlowRequest

logger = logging.getLogger("threadbridge")

# The server's handlers, each with the logger that it belongs to.
installed: list[tuple[logging.Logger, logging.Handler]] = []

FORMAT = "%(color)s[%(levelname)1.1s %(asctime)s %(place)s%(in_request)s]%(end_color)s %(message)s"


def _place(record: logging.LogRecord) -> str:
    """The module and line that logged it; "" if that is not known.

    Compiled functions are not on Python's stack: their lines would be said to come from whatever called them.
    """
    is_servers_own = record.name.partition(".")[0] == logger.name
    return "" if is_servers_own and is_compiled() else f"{record.module}:{record.lineno}"


def set_up_logging(settings: CommandLineSettings) -> None:
    """Make the root logger log as the settings say. Raises ``OSError`` when a log file cannot be opened.

    With a log file, the access log gets a file of its own, because programs read its lines. Standard error that
    somebody has to read is written by a thread, see `StandardError`.
    """
    enable_pretty_logging(SimpleNamespace(**settings))
    blocks = may_block(sys.stderr, 2)
    for handler in list(logging.root.handlers):
        if blocks and type(handler) is logging.StreamHandler and handler.stream is sys.stderr:
            logging.root.removeHandler(handler)
            logging.root.addHandler(StandardError())
    if settings["log_file_prefix"] and settings["access_log"]:
        _separate_access_log(settings)
    for each in (logger, access_log):
        # Also when the application sets another level for the root logger.
        each.setLevel(logging.root.level)
    # For what cannot be said in the log files.
    apart = logging.Logger("threadbridge")
    apart.addHandler(StandardError() if blocks else logging.StreamHandler())
    for handler in [*logging.root.handlers, *access_log.handlers, *apart.handlers]:
        handler.addFilter(RequestIds())
        has_color = True
        if isinstance(handler, logging.FileHandler):
            has_color = False
            _report_failures(handler, apart)
        handler.setFormatter(JSONFormatter() if settings["log_json"] else TextFormatter(FORMAT, color=has_color))
    installed[:] = [(owner, handler) for owner in (logging.root, access_log) for handler in owner.handlers]


def in_format(message: str) -> str:
    """A message of the server's that is printed rather than logged, as JSON if the logs are in JSON. Any thread."""
    for _, handler in installed:
        if isinstance(handler.formatter, JSONFormatter):
            record = logging.LogRecord(logger.name, logging.INFO, __file__, 0, message, None, None)
            return handler.formatter.format(record)
    return message


def _report_failures(handler: logging.FileHandler, apart: logging.Logger) -> None:
    """Make it log a few lines elsewhere, rather than a traceback for each record, if its file cannot be written."""
    failed = RepeatedLog(apart)

    def handle_error(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            failed.log(
                logging.ERROR,
                "cannot write to the log file %s, so lines are lost: %s",
                handler.baseFilename,
                error.strerror,
            )
        else:
            logging.Handler.handleError(handler, record)

    handler.handleError = handle_error  # type: ignore[method-assign]


def access_log_path(log_file_prefix: str) -> str:
    """The file of the access log, next to the log file: ``app.access.log`` for ``app.log``. Either side."""
    root, extension = os.path.splitext(log_file_prefix)
    return f"{root if extension == '.log' else log_file_prefix}.access.log"


def _separate_access_log(settings: CommandLineSettings) -> None:
    for handler in logging.root.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.addFilter(AccessLogFilter(wanted=False))
    path = access_log_path(settings["log_file_prefix"] or "")
    enable_pretty_logging(SimpleNamespace(**{**settings, "log_file_prefix": path, "log_to_stderr": False}), access_log)
    for handler in access_log.handlers:
        # Tornado's own handlers, such as WebSockets, log there too, in another format.
        handler.addFilter(AccessLogFilter(wanted=True))


class AccessLogFilter(logging.Filter):
    """Passes only the lines of the access log, or all but these. Any thread."""

    knows_access_lines = True

    def __init__(self, *, wanted: bool) -> None:
        super().__init__()
        self._wanted = wanted

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return isinstance(record.msg, AccessLines) is self._wanted


class RequestIds(logging.Filter):
    """Gives each log record the attribute ``request_id``: of the request that the thread serves, or "".

    For handlers of your own, such as one with the format ``%(request_id)s %(message)s``. Any thread.
    """

    knows_access_lines = True

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        if not hasattr(record, "request_id"):
            request = current_or_none()
            record.request_id = request.id if request is not None else ""
        return True


class TextFormatter(LogFormatter):
    """Tornado's lines, with the request's id in their heads; lines of the access log stand bare. Any thread."""

    knows_access_lines = True

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        if isinstance(record.msg, AccessLines):
            return record.msg.text
        request_id = getattr(record, "request_id", "")
        record.place = _place(record) or record.name
        record.in_request = f" {request_id}" if request_id else ""
        return super().format(record)


class JSONFormatter(logging.Formatter):
    """A JSON object for each log record; for one of the access log, one for each of its requests. Any thread."""

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
        if isinstance(record.msg, SlowRequest):
            fields |= {"message": "slow request", **record.msg.fields()}
        else:
            fields |= {"message": record.getMessage(), "place": _place(record)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def reopen_log_files() -> None:
    """Continue in new files if the log files have been moved away, as logrotate does. Loop side.

    This includes the application's own handlers: what they have written stays, whatever mode they were made with. If a
    file cannot be opened, that is logged, and its handler continues with the old one.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for each in loggers if isinstance(each, logging.Logger) for handler in each.handlers}
    for handler in handlers:
        if isinstance(handler, logging.FileHandler) and _is_moved_away(handler):
            # With "w" another handler's lines would be lost if both have the same new file.
            handler.mode = "a"
            try:
                opened = handler._open()
            except OSError as error:
                logger.error("SIGHUP: cannot open %s: %s", handler.baseFilename, error.strerror)
                continue
            old = handler.setStream(opened)
            if old is not None:
                old.close()
    logger.info("SIGHUP: log files reopened")


def _is_moved_away(handler: logging.FileHandler) -> bool:
    """Whether it has a file open that is no longer the one with its name."""
    if handler.stream is None:
        # It opens one with its first line.
        return False
    try:
        return not os.path.samestat(os.fstat(handler.stream.fileno()), os.stat(handler.baseFilename))
    except OSError:
        # Opening the new one says what is wrong.
        return True
