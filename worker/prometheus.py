"""`/metrics` for Prometheus: reads the servers when asked and keeps nothing. Names and meanings: docs/metrics.md.

One exporter serves a whole installation, however many workers there are. A server that cannot be reached takes its own
figures away and no others; `retailmedia_up` says which it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from worker import metrics, observe, standing
from worker.celery import QUEUES, Servers
from worker.config import Settings
from worker.errors import RetailMediaError
from worker.failing import failing_days
from worker.streams import STREAMS
from worker.windows import ORIGIN

log = structlog.get_logger()

PREFIX = "retailmedia_"

COUNTERS = {
    "rows_loaded": "Rows loaded into ClickHouse.",
    "bytes_loaded": "Bytes of event columns sent to ClickHouse, uncompressed.",
    "rows_quarantined": "Rows set aside because they could not be loaded.",
    "windows_failed": "Windows that failed, by class of error; they are tried again.",
    "retries": "Statements tried again after a transient error, by server and cause.",
    "rebuild_days": "Days whose metrics were rebuilt.",
    "rebuilds": "Rebuilds of metrics, each of one or more days.",
    "rebuild_seconds": "Time spent rebuilding metrics.",
    "tasks": "Celery tasks that ended, by outcome.",
    "task_seconds": "Time spent in Celery tasks.",
    "messages_refused": "Messages, commands and events that nobody would read: not well-formed, unknown, or too large.",
}


class ServersCollector(Collector):
    """Asks the three servers at every scrape; one scrape at a time."""

    def __init__(self, here: Servers) -> None:
        self._here = here
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Every family, server by server."""
        up = GaugeMetricFamily(f"{PREFIX}up", "1 where the server answered this scrape.", labels=["server"])
        begun = time.monotonic()
        with self._lock:
            for server, ask in (("redis", self._redis), ("clickhouse", self._clickhouse), ("postgres", self._source)):
                found, answered = self._asked(server, ask)
                up.add_metric([server], answered)
                yield from found
        yield up
        yield _gauge("scrape_seconds", "Time this scrape took.", time.monotonic() - begun)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask any server."""
        return []

    def _asked(self, server: str, ask: Callable[[], Iterator[Metric]]) -> tuple[list[Metric], float]:
        found: list[Metric] = []
        try:
            for family in ask():
                found.append(family)
        except RetailMediaError as error:
            log.warning("metrics.server_failed", server=server, error=str(error))
            return found, 0.0
        return found, 1.0

    def _redis(self) -> Iterator[Metric]:
        store = self._here.store
        depth = GaugeMetricFamily(f"{PREFIX}queue_messages", "Messages waiting in a Celery queue.", labels=["queue"])
        for queue, length in store.queue_depths(QUEUES).items():
            depth.add_metric([queue], length)
        yield depth
        held = GaugeMetricFamily(
            f"{PREFIX}process_memory_bytes",
            "Memory of a worker process that ended a task lately.",
            labels=["host", "pid"],
        )
        for (host, pid), amount in sorted(observe.processes(store).items()):
            held.add_metric([host, pid], amount)
        yield held
        yield from _counted(observe.sums(store))

    def _clickhouse(self) -> Iterator[Metric]:
        here = self._here
        sink = here.sink
        database = {"database": sink.database}
        tables = {name for (name,) in sink.named("observe", "tables", database)}
        rows = GaugeMetricFamily(f"{PREFIX}stored_rows", "Rows stored, replaced ones included.", labels=["stream"])
        size = GaugeMetricFamily(f"{PREFIX}stored_bytes", "Bytes on disk.", labels=["stream"])
        plain = GaugeMetricFamily(f"{PREFIX}stored_uncompressed_bytes", "The same uncompressed.", labels=["stream"])
        for stream, count, on_disk, uncompressed in sink.named("observe", "stored", database):
            name = {"advertiser_dimension": "advertisers", "campaign_history": "campaigns"}.get(stream, stream)
            for family, value in ((rows, count), (size, on_disk), (plain, uncompressed)):
                family.add_metric([name], value)
        yield from (rows, size, plain)
        last = GaugeMetricFamily(
            f"{PREFIX}last_commit_timestamp_seconds",
            "When a window of the stream was last committed.",
            labels=["stream"],
        )
        committed = GaugeMetricFamily(
            f"{PREFIX}committed_rows", "Rows the ledger has for the live table.", labels=["stream"]
        )
        targets = here.ledger.live(list(STREAMS.values()))
        for stream, (loaded, _, at) in here.ledger.totals(targets.values()).items():
            committed.add_metric([stream], loaded)
            last.add_metric([stream], at.timestamp())
        yield from (committed, last)
        yield _gauge(
            "unsettled_days", "Days whose metrics are older than their events.", len(metrics.dirty_days(sink, ORIGIN))
        )
        yield _gauge(
            "source_went_back",
            "1 while nothing is loaded because the source is older than what was loaded from it.",
            bool(here.ledger.setback()),
        )
        yield _gauge(
            "failing_days", "Days whose metrics could not be built when they were last tried.", len(failing_days(sink))
        )
        told = "Events that cost money and are in no spend, because their campaign is not known."
        yield _gauge("unpriced_events", told, standing.unpriced(sink).events)
        yield _gauge("open_runs", "Pipeline runs and refreshes that have not ended.", len(here.ledger.open_runs()))
        held = GaugeMetricFamily(f"{PREFIX}quarantine_rows", "Rows in quarantine.", labels=["stream", "rule"])
        for stream, rule, count in sink.named("observe", "quarantined"):
            held.add_metric([stream, rule], count)
        yield held
        if "quality_results" in tables:
            failing = GaugeMetricFamily(
                f"{PREFIX}quality_failing_rows", "Rows a check found when it last ran.", labels=["check", "severity"]
            )
            failed = GaugeMetricFamily(
                f"{PREFIX}quality_failed", "1 for a check that did not pass last time.", labels=["check", "severity"]
            )
            for check, severity, state, count in sink.named("observe", "quality"):
                failing.add_metric([check, severity], count)
                failed.add_metric([check, severity], float(state != "passed"))
            yield from (failing, failed)
        if "reconciliations" in tables:
            days = GaugeMetricFamily(
                f"{PREFIX}reconciliation_mismatched_days", "Days that differ from the source.", labels=["stream"]
            )
            off = GaugeMetricFamily(
                f"{PREFIX}reconciliation_mismatched_rows", "Rows that differ from the source.", labels=["stream"]
            )
            for stream, count, differing in sink.named("observe", "mismatches"):
                days.add_metric([stream], count)
                off.add_metric([stream], differing)
            yield from (days, off)

    def _source(self) -> Iterator[Metric]:
        here = self._here
        found = standing.overview(here.source, here.sink, here.ledger, here.store, list(STREAMS.values()))
        labels = ["stream"]
        watermark = GaugeMetricFamily(
            f"{PREFIX}watermark_timestamp_seconds", "Everything inserted before this is loaded.", labels=labels
        )
        age = GaugeMetricFamily(f"{PREFIX}watermark_age_seconds", "Time since the watermark.", labels=labels)
        lag = GaugeMetricFamily(
            f"{PREFIX}lag_seconds",
            "Age of the oldest row that may be missing, open transactions included.",
            labels=labels,
        )
        behind = GaugeMetricFamily(
            f"{PREFIX}horizon_lag_seconds", "How far the stream is behind the safe horizon.", labels=labels
        )
        flying = GaugeMetricFamily(f"{PREFIX}windows_in_flight", "Windows handed out and not done.", labels=labels)
        failing = GaugeMetricFamily(
            f"{PREFIX}windows_failing", "Windows that failed at least once and are not loaded.", labels=labels
        )
        rows = GaugeMetricFamily(f"{PREFIX}rows", "Rows of the stream in ClickHouse.", labels=labels)
        now = found.horizon.taken_at
        for entry in found.streams:
            name = [entry.stream.name]
            if entry.watermark > ORIGIN:
                watermark.add_metric(name, entry.watermark.timestamp())
                age.add_metric(name, max((now - entry.watermark).total_seconds(), 0.0))
            if entry.complete_through > ORIGIN:
                lag.add_metric(name, entry.lag.total_seconds())
                if found.horizon.at is not None and entry.stream.kind == "events":
                    behind.add_metric(name, max((found.horizon.at - entry.complete_through).total_seconds(), 0.0))
            flying.add_metric(name, entry.in_flight)
            failing.add_metric(name, len(entry.failures))
            rows.add_metric(name, entry.rows)
        yield from (watermark, age, lag, behind, flying, failing, rows)
        horizon = found.horizon
        yield _gauge(
            "horizon_held", "1 while a prepared transaction keeps anything from being planned.", horizon.at is None
        )
        if horizon.at is not None:
            told = "How far the safe horizon is behind the source's clock."
            yield _gauge("horizon_age_seconds", told, (horizon.taken_at - horizon.at).total_seconds())
        oldest = max((holder.age.total_seconds() for holder in horizon.holders), default=0.0)
        yield _gauge(
            "horizon_holder_age_seconds", "Age of the oldest open or prepared transaction at the source.", oldest
        )


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, told, value=float(value))


def _counted(found: list[observe.Sum]) -> Iterator[Metric]:
    """Counts of the workers as families. A count this version does not know is left out."""
    by_name: dict[str, list[observe.Sum]] = {}
    for entry in found:
        by_name.setdefault(entry.name.removesuffix("_sum"), []).append(entry)
    yield _windows(by_name.pop("window_seconds", []))
    for name, told in COUNTERS.items():
        entries = by_name.get(name, [])
        labels = sorted({label for entry in entries for label in entry.labels})
        family = CounterMetricFamily(PREFIX + name, told, labels=labels or None)
        for entry in entries:
            if labels:
                family.add_metric([entry.labels.get(label, "") for label in labels], entry.value)
            else:
                family.add_metric([], entry.value)
        yield family


def _windows(entries: list[observe.Sum]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}window_seconds", "Time from taking up a window to its commit.", labels=["stream"]
    )
    for stream in sorted({entry.labels.get("stream", "") for entry in entries}):
        mine = [entry for entry in entries if entry.labels.get("stream", "") == stream]
        counts = {entry.labels["le"]: entry.value for entry in mine if "le" in entry.labels}
        total = sum(entry.value for entry in mine if entry.name.endswith("_sum"))
        buckets, running = [], 0.0
        for bound in (*map(str, observe.WINDOW_SECONDS), "+Inf"):
            running += counts.get(bound, 0.0)
            buckets.append((bound, running))
        family.add_metric([stream], buckets, sum_value=total)
    return family


def rendered(here: Servers) -> bytes:
    """What a scrape gets."""
    registry = CollectorRegistry()
    registry.register(ServersCollector(here))
    return generate_latest(registry)


class Exporter(ThreadingHTTPServer):
    """`/metrics`, and `/healthz` which says that the exporter itself runs, whatever the servers do."""

    daemon_threads = True

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._here = Servers.open(settings)
        self._lock = threading.Lock()
        self.started = datetime.now(UTC)
        super().__init__((host, port), _Handler)

    def scrape(self) -> bytes:
        """One scrape at a time: a session belongs to one thread at a time."""
        with self._lock:
            return rendered(self._here)

    def server_close(self) -> None:
        """Closes the port, then the sessions."""
        super().server_close()
        self._here.close()


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    timeout = 30

    def do_GET(self) -> None:
        """Answers."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, self.server.scrape())
            case "/healthz":
                self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"Try /metrics.\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is not worth a line."""
