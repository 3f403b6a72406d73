"""However bytes are cut into segments, and bodies into chunks, the same comes of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from wsgiref.validate import validator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.http_cases import ROWS, Call, Row
from tests.http_cases.row import accepted, get
from tests.http_cases.runner import Outcome, Recorder, check, play
from tests.support.inprocess import BridgeThread

bounded = settings(
    deadline=None,
    derandomize=True,
    # The server is the same for all examples, as for all clients.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def server(recorder: Recorder) -> Iterator[BridgeThread]:
    with BridgeThread(validator(recorder), threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def uncut() -> dict[str, object]:
    """What comes of each row that is sent in one piece, by its name."""
    return {}


def of_an_outcome(outcome: Outcome) -> object:
    """What may not depend on the segments; the reason that a refusal gives may."""
    answers = [(response.status, set(response.headers)) for response in outcome.responses]
    calls = [
        # Each connection has a port of its own.
        ({name: value for name, value in environ.items() if name.isupper() and name != "REMOTE_PORT"}, body)
        for environ, body in outcome.seen
    ]
    return answers, outcome.stayed_open, calls


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
# Not shrunk: the row says it all, and a failure may cost a timeout each time.
@settings(bounded, max_examples=1000, phases=[Phase.generate])
@given(row=st.sampled_from(ROWS), data=st.data())
def test_segments_make_no_difference(
    row: Row, data: st.DataObject, server: BridgeThread, recorder: Recorder, uncut: dict[str, object]
) -> None:
    cuts = data.draw(st.sets(st.integers(1, len(row.sent) - 1), min_size=1, max_size=8))
    outcome = play(row, server, recorder, cuts)
    check(row, outcome)
    if row.name not in uncut:
        uncut[row.name] = of_an_outcome(play(row, server, recorder))
    assert of_an_outcome(outcome) == uncut[row.name]


# The sizes at which buffers, reads and limits begin and end, and all others.
SIZES = st.one_of(st.sampled_from([0, 1, 2, 4095, 4096, 65535, 65536, 65537, 131072]), st.integers(0, 200_000))
EXTENSIONS = st.sampled_from([b"", b"", b";a", b";a=b", b';a="b;c"', b";a=b;c=d"])
TRAILERS = st.sampled_from([b"", b"", b"X-T: 1\r\n", b"X-T: 1\r\nHost: evil.example\r\n"])


@dataclass(frozen=True)
class Message:
    """A request with a body, in whatever framing, and the body that the application must see."""

    sent: bytes
    body: bytes


@st.composite
def messages(draw: st.DrawFn) -> Message:
    body = random.Random(draw(st.integers(0, 2**32))).randbytes(draw(SIZES))
    head = b"POST / HTTP/1.1\r\nHost: example.org\r\n"
    if draw(st.booleans()):
        return Message(head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body)
    ends = sorted(draw(st.sets(st.integers(1, len(body)), max_size=20)) | {len(body)}) if body else []
    sent, start = head + b"Transfer-Encoding: chunked\r\n\r\n", 0
    for end in ends:
        size = draw(st.sampled_from([b"%x", b"%X", b"000%x"])) % (end - start)
        sent += size + draw(EXTENSIONS) + b"\r\n" + body[start:end] + b"\r\n"
        start = end
    return Message(sent + b"0" + draw(EXTENSIONS) + b"\r\n" + draw(TRAILERS) + b"\r\n", body)


@settings(bounded, max_examples=300)
@given(requests=st.lists(st.one_of(messages(), st.none()), min_size=1, max_size=6), data=st.data())
def test_bodies_arrive_intact_and_in_order(
    requests: list[Message | None], data: st.DataObject, server: BridgeThread, recorder: Recorder
) -> None:
    """None is a GET between them. All are sent without waiting for an answer, in segments of any size."""
    sent = b"".join(request.sent if request else get() for request in requests)
    calls = [Call("POST", body=request.body) if request else Call() for request in requests]
    row = accepted("bodies of any size", "9112 6", sent, *calls)
    cuts = data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=8))
    check(row, play(row, server, recorder, cuts))
