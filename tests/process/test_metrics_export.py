"""Metrics leave the process over OTLP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric

from tests.support.otlp_receiver import Receiver
from tests.support.processes import ROOT, Frontend, free_port
from threadbridge.telemetry.totals import BOUNDS

APPLICATION = """
from opentelemetry import metrics

asked = metrics.get_meter("shop").create_counter("shop.asked")

def app(environ, start_response):
    asked.add(1)
    if environ["PATH_INFO"] == "/fails":
        raise LookupError("as asked")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DURATION = "http.server.request.duration"
ACTIVE = "http.server.active_requests"


class Site(Frontend):
    """That application, which exports its metrics several times a second."""

    def __init__(self, directory: Path, receiver: Receiver, *arguments: str, **env: str) -> None:
        (directory / "measured_app.py").write_text(APPLICATION)
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "shop"}
        variables |= {"OTEL_METRIC_EXPORT_INTERVAL": "200", "OTEL_TRACES_EXPORTER": "none", **env}
        command = ("-m", "threadbridge", "measured_app:app", "--threads=2", "--port={port}", "--otel", *arguments)
        super().__init__(command, env=variables, cwd=directory)


def metrics_of(receiver: Receiver) -> list[dict[str, Metric]]:
    return [metrics for _, metrics in receiver.exports]


def labels_of(point: Any) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in point.attributes}


def total(metrics: list[dict[str, Metric]], name: str) -> float:
    """The sum of a counter, or the count of a histogram, over all of these and all labels."""
    found = [each[name] for each in metrics if name in each]
    numbers = [point.as_double or point.as_int for each in found for point in each.sum.data_points]
    return float(sum(numbers) + sum(point.count for each in found for point in each.histogram.data_points))


def test_what_prometheus_reads_and_the_conventions_for_http(tmp_path: Path) -> None:
    admin = free_port()
    with Receiver() as receiver, Site(tmp_path, receiver, f"--admin_port={admin}") as site:
        for path in ("/", "/fails", "/"):
            requests.get(f"{site.url}{path}", timeout=30)
        requests.request("PURGE", site.url, timeout=30)
        receiver.wait_for_metrics(lambda: total(receiver.latest, DURATION) >= 4)
        [found] = receiver.latest
        text = requests.get(f"http://127.0.0.1:{admin}/metrics", timeout=30).text
        assert site.stop() == 0
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    # In Prometheus' text format, the names of counters end so.
    assert {name for each in found for name in (each, f"{each}_total")} >= families
    durations = {tuple(sorted(labels_of(point).items())): point for point in found[DURATION].histogram.data_points}
    ok: dict[str, str | int] = {"http.request.method": "GET", "url.scheme": "http", "http.response.status_code": 200}
    failed: dict[str, str | int] = ok | {"http.response.status_code": 500, "error.type": "500"}
    other: dict[str, str | int] = ok | {"http.request.method": "_OTHER"}
    counts = {key: point.count for key, point in durations.items()}
    assert counts == {tuple(sorted(each.items())): count for each, count in ((ok, 2), (failed, 1), (other, 1))}
    point = durations[tuple(sorted(ok.items()))]
    assert list(point.explicit_bounds) == BOUNDS and sum(point.bucket_counts) == 2 and 0 < point.sum < 60
    assert found[DURATION].unit == "s" and not point.HasField("min")
    assert (
        found[DURATION].histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    )
    # Histograms of Prometheus' format are converted back, bucket by bucket.
    [run] = [p for p in found["threadbridge_request_run_seconds"].histogram.data_points if p.count]
    assert (labels_of(run), run.count, sum(run.bucket_counts)) == ({"lane": "default"}, 4, 4)
    ended = found["threadbridge_requests"].sum
    assert ended.is_monotonic and sum(point.as_double for point in ended.data_points) == 4
    assert found["threadbridge_ready"].gauge.data_points[0].as_double == 1
    assert [labels_of(point) for point in found[ACTIVE].sum.data_points if point.as_double] == []


def test_processes_are_told_apart_and_all_is_exported_once(tmp_path: Path) -> None:
    delta = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    variables = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
    with Receiver() as receiver:
        with Site(tmp_path, receiver, "--processes=2", **variables) as site:
            for _ in range(10):
                requests.get(site.url, timeout=30)
            receiver.wait_for_metrics(lambda: total(metrics_of(receiver), DURATION) >= 10)
            for _ in range(20):
                requests.get(site.url, timeout=30)
            assert site.stop() == 0
        assert len(receiver.latest) == 2 and receiver.services == {"shop"}
    # With those of the last moment. "shop.asked" is the application's own.
    sums = {name: total(metrics_of(receiver), name) for name in (DURATION, "threadbridge_requests", "shop.asked")}
    assert set(sums.values()) == {30}, sums
    for found in receiver.latest:
        assert found[DURATION].histogram.aggregation_temporality == delta
        assert found["threadbridge_requests"].sum.aggregation_temporality == delta


@pytest.mark.parametrize(("exporter", "starts"), [("none", True), ("prometheus", False)])
def test_other_exporters(exporter: str, starts: bool, tmp_path: Path) -> None:
    (tmp_path / "measured_app.py").write_text(APPLICATION)
    code = (
        "from threadbridge.admin.metrics_export import MetricsExport\n"
        "from threadbridge import Bridge\n"
        "from measured_app import app\n"
        "bridge = Bridge(app, threads=1)\n"
        "MetricsExport(bridge)\n"
        "print(len(bridge.telemetry._readers))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OTEL_METRICS_EXPORTER": exporter}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False)
    assert (run.returncode == 0) is starts
    assert starts or "OTEL_METRICS_EXPORTER=prometheus with the protocol http/protobuf" in run.stderr
