"""Which requests are recorded: the right share, independently of each other."""

from __future__ import annotations

import pytest

from threadbridge.telemetry.sampling import Sampling


@pytest.mark.parametrize("ratio", [0.5, 0.01])
def test_the_share(ratio: float) -> None:
    sampling = Sampling(ratio)
    taken = [sampling.takes() for _ in range(100_000)]
    # Seven standard deviations.
    assert sum(taken) == pytest.approx(ratio * 100_000, abs=7 * (ratio * (1 - ratio) * 100_000) ** 0.5)
    after_one = [second for first, second in zip(taken, taken[1:], strict=False) if first]  # noqa: RUF007
    assert sum(after_one) == pytest.approx(ratio * len(after_one), abs=7 * (len(after_one) * ratio) ** 0.5 + 1)
    # Two bridges do not take the same ones.
    other = Sampling(ratio)
    assert [other.takes() for _ in range(100_000)] != taken


def test_all_and_none() -> None:
    everything, nothing = Sampling(1.0), Sampling(0.0)
    assert all(everything.takes() for _ in range(1000))
    assert not any(nothing.takes() for _ in range(1000))
