"""Traces leave the process over OTLP, and the request's names reach the logs of the application's own threads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.support.otlp_receiver import Receiver
from tests.support.processes import ROOT, Frontend
from threadbridge.telemetry.otlp import provider_of_environment

APPLICATION = """
import asyncio, contextvars, logging, sys, threading

def app(environ, start_response):
    def log(message):
        logging.getLogger("app").warning(message)
    log("in the worker")
    asyncio.run(asyncio.to_thread(log, "by asyncio"))
    in_context = threading.Thread(target=contextvars.copy_context().run, args=(log, "in its context"))
    for thread in in_context, threading.Thread(target=log, args=("without",)):
        thread.start()
        thread.join()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str("opentelemetry" in sys.modules).encode()]
"""


class Site(Frontend):
    """That application."""

    def __init__(self, directory: Path, *arguments: str, **env: str) -> None:
        (directory / "traced_app.py").write_text(APPLICATION)
        command = ("-m", "threadbridge", "traced_app:app", "--threads=2", "--port={port}", "--log_json", *arguments)
        super().__init__(command, env=env, cwd=directory)

    def lines(self) -> dict[str, dict[str, str]]:
        """The log's objects by their messages; the access log's by their targets."""
        found = [json.loads(line) for line in self.output().splitlines()]
        return {each.get("message") or each["target"]: each for each in found}


def test_spans_are_exported_and_named_in_the_logs(tmp_path: Path) -> None:
    with Receiver() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_SERVICE_NAME": "shop"}
        # Only the end of the process sends them.
        with Site(tmp_path, "--otel", OTEL_BSP_SCHEDULE_DELAY="600000", **variables) as site:
            assert requests.get(f"{site.url}/a", timeout=30).text == "True"
            assert site.stop() == 0
            lines = site.lines()
        names = [span.name for span in receiver.spans]
        assert set(names) - {"wait for a thread"} == {"GET"} and receiver.services == {"shop"}
        [request] = [span for span in receiver.spans if span.name == "GET"]
    traceparent = f"00-{request.trace_id.hex()}-{request.span_id.hex()}-"
    for message in ("in the worker", "by asyncio", "in its context"):
        assert lines[message]["request_id"] == lines["/a"]["request_id"] != ""
        assert lines[message]["traceparent"] == lines["/a"]["traceparent"]
    assert lines["/a"]["traceparent"].startswith(traceparent)
    assert lines["without"]["request_id"] == "" and "traceparent" not in lines["without"]
    # What the loop logs later belongs to no request.
    assert lines["stopped, every request is answered"]["request_id"] == ""


SAMPLED_APPLICATION = """
from opentelemetry import trace

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    context = trace.get_current_span().get_span_context()
    with trace.get_tracer("app").start_as_current_span("own"):
        pass
    return [f"{context.is_valid} {context.trace_flags.sampled} {context.trace_id:032x}".encode()]
"""


def test_a_share_of_the_requests_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "sampled_app.py").write_text(SAMPLED_APPLICATION)
    with Receiver() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
        variables |= {"OTEL_TRACES_SAMPLER_ARG": "0.3"}
        command = ("-m", "threadbridge", "sampled_app:app", "--threads=2", "--port={port}", "--otel")
        with Frontend(command, env=variables, cwd=tmp_path) as site, requests.Session() as client:
            answers = [client.get(site.url, timeout=30).text.split() for _ in range(200)]
            assert site.stop() == 0
        recorded = {trace_id for _, sampled, trace_id in answers if sampled == "True"}
        # Seven standard deviations.
        assert 15 < len(recorded) < 105
        by_name = {
            name: {each.trace_id.hex() for each in receiver.spans if each.name == name} for name in ("GET", "own")
        }
    # The application's spans are recorded with their requests, and only with them.
    assert by_name == {"GET": recorded, "own": recorded}
    assert all(valid == "True" for valid, _, _ in answers), "the application knows that it is not recorded"
    assert len({trace_id for _, _, trace_id in answers}) == 200
    # Another service with this ratio, which looks at the id alone, records them too.
    assert all(int(trace_id[16:], 16) < 0.3 * 2**64 for trace_id in recorded)


def test_a_collector_that_does_not_answer_holds_nothing_up(tmp_path: Path) -> None:
    with Receiver() as receiver:
        receiver.answers.clear()
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "10"}
        variables |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "10"}
        with Site(tmp_path, "--otel", **variables) as site:
            for _ in range(20):
                assert requests.get(site.url, timeout=30).status_code == 200
            began = time.monotonic()
            assert site.stop() == 0
            # Otherwise it would wait for the collector for a minute.
            assert time.monotonic() - began < 30
        receiver.answers.set()


def test_without_it_nothing_is_imported(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        assert requests.get(site.url, timeout=30).text == "False"
        assert site.stop() == 0
        assert "traceparent" not in site.lines()["in the worker"]


def test_an_exporter_that_is_not_supported(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "threadbridge", "traced_app:app", "--otel", "--port=0"]
    (tmp_path / "traced_app.py").write_text(APPLICATION)
    env = {"PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": "console"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False)
    assert run.returncode == 2
    assert (
        "OTEL_TRACES_EXPORTER=console with the protocol http/protobuf: the server itself exports only by" in run.stderr
    )


def test_the_protocol() -> None:
    with pytest.raises(ValueError, match="with the protocol grpc"):
        provider_of_environment({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    provider_of_environment({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
