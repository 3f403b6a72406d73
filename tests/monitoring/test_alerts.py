"""Each alert fires when its fault is there, not before, and ends after it: a real Prometheus says so."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.monitoring.faults import FAULTS, OF_BUSY_MACHINE
from tests.support.prometheus import Prometheus, program

pytestmark = pytest.mark.skipif(
    os.environ.get("MONITORING") != "1" or program("prometheus") is None or os.geteuid() != 0,
    reason="takes minutes; runs with MONITORING=1, as root, after scripts/setup.sh test",
)
# Seconds for which nothing may fire, under an ordinary load: longer than the longest range in the tests' time.
QUIET = 21


@pytest.mark.parametrize("name", FAULTS)
def test_alerts_fire_while_their_fault_lasts(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    with (
        fault.site(tmp_path) as site,
        Prometheus(tmp_path / "prometheus", [site.admin_port]) as prometheus,
        site.under_load(),
    ):
        prometheus.evaluate_for(QUIET)
        assert prometheus.fired.keys() <= OF_BUSY_MACHINE - fault.alerts
        begun = time.time()
        with fault.make(site):
            prometheus.wait_for(fault.alerts)
            for text in prometheus.texts:
                assert "{{" not in text and "<no value>" not in text, text
        took = time.time() - begun
        prometheus.wait_for_none()
        print(f"fired after {took:.0f} s, ended {time.time() - begun - took:.0f} s after the fault")
        fired = prometheus.fired
        assert fault.alerts <= fired.keys() <= fault.alerts | fault.also, site.output()
        assert all(fired[name] >= begun for name in fault.alerts)
