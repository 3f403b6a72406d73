"""TLS at the operators' port, and towards those of other hosts. Certificates are read again when their files change."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Sequence

from threadbridge.common.repeated_log import RepeatedLog

logger = logging.getLogger("threadbridge")

_unreadable = RepeatedLog(logger, 600)


class _Context:
    """A context made from files, and made again once one of them has changed; raises what ``make`` raises at first."""

    def __init__(self, make: Callable[[], ssl.SSLContext], files: Sequence[str]) -> None:
        self._make = make
        self._files = files
        self._seen = self._state()
        self._context = make()

    def current(self) -> ssl.SSLContext:
        """The context; while the new files cannot be used, the previous one."""
        seen = self._state()
        if seen != self._seen:
            self._seen = seen
            try:
                # Not the previous one: with a new certificate and the old key, it would be useless.
                self._context = self._make()
            except ValueError as error:
                _unreadable.log(logging.ERROR, "%s. The operators' port goes on with the previous one", error)
        return self._context

    def _state(self) -> list[tuple[int, ...]]:
        states: list[tuple[int, ...]] = []
        for file in self._files:
            try:
                found = os.stat(file)
                states.append((found.st_ino, found.st_mtime_ns, found.st_size))
            except OSError:
                states.append(())
        return states


class Tls:
    """The certificate of the operators' port, if it has one, and the authorities that other hosts' must be signed by.

    Raises ``ValueError`` for files that cannot be used.

    :param cafile: None for the system's authorities.
    """

    def __init__(self, certfile: str | None, keyfile: str | None, cafile: str | None) -> None:
        self._cafile = cafile
        self._server: _Context | None = None
        if certfile is not None:
            files = [certfile, keyfile] if keyfile is not None else [certfile]
            self._server = _Context(lambda: _server_context(certfile, keyfile), files)
        # Without a file it takes a megabyte, and is made when it is needed.
        self._client = None if cafile is None else _Context(self._client_context, [cafile])

    @property
    def scheme(self) -> str:
        """The scheme of the operators' port."""
        return "http" if self._server is None else "https"

    def server(self) -> ssl.SSLContext | None:
        """The context for a new connection to the operators' port; None without TLS."""
        return None if self._server is None else self._server.current()

    def client(self) -> ssl.SSLContext:
        """The context for a new connection to another host: verifies its certificate, and that this is for the host."""
        if self._client is None:
            self._client = _Context(self._client_context, [])
        return self._client.current()

    def _client_context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._cafile)
        except OSError as error:
            raise ValueError(
                f"admin_cafile {self._cafile}: {error.strerror or error}; expected the certificates of authorities "
                "in a PEM file"
            ) from None


def _server_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = f"admin_certfile {certfile}" + (f" and admin_keyfile {keyfile}" if keyfile else "")
        raise ValueError(
            f"{files}: {error.strerror or error}; expected a certificate and its key, unencrypted, in PEM files"
        ) from None
    return context
