"""How the rate grows with the number of worker processes when what limits them is the way to the servers.

PostgreSQL and ClickHouse are reached through a relay that delays every byte, and windows are small, so that a worker
mostly waits. What is timed is the loading of five windows a process, handed out at once: from the first message to the
last commit. Planning, which one process does once a tick whatever the number of workers, is not in it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from celery import Celery

from bench.datapath import begin_anew, narrow_source, sync_dimensions
from bench.fleet import Node, await_that, working
from bench.measures import Findings, Goal, Line, paired, rotated
from bench.relay import relayed
from bench.rows import source_totals, target_totals
from bench.stage import Options, Stage
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.streams import EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window, cut

GROUP = "scale-out behind a slow network"
IMPRESSIONS = STREAMS["impressions"]
PROCESSES = (1, 2, 4, 8)
WINDOWS_A_PROCESS = 5
ROWS_A_WINDOW = 1000
ONE_WAY_SECONDS = 0.03


def through(settings: Settings, ports: list[int]) -> dict[str, str]:
    """The DSNs of PostgreSQL and ClickHouse by way of the relay's ports."""
    result = {}
    for name, port in zip(("postgres_dsn", "clickhouse_dsn"), ports, strict=True):
        parts = urlsplit(getattr(settings, name))
        netloc = f"{parts.username}:{parts.password}@127.0.0.1:{port}"
        result[name] = parts._replace(netloc=netloc).geturl()
    return result


def load_all(here: Servers, app: Celery, windows: list[Window]) -> float:
    """Seconds until every one of these windows, handed out at once, is committed."""
    uuid = here.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    begun = time.perf_counter()
    for window in windows:
        kwargs = {"stream": IMPRESSIONS.name, **window.kwargs(), "target": str(uuid)}
        app.send_task("worker.tasks.sync.load_window", kwargs=kwargs, queue="backfill")

    def committed() -> bool:
        found = here.ledger.coverage([IMPRESSIONS], {EVENTS_TABLE: uuid})[IMPRESSIONS.name]
        return len(found.windows) >= len(windows)

    await_that(committed, "every window is committed", 120, every=0.02)
    return time.perf_counter() - begun


def measure(stage: Stage, options: Options) -> Findings:
    """Each number of processes in alternation, after a round that lets every process connect."""
    rows = max(PROCESSES) * WINDOWS_A_PROCESS * ROWS_A_WINDOW
    dsn = narrow_source(stage, "scaled", rows)
    settings = stage.settings(dsn)
    here = Servers.open(settings)
    samples: dict[int, list[float]] = {count: [] for count in PROCESSES}
    trouble = ""
    try:
        sync_dimensions(here)
        until = here.source.now()
        edges = here.source.boundaries(IMPRESSIONS, Window(ORIGIN, until), ROWS_A_WINDOW, rows // ROWS_A_WINDOW)
        windows = cut(Window(ORIGIN, until), edges)
        targets = []
        for server in (settings.source_dsn, settings.sink_dsn):
            parts = urlsplit(server)
            targets.append((parts.hostname or "", parts.port or 0))
        with ExitStack() as running:
            ports = running.enter_context(relayed(ONE_WAY_SECONDS, targets))
            apps: dict[int, Celery] = {}
            for count in PROCESSES:
                # A broker of its own for each, so that all can stand by while one of them works.
                slow = settings.model_copy(update={**through(settings, ports), "redis_url": stage.redis()})
                running.enter_context(working(slow, [Node(f"of{count}", "realtime,maintenance,backfill", count)]))
                apps[count] = running.enter_context(create_app(slow))
            for number in range(-1, options.size(3, quick=1, full=5)):
                for name in rotated([str(count) for count in PROCESSES], number):
                    count = int(name)
                    begin_anew(here)
                    # To connect takes a process one window; a process that gets none then does so at its first.
                    some = windows[: count * (WINDOWS_A_PROCESS if number >= 0 else 1)]
                    seconds = load_all(here, apps[count], some)
                    expected = source_totals(dsn, limit=len(some) * ROWS_A_WINDOW)
                    if target_totals(here.sink, EVENTS_TABLE) != expected:
                        trouble = "source and target do not agree"
                    if number >= 0:
                        samples[count].append(expected.count / seconds)
    finally:
        here.close()
        stage.drop(settings)
    result = Findings()
    for count in PROCESSES:
        result.lines.append(
            Line(
                GROUP,
                f"{count} process{'es' if count > 1 else ''}",
                "rows/s",
                () if trouble else tuple(samples[count]),
                {} if trouble else {"1 process": paired(samples[count], samples[1])},
                trouble
                or f"{WINDOWS_A_PROCESS} windows of {ROWS_A_WINDOW} rows a process, {ONE_WAY_SECONDS * 1000:g} ms each way",
                "failed" if trouble else "ok",
            )
        )
    ratios = () if trouble else paired(samples[8], samples[1])
    result.goals.append(Goal("8 latency-bound processes, of one", "at least", 6.5, "×", ratios))
    return result
