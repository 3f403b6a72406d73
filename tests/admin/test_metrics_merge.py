"""The merged metrics of several processes."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from threadbridge.admin.metrics import merged


def of_process(number: int) -> bytes:
    """The metrics of one process, in proportion to its number."""
    registry = CollectorRegistry()
    ended = Counter("requests", "Requests that have ended.", ["ending", "lane"], registry=registry)
    ended.labels("done", "pool").inc(number)
    ended.labels("failed", f"only {number}").inc()
    Gauge("busy", "Threads at work.", registry=registry).set(10 * number)
    Gauge("process_start_time_seconds", "When it began.", registry=registry).set(1000 + number)
    Gauge("a_replica_lag_seconds", "How far it is behind.", registry=registry).set(number)
    # What a supervisor or the same files say to all; some have not heard the latest.
    Gauge("threadbridge_processes", "That should be ready.", registry=registry).set(2 + (number == 2))
    Counter("threadbridge_process_failures", "Replaced.", registry=registry).inc(number)
    Gauge("a_last_reload_successful", "Whether it was.", registry=registry).set(number != 4)
    Gauge("an_expiration_timestamp_seconds", "When it expires.", registry=registry).set(100 - number)
    Info("build", "What it is.", registry=registry).info({"version": "1"})
    seconds = Histogram("seconds", "How long it took.\nIn all.", ["lane"], buckets=(0.1, 1), registry=registry)
    for _ in range(number):
        seconds.labels('a "quoted" \\ lane\n').observe(0.5)
    return generate_latest(registry)


def samples(text: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_samples_with_equal_name_and_labels_are_summed() -> None:
    assert samples(merged([of_process(1), of_process(2), of_process(4)])) == {
        ("requests_total", "done,pool"): 7,
        ("requests_total", "failed,only 1"): 1,
        ("requests_total", "failed,only 2"): 1,
        ("requests_total", "failed,only 4"): 1,
        ("busy", ""): 70,
        ("process_start_time_seconds", ""): 1001,
        ("a_replica_lag_seconds", ""): 4,
        ("threadbridge_processes", ""): 3,
        ("threadbridge_process_failures_total", ""): 4,
        ("a_last_reload_successful", ""): 0,
        ("an_expiration_timestamp_seconds", ""): 96,
        ("build_info", "1"): 1,
        ("seconds_bucket", 'a "quoted" \\ lane\n,0.1'): 0,
        ("seconds_bucket", 'a "quoted" \\ lane\n,1.0'): 7,
        ("seconds_bucket", 'a "quoted" \\ lane\n,+Inf'): 7,
        ("seconds_count", 'a "quoted" \\ lane\n'): 7,
        ("seconds_sum", 'a "quoted" \\ lane\n'): 3.5,
    }


def test_one_page_stays_as_it_is_and_none_is_empty() -> None:
    page = of_process(3)
    assert merged([page]) == page
    assert merged([]) == b""


def test_types_and_descriptions_are_kept() -> None:
    lines = merged([of_process(1), of_process(2)]).decode().splitlines()
    assert lines.count("# TYPE requests_total counter") == 1
    assert lines.count("# HELP seconds How long it took.\\nIn all.") == 1
    assert lines.count("# TYPE seconds histogram") == 1


def test_other_texts_are_refused() -> None:
    with pytest.raises(ValueError):
        merged([of_process(1), b"<html>502 Bad Gateway</html>"])
