"""Contexts for TLS."""

from __future__ import annotations

import ssl


def tls_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later; raises ``ValueError`` if the certificate or the key cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password, OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = f"certfile {certfile}" + (f" and keyfile {keyfile}" if keyfile else "")
        raise ValueError(
            f"{files}: {error.strerror or error}; expected a certificate and its key, unencrypted, in PEM files"
        ) from None
    return context
