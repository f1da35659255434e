"""The command line as a person uses it: processes with arguments, an environment, output and an exit code."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from unittest import mock

import psycopg2
import pyarrow.parquet
import pytest
import structlog

from embedded.stack import Addresses
from tests.conftest import administer, in_database
from tests.processes import ROOT, environment, until, workers
from worker.cli import main
from worker.config import Settings, load
from worker.sink import Sink


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def command(settings: Settings, *arguments: str, **extra: str) -> Done:
    """Runs `retailmedia` to its end, in this process: starting another for each would take longer than the command."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    surroundings = mock.patch.dict(os.environ, environment(settings, **extra), clear=True)
    try:
        with surroundings, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main(list(arguments))
    finally:
        root.handlers[:], root.level = before
        structlog.reset_defaults()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def told(done: Done, code: int) -> str:
    """The one sentence a failed command leaves on stderr."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture(scope="module")
def settings(stack: Addresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Databases of this module's own; their schemas are made by the commands under test."""
    name = f"c{uuid.uuid4().hex[:12]}"
    administer(stack.postgres_dsn, f"CREATE DATABASE {name}")
    made = load(
        postgres_dsn=in_database(stack.postgres_dsn, name),
        clickhouse_dsn=in_database(stack.clickhouse_dsn, name),
        redis_url=in_database(stack.redis_url, "15"),
        retailmedia_home=tmp_path_factory.mktemp("command line"),
        window_rows=500,
        lease_seconds=5,
        horizon_margin_ms=50,
    )
    yield made
    with Sink(made, database="default") as sink:
        sink.command("cleaning up", f"DROP DATABASE IF EXISTS {name} SYNC")
    administer(stack.postgres_dsn, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def schemas(settings: Settings) -> Settings:
    """The same, with both schemas and some traffic, made by the commands themselves."""
    missing = command(settings, "status")
    assert "`retailmedia migrate`" in told(missing, 1)
    pending = json.loads(command(settings, "migrate", "--status", "--json").stdout)
    assert set(pending["migrations"].values()) == {"pending"}
    first = command(settings, "migrate")
    assert first.returncode == 0
    assert first.stdout.startswith("Applied ")
    assert "nothing to apply" in command(settings, "migrate").stdout
    seeded = command(settings, "seed", "batch", "--impressions", "400", "--ctr", "0.05", "--json")
    assert seeded.returncode == 0, seeded.stderr
    return settings


@pytest.fixture(scope="module")
def at_work(schemas: Settings) -> Iterator[Settings]:
    """The same, with workers."""
    with workers(schemas):
        yield schemas


def test_without_workers_the_pipeline_says_which_command_starts_them(schemas: Settings) -> None:
    assert "`retailmedia up`" in told(command(schemas, "pipeline"), 4)


def test_plan_shows_windows_and_syncs_nothing(schemas: Settings) -> None:
    before = command(schemas, "status", "--json").stdout
    shown = command(schemas, "plan")
    assert shown.returncode == 0, shown.stderr
    assert "Nothing was synced" in shown.stdout
    windows = json.loads(command(schemas, "plan", "--stream", "impressions", "--json").stdout)["windows"]
    assert sum(window["rows"] for window in windows) == 2400
    assert all(lo["hi"] == hi["lo"] for lo, hi in itertools.pairwise(windows))
    after = command(schemas, "status", "--json").stdout
    assert {name: entry["rows_loaded"] for name, entry in json.loads(after)["streams"].items()} == {
        name: entry["rows_loaded"] for name, entry in json.loads(before)["streams"].items()
    }


def test_pipeline_loads_and_tells(at_work: Settings) -> None:
    command(at_work, "seed", "batch", "--impressions", "100", "--ctr", "0.1")
    done = command(at_work, "pipeline", "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["state"] == "succeeded"
    stats = json.loads(command(at_work, "seed", "stats", "--json").stdout)
    summary = json.loads(command(at_work, "query", "campaign_summary", "--json").stdout)
    assert sum(row["impressions"] for row in summary) == stats["impressions"]
    assert sum(row["clicks"] for row in summary) == stats["clicks"]
    assert {row["pricing_model"] for row in summary} == {"cpc"}
    again = command(at_work, "pipeline", "--stream", "impressions", "--no-metrics-update")
    assert again.returncode == 0, again.stderr
    assert "succeeded" in again.stdout


def test_full_refresh_of_one_stream(at_work: Settings) -> None:
    done = command(at_work, "pipeline", "--full-refresh", "--stream", "clicks", "--json")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["kind"], run["state"], list(run["streams"])) == ("refresh", "succeeded", ["clicks"])
    stats = json.loads(command(at_work, "seed", "stats", "--json").stdout)
    assert run["streams"]["clicks"]["rows"] == stats["clicks"]


def test_whoever_holds_the_horizon_back_is_named(at_work: Settings) -> None:
    holder = psycopg2.connect(at_work.source_dsn, application_name="a slow report")
    with holder.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (0,)
    done = command(at_work, "pipeline", "--timeout", "4")
    shown = command(at_work, "status")
    holder.close()
    assert done.returncode == 1
    assert f"Waiting for the transaction of pid {pid}" in done.stderr
    assert "goes on" in done.stderr
    assert f"held back by pid {pid}" in shown.stdout
    assert "a slow report" in shown.stdout
    assert command(at_work, "pipeline").returncode == 0


def test_status(at_work: Settings) -> None:
    assert command(at_work, "pipeline").returncode == 0
    shown = command(at_work, "status")
    assert shown.returncode == 0, shown.stderr
    for word in ("watermark", "complete through", "lag", "rows loaded", "quarantined", "impressions", "advertisers"):
        assert word in shown.stdout
    found = json.loads(command(at_work, "status", "--json").stdout)
    stats = json.loads(command(at_work, "seed", "stats", "--json").stdout)
    assert found["streams"]["impressions"]["rows_loaded"] == stats["impressions"]
    assert found["streams"]["clicks"]["last_run"]["state"] == "succeeded"
    assert list(json.loads(command(at_work, "status", "--stream", "clicks", "--json").stdout)["streams"]) == ["clicks"]


def test_query_in_every_form(at_work: Settings) -> None:
    listed = command(at_work, "query")
    assert "campaign_summary" in listed.stdout
    assert "--param limit=" in listed.stdout
    names = {entry["name"] for entry in json.loads(command(at_work, "query", "--json").stdout)}
    assert {"campaign_summary", "daily_campaign_performance"} <= names
    assert command(at_work, "pipeline").returncode == 0
    rows = json.loads(command(at_work, "query", "campaign_summary", "--param", "limit=2", "--json").stdout)
    assert len(rows) == 2
    text = command(at_work, "query", "campaign_summary", "--param", "limit=2", "--format", "csv").stdout
    read = list(csv.DictReader(io.StringIO(text)))
    assert [row["spend"] for row in read] == [row["spend"] for row in rows]
    one = str(rows[0]["campaign_id"])
    arguments = ("query", "daily_campaign_performance", "--param", f"campaign_id={one}", "--format", "json")
    daily = json.loads(command(at_work, *arguments).stdout)
    assert sum(row["impressions"] for row in daily) == rows[0]["impressions"]


def test_every_query_answers_in_every_form(at_work: Settings, tmp_path: Path) -> None:
    assert command(at_work, "pipeline").returncode == 0
    for entry in json.loads(command(at_work, "query", "--json").stdout):
        name = entry["name"]
        assert entry["grain"]
        shown = command(at_work, "query", name)
        assert shown.returncode == 0, shown.stderr
        rows = json.loads(command(at_work, "query", name, "--format", "json").stdout)
        read = list(csv.DictReader(io.StringIO(command(at_work, "query", name, "--format", "csv").stdout)))
        file = tmp_path / f"{name}.parquet"
        written = command(at_work, "query", name, "--format", "parquet", "--output", str(file))
        assert (written.returncode, written.stdout) == (0, ""), written.stderr
        kept = pyarrow.parquet.read_table(file).to_pylist()
        assert len(rows) == len(read) == len(kept), name
        for row, other in zip(rows, kept, strict=True):
            assert list(row) == list(other)
            assert [value is None for value in row.values()] == [value is None for value in other.values()]
            assert Decimal(row.get("spend") or 0) == Decimal(other.get("spend") or 0)
    listed = command(at_work, "query").stdout
    assert "One row is a calendar month" in listed


def test_what_a_day_said_at_a_time(at_work: Settings) -> None:
    assert command(at_work, "pipeline").returncode == 0
    now = json.loads(command(at_work, "query", "campaign_daily", "--json").stdout)
    same = json.loads(command(at_work, "query", "daily_campaign_performance", "--json").stdout)
    columns = ("date_id", "campaign_id", "impressions", "clicks", "spend", "pricing_model")
    assert now
    assert [[row[name] for name in columns] for row in now] == [[row[name] for name in columns] for row in same]
    before = command(at_work, "query", "campaign_daily", "--as-of", "2020-01-01T09:00", "--json")
    assert (before.returncode, json.loads(before.stdout)) == (0, [])
    assert command(at_work, "restatements", "--day", "2026-11-10", "--campaign", "1", "--json").stdout == "[]\n"


def test_restatements(schemas: Settings) -> None:
    with Sink(schemas) as sink:
        sink.command(
            "restating",
            "INSERT INTO daily_campaign_history (date_id, campaign_id, slot, said_at, impressions_count, clicks_count, "
            "spend_amount, pricing_model, was_final, impressions_before, clicks_before, spend_before, cause) SELECT "
            "toDate32('2001-01-05'), n, now64(6), now64(6), 100, 3, 1.5, 'cpc', true, 100, 2, 1, 'late rows' "
            "FROM (SELECT arrayJoin([900001, 900002]) AS n)",
        )
    rows = json.loads(command(schemas, "restatements", "--day", "2001-01-05", "--campaign", "900001", "--json").stdout)
    assert [(row["column_name"], row["value_before"], row["value_after"], row["cause"]) for row in rows] == [
        ("clicks_count", "2", "3", "late rows"),
        ("spend_amount", "1", "1.5", "late rows"),
    ]
    shown = command(schemas, "restatements", "--day", "2001-01-05")
    assert shown.returncode == 0, shown.stderr
    assert "late rows" in shown.stdout
    assert "cpc" in shown.stdout
    assert len(json.loads(command(schemas, "restatements", "--limit", "3", "--json").stdout)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("query", "campaign_sumary"), "the queries are advertiser_performance"),
        (("query", "campaign_summary", "--as-of", "2026-11-17"), "--as-of is for campaign_daily"),
        (("query", "campaign_daily", "--as-of", "yesterday"), "as_of=yesterday cannot be used"),
        (("restatements", "--day", "soon"), "first_day=soon"),
        (("query", "campaign_summary", "--param", "x=1"), "no parameter 'x'"),
        (("query", "campaign_summary", "--param", "limit"), "NAME=VALUE"),
        (("query", "campaign_summary", "--param", "first_day=soon"), "first_day=soon cannot be used"),
        (("query", "../../etc/passwd"), "There is no query"),
        (("pipeline", "--stream", "clack"), "the streams are advertisers, campaigns, impressions, clicks"),
        (("pipeline", "--full"), "--full-refresh"),
        (("pipelin",), "No such command"),
        (("seed", "impressions", "--campaign-id", "1", "--count", "-1"), "-1"),
    ],
)
def test_wrong_usage_is_one_sentence(schemas: Settings, arguments: tuple[str, ...], words: str) -> None:
    assert words in told(command(schemas, *arguments), 2)


