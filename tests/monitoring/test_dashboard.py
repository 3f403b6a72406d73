"""The dashboard's panels all show data, as a real Prometheus has it of a real site under load."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.monitoring.faults import FAULTS
from tests.support.inprocess import wait_until
from tests.support.prometheus import EXAMPLES, Prometheus, program
from tests.support.watched_site import WatchedSite, site_with_everything

pytestmark = pytest.mark.skipif(
    os.environ.get("MONITORING") != "1" or program("prometheus") is None or os.geteuid() != 0,
    reason="takes minutes; runs with MONITORING=1, as root, after scripts/setup.sh test",
)
DASHBOARD = json.loads((EXAMPLES / "grafana.json").read_text())
Target = dict[str, str]
TARGETS: list[Target] = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
# What stands in queries for the variables that Grafana replaces.
VARIABLES = {"$job": "myapplication", "$instance": ".*", "$__rate_interval": "10s"}
MENDED = "mended"
# What is zero while all is well, and the fault that shows it. All else is above zero under the load below.
SHOWN_BY = {
    "threadbridge_query_stop_failures_total": "the_database_accepts_no_connection_to_stop_queries",
    "threadbridge_connections_severed_total": "the_database_accepts_no_connection_to_stop_queries",
    "threadbridge_connections_not_ended": "the_database_accepts_no_connection_to_stop_queries",
    # As soon as the fault is mended.
    "threadbridge_connections_killed_total": MENDED,
    "threadbridge_query_reruns_total": "connections_are_ended_before_they_are_used",
    "threadbridge_stuck_threads": "a_request_cannot_be_stopped",
    "threadbridge_connections_refused_total": "clients_never_finish_their_requests",
    "threadbridge_spool_bytes": "clients_do_not_read_their_responses",
    "threadbridge_process_failures_total": "processes_crash",
    "threadbridge_last_reload_successful": "the_new_version_does_not_start",
}
SETTINGS = ("--xheaders=true", "--max_connections=40", "--spool_size=16M", "--memory_size=2M")
# Shown, but perhaps as zero: predictions, and what follows from them, depend on the machine's speed, and only idle
# connections are closed for others.
PERHAPS_ZERO = {
    "threadbridge_kept_threads",
    "threadbridge_requests_overestimated_total",
    "threadbridge_requests_refused_early_total",
    "threadbridge_connections_displaced_total",
}
# Seconds until a value is shown, on a loaded machine.
LIMIT = 90


def as_sent(expression: str) -> str:
    """A query as Grafana sends it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def metrics_in(expression: str) -> set[str]:
    return {re.sub("_(bucket|sum)$", "", name) for name in re.findall(r"\b(?:threadbridge|process)_\w+", expression)}


@contextmanager
def load(site: WatchedSite) -> Iterator[None]:
    """Requests of all kinds and endings: short and long, failing, in every lane, and those whose clients leave."""
    paths = ["/quick/", "/far/", "/reports/?SELECT 1", "/error", "/sql?SELECT SLEEP(0.3)"]
    with site.under_load(*paths), site.repeating(lambda: site.leave("/sql?SELECT SLEEP(5)", 0.2), times=6):
        yield


def wait_for_values(prometheus: Prometheus, targets: Sequence[Target]) -> None:
    """Return when each of these queries has had a finite value, above zero unless it is perhaps zero."""
    give_up = time.monotonic() + LIMIT
    while missing := [target["expr"] for target in targets if not is_shown(prometheus, target)]:
        assert time.monotonic() < give_up, missing
        time.sleep(0.5)


def is_shown(prometheus: Prometheus, target: Target) -> bool:
    """Whether this query has had such a value; its legend must name labels that are there."""
    least = 0.0 if metrics_in(target["expr"]) & PERHAPS_ZERO else sys.float_info.min
    for labels, values in prometheus.range(as_sent(target["expr"])):
        if any(math.isfinite(value) and value >= least for value in values):
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels.keys(), target
            return True
    return False


def test_every_panel_shows_data(tmp_path: Path) -> None:
    of_fault: dict[str, list[Target]] = {}
    for target in TARGETS:
        faults = {SHOWN_BY[metric] for metric in metrics_in(target["expr"]) & SHOWN_BY.keys()}
        of_fault.setdefault(faults.pop() if faults else "", []).append(target)
    assert of_fault.keys() - {""} == set(SHOWN_BY.values())
    after = of_fault.pop(MENDED)
    with (
        site_with_everything(tmp_path, *SETTINGS) as site,
        Prometheus(tmp_path / "prometheus", [site.admin_port]) as prometheus,
        load(site),
    ):
        wait_for_values(prometheus, of_fault.pop(""))
        for name, targets in of_fault.items():
            with FAULTS[name].make(site):
                wait_for_values(prometheus, targets)
        wait_for_values(prometheus, after)


def test_the_variables_have_values(tmp_path: Path) -> None:
    """The lists from which the reader chooses a job and frontends: ``label_values(metric, label)``."""
    queries = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    with site_with_everything(tmp_path) as site, Prometheus(tmp_path / "prometheus", [site.admin_port]) as prometheus:
        for query in queries:
            match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
            assert match
            expression, label = as_sent(match[1]), match[2]
            wait_until(lambda expression=expression: prometheus.range(expression) != [], query)  # type: ignore[misc]
            assert all(labels[label] for labels, _ in prometheus.range(expression)), query
