"""Answers a repeated POST or PATCH with the outcome of the first, by its ``Idempotency-Key``.

See the IETF's draft-ietf-httpapi-idempotency-key-header.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from threadbridge.crossing.current import TrackedRequest
from threadbridge.crossing.response_body import ClientDisconnected
from threadbridge.sql.statements import UNCHANGED
from threadbridge.worker.idempotency_store import Answer, IdempotencyStore, Known, NoRoom, StoreError
from threadbridge.worker.wsgi import NO_HEAD, ApplicationError, checked, may_be_repeated, outage_behind

# The methods that may do something else when they are repeated (RFC 9110, section 9.2.2).
METHODS = frozenset({"POST", "PATCH"})
# The longest body of an answer that is kept.
LONGEST_ANSWER = 1024 * 1024
LONGEST_KEY = 255

# A string of RFC 9651, section 3.3.3, of which parameters are ignored; or what many clients send: the same, bare.
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"[ \t]*(?:;.*)?').fullmatch
_BARE = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~:/=@-]+").fullmatch
# What a repetition must have in common with the first request, besides method, path, query and body: what the body is,
# and whose request it is, so that nobody gets another client's answer.
_FIELDS = (
    "CONTENT_TYPE",
    "HTTP_CONTENT_ENCODING",
    "HTTP_HOST",
    "HTTP_AUTHORIZATION",
    "HTTP_COOKIE",
    "HTTP_X_API_KEY",
    "HTTP_X_AUTH_REQUEST_USER",
    "HTTP_X_FORWARDED_USER",
    "HTTP_X_REMOTE_USER",
)
# With `Retry-After` they are no outcome, but ask for the same request again (RFC 9110, section 10.2.3).
_COME_BACK = ("429", "503")
_PROBLEM = ("Content-Type", "application/problem+json")
_TOO_LARGE = f"its answer had more than {LONGEST_ANSWER} bytes and was not kept"


class Idempotency:
    """A WSGI application around another: requests with a key that came before are not run again.

    :param application: the application that runs the others.
    :param store: remembers what has begun and what was answered.
    :param paths: patterns, as those of lanes, of the paths on which keys count.

    A keyed request is noted in the store before the application is called. Its answer, if it has at most
    `LONGEST_ANSWER` bytes, is sent when it is complete, closed and stored; a larger one is passed on as it comes, and a
    repetition is refused. An exception is an outcome too: a repetition is answered 500. An answer 429 or 503 with
    ``Retry-After`` is none: a repetition is run if nothing was committed, and refused otherwise. Nor is an exception
    after which the server answers with such a 503, see `may_be_repeated`.
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
        self._matches = re.compile("|".join(fnmatch.translate(pattern) for pattern in paths)).match

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        sent = environ.get("HTTP_IDEMPOTENCY_KEY")
        if sent is None or environ["REQUEST_METHOD"] not in METHODS or not self._matches(_path(environ)):
            return self._application(environ, start_response)
        text = _key(sent)
        if text is None:
            return _problem(
                start_response,
                "400 Bad Request",
                "Idempotency-Key is not usable",
                f'Expected a string of 1 to {LONGEST_KEY} printable ASCII characters, such as "8e03978e-40d5".',
            )
        key = hashlib.sha256(text.encode()).digest()
        fingerprint = _fingerprint(environ)
        request: TrackedRequest = environ["threadbridge.request"]
        try:
            known = self._store.begin(key, fingerprint, request.id, request.client)
        except NoRoom:
            return _problem(
                start_response,
                "503 Service Unavailable",
                "There is no room for another Idempotency-Key of this client",
                "The request was not run. Earlier keys of this client have to expire first. "
                "Repeat it later with the same key.",
                ("Retry-After", "60"),
            )
        except StoreError:
            # The store has logged it.
            return _problem(
                start_response,
                "503 Service Unavailable",
                "Idempotency-Key cannot be recorded at present",
                "The request was not run. Repeat it later with the same key.",
                ("Retry-After", "5"),
            )
        if known is not None:
            return _repeated(known, fingerprint, start_response)
        return self._run(key, environ, start_response)

    def _run(self, key: bytes, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request: TrackedRequest = environ["threadbridge.request"]
        collected = _Collected(start_response)
        try:
            rest = collected.collect(self._application(environ, collected.start_response))
        except ClientDisconnected:
            # Only an answer that was too large to be kept is sent before it is complete.
            self._store.end(key, None, _TOO_LARGE)
            raise
        except BaseException as error:
            if may_be_repeated(request, outage_behind(error, self._is_outage)):
                self._store.forget(key)
            else:
                self._store.end(key, *_failure(request))
            raise
        if rest is not None:
            return _Rest(*rest, at_end=lambda: self._store.end(key, None, _TOO_LARGE))
        if request.cancelled and collected.status.startswith("5"):
            # Most applications make an answer of each exception.
            self._store.end(key, *_failure(request))
        elif collected.asks_for_repetition:
            outcome = request.statements.outcome
            if outcome in UNCHANGED:
                self._store.forget(key)
            else:
                # Not that answer again: it would be asked for until the key expires.
                self._store.end(key, None, f"it asked to be repeated, and its changes are {outcome}")
        else:
            self._store.end(key, Answer(collected.status, collected.headers, b"".join(collected.chunks)))
        return collected.chunks

    def close(self) -> None:
        """Close the store, after all requests have ended."""
        self._store.close()


class _Collected:
    """What an application answers, kept back until it is complete or too large."""

    def __init__(self, start_response: StartResponse) -> None:
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.chunks: list[bytes] = []
        self._size = 0
        # Whether it is too large to be kept, and what comes is passed on.
        self._is_sent = False
        self._start_response = start_response
        # The server's `write`, as soon as the head is there.
        self._write: Callable[[bytes], object] | None = None

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """See PEP 3333. The server checks what it gets, and raises ``exc_info`` once something was sent."""
        headers = list(headers)
        self._write = self._start_response(status, headers, exc_info)
        self.status, self.headers = status, headers
        # Nothing was sent: an error page takes the place of what there is of another body.
        self.chunks.clear()
        self._size = 0
        return self._add

    def _add(self, chunk: Any) -> None:
        # Empty ones may come before the head.
        if not checked(chunk):
            return
        if self._write is None:
            raise ApplicationError(NO_HEAD)
        self._size += len(chunk)
        self.chunks.append(chunk)
        if self._size > LONGEST_ANSWER:
            self._is_sent = True
            while self.chunks:
                self._write(self.chunks.pop(0))

    @property
    def asks_for_repetition(self) -> bool:
        """Whether the application has done nothing but ask the client to come back."""
        return self.status[:3] in _COME_BACK and any(name.lower() == "retry-after" for name, _ in self.headers)

    def collect(self, result: Iterable[bytes]) -> tuple[Iterator[bytes], Iterable[bytes]] | None:
        """Take the whole body and close it, or give the rest of one that is too large."""
        try:
            chunks = iter(result)
            for chunk in chunks:
                self._add(chunk)
                if self._is_sent:
                    break
            if self._is_sent:
                return chunks, result
            if self._write is None:
                raise ApplicationError(NO_HEAD)
        except BaseException:
            _close(result)
            raise
        # Before the answer is stored: an application may commit only now.
        _close(result)
        return None


class _Rest:
    """What is left of a body that is sent as it comes."""

    def __init__(self, chunks: Iterator[bytes], result: Iterable[bytes], at_end: Callable[[], None]) -> None:
        self._chunks = chunks
        self._result = result
        self._at_end = at_end

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """See PEP 3333."""
        try:
            _close(self._result)
        finally:
            self._at_end()


def _close(result: Iterable[bytes]) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _failure(request: TrackedRequest) -> tuple[Answer | None, str]:
    """What a repetition gets of a request that has raised an exception."""
    if request.cancelled:
        return None, "it was stopped before it had answered"
    status = "500 Internal Server Error"
    detail = f"It is not run again. In the server's log it has the id {request.id}."
    return Answer(status, [_PROBLEM], _document(status, "The request with this Idempotency-Key failed", detail)), ""


def _repeated(known: Known, fingerprint: bytes, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request whose key is known."""
    if known.fingerprint != fingerprint:
        return _problem(
            start_response,
            "422 Unprocessable Content",
            "Idempotency-Key is already used",
            "The key belongs to another request, or to another client's. Use a new key for each new request.",
        )
    if known.state == "running":
        return _problem(
            start_response,
            "409 Conflict",
            "A request with this Idempotency-Key is still running",
            "Repeat it later with the same key.",
            ("Retry-After", "1"),
        )
    if known.answer is None:
        note = known.note or "its process ended before it had answered: whether it has changed anything is not known"
        return _problem(
            start_response,
            "409 Conflict",
            "The outcome of the request with this Idempotency-Key cannot be repeated",
            f"It was run, but {note}. It is not run again. In the server's log it has the id {known.request_id}.",
        )
    start_response(known.answer.status, [*known.answer.headers, ("Idempotency-Replayed", "true")])
    return [known.answer.body]


def _problem(
    start_response: StartResponse, status: str, title: str, detail: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    """Answer by problem details (RFC 9457), as the draft does."""
    start_response(status, [_PROBLEM, *headers])
    return [_document(status, title, detail)]


def _document(status: str, title: str, detail: str) -> bytes:
    return json.dumps({"title": title, "status": int(status[:3]), "detail": detail}).encode() + b"\n"


def _path(environ: WSGIEnvironment) -> str:
    path: str = environ["SCRIPT_NAME"] + environ["PATH_INFO"]
    return path.encode("latin-1").decode(errors="replace")


def _key(sent: str) -> str | None:
    """The key that a header stands for, or None."""
    text = sent.strip(" \t")
    match = _QUOTED(text)
    if match is not None:
        text = re.sub(r"\\(.)", r"\1", match[1])
    elif not _BARE(text):
        return None
    return text if len(text) <= LONGEST_KEY else None


def _fingerprint(environ: WSGIEnvironment) -> bytes:
    """What two requests have in common if one repeats the other; reads the body, and rewinds it."""
    body = environ["wsgi.input"]
    parts = [environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]]
    parts += [environ.get(name, "") for name in _FIELDS]
    digest = hashlib.file_digest(body, "sha256")
    body.seek(0)
    # With their lengths, so that no two lists of parts make the same text.
    digest.update(b"".join(b"%d:%b" % (len(part), part.encode("latin-1", "replace")) for part in parts))
    return digest.digest()
