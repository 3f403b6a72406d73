"""A receiver of OTLP over HTTP, as a collector is one."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """Keeps what it is sent; while ``answers`` is cleared, it does not answer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        # The process (``service.instance.id``), and the metrics by their names; under the lock of the condition.
        self.exports: list[tuple[str, dict[str, Metric]]] = []
        self.metrics_came = threading.Condition()
        self.services: set[str] = set()
        self.answers = threading.Event()
        self.answers.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.answers.wait(60)
                receiver.receive(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Not on the tests' standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def receive(self, path: str, body: bytes) -> None:
        """Take in a request's body."""
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self._note(resource.resource.attributes)
                for scope in resource.scope_spans:
                    self.spans += scope.spans
        if path == "/v1/metrics":
            for described in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                instance = self._note(described.resource.attributes)
                with self.metrics_came:
                    metrics = {each.name: each for part in described.scope_metrics for each in part.metrics}
                    self.exports.append((instance, metrics))
                    self.metrics_came.notify_all()

    @property
    def latest(self) -> list[dict[str, Metric]]:
        """The latest metrics of each process."""
        return list(dict(self.exports).values())

    def wait_for_metrics(self, condition: Callable[[], bool]) -> None:
        """Return as soon as this holds for what has come."""
        with self.metrics_came:
            assert self.metrics_came.wait_for(condition, 30), self.exports[-1:]

    def _note(self, attributes: Iterable[KeyValue]) -> str:
        found = {each.key: each.value.string_value for each in attributes}
        self.services.add(found["service.name"])
        return found["service.instance.id"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
