"""The process's log files. Loop side, or before the loop runs."""

from __future__ import annotations

import logging
from types import SimpleNamespace

from tornado.log import enable_pretty_logging

from threadbridge.settings import CommandLineSettings

logger = logging.getLogger("threadbridge")


def set_up_logging(settings: CommandLineSettings) -> None:
    """Have the root logger log as the settings say. Raises ``OSError`` when the log file cannot be opened."""
    enable_pretty_logging(SimpleNamespace(**settings))


def reopen_log_files() -> None:
    """Go on in new files if the log files have been moved away, as logrotate does.

    A file that cannot be opened is logged, and its handler goes on with the old one.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {handler for each in loggers if isinstance(each, logging.Logger) for handler in each.handlers}
    for handler in handlers:
        if isinstance(handler, logging.FileHandler):
            try:
                opened = handler._open()
            except OSError as error:
                logger.error("SIGHUP: cannot open %s: %s", handler.baseFilename, error.strerror)
                continue
            old = handler.setStream(opened)
            if old is not None:
                old.close()
    logger.info("SIGHUP: log files are opened anew")
