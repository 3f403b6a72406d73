"""The server's certificates: a TLS context for each, chosen by the name that a client asks for."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from threadbridge.common.private_file import read_private_file
from threadbridge.settings.table import Settings

logger = logging.getLogger("threadbridge")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*").fullmatch

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# Tags in DER.
_VERSION = 0xA0
_GENERALIZED_TIME = 0x18


class _Certificate(NamedTuple):
    # The host name, perhaps with *. for its first label; "" for all others.
    name: str
    certfile: str
    keyfile: str | None


class Certificates:
    """The TLS contexts of a server, which belong to its loop; raises ``ValueError`` if a file cannot be used.

    ``context`` is for new connections. `reload` replaces it and leaves open connections alone.
    """

    def __init__(self, settings: Settings) -> None:
        """The settings must have a ``certfile``."""
        self._settings = settings
        self._certificates = [_Certificate("", settings["certfile"] or "", settings["keyfile"])]
        self._certificates += map(_read, settings["sni_certificates"])
        # When the certificates in use expire, in seconds since 1970, by their files.
        self.expirations: dict[str, float] = {}
        # Whether the last `reload` could load them.
        self.reloaded = True
        self.context = self._load()

    def reload(self) -> None:
        """Read all files again; if one of them cannot be used, log it and keep what was read before."""
        try:
            self.context = self._load()
        except ValueError as error:
            self.reloaded = False
            logger.error("the certificates stay as they were: %s", error)
        else:
            self.reloaded = True
            logger.info("the certificates have been read again")

    def _load(self) -> ssl.SSLContext:
        file = self._settings["keyfile_password_file"]
        # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
        password = "" if file is None else read_private_file(file, "keyfile_password_file")
        contexts = {each.name: self._context(each, password) for each in self._certificates}
        self.expirations = _expirations(each.certfile for each in self._certificates)
        default = contexts[""]
        if len(contexts) > 1:

            def choose(connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
                name = (name or "").lower()
                # A wildcard stands for one label (RFC 9525, section 6.3).
                wildcard = f"*.{name.partition('.')[2]}"
                connection.context = contexts.get(name) or contexts.get(wildcard) or default

            default.sni_callback = choose
        return default

    def _context(self, certificate: _Certificate, password: str) -> ssl.SSLContext:
        settings = self._settings
        _, certfile, keyfile = certificate
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = _VERSIONS[settings["tls_minimum"]]
        context.set_alpn_protocols(["http/1.1"])
        if settings["tls_ciphers"]:
            try:
                context.set_ciphers(settings["tls_ciphers"])
            except ssl.SSLError:
                raise ValueError(
                    f"tls_ciphers={settings['tls_ciphers']}: OpenSSL knows no such cipher suite; `openssl ciphers` "
                    "lists the names"
                ) from None
        try:
            context.load_cert_chain(certfile, keyfile, password=password)
        except OSError as error:
            files = f"certfile {certfile}" + (f" and keyfile {keyfile}" if keyfile else "")
            expected = (
                "a certificate and its key in PEM files, unencrypted or with the password in keyfile_password_file"
            )
            raise ValueError(f"{files}: {error.strerror or error}; expected {expected}") from None
        authorities = settings["client_ca_file"]
        if authorities is not None:
            context.verify_mode = _VERIFY[settings["client_certificates"]]
            try:
                context.load_verify_locations(authorities)
            except OSError as error:
                raise ValueError(
                    f"client_ca_file {authorities}: {error.strerror or error}; expected certificates in a PEM file"
                ) from None
        return context


def _expirations(certfiles: Iterable[str]) -> dict[str, float]:
    """When the first certificate in each file to expire does so, in seconds since 1970."""
    found: dict[str, float] = {}
    for certfile in certfiles:
        try:
            blocks = _PEM.findall(Path(certfile).read_text(errors="replace"))
            if not blocks:
                raise ValueError("it has no block CERTIFICATE")
            found[certfile] = min(_not_after(ssl.PEM_cert_to_DER_cert(block)) for block in blocks)
        except (OSError, ValueError, IndexError) as error:
            # OpenSSL has accepted it, so it can be served all the same.
            logger.warning("certfile %s: cannot tell when it expires: %s", certfile, error)
    return found


def _not_after(certificate: bytes) -> float:
    """When a certificate expires: RFC 5280, section 4.1, in DER. `ssl` tells it only of the other side's."""
    [(_, inner)] = _elements(certificate)
    (_, to_be_signed), *_ = _elements(inner)
    # The version, which has a tag of its own, may be missing: then come serial number, algorithm, issuer, validity.
    fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
    _, (tag, text) = _elements(fields[3])
    year = "%Y" if tag == _GENERALIZED_TIME else "%y"
    return datetime.strptime(text.decode(), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of the elements that follow each other here."""
    at = 0
    while at < len(content):
        tag, length = content[at : at + 2]
        at += 2
        if length >= 0x80:
            size = length - 0x80
            length = int.from_bytes(content[at : at + size])
            at += size
        yield tag, content[at : at + length]
        at += length


def _read(text: str) -> _Certificate:
    """Read an item of ``sni_certificates``."""
    name, _, files = text.partition(":")
    certfile, _, keyfile = files.partition(":")
    if not (_NAME(name.lower()) and certfile):
        raise ValueError(f"sni_certificates: {text!r}: expected NAME:CERTFILE or NAME:CERTFILE:KEYFILE")
    return _Certificate(name.lower(), certfile, keyfile or None)
