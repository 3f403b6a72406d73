"""Responses with files that the server sends for the application: ``X-Sendfile`` and the like. Worker side."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from threadbridge.common.repeated_log import RepeatedLog
from threadbridge.crossing.exchange import Exchange
from threadbridge.settings.values import Mount
from threadbridge.worker.file_response import FileResponse, file_response, plain_response
from threadbridge.worker.served_file import OutsideError, ServedFile, checked_directory, open_below

logger = logging.getLogger("threadbridge")
_unsent = RepeatedLog(logger)

SENDFILE, ACCEL_REDIRECT = "x-sendfile", "x-accel-redirect"


class FileSending:
    """Makes the responses with files that applications return or name.

    :param directories: below which the paths of ``X-Sendfile`` must be; without any, the header means nothing.
    :param mounts: the directories for the paths of ``X-Accel-Redirect``; without any, the same.
    """

    def __init__(self, directories: Sequence[str], mounts: Sequence[Mount]) -> None:
        """Raises ``ValueError`` for a directory that does not exist."""
        self._directories = [checked_directory("x_sendfile", directory) for directory in directories]
        self._mounts = [Mount(mount.prefix, checked_directory("x_accel_redirect", mount.directory)) for mount in mounts]
        # The names of the headers that count, in lower case.
        self.headers = frozenset([SENDFILE] * bool(directories) + [ACCEL_REDIRECT] * bool(mounts))

    def is_file(self, result: object) -> bool:
        """Whether an application's result is a file for `respond`."""
        return isinstance(result, ServedFile)

    def respond(
        self, exchange: Exchange, file: ServedFile, status: int, fields: Sequence[tuple[str, str]]
    ) -> FileResponse:
        """Answer with an open file; see `file_response`."""
        try:
            return file_response(exchange, file, status, fields)
        finally:
            file.close()

    def redirect(
        self, exchange: Exchange, header: str, value: str, status: int, fields: Sequence[tuple[str, str]]
    ) -> FileResponse:
        """Answer with the file that the header names, see `file_response`.

        If there is no such file, the status is 404; if it may not be sent, or cannot, 500: the log says why.
        """
        try:
            file = self._open(header, value)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            status, reason = 404, str(error.strerror)
        except (OSError, OutsideError) as error:
            status, reason = 500, getattr(error, "strerror", None) or str(error)
        else:
            return self.respond(exchange, file, status, fields)
        level = logging.WARNING if status == 404 else logging.ERROR
        message = "request %s: the application names a file, %s: %s, which cannot be sent: %s"
        _unsent.log(level, message, exchange.id, header.title(), value, reason)
        return plain_response(status, fields, is_head=exchange.is_head)

    def _open(self, header: str, value: str) -> ServedFile:
        if header == SENDFILE:
            return self._open_path(value)
        # As nginx does, without the query.
        path = os.fsdecode(unquote_to_bytes(value.partition("?")[0].encode("latin-1")))
        for mount in self._mounts:
            if path.startswith(mount.prefix):
                return open_below(mount.directory, path.removeprefix(mount.prefix))
        raise OutsideError(
            f"x_accel_redirect has a directory only for {', '.join(mount.prefix for mount in self._mounts)}"
        )

    def _open_path(self, value: str) -> ServedFile:
        path = os.fsdecode(value.encode("latin-1"))
        if "%" in value and not os.path.exists(path):
            # So do applications that expect Apache's mod_xsendfile.
            path = os.fsdecode(unquote_to_bytes(value.encode("latin-1")))
        missing: FileNotFoundError | None = None
        for directory in self._directories:
            try:
                return open_below(directory, path)
            except FileNotFoundError as error:
                missing = error
            except OutsideError:
                continue
        if missing is not None:
            raise missing
        raise OutsideError(f"x_sendfile allows only files below {', '.join(self._directories)}")
