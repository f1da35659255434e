"""What Prometheus reads is what the servers hold, counted over processes that fork."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.extensions import connection as Connection

from embedded.process import free_port
from tests.integration.test_pipeline import add, campaigns, write
from tests.processes import until
from worker import observe, pipeline, planner
from worker.celery import Servers
from worker.config import Settings
from worker.errors import TransientSink
from worker.logs import configure, tally
from worker.prometheus import PREFIX, Exporter
from worker.sink import Sink
from worker.streams import STREAMS

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus"


@pytest.fixture(autouse=True)
def _nothing_counted_before() -> None:
    tally.take()


@contextmanager
def exporting(settings: Settings) -> Iterator[str]:
    exporter = Exporter(settings, "127.0.0.1", 0)
    serving = threading.Thread(target=exporter.serve_forever, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{exporter.server_port}"
    finally:
        exporter.shutdown()
        exporter.server_close()
        serving.join()


def scraped(address: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels, read as Prometheus reads them."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:  # noqa: S310 - our own address
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(stream: str, **more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"stream": stream, **more}.items()))


def load(here: Servers, names: tuple[str, ...]) -> int:
    loaded = 0
    for planned in planner.plan(here.source, here.ledger, here.store, here.settings, [STREAMS[name] for name in names]):
        for window in planned.windows:
            done = pipeline.load_window(
                here.source, here.sink, here.ledger, here.settings, planned.stream, window,
                table="ad_events", uuid=planned.target_uuid,
            )  # fmt: skip
            observe.note_window(planned.stream.name, done.loaded, done.quarantined, 0.3, done.sent)
            loaded += done.loaded
    planner.publish_watermarks(
        here.ledger, here.store, list(STREAMS.values()), here.ledger.live(list(STREAMS.values()))
    )
    return loaded


def test_a_scrape_tells_what_was_loaded_and_what_waits(
    settings: Settings, servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 700)
    assert load(servers, ("impressions", "clicks")) == 700
    observe.note_failed_window("clicks", "TransientSink")
    observe.note_rebuild(3, 0.5)
    observe.note_task("worker.tasks.sync.plan", "succeeded", 0.25)
    observe.deliver(servers.store)
    write(writer, "SELECT 1")
    add(writer, "clicks", campaign, 11)
    with exporting(settings) as address:
        found = scraped(address)
    assert found[f"{PREFIX}up"] == {(("server", name),): 1.0 for name in ("redis", "clickhouse", "postgres")}
    assert found[f"{PREFIX}rows_loaded_total"][of("impressions")] == 700
    # Five columns of eight bytes and two of one, and what names and counts them.
    assert 0 < found[f"{PREFIX}bytes_loaded_total"][of("impressions")] - 700 * (5 * 8 + 2) < 1000
    assert found[f"{PREFIX}committed_rows"][of("impressions")] == 700
    assert found[f"{PREFIX}rows"][of("impressions")] == 700
    assert found[f"{PREFIX}stored_bytes"][of("impressions")] > 0
    assert found[f"{PREFIX}windows_failed_total"][of("clicks", kind="TransientSink")] == 1
    assert found[f"{PREFIX}window_seconds_bucket"][of("impressions", le="0.25")] == 0
    assert found[f"{PREFIX}window_seconds_bucket"][of("impressions", le="0.5")] == 1
    assert found[f"{PREFIX}window_seconds_bucket"][of("impressions", le="+Inf")] == 1
    assert found[f"{PREFIX}window_seconds_sum"][of("impressions")] == pytest.approx(0.3)
    assert found[f"{PREFIX}rebuild_days_total"][()] == 3
    assert found[f"{PREFIX}rebuild_seconds_total"][()] == pytest.approx(0.5)
    assert found[f"{PREFIX}unsettled_days"][()] >= 1
    assert found[f"{PREFIX}unpriced_events"][()] == 0
    assert found[f"{PREFIX}horizon_held"][()] == 0
    assert found[f"{PREFIX}horizon_lag_seconds"][of("impressions")] >= 0
    assert found[f"{PREFIX}queue_messages"][(("queue", "realtime"),)] == 0
    me = (("host", socket.gethostname()), ("pid", str(os.getpid())))
    assert found[f"{PREFIX}process_memory_bytes"][me] > 10_000_000


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian's package prometheus)")
def test_prometheus_finds_nothing_wrong_with_names_and_types(
    settings: Settings, servers: Servers, writer: Connection
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    load(servers, ("impressions",))
    observe.deliver(servers.store)
    with exporting(settings) as address, urllib.request.urlopen(f"{address}/metrics", timeout=30) as answer:  # noqa: S310
        told = subprocess.run(["promtool", "check", "metrics"], input=answer.read(), capture_output=True, check=False)
    # It takes the days of a calendar, which are counted here, for a measure of time.
    found = [line for line in told.stderr.decode().splitlines() if 'instead of "days"' not in line]
    assert (told.stdout, found) == (b"", [])


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Prometheus itself under the configuration that is deployed, but for the address it scrapes and how often."""
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / "alerts.yml")]
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "retailmedia")
    job |= {"scrape_timeout": "1s", "static_configs": [{"targets": [target.removeprefix("http://")]}]}
    config["scrape_configs"] = [job]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        started.terminate()
        started.wait()


