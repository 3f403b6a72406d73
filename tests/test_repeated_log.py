"""A repeated fault costs few log lines, and none of its occurrences is forgotten."""

from __future__ import annotations

import logging
import threading

import pytest

from threadbridge.repeated_log import RepeatedLog


def test_a_line_stands_for_those_that_were_left_out(caplog: pytest.LogCaptureFixture) -> None:
    log = RepeatedLog(logging.getLogger("threadbridge.test"), interval=3600)
    log.log(logging.ERROR, "no thread for %s", "lane a")
    for _ in range(7):
        log.log(logging.ERROR, "no thread for %s", "lane b")
    log._next_at = 0.0
    log.log(logging.ERROR, "no thread for %s", "lane c")
    assert caplog.messages == [
        "no thread for lane a",
        "no thread for lane c (and 7 more like this since the last such line)",
    ]


def test_threads_that_log_at_once_write_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log = RepeatedLog(logging.getLogger("threadbridge.test"), interval=3600)
    together = threading.Barrier(8)

    def fail() -> None:
        together.wait()
        for _ in range(100):
            log.log(logging.ERROR, "failed")

    threads = [threading.Thread(target=fail) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["failed"]
    assert log._left_out == 799
