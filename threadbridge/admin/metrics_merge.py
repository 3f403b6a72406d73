"""Merges the metrics of several processes, in Prometheus' text format. Any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

_Key = tuple[str, tuple[tuple[str, str], ...]]

# Samples that must not be summed: start times, and constants that only carry labels.
_NO_SUMS: tuple[tuple[str, Callable[[float, float], float]], ...] = (
    ("_created", min),
    ("_start_time_seconds", min),
    ("_info", max),
)


def merge(texts: Sequence[bytes]) -> bytes:
    """The sums of the samples that have the same name and labels.

    Of start times (``_created``, ``_start_time_seconds``) the earliest is kept.

    Raises ``ValueError`` if a text is not in Prometheus' format.
    """
    merged = _Merged()
    for text in texts:
        merged.add(text_string_to_metric_families(text.decode()))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(merged)
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self) -> None:
        # Both by the family's name.
        self._families: dict[str, Metric] = {}
        self._values: dict[str, dict[_Key, float]] = {}

    def add(self, families: Iterable[Metric]) -> None:
        for family in families:
            self._families.setdefault(family.name, family)
            values = self._values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                values[key] = _joined(sample.name, values[key], sample.value) if key in values else sample.value

    def collect(self) -> Iterator[Metric]:
        for name, family in self._families.items():
            metric = Metric(name, family.documentation, family.type)
            for (sample_name, labels), value in self._values[name].items():
                metric.add_sample(sample_name, dict(labels), value)
            yield metric


def _joined(name: str, one: float, other: float) -> float:
    for ending, join in _NO_SUMS:
        if name.endswith(ending):
            return join(one, other)
    return one + other
