"""The documentation, the alerts and the dashboard use the metrics that exist."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
from pathlib import Path
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from dbutils.pooled_db import PooledDB
from prometheus_client.parser import text_string_to_metric_families

from tests.monitoring.faults import FAULTS
from tests.support.processes import ROOT
from tests.support.prometheus import EXAMPLES, program
from tests.support.watched_site import make_certificate
from threadbridge import Bridge, Lane
from threadbridge.admin.metrics import exposition
from threadbridge.crossing.states import ENDINGS
from threadbridge.settings.table import Settings, from_keywords
from threadbridge.sockets.certificates import Certificates
from threadbridge.sockets.inheritance import Supervision

ALERTS = (EXAMPLES / "alerts.yml").read_text()
DASHBOARD = (EXAMPLES / "grafana.json").read_text()
PAGE = (ROOT / "docs" / "operating.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

NAME = re.compile(r"\b(?:threadbridge|process)_[a-z_]+\b")
SELECTOR = re.compile(r"((?:threadbridge|process)_[a-z_]+)(?:\{([^}]*)\})?")


def application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return []


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All metrics that there are: of a process of a supervisor with HTTPS, a pool, a replica and a remote lane."""
    directory = tmp_path_factory.mktemp("https")
    make_certificate(directory)
    files = Settings(certfile=str(directory / "site.pem"), keyfile=str(directory / "site.key"))
    pool, replica = (PooledDB(sqlite3, maxconnections=1, database=":memory:") for _ in range(2))
    lanes = [Lane("far", "/far/*", upstream=["http://127.0.0.1:1"]), Lane("near", "/near/*", threads=1, pool=replica)]
    bridge = Bridge(application, pool=pool, lanes=lanes)
    text = exposition(bridge, True, Supervision(processes=2), Certificates(from_keywords(files))).decode()
    bridge.close()
    return text


@pytest.fixture(scope="module")
def samples(exposed: str) -> dict[str, set[str]]:
    """The label names of all samples, by the sample's name."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposed):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    in_alerts = re.findall(r"expr: (?:\|\n((?: {10,}.*\n)+)|(.*))", ALERTS)
    in_dashboard = [target["expr"] for panel in json.loads(DASHBOARD)["panels"] for target in panel.get("targets", ())]
    return [several or one for several, one in in_alerts] + in_dashboard


def test_alerts_and_dashboard_use_existing_metrics(samples: dict[str, set[str]]) -> None:
    assert len(expressions()) == ALERTS.count("expr:") + DASHBOARD.count('"expr"') > 20
    for expression in expressions():
        asked = SELECTOR.findall(expression)
        assert asked or expression.startswith("up{"), expression
        for name, matchers in asked:
            assert name in samples, expression
            labels = set(re.findall(r"(\w+)=", matchers)) - {"job", "instance"}
            assert labels <= samples[name], expression
            for grouped in re.findall(r"by \(([^)]*)\)", expression):
                assert set(grouped.split(", ")) - {"job", "instance"} <= samples[name], expression
        for ending in re.findall(r'ending=~?"([a-z|]+)"', expression):
            assert set(ending.split("|")) <= {state.value for state in ENDINGS}, expression


def promtool(*arguments: str | Path, text: str = "") -> None:
    tool = program("promtool")
    assert tool is not None, "promtool is missing: run scripts/setup.sh test"
    done = subprocess.run([tool, *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_configuration_and_the_alerts() -> None:
    promtool("check", "config", "--lint-fatal", EXAMPLES / "prometheus.yml")


def test_processes_that_are_renewed_have_not_failed(tmp_path: Path) -> None:
    """Both of these are started again each minute; only one has a supervisor, which counts failures."""
    started = 'process_start_time_seconds{job="myapplication", instance="%s"}'
    failures = 'threadbridge_process_failures_total{job="myapplication", instance="supervised"}'
    series = {started % "supervised": "0+60x20", started % "alone": "0+60x20", failures: "0x20"}
    firing = 'ALERTS{alertname="ProcessesFail", alertstate="firing", instance="alone", job="myapplication"'
    expected = [{"labels": f'{firing}, severity="page"}}', "value": 1}]
    unit = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": "ALERTS", "eval_time": "15m", "exp_samples": expected}],
    }
    (tmp_path / "test.json").write_text(json.dumps({"rule_files": [str(EXAMPLES / "alerts.yml")], "tests": [unit]}))
    promtool("test", "rules", tmp_path / "test.json")


def test_the_metrics_follow_the_conventions_of_prometheus(exposed: str) -> None:
    promtool("check", "metrics", text=exposed)


def test_each_alert_says_what_to_do_and_is_made_to_fire() -> None:
    alerts = ALERTS.split("- alert: ")[1:]
    assert {alert.partition("\n")[0] for alert in alerts} == set().union(*(fault.alerts for fault in FAULTS.values()))
    for alert in alerts:
        assert re.search(r"severity: (page|warn)\b", alert), alert
        assert re.search(r'summary: ".*{{ \$labels.instance }}.*: \w', alert), alert
        [(page, section)] = re.findall(r"runbook: docs/(\w+)\.md#([\w-]+)$", alert, re.MULTILINE)
        headings = re.findall(r"^##+ (.*)$", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert section in anchors, alert


def test_the_runbook_covers_each_alert_and_uses_existing_metrics(
    samples: dict[str, set[str]],
) -> None:
    [alerts_by_sight] = re.findall(r"^\| what you see \| alert .*?\n\n", RUNBOOK, re.MULTILINE | re.DOTALL)
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert set(alerts) == set(re.findall(r"`([A-Z]\w+)`", alerts_by_sight)) != set()
    asked = set(NAME.findall(RUNBOOK))
    assert asked and asked <= samples.keys()


def test_the_documentation_has_every_metric_and_no_other(samples: dict[str, set[str]]) -> None:
    table = dict(re.findall(r"^\| `(threadbridge_\w+)` \| (.*?) \|", PAGE, re.MULTILINE))
    families = {re.sub("_(bucket|count|sum)$", "", name): labels - {"le"} for name, labels in samples.items()}
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in table.items()} == {
        name: labels for name, labels in families.items() if name.startswith("threadbridge_")
    }
    of_process = set(re.findall(r"`(process_\w+)`", PAGE))
    assert of_process == {name for name in families if name.startswith("process_")}


def test_the_dashboard_has_every_metric() -> None:
    families = set(re.findall(r"^\| `(threadbridge_\w+)` \|", PAGE, re.MULTILINE))
    shown = {re.sub("_(bucket|count|sum)$", "", name) for name in NAME.findall(DASHBOARD)}
    assert families <= shown


def test_the_documentation_has_every_ending() -> None:
    assert {state.value for state in ENDINGS} <= set(re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE))
