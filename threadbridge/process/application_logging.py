"""Keeps the application's logging and the server's from getting in each other's way."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from threadbridge.crossing.current import is_cancelled
from threadbridge.process.logs import installed
from threadbridge.process.standard_error import StandardError

logger = logging.getLogger("threadbridge")

# The loggers of the server, with all below them.
_SERVERS = ("threadbridge", "tornado", "asyncio")
# Seconds between two looks: applications may configure logging at any time, say for their first request.
INTERVAL = 1.0


async def keep_logging() -> None:
    """Call `restore_logging` again and again. Loop side."""
    while True:
        restore_logging()
        await asyncio.sleep(INTERVAL)


def restore_logging() -> None:
    """Undo what a configuration of the application's has done to the server's logs, and say so. Any thread.

    `logging.config` disables all existing loggers, unless told otherwise, closes all handlers and replaces those of
    the root logger. The server's loggers are enabled again. Its log files stay the root logger's; its handler for
    standard error does only if the application has given the root logger none.
    """
    # `logging.config` holds it from its first change to its last.
    with logging._lock:  # type: ignore[attr-defined]
        changed = [_enable(each) for each in _servers_loggers()]
        changed += [_put_back(owner, handler) for owner, handler in list(installed)]
    if any(changed):
        logger.warning(
            "the application's logging configuration switched the server's logs off; they are on again. Configure with "
            "disable_existing_loggers=False to avoid that"
        )


def _servers_loggers() -> list[logging.Logger]:
    existing = logging.root.manager.loggerDict.items()
    return [each for name, each in existing if name.partition(".")[0] in _SERVERS and isinstance(each, logging.Logger)]


def _enable(disabled: logging.Logger) -> bool:
    was_disabled, disabled.disabled = disabled.disabled, False
    return was_disabled


def _put_back(owner: logging.Logger, handler: logging.Handler) -> bool:
    """Attach a handler to its logger again, unless the application has replaced it; whether there was need to."""
    if isinstance(handler, StandardError) and handler.is_closed:
        # A closed one drops what a reader does not take at once, and is not flushed at the interpreter's end.
        successor = StandardError()
        successor.setFormatter(handler.formatter)
        successor.filters = handler.filters
        installed[installed.index((owner, handler))] = (owner, successor)
        if handler in owner.handlers:
            owner.removeHandler(handler)
            owner.addHandler(successor)
        handler = successor
    ours = [each for _, each in installed]
    is_replaced = not isinstance(handler, logging.FileHandler) and any(each not in ours for each in owner.handlers)
    if handler in owner.handlers or is_replaced:
        return False
    owner.addHandler(handler)
    return True


def demote_errors_of_cancelled_requests() -> None:
    """Log at the level INFO, in one line, what the application logs as an error of a request that was cancelled.

    Its query was stopped because the client has left, or because the deadline is over: neither is an error of the
    application, but frameworks log whatever an application raises, with a traceback, and mail or report it. This
    replaces the record factory of `logging`, so that it holds for every logger and handler.
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
