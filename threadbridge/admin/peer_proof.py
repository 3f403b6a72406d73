"""How frontends prove to each other that they know the operators' token, without sending it.

A request carries a time, a nonce, and an HMAC of these, its method, its host and its path; the answer carries an HMAC
of that nonce and the body. So an impostor that listens on a peer's port learns nothing useful: a copy of the request
has the wrong host elsewhere, and the wrong time later. The impostor's answer is not believed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

SCHEME = "Threadbridge-Peer"
ANSWER_HEADER = "X-Threadbridge-Proof"
# Seconds by which the two hosts' clocks may differ.
WINDOW = 30

_CREDENTIALS = re.compile(rf"{SCHEME} ([0-9]{{1,12}})\.([0-9a-f]{{32}})\.([0-9a-f]{{64}})")


class ProofError(Exception):
    """The request does not prove that its sender knows the token; the message says why."""


class PeerProof:
    """Makes and checks the proofs for one token.

    :param token: the token, which both sides know.
    """

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"threadbridge peers", hashlib.sha256)
        # The nonces that have been used, with the times of their arrival.
        self._used: dict[str, float] = {}

    def of_request(self, method: str, host: str, path: str) -> tuple[str, str]:
        """A nonce, and the ``Authorization`` header for a request.

        :param host: the value of the header ``Host``.
        :param path: the path with the query.
        """
        now, nonce = int(time.time()), secrets.token_hex(16)
        return nonce, f"{SCHEME} {now}.{nonce}.{self._request(now, nonce, method, host, path)}"

    def check_request(self, authorization: str, method: str, host: str, path: str) -> str:
        """Check a request's ``Authorization`` header, and return its nonce; raises `ProofError`."""
        match = _CREDENTIALS.fullmatch(authorization)
        if match is None:
            raise ProofError(f"the header Authorization: {SCHEME} is malformed")
        sent, nonce, proof = int(match[1]), match[2], match[3]
        if not hmac.compare_digest(proof, self._request(sent, nonce, method, host, path)):
            raise ProofError("the sender has another token, or meant another host")
        now = time.time()
        if abs(now - sent) > WINDOW:
            raise ProofError(f"the clocks of the two hosts differ by more than {WINDOW} s, or the request is a copy")
        for old in [old for old, used_at in self._used.items() if now - used_at > 2 * WINDOW]:
            del self._used[old]
        if nonce in self._used:
            raise ProofError("the request is a copy")
        self._used[nonce] = now
        return nonce

    def of_answer(self, nonce: str, body: bytes) -> str:
        """The proof for the answer to the request with this nonce."""
        return self._hmac("answer", nonce, hashlib.sha256(body).hexdigest())

    def is_of_answer(self, proof: str, nonce: str, body: bytes) -> bool:
        """Whether this proves that the answer comes from a peer that knows the token."""
        return hmac.compare_digest(proof.encode(), self.of_answer(nonce, body).encode())

    def _request(self, sent: int, nonce: str, method: str, host: str, path: str) -> str:
        return self._hmac("request", str(sent), nonce, method, host.lower(), path)

    def _hmac(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
