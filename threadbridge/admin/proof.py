"""How frontends prove to each other that they know the operators' token, without sending it.

A request carries a time, a nonce, and an HMAC of these, its method, host and path; the answer carries an HMAC of that
nonce and the body. An impostor that listens on a frontend's port learns nothing useful: a copy of the request has the
wrong host elsewhere, and the wrong time later. The impostor's answer is not believed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

from tornado.web import HTTPError

SCHEME = "Threadbridge-Peer"
ANSWER_HEADER = "X-Threadbridge-Proof"
# Seconds by which the two hosts' clocks may differ.
WINDOW = 30

_CREDENTIALS = re.compile(rf"{SCHEME} ([0-9]{{1,12}})\.([0-9a-f]{{32}})\.([0-9a-f]{{64}})")


class Proof:
    """Makes and checks the proofs for one token, which both sides know."""

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"threadbridge peers", hashlib.sha256)
        # The nonces that have been used, with the times of their arrival, the oldest first.
        self._used: dict[str, float] = {}

    def of_request(self, method: str, host: str, path: str) -> tuple[str, str]:
        """A nonce, and the ``Authorization`` header for a request; the host is the header, the path has the query."""
        now, nonce = str(int(time.time())), secrets.token_hex(16)
        return nonce, f"{SCHEME} {now}.{nonce}.{self._hmac('request', now, nonce, method, host.lower(), path)}"

    def check_request(self, authorization: str, method: str, host: str, path: str) -> str:
        """Check a request's ``Authorization`` header, and return its nonce; raises `HTTPError` with the status 401."""
        match = _CREDENTIALS.fullmatch(authorization)
        if match is None:
            raise HTTPError(401, f"the header Authorization: {SCHEME} is malformed")
        sent, nonce, proof = match.groups()
        if not hmac.compare_digest(proof, self._hmac("request", sent, nonce, method, host.lower(), path)):
            raise HTTPError(401, "the sender has another token, or meant another host")
        now = time.time()
        if abs(now - int(sent)) > WINDOW:
            raise HTTPError(401, f"the hosts' clocks differ by more than {WINDOW} s, or the request is a copy")
        while self._used and now - next(iter(self._used.values())) > 2 * WINDOW:
            del self._used[next(iter(self._used))]
        if nonce in self._used:
            raise HTTPError(401, "the request is a copy")
        self._used[nonce] = now
        return nonce

    def of_answer(self, nonce: str, body: bytes) -> str:
        """The proof for the answer to the request with this nonce."""
        return self._hmac("answer", nonce, hashlib.sha256(body).hexdigest())

    def _hmac(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
