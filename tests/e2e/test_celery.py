"""The pipeline through real Celery workers, a real broker and beat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from psycopg2.extensions import connection as Connection

from beat_schedule import PROFILES
from embedded.stack import Addresses
from tests.agreement import assert_agreement, source_events, target_events
from tests.conftest import administer, in_database
from tests.integration.test_pipeline import add, campaigns, write
from tests.nursery import Child
from tests.processes import ROOT, environment, until, workers
from worker import ending, migrate, pipeline
from worker.celery import QUEUES, Servers, create_app
from worker.config import Settings, load
from worker.sink import Sink
from worker.streams import STREAMS
from worker.windows import to_micros


@pytest.fixture(scope="module")
def settings(stack: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    name = f"e{uuid.uuid4().hex[:12]}"
    administer(stack.postgres_dsn, f"CREATE DATABASE {name} TEMPLATE {template}")
    made = load(
        postgres_dsn=in_database(stack.postgres_dsn, name),
        clickhouse_dsn=in_database(stack.clickhouse_dsn, name),
        redis_url=in_database(stack.redis_url, "0"),
        retailmedia_home=tmp_path_factory.mktemp("e2e"),
        window_rows=2000,
        lease_seconds=5,
        horizon_margin_ms=50,
    )
    with Sink(made) as sink:
        migrate.migrate(sink, made)
    yield made
    with Sink(made, database="default") as sink:
        sink.command("cleaning up", f"DROP DATABASE IF EXISTS {name} SYNC")
    administer(stack.postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def running(settings: Settings) -> Iterator[dict[str, Child]]:
    with workers(settings) as started:
        yield started


@pytest.fixture(scope="module")
def app(settings: Settings) -> Iterator[Celery[Any]]:
    made = create_app(settings)
    yield made
    made.close()


def run(servers: Servers, app: Celery[Any], task: str, queue: str, **kwargs: Any) -> str:
    """Asks for a run, waits for its end in the ledger, and returns how it ended."""
    run_id = pipeline.new_run_id(to_micros(servers.source.now()))
    app.send_task(task, kwargs={"run_id": run_id, **kwargs}, queue=queue)
    states: list[str] = []

    def ended() -> bool:
        found = servers.ledger.run(run_id)
        states[:] = [found.state] if found else []
        return bool(states) and states[0] != "running"

    until(ended, f"{task} ends", 90)
    return states[0]


def test_a_run_loads_everything_committed_before_it(
    running: object, servers: Servers, writer: Connection, app: Celery[Any]
) -> None:
    (campaign, *_) = campaigns(writer)
    for _ in range(6):
        add(writer, "impressions", campaign, 1500)
    add(writer, "clicks", campaign, 60)
    assert run(servers, app, "worker.tasks.pipeline.run", "realtime") == "succeeded"
    assert_agreement(writer, servers)
    write(writer, "UPDATE impressions SET created_at = created_at - interval '3 days' WHERE id % 7 = 0")
    add(writer, "clicks", campaign, 10)
    assert run(servers, app, "worker.tasks.pipeline.run", "realtime") == "succeeded"
    assert_agreement(writer, servers)


@pytest.mark.parametrize("streams", [None, ["impressions"], ["clicks"]])
def test_celerys_own_command_line_starts_a_full_refresh(
    running: object, servers: Servers, writer: Connection, settings: Settings, streams: list[str] | None
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 500)
    run_id = pipeline.new_run_id(to_micros(servers.source.now()))
    kwargs = {"streams": streams, "metrics_update": True, "run_id": run_id}
    called = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker",
            "call",
            "worker.tasks.refresh.full_refresh",
            "--kwargs",
            json.dumps(kwargs),
        ],
        cwd=ROOT,
        env=environment(settings),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert called.stdout.strip()

    def succeeded() -> bool:
        found = servers.ledger.run(run_id)
        assert found is None or found.state in {"running", "succeeded"}, found
        return found is not None and found.state == "succeeded"

    until(succeeded, "the refresh succeeds", 90)
    assert run(servers, create_app(settings), "worker.tasks.pipeline.run", "realtime") == "succeeded"
    assert_agreement(writer, servers)


@pytest.mark.parametrize(
    ("task", "kwargs", "told"),
    [
        ("worker.tasks.refresh.full_refresh", {"stream": "clicks"}, "takes streams, metrics_update and run_id, not stream"),
        ("worker.tasks.refresh.full_refresh", {"streams": ["clicks", "clack"]}, "There is no stream 'clack'"),
        ("worker.tasks.refresh.full_refresh", {"streams": "clicks"}, 'takes a list of names'),
        ("worker.tasks.refresh.full_refresh", {"metrics_update": "no"}, "metrics_update is true or false"),
        ("worker.tasks.pipeline.run", {"run_id": "../etc/passwd"}, "run_id holds up to 40"),
        ("worker.tasks.sync.load_window", {"stream": "campaigns", "lo": "x", "hi": "y", "target": "z"}, "is a dimension"),
        (
            "worker.tasks.sync.load_window",
            {"stream": "clicks", "lo": "2026-01-01", "hi": "2026-01-02", "target": "z"},
            "no time zone",
        ),
        (
            "worker.tasks.sync.load_window",
            {
                "stream": "clicks",
                "lo": "2026-01-01T00:00:00Z",
                "hi": "2026-01-02T00:00:00Z",
                "target": str(uuid.uuid4()),
                "table": "url('http://127.0.0.1')",
            },
            "table is ad_events or a shadow of it",
        ),
    ],
)  # fmt: skip
def test_a_wrong_argument_fails_at_once_with_one_sentence(
    running: object, app: Celery[Any], task: str, kwargs: dict[str, Any], told: str
) -> None:
    queue = "backfill" if "refresh" in task else "realtime"
    with pytest.raises(Exception) as failure:  # noqa: PT011 - the class is rebuilt from JSON
        app.send_task(task, kwargs=kwargs, queue=queue).get(timeout=20)
    assert told in str(failure.value)


def test_every_task_in_the_schedules_exists_and_goes_to_a_queue_there_is(app: Celery[Any]) -> None:
    app.loader.import_default_modules()
    for profile in PROFILES.values():
        assert {"converge", "sweep"} <= set(profile)
        planned = {name for entry in profile.values() for name in entry.get("kwargs", {}).get("streams", [])}
        assert planned == set(STREAMS)
        for entry in profile.values():
            assert entry["task"] in app.tasks
            assert entry["options"]["queue"] in QUEUES
            assert entry["options"]["expires"] > 0
            json.dumps(entry.get("kwargs", {}))


def test_beat_keeps_metrics_fresh_while_a_worker_is_killed_and_redis_emptied(
    settings: Settings, servers: Servers, writer: Connection, running: dict[str, Child]
) -> None:
    import redis

    from tests.processes import celery, end, ready

    (campaign, *_) = campaigns(writer)
    folder: Path = settings.retailmedia_home
    (folder / "beat").mkdir(exist_ok=True)
    beat = celery(settings, ["beat"], folder / "logs" / "beat.log")

    def agree() -> bool:
        return target_events(servers) == source_events(writer)

    try:
        for round_number in range(3):
            add(writer, "impressions", campaign, 300)
            add(writer, "clicks", campaign, 5)
            if round_number == 1:
                os.killpg(running["fresh"].pid, signal.SIGKILL)
                running["fresh"].wait()
                redis.Redis.from_url(settings.redis_url).flushdb()
                add(writer, "impressions", campaign, 300)
                running["fresh"] = celery(
                    settings,
                    ["worker", "-n", "fresh@localhost", "-Q", "realtime,maintenance", "-c", "2"],
                    folder / "logs" / "fresh.log",
                )
                until(lambda: ready(settings, "fresh@localhost"), "the new worker answers")
            until(agree, "events agree", 60)

        def metrics_agree() -> bool:
            try:
                assert_agreement(writer, servers)
            except AssertionError:
                return False
            return True

        until(metrics_agree, "metrics agree", 60)
    finally:
        end(beat)


@pytest.mark.parametrize("told", ["SIGQUIT", "SIGTERM", "SIGTERM remapped", "SIGINT twice", "control shutdown"])
def test_a_worker_that_cannot_end_ends_itself(settings: Settings, app: Celery[Any], told: str) -> None:
    from tests.processes import celery, end, ready

    log = settings.retailmedia_home / "logs" / f"stuck {told}.log"
    # Celery waits for its pool without a limit, so a child that never runs again keeps a worker half closed for ever.
    extra = {"STOP_SLACK_SECONDS": "1", "VISIBILITY_TIMEOUT_SECONDS": "33", "POSTGRES_STATEMENT_TIMEOUT_SECONDS": "5"}
    if told == "SIGINT twice":
        # The first one alone would give it the minutes of a warm shutdown.
        extra["VISIBILITY_TIMEOUT_SECONDS"] = "900"
    arguments = ["worker", "-n", "stuck@localhost", "-Q", "backfill", "-c", "2"]
    worker: Child | subprocess.Popen[bytes]
    if told == "SIGTERM remapped":
        # As in the containers. Celery reads this when it is imported, so a fork of who imported it is not told.
        extra["REMAP_SIGTERM"], extra["VISIBILITY_TIMEOUT_SECONDS"] = "SIGQUIT", "900"
        command = [sys.executable, "-m", "celery", "-A", "worker", *arguments]
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as output:
            worker = subprocess.Popen(
                command, env=environment(settings, **extra), stdout=output, stderr=output, start_new_session=True
            )
    else:
        worker = celery(settings, arguments, log, extra)
    children: list[int] = []
    try:
        until(lambda: ready(settings, "stuck@localhost"), "the worker answers")
        stats = app.control.inspect(["stuck@localhost"], timeout=5).stats() or {}
        children = stats["stuck@localhost"]["pool"]["processes"]
        os.kill(children[0], signal.SIGSTOP)
        if told == "control shutdown":
            app.control.shutdown(destination=["stuck@localhost"])
        else:
            worker.send_signal(getattr(signal, told.split()[0]))
            if told == "SIGINT twice":
                until(lambda: "Ctrl+C again" in log.read_text(), "the first signal is answered")
                worker.send_signal(signal.SIGINT)
        assert worker.wait(60) == ending.EX_STUCK
        assert "worker.ended_itself" in log.read_text()
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "no child is left", 10)
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)
        end(worker, signal.SIGKILL)


def test_what_flower_shows_is_short_json(
    running: object, servers: Servers, writer: Connection, app: Celery[Any]
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "clicks", campaign, 3)
    until_ = servers.source.now()
    result = app.send_task("worker.tasks.pipeline.run", kwargs={"streams": ["clicks"]}, queue="realtime").get(
        timeout=30
    )
    assert set(result) == {"run_id", "streams"}
    assert len(json.dumps(result)) < 200
    until(
        lambda: (found := servers.ledger.run(result["run_id"])) is not None and found.state == "succeeded",
        "the run succeeds",
    )
    assert (
        until_
        <= servers.ledger.coverage([STREAMS["clicks"]], servers.ledger.live([STREAMS["clicks"]]))["clicks"].watermark
    )
