"""Answers a repeated POST or PATCH with the outcome of the first, by draft-ietf-httpapi-idempotency-key-header."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.lanes import compiled
from threadbridge.crossing.response_body import ClientDisconnected
from threadbridge.http.response_head import NEVER_RAN
from threadbridge.sql.statements import UNCHANGED
from threadbridge.worker.application_values import NO_HEAD, ApplicationError, checked
from threadbridge.worker.idempotency_store import Answer, FirstRequest, IdempotencyStore, NoRoom, StoreError
from threadbridge.worker.wsgi import may_be_repeated, outage_behind

# Bytes of the longest body that is stored.
LONGEST_ANSWER = 1024 * 1024
LONGEST_KEY = 255

# A string of RFC 9651, section 3.3.3, with its parameters ignored; or the bare text that many clients send.
_KEY = re.compile(
    r""""((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"[ \t]*(?:;.*)?|([A-Za-z0-9!#$%&'*+.^_`|~:/=@-]+)"""
).fullmatch
# A repetition must match the first request in these, besides method, path, query and body, so that no client gets
# another's answer.
_FIELDS = ("CONTENT_TYPE", "HTTP_CONTENT_ENCODING", "HTTP_HOST", "HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_X_API_KEY")
_PROXY_FIELDS = ("HTTP_X_AUTH_REQUEST_USER", "HTTP_X_FORWARDED_USER", "HTTP_X_REMOTE_USER")
_TOO_LARGE = f"its answer had more than {LONGEST_ANSWER} bytes and was not kept"


class Idempotency:
    """A WSGI application around another, which runs a request with an ``Idempotency-Key`` only once, on some paths.

    A request with a key is recorded before the application is called. An answer of at most `LONGEST_ANSWER` bytes is
    sent once it is complete, closed and stored; a larger one is passed on as it comes. What a repetition gets is in
    docs/operating.md, "Repeated POSTs".
    """

    def __init__(
        self,
        application: WSGIApplication,
        store: IdempotencyStore,
        paths: Sequence[str],
        is_outage: Callable[[BaseException], bool],
    ) -> None:
        for pattern in paths:
            if not pattern.startswith(("/", "*")):
                raise ValueError(f"idempotent_paths: {pattern!r} matches no path; begin it with '/' or '*'")
        self._application = application
        self._store = store
        self._is_outage = is_outage
        self._matches = compiled(*paths)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        sent = environ.get("HTTP_IDEMPOTENCY_KEY")
        # The other methods are idempotent (RFC 9110, section 9.2.2).
        if sent is None or environ["REQUEST_METHOD"] not in ("POST", "PATCH"):
            return self._application(environ, start_response)
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
        if not self._matches(path):
            return self._application(environ, start_response)
        key = _key(sent)
        if key is None:
            return _send(_INVALID_KEY, start_response)
        request: TrackedRequest = environ["threadbridge.request"]
        fingerprint = _fingerprint(environ)
        try:
            first = self._store.begin(key, fingerprint, request.id, request.client)
        except NoRoom:
            return _send(_NO_ROOM, start_response)
        except StoreError:
            # The store has logged it.
            return _send(_NO_STORE, start_response)
        if first is None:
            return self._run(key, request, environ, start_response)
        return _send(_answer_to_repetition(first, fingerprint), start_response)

    def _run(
        self, key: bytes, request: TrackedRequest, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        pending = _PendingAnswer(start_response)
        try:
            with ExitStack() as cleanup:
                result = self._application(environ, pending.start_response)
                cleanup.callback(getattr(result, "close", lambda: None))
                chunks = iter(result)
                for chunk in chunks:
                    pending.add(chunk)
                    if pending.is_too_large:
                        break
                if pending.is_too_large:
                    return self._send_rest(key, chunks, cleanup.pop_all())
                pending.check_head()
            # Stored only now: an application may commit in `close`.
        except ClientDisconnected:
            # Only an answer that is too large to be stored is sent before it is complete.
            self._store.end(key, _TOO_LARGE)
            raise
        except BaseException as error:
            is_repeatable = may_be_repeated(request, outage_behind(error, self._is_outage))
            self._store.end(key, None if is_repeatable else _failure(request))
            raise
        self._store.end(key, _outcome(request, pending))
        return pending.chunks

    def _send_rest(self, key: bytes, chunks: Iterator[bytes], cleanup: ExitStack) -> Iterator[bytes]:
        try:
            with cleanup:
                # With `yield from`, an iterable of the application could be closed twice.
                for chunk in chunks:  # noqa: UP028
                    yield chunk
        finally:
            self._store.end(key, _TOO_LARGE)

    def close(self) -> None:
        """Close the store, after all requests have ended."""
        self._store.close()


class _PendingAnswer:
    """An application's answer, held back until it is complete or too large to be stored."""

    def __init__(self, start_response: StartResponse) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.chunks: list[bytes] = []
        self.is_too_large = False
        self._size = 0
        self._start_response = start_response
        # The server's `write`, once there is a head.
        self._write: Callable[[bytes], object] | None = None

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """See PEP 3333. The server checks the arguments, and raises ``exc_info`` if it has sent the head."""
        headers = list(headers)
        self._write = self._start_response(status, headers, exc_info)
        self.status, self.headers = status, headers
        # Nothing was sent, so an error page replaces what there is of another body.
        self.chunks.clear()
        self._size = 0
        return self.add

    def add(self, chunk: Any) -> None:
        # Empty chunks may come before the head.
        if not checked(chunk):
            return
        write = self.check_head()
        self._size += len(chunk)
        self.chunks.append(chunk)
        if self._size > LONGEST_ANSWER:
            self.is_too_large = True
            while self.chunks:
                write(self.chunks.pop(0))

    def check_head(self) -> Callable[[bytes], object]:
        if self._write is None:
            raise ApplicationError(NO_HEAD)
        return self._write


def _outcome(request: TrackedRequest, answer: _PendingAnswer) -> Answer | str | None:
    """The argument of `IdempotencyStore.end` for a complete answer."""
    if request.cancelled and answer.status.startswith("5"):
        # Most applications turn each exception into an answer.
        return _failure(request)
    # With `Retry-After`, these ask for the same request again (RFC 9110, section 10.2.3).
    if answer.status[:3] in ("429", "503") and any(name.lower() == "retry-after" for name, _ in answer.headers):
        changes = request.statements.outcome
        # To repeat that answer would ask for another repetition until the key expires.
        return None if changes in UNCHANGED else f"it asked to be repeated, and its changes are {changes}"
    return Answer(answer.status, answer.headers, b"".join(answer.chunks))


def _failure(request: TrackedRequest) -> Answer | str:
    """The same for a request that has raised an exception."""
    if request.cancelled:
        return "it was stopped before it had answered"
    return _problem(
        "500 Internal Server Error",
        "The request with this Idempotency-Key failed",
        f"It is not run again. In the server's log it has the id {request.id}.",
    )


def _answer_to_repetition(first: FirstRequest, fingerprint: bytes) -> Answer:
    if first.fingerprint != fingerprint:
        return _OTHER_REQUEST
    if first.outcome is None:
        return _STILL_RUNNING
    if isinstance(first.outcome, Answer):
        headers = [*first.outcome.headers, ("Idempotency-Replayed", "true")]
        return Answer(first.outcome.status, headers, first.outcome.body)
    return _problem(
        "409 Conflict",
        "The outcome of the request with this Idempotency-Key cannot be repeated",
        f"It was run, but {first.outcome}. It is not run again. In the server's log it has the id {first.request_id}.",
    )


def _send(answer: Answer, start_response: StartResponse) -> list[bytes]:
    start_response(answer.status, [*answer.headers])
    return [answer.body]


def _problem(status: str, title: str, detail: str, *headers: tuple[str, str]) -> Answer:
    """Problem details (RFC 9457), as in the draft."""
    headers = (("Content-Type", "application/problem+json"), *headers)
    document = {"title": title, "status": int(status[:3]), "detail": detail}
    return Answer(status, headers, json.dumps(document).encode() + b"\n")


_INVALID_KEY = _problem(
    "400 Bad Request",
    "Idempotency-Key is not usable",
    f'Expected a string of 1 to {LONGEST_KEY} printable ASCII characters, such as "8e03978e-40d5".',
)
_NO_ROOM = _problem(
    "503 Service Unavailable",
    "There is no room for another Idempotency-Key of this client",
    "The request was not run. Earlier keys of this client have to expire first. Repeat it later with the same key.",
    ("Retry-After", "60"),
    NEVER_RAN,
)
_NO_STORE = _problem(
    "503 Service Unavailable",
    "Idempotency-Key cannot be recorded at present",
    "The request was not run. Repeat it later with the same key.",
    ("Retry-After", "5"),
    NEVER_RAN,
)
_OTHER_REQUEST = _problem(
    "422 Unprocessable Content",
    "Idempotency-Key is already used",
    "The key belongs to another request, or to another client's. Use a new key for each new request.",
)
_STILL_RUNNING = _problem(
    "409 Conflict",
    "A request with this Idempotency-Key is still running",
    "Repeat it later with the same key.",
    ("Retry-After", "1"),
)


def _key(sent: str) -> bytes | None:
    """A hash of the key in a header field; None if it is invalid."""
    match = _KEY(sent.strip(" \t"))
    text = re.sub(r"\\(.)", r"\1", match[1] or match[2]) if match else ""
    return hashlib.sha256(text.encode()).digest() if 0 < len(text) <= LONGEST_KEY else None


def _fingerprint(environ: WSGIEnvironment) -> bytes:
    """A hash of what a repetition has in common with the first request; reads and rewinds the body."""
    body = environ["wsgi.input"]
    parts = [environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]]
    parts += [environ.get(name, "") for name in _FIELDS + _PROXY_FIELDS]
    digest = hashlib.file_digest(body, "sha256")
    body.seek(0)
    # With their lengths, so that different parts never make the same text.
    digest.update(b"".join(b"%d:%b" % (len(part), part.encode("latin-1", "replace")) for part in parts))
    return digest.digest()