def answer(address: str, path: str, **parameters: str) -> Any:
    """What Prometheus answers; None while it does not."""
    with suppress(OSError), urllib.request.urlopen(f"{address}{path}?{urlencode(parameters)}", timeout=10) as told:  # noqa: S310
        return json.load(told)["data"]
    return None


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed (Debian's package prometheus)")
def test_prometheus_draws_every_panel_from_what_it_scrapes(
    settings: Settings, servers: Servers, writer: Connection, tmp_path: Path
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 700)
    load(servers, ("impressions", "clicks"))
    observe.note_rebuild(3, 0.5)
    observe.note_task("worker.tasks.sync.plan", "succeeded", 0.25)
    observe.deliver(servers.store)
    board = json.loads((DEPLOYED.parent / "grafana/dashboards/retailmedia.json").read_text())
    panels = {target["expr"]: panel["title"] for panel in board["panels"] for target in panel["targets"]}
    # Nobody holds the horizon, nothing failed or was tried again, and no reconciliation has run.
    silent = (
        "horizon_holder_age", "retries_total", "windows_failed_total", "windows_failing", "quality_failed",
        "quarantine_rows", "mismatched_days",
    )  # fmt: skip

    with exporting(settings) as exporter, prometheus(tmp_path, exporter) as address:

        def scraped_twice() -> bool:
            found = answer(address, "/api/v1/query", query="count_over_time(retailmedia_rows_loaded_total[1m])")
            return bool(found and found["result"] and int(found["result"][0]["value"][1]) >= 2)

        until(scraped_twice, "Prometheus has scraped twice")
        drawn = {expr: answer(address, "/api/v1/query", query=expr) for expr in panels}
        rules = answer(address, "/api/v1/rules")
    assert [expr for expr, found in drawn.items() if found is None] == []
    empty = {expr for expr, found in drawn.items() if found and not found["result"]}
    assert {expr for expr in empty if not any(name in expr for name in silent)} == set()
    assert {rule["health"] for group in rules["groups"] for rule in group["rules"]} == {"ok"}


def test_counts_of_forked_children_add_up(settings: Settings, servers: Servers) -> None:
    observe.note_window("clicks", 5, 0, 0.01)
    observe.deliver(servers.store)
    children = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                tally.take()
                here = Servers.open(settings)
                observe.note_window("clicks", 10 + number, 0, 0.01)
                observe.deliver(here.store)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    with exporting(settings) as address:
        found = scraped(address)
    assert found[f"{PREFIX}rows_loaded_total"][of("clicks")] == 5 + 10 + 11 + 12
    assert found[f"{PREFIX}window_seconds_count"][of("clicks")] == 4
    assert len(found[f"{PREFIX}process_memory_bytes"]) == 4


def test_a_retry_is_counted_by_server_and_cause(settings: Settings, servers: Servers) -> None:
    configure(settings)
    attempts = []

    def flaky() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise TransientSink("ClickHouse failed while asking: too many simultaneous queries (code 202).", code=202)
        if len(attempts) == 2:
            raise TransientSink("ClickHouse at host:1 cannot be reached while asking: refused.")
        return "done"

    assert servers.sink.retried(flaky) == "done"
    observe.deliver(servers.store)
    with exporting(settings) as address:
        retries = scraped(address)[f"{PREFIX}retries_total"]
    assert retries == {
        (("cause", "code 202"), ("server", "clickhouse")): 1,
        (("cause", "unreachable"), ("server", "clickhouse")): 1,
    }


def test_a_server_that_is_away_takes_only_its_own_figures_with_it(settings: Settings, servers: Servers) -> None:
    observe.note_window("clicks", 5, 0, 0.01)
    observe.deliver(servers.store)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    lost = settings.model_copy(
        update={"postgres_dsn": f"postgresql://nobody:x@127.0.0.1:{port}/none", "retry_attempts": 1}
    )
    with exporting(lost) as address:
        found = scraped(address)
    assert found[f"{PREFIX}up"] == {
        (("server", "redis"),): 1,
        (("server", "clickhouse"),): 1,
        (("server", "postgres"),): 0,
    }
    assert found[f"{PREFIX}rows_loaded_total"][of("clicks")] == 5
    assert f"{PREFIX}lag_seconds" not in found


def test_what_later_migrations_bring_is_told_once_it_is_there(settings: Settings, servers: Servers) -> None:
    statements = {
        "quality_results": "check_name String, severity String, state String, checked_at DateTime64(6), failing UInt64",
        "reconciliations": "stream String, date_id Date32, state String, missing UInt64, extra UInt64, stale UInt64, "
        "duplicate UInt64, checked_at DateTime64(6)",
    }
    with exporting(settings) as address, Sink(settings) as sink:
        tables = {name for (name,) in sink.named("observe", "tables", {"database": sink.database})}
        for name, columns in statements.items():
            if name not in tables:
                sink.command("making", f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree ORDER BY tuple()")
        now, then = "now64(6)", "now64(6) - 100"
        sink.command("writing", "INSERT INTO quality_results (check_name, severity, state, checked_at, failing) "
            f"SELECT 'a', 'error', 'failed', {now}, 3 UNION ALL SELECT 'a', 'error', 'passed', {then}, 0")  # fmt: skip
        sink.command("writing", "INSERT INTO reconciliations (stream, date_id, state, missing, extra, stale, duplicate, "
            f"checked_at) SELECT 'clicks', '2026-01-01', 'mismatch', 2, 1, 0, 0, {now}")  # fmt: skip
        found = scraped(address)
    assert found[f"{PREFIX}quality_failing_rows"] == {(("check", "a"), ("severity", "error")): 3}
    assert found[f"{PREFIX}quality_failed"] == {(("check", "a"), ("severity", "error")): 1}
    assert found[f"{PREFIX}reconciliation_mismatched_days"] == {of("clicks"): 1}
    assert found[f"{PREFIX}reconciliation_mismatched_rows"] == {of("clicks"): 3}


def test_every_metric_is_documented_and_nothing_else_is(settings: Settings, servers: Servers) -> None:
    source = (Path(observe.__file__).with_name("prometheus.py")).read_text()
    from worker.prometheus import COUNTERS

    named = set(re.findall(r'f"\{PREFIX\}([a-z_]+)"', source)) | set(re.findall(r'_gauge\(\s*"([a-z_]+)"', source))
    expected = {PREFIX + name for name in named} | {f"{PREFIX}{name}_total" for name in COUNTERS}
    documented = set(re.findall(r"^\| `(retailmedia_[a-z_]+)", DOCS.read_text(), re.MULTILINE))
    assert documented == expected


def test_the_exporter_says_that_it_lives_and_knows_no_other_page(settings: Settings) -> None:
    with exporting(settings) as address:
        with urllib.request.urlopen(f"{address}/healthz", timeout=10) as answer:  # noqa: S310
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/etc/passwd", timeout=10)  # noqa: S310