@pytest.mark.parametrize("group", ["quarantine", "seed"])
def test_a_group_without_a_command_shows_its_commands_line_by_line(schemas: Settings, group: str) -> None:
    done = command(schemas, group)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines[0].startswith(f"Usage: retailmedia {group}")
    assert "Commands:" in lines


@pytest.mark.parametrize("name", ["POSTGRES_DSN", "CLICKHOUSE_DSN", "REDIS_URL"])
def test_a_server_that_is_away_is_one_sentence(schemas: Settings, name: str) -> None:
    away = {
        "POSTGRES_DSN": "postgresql://u:secret@127.0.0.1:9/x",
        "CLICKHOUSE_DSN": "clickhouse://u:secret@127.0.0.1:9/x",
        "REDIS_URL": "redis://:secret@127.0.0.1:9/0",
    }
    for arguments in (("status",), ("pipeline",), ("plan",)):
        done = command(schemas, *arguments, **{name: away[name]})
        sentence = told(done, 4)
        assert "127.0.0.1:9" in sentence
        assert "secret" not in sentence
        assert "Traceback" not in done.stderr
    examined = command(schemas, "doctor", **{name: away[name]})
    assert examined.returncode == 4
    assert "secret" not in examined.stdout


def test_debug_shows_where(schemas: Settings) -> None:
    done = command(schemas, "--debug", "status", POSTGRES_DSN="postgresql://127.0.0.1:9/x")
    assert done.returncode == 4
    assert "Traceback" in done.stderr


