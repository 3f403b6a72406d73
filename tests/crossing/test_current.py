"""The request that runs, as the application sees it."""

from __future__ import annotations

import sys
import threading

import pytest

from tests.support.requests_in_threads import InThread, running
from threadbridge.crossing.current import TrackedRequest, current


def test_there_is_a_current_request_only_where_one_is_served() -> None:
    with pytest.raises(RuntimeError, match="no request runs in this thread"):
        current()
    with running() as request:
        assert current() is request
        worker = InThread(current)
        worker.join()
        assert isinstance(worker.error, RuntimeError)
    with pytest.raises(RuntimeError):
        current()


def test_callbacks_are_called_once_and_errors_in_them_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def fail() -> None:
        called.append("failed")
        raise LookupError("of the application")

    with running() as request:
        request.on_cancel(fail)
        request.on_cancel(lambda: called.append("other"))
        take_back = request.on_cancel(lambda: called.append("taken back"))
        take_back()
        request.cancel()
        request.cancel()
        assert called == ["failed", "other"] and request.cancelled
        # It is too late to wait for that: now.
        request.on_cancel(lambda: called.append("late"))
        assert called == ["failed", "other", "late"]
    [record] = caplog.records
    assert record.getMessage() == "request test: a callback of on_cancel failed"


def test_a_callback_that_ends_its_thread_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def serve() -> None:
        with running() as request:
            request.on_cancel(sys.exit)
            request.on_cancel(lambda: called.append("other"))
            canceller = InThread(request.cancel)
            canceller.join()

    InThread(serve).join()
    assert called == ["other"]
    [record] = caplog.records
    assert record.getMessage() == "request test: a callback of on_cancel failed"


def test_the_same_callback_may_be_given_twice() -> None:
    called: list[int] = []

    def callback() -> None:
        called.append(1)

    with running() as request:
        take_back = request.on_cancel(callback)
        request.on_cancel(callback)
        take_back()
        request.cancel()
    assert called == [1]


def test_no_callback_is_called_after_the_end() -> None:
    called: list[str] = []
    with running() as request:
        request.on_cancel(lambda: called.append("early"))
    request.on_cancel(lambda: called.append("late"))
    request.cancel()
    assert called == []


@pytest.mark.parametrize("way", ["taking it back", "the end"])
def test_a_callback_under_way_is_waited_for(way: str) -> None:
    entered, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def callback() -> None:
        entered.set()
        assert go_on.wait(30)
        ended.set()

    request = TrackedRequest("test", None)
    request.enter()
    take_back = request.on_cancel(callback)
    canceller = InThread(request.cancel)
    assert entered.wait(30)
    threading.Timer(0.1, go_on.set).start()
    if way == "taking it back":
        take_back()
        assert ended.is_set()
    request.leave()
    assert ended.is_set()
    canceller.join()


def test_no_request_waits_for_anothers_lock() -> None:
    # Garbage that is collected under it may wait for the pool's lock, whose holder may be asking for its own request's.
    first, second = TrackedRequest("first", None), TrackedRequest("second", None)
    with first._lock:
        worker = InThread(lambda: second.on_cancel(lambda: None))
        worker.join()
    assert worker.error is None
