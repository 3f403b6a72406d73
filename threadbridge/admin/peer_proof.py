"""How frontends prove to each other that they know the operators' token, without sending it. Loop side.

A request carries a time, a number used once, and an HMAC of these, its method, its address and its path; the answer
carries an HMAC of that number and the body. So a stranger that listens on a peer's port learns nothing of use:
elsewhere the address is wrong, and later the time is. What it answers is not believed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

SCHEME = "Threadbridge-Peer"
ANSWER_HEADER = "X-Threadbridge-Proof"
# Seconds by which the clocks of two hosts may differ.
WINDOW = 30

_CREDENTIALS = re.compile(rf"{SCHEME} ([0-9]{{1,12}})\.([0-9a-f]{{32}})\.([0-9a-f]{{64}})")


class ProofError(Exception):
    """A request that does not prove that its sender knows the token; the message says why."""


class PeerProof:
    """Makes and checks the proofs for one token.

    :param token: what both sides know.
    """

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"threadbridge peers", hashlib.sha256)
        # The numbers that have been used, with their times, in the order in which they came.
        self._used: dict[str, float] = {}

    def of_request(self, method: str, host: str, path: str) -> tuple[str, str]:
        """The number, and the ``Authorization`` header that proves it for this request.

        :param host: as the header ``Host`` has it.
        :param path: with its query.
        """
        now, number = int(time.time()), secrets.token_hex(16)
        return number, f"{SCHEME} {now}.{number}.{self._request(now, number, method, host, path)}"

    def check_request(self, authorization: str, method: str, host: str, path: str) -> str:
        """The number in a request's ``Authorization`` header; raises `ProofError` if that proves nothing."""
        match = _CREDENTIALS.fullmatch(authorization)
        if match is None:
            raise ProofError(f"the header Authorization: {SCHEME} is malformed")
        sent, number, proof = int(match[1]), match[2], match[3]
        if not hmac.compare_digest(proof, self._request(sent, number, method, host, path)):
            raise ProofError("the sender has another token, or meant another address")
        now = time.time()
        if abs(now - sent) > WINDOW:
            raise ProofError(f"the clocks of the two hosts differ by more than {WINDOW} s, or the request is a copy")
        for old in [old for old, used_at in self._used.items() if now - used_at > 2 * WINDOW]:
            del self._used[old]
        if number in self._used:
            raise ProofError("the request is a copy")
        self._used[number] = now
        return number

    def of_answer(self, number: str, body: bytes) -> str:
        """The proof for the answer to the request with this number."""
        return self._hmac("answer", number, hashlib.sha256(body).hexdigest())

    def is_of_answer(self, proof: str, number: str, body: bytes) -> bool:
        """Whether this proves that the answer comes from a peer that knows the token."""
        return hmac.compare_digest(proof.encode(), self.of_answer(number, body).encode())

    def _request(self, sent: int, number: str, method: str, host: str, path: str) -> str:
        return self._hmac("request", str(sent), number, method, host.lower(), path)

    def _hmac(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