def test_an_unusable_setting_is_one_sentence(schemas: Settings) -> None:
    assert "REPORTING_TIMEZONE" in told(command(schemas, "status", REPORTING_TIMEZONE="Paris"), 2)


def test_celery_itself_says_an_unusable_setting_in_one_sentence(schemas: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker", "worker"],
        cwd=ROOT,
        env=environment(schemas, WINDOW_ROWS="many"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Unusable setting: WINDOW_ROWS: ")
    assert len(done.stderr.splitlines()) == 1


def test_doctor_finds_everything_well(at_work: Settings) -> None:
    done = command(at_work, "doctor")
    assert done.returncode == 0, done.stdout
    assert "Everything is as it should be." in done.stdout
    assert json.loads(command(at_work, "doctor", "--json").stdout)["well"] is True


def test_doctor_says_how_to_mend_what_is_wrong(schemas: Settings, stack: Addresses) -> None:
    role = f"r{uuid.uuid4().hex[:8]}"
    dsn = schemas.postgres_dsn
    administer(dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    administer(dsn, "ALTER TABLE clicks DISABLE TRIGGER USER")
    weak = dsn.replace(dsn.partition("://")[2].partition("@")[0], f"{role}:p")
    try:
        done = command(schemas, "doctor", POSTGRES_DSN=weak)
    finally:
        administer(dsn, "ALTER TABLE clicks ENABLE TRIGGER USER")
        administer(dsn, f"DROP ROLE {role}")
    assert done.returncode == 1
    assert f'GRANT pg_read_all_stats TO "{role}";' in done.stdout
    assert f'GRANT SELECT ON impressions TO "{role}";' in done.stdout
    bare = command(schemas, "doctor", CLICKHOUSE_DSN=in_database(stack.clickhouse_dsn, "nowhere"))
    assert bare.returncode == 1
    assert "database nowhere does not exist" in bare.stdout


def test_piped_output_has_no_escape_codes(schemas: Settings) -> None:
    for arguments in (("status",), ("plan",), ("query",), ("doctor",), ("--help",)):
        assert "\x1b" not in command(schemas, *arguments).stdout


def test_ctrl_c_leaves_the_run_going(at_work: Settings) -> None:
    holder = psycopg2.connect(at_work.source_dsn)
    with holder.cursor() as cursor:
        cursor.execute("SELECT 1")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "pipeline"],
        cwd=ROOT,
        env=environment(at_work),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background by a shell, tests ignore Ctrl-C, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = waiting.stderr.readline() if waiting.stderr else ""
        assert line.startswith("Waiting for")
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=60)
    finally:
        holder.close()
        waiting.kill()
    assert waiting.returncode == 130
    assert "goes on without being watched" in errors
    assert "Traceback" not in errors


def processes_of(home: Path) -> list[str]:
    """What runs and mentions this home in its arguments, environment or working directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            where = os.readlink(entry / "cwd")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and (str(home).encode() in told or where.startswith(str(home))):
            found.append((entry / "cmdline").read_text().replace("\0", " "))
    return found


def home_environment(home: Path, **extra: str) -> dict[str, str]:
    """An environment in which nothing but the home is named."""
    return {**os.environ, "RETAILMEDIA_HOME": str(home), "PYTHONPATH": str(ROOT), "FLOWER_PORT": "0", **extra}


def in_home(home: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs `retailmedia` to its end in a home."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        cwd=ROOT,
        env=home_environment(home, **extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of the test's own, with nothing left running in it."""
    folder = tmp_path / "a home"
    yield folder
    in_home(folder, "down")


def started_up(home: Path) -> subprocess.Popen[str]:
    """`retailmedia up`, once it says that it is up."""
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "up"],
        cwd=ROOT,
        env=home_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("Ctrl-C stops"):
            return process
    raise AssertionError("".join(seen))


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_up_starts_again_what_ends_until_it_is_told_to_stop(home: Path) -> None:
    process = started_up(home)
    beat = json.loads((home / "run" / "beat.json").read_text())
    os.kill(beat["pid"], signal.SIGKILL)
    until(lambda: json.loads((home / "run" / "beat.json").read_text())["pid"] != beat["pid"], "beat is started again")
    # `down` does it by SIGTERM.
    done = in_home(home, "down")
    assert "`retailmedia up` with all it had started" in done.stdout
    assert process.wait(60) == 0
    assert processes_of(home) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_up_in_the_background_is_found_again_swept_and_stopped(home: Path) -> None:
    done = in_home(home, "up", "--detach")
    assert done.returncode == 0, done.stderr
    again = in_home(home, "up")
    assert again.returncode == 0, again.stderr
    assert "Already up" in again.stdout
    secrets = [json.loads((home / "run" / "flower.json").read_text())["password"]]
    secrets += json.loads((home / "state.json").read_text())["passwords"].values()
    for secret in secrets:
        assert secret not in done.stdout + again.stdout
        assert not [line for line in processes_of(home) if secret in line]
    assert in_home(home, "doctor").returncode == 0

    # With a worker gone, what is left is in the way of a new start, which clears it away.
    os.kill(json.loads((home / "run" / "worker-bulk.json").read_text())["pid"], signal.SIGKILL)
    swept = in_home(home, "up", "--detach")
    assert swept.returncode == 0, swept.stderr
    assert "Stopped what an earlier start had left running" in swept.stderr
    assert in_home(home, "pipeline").returncode == 0

    stopped = in_home(home, "down")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stdout.startswith("Stopped beat, the worker for fresh data")
    assert processes_of(home) == []
    assert "Nothing was running" in in_home(home, "down").stdout
    for log in (home / "logs").glob("*.log"):
        text = log.read_text(errors="replace")
        assert not any(secret in text for secret in secrets), log.name
        assert "superuser privileges" not in text
