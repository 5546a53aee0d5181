"""Reading metrics as Prometheus does: the parsers of its own client library."""

from __future__ import annotations

from prometheus_client import parser as older
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as newer


def openmetrics(text: str) -> list[Metric]:
    """Parse the OpenMetrics text format; raises ValueError for what is not in it."""
    return [*newer.text_string_to_metric_families(text)]  # type: ignore[no-untyped-call]


def prometheus(text: str) -> list[Metric]:
    """Parse the Prometheus text format, which node_exporter's textfile collector reads."""
    return [*older.text_string_to_metric_families(text)]
