"""Who may use the operators' port: under which names it is asked, and by which token. Loop side."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

SHORTEST_TOKEN = 16
SESSION = 12 * 3600


class Access:
    """The rules for one port.

    :param address: what the port listens on; one that is not loopback needs a token.
    :param token_file: the file with the token, or None.

    A page elsewhere may have its own name point to this machine (DNS rebinding): its requests then come from the
    operator's browser, but under that name, which is not one of these. Raises ``ValueError``.
    """

    def __init__(self, address: str, token_file: str | None) -> None:
        self._names = {"localhost"}
        if address:
            self._names.add(address.lower())
        self.token = _token(token_file) if token_file is not None else ""
        if not self.token and not is_loopback(address):
            raise ValueError(
                f"admin_address {address or 'of all interfaces'} is not loopback: give admin_token_file, a file with "
                f"{SHORTEST_TOKEN} characters or more that nobody can guess"
            )

    def add_names(self, names: Iterable[str]) -> None:
        """Serve under these names too."""
        self._names.update(name.lower() for name in names)

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether the request's ``Host`` names this port; ``local_address`` is where its connection has arrived."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._names or is_loopback(name) or name == local_address

    def accepts_token(self, token: str) -> bool:
        """Whether this is the token; always when there is none."""
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())

    def accepts(self, authorization: str, session: str) -> bool:
        """Whether the ``Authorization`` header or the session's cookie shows that the operator knows the token."""
        scheme, _, token = authorization.partition(" ")
        if not self.token or (scheme.lower() == "bearer" and self.accepts_token(token.strip())):
            return True
        until = session.partition(".")[0]
        if not (until.isascii() and until.isdecimal() and len(until) < 12 and int(until) > time.time()):
            return False
        return hmac.compare_digest(session.encode(), self._session(int(until)).encode())

    def new_session(self) -> str:
        """What the cookie of an operator who has given the token holds; other processes with the token accept it."""
        return self._session(int(time.time()) + SESSION)

    def _session(self, until: int) -> str:
        proof = hmac.new(self.token.encode(), f"operator's session until {until}".encode(), hashlib.sha256)
        return f"{until}.{proof.hexdigest()}"


def is_loopback(name: str) -> bool:
    """Whether this name or address can mean nothing but this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def _token(path: str) -> str:
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except OSError as error:
        raise ValueError(f"admin_token_file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"admin_token_file {path}: expected ASCII characters") from None
    if len(token) < SHORTEST_TOKEN:
        raise ValueError(
            f"admin_token_file {path}: the token has {len(token)} characters; give {SHORTEST_TOKEN} or more, such as "
            "the output of: openssl rand -hex 32"
        )
    return token
