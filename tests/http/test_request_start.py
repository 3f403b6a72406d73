"""X-Request-Start: the forms that proxies send, whose clocks may differ from this host's."""

from __future__ import annotations

import time

import pytest

from threadbridge.http.request_start import MAX_PROXIES, PERIOD, RequestStarts, start_of


@pytest.mark.parametrize(
    ("value", "start"),
    [
        ("t=1700000000.123", 1700000000.123),  # nginx: "t=${msec}"
        ("t=1700000000123", 1700000000.123),  # HAProxy: t=%[date(0,ms)]
        ("t=1700000000123456", 1700000000.123456),  # HAProxy: t=%[date(0,us)]; Apache: "%t"
        ("1700000000123", 1700000000.123),  # Heroku
        ("t=1700000000", 1700000000.0),
        ("t=1, t=1700000000.5", 1700000000.5),
        *(
            (value, 0.0)
            for value in ("", "t=", "t=x", "t=-1700000000", "t=17e8", "t=nan", "t=1700000000.5, 1", "9" * 18)
        ),
    ],
)
def test_the_forms(value: str, start: float) -> None:
    assert start_of(value) == pytest.approx(start, abs=1e-6)


class Clock:
    """The clock of this host, in place of `time.time`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        self.starts = RequestStarts()
        monkeypatch.setattr(time, "time", lambda: self.now)

    def waited(self, seconds: float, ahead: float = 0.0, proxy: str = "192.0.2.1", *, is_local: bool = False) -> float:
        """What is found for a request that has really waited so long, if the proxy's clock is ahead by that much."""
        value = f"t={self.now + ahead - seconds:.6f}"
        return self.starts.waited(proxy, is_local=is_local, value=value)


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("ahead", [0.0, 5.0, -5.0, 300.0, -300.0])
def test_clocks_that_differ(clock: Clock, ahead: float) -> None:
    assert clock.waited(0.001, ahead) == pytest.approx(0)
    assert clock.waited(2.001, ahead) == pytest.approx(2)
    # Another proxy's clock is another one.
    assert clock.waited(7, proxy="192.0.2.2") == pytest.approx(0)
    assert clock.waited(1.001, ahead) == pytest.approx(1)


def test_the_first_request_of_a_proxy_on_this_host_may_have_waited(clock: Clock) -> None:
    assert clock.waited(2, is_local=True) == pytest.approx(2)
    # The clock is set back, by 5 s.
    assert clock.waited(0, ahead=5, is_local=True) == pytest.approx(0)
    assert clock.waited(1, ahead=5, is_local=True) == pytest.approx(1)


def test_a_difference_is_forgotten_when_it_is_old(clock: Clock) -> None:
    assert clock.waited(0) == pytest.approx(0)
    clock.now += PERIOD + 1
    assert clock.waited(2) == pytest.approx(2), "still remembered in the next period"
    clock.now += PERIOD + 1
    assert clock.waited(3) == pytest.approx(1), "only the latest period's"
    clock.now += PERIOD + 1
    clock.now += PERIOD + 1
    assert clock.waited(9) == pytest.approx(6)


def test_implausible_times(clock: Clock) -> None:
    assert clock.waited(90_000) == clock.waited(-90_000) == -1
    assert clock.starts.waited("192.0.2.1", is_local=False, value="yesterday") == -1


def test_many_proxies_take_little_memory(clock: Clock) -> None:
    for number in range(3 * MAX_PROXIES):
        assert clock.waited(1, proxy=f"192.0.2.{number}") == pytest.approx(0)
    assert len(clock.starts._least) <= MAX_PROXIES
