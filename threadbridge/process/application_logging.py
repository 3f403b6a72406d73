"""Keeps the application's logging and the server's from getting in each other's way."""

from __future__ import annotations

import logging
from typing import Any

from threadbridge.crossing.current import is_cancelled
from threadbridge.process.logs import installed

logger = logging.getLogger("threadbridge")

# The server's loggers, together with their children.
_SERVERS = ("threadbridge", "tornado", "asyncio")


def restore_logging() -> None:
    """Undo what the application's logging configuration has done to the server's logs, and log that. Any thread.

    Unless told otherwise, `logging.config` disables all existing loggers, and it replaces the root logger's handlers.
    This enables the server's loggers again and puts its log files back on the root logger; its handler for standard
    error only if the application has given the root logger no other.
    """
    # Waits while another thread configures logging, which holds the lock that this takes.
    logging.getLogger("threadbridge")
    disabled = [
        each
        for name, each in list(logging.root.manager.loggerDict.items())
        if name.partition(".")[0] in _SERVERS and isinstance(each, logging.Logger) and each.disabled
    ]
    for each in disabled:
        each.disabled = False
    ours = [handler for _, handler in installed]
    missing = [
        (owner, handler)
        for owner, handler in installed
        if handler not in owner.handlers
        and (isinstance(handler, logging.FileHandler) or all(other in ours for other in owner.handlers))
    ]
    for owner, handler in missing:
        owner.addHandler(handler)
    if disabled or missing:
        logger.warning(
            "the application's logging configuration switched the server's logs off; they are on again. Configure with "
            "disable_existing_loggers=False to avoid that"
        )


def demote_errors_of_cancelled_requests() -> None:
    """Log what the application logs as an error of a cancelled request at the level INFO, in one line.

    Its query was stopped because the client left or the deadline passed. Neither is an error of the application, but
    frameworks log whatever it raises with a traceback, and mail or report it. This replaces the record factory of
    `logging`, so it applies to every logger and handler.
    """
    previous = logging.getLogRecordFactory()

    def make(*args: Any, **keywords: Any) -> logging.LogRecord:
        record = previous(*args, **keywords)
        if record.levelno >= logging.ERROR and is_cancelled() and record.name.partition(".")[0] not in _SERVERS:
            error = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] is not None else ""
            note = f" (the request was cancelled){error}"
            record.msg = f"{record.msg}{note.replace('%', '%%') if record.args else note}"
            record.exc_info = record.exc_text = None
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return record

    logging.setLogRecordFactory(make)
