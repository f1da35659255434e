"""The `seed` commands as a person meets them: output, error sentences, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click.testing
import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from seed import cli
from worker.errors import RetailMediaError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def conn(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A look at the database the commands work on; nothing is in it yet."""
    monkeypatch.setenv("POSTGRES_DSN", postgres_dsn)
    with closing(psycopg2.connect(postgres_dsn)) as connection:
        connection.autocommit = True
        yield connection


def run(*args: str, answer: str | None = None) -> str:
    """The output of a command that succeeds."""
    result = click.testing.CliRunner().invoke(cli.seed_group, args, input=answer, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: str) -> tuple[int, str]:
    """Exit code and sentence of a command that fails on purpose."""
    with pytest.raises(RetailMediaError) as failure:
        click.testing.CliRunner().invoke(cli.seed_group, args, catch_exceptions=False)
    return failure.value.exit_code, str(failure.value)


def value(conn: Connection, query: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    assert row is not None
    return row[0]


def test_batch_has_the_original_defaults(conn: Connection) -> None:
    told = run("batch")
    assert told == "Added 2 advertisers (ids 1 to 2), 6 campaigns (ids 1 to 6), 600 impressions, 60 clicks.\n"
    assert value(conn, "SELECT count(*) FROM clicks") == 60


def test_commands_build_on_one_another(conn: Connection) -> None:
    assert run("advertisers", "--count", "2") == "Added 2 advertisers (ids 1 to 2).\n"
    assert run("campaigns", "--advertiser-id", "2", "--count", "1") == "Added 1 campaign (id 1).\n"
    assert run("impressions", "--campaign-id", "1", "--count", "1000") == "Added 1,000 impressions.\n"
    assert run("clicks", "--campaign-id", "1", "--ratio", "0.05") == "Added 50 clicks.\n"
    assert run("impressions", "--campaign-id", "1", "--count", "0") == "Added nothing.\n"
    assert run("clicks", "--campaign-id", "1", "--ratio", "0.001") == "Added 1 click.\n"
    assert value(conn, "SELECT advertiser_id FROM campaign") == 2
    found = json.loads(run("stats", "--json"))
    assert {key: found[key] for key in ("advertisers", "campaigns", "impressions", "clicks", "ctr")} == {
        "advertisers": 2,
        "campaigns": 1,
        "impressions": 1000,
        "clicks": 51,
        "ctr": 0.051,
    }
    assert found["budget"] == str(value(conn, "SELECT budget FROM campaign"))


def test_stats_of_an_empty_source(conn: Connection) -> None:
    told = run("stats")
    assert re.search(r"^Impressions\s+0$", told, re.MULTILINE)
    assert re.search(r"^CTR\s+none$", told, re.MULTILINE)
    assert re.search(r"^First event\s+none$", told, re.MULTILINE)
    assert json.loads(run("stats", "--json"))["first_event_at"] is None


def test_stats_show_shares_and_times(conn: Connection) -> None:
    run("batch", "--impressions", "1000", "--ctr", "0.004", "--now", "2026-03-11T12:00:00Z")
    told = run("stats")
    assert re.search(r"^Impressions\s+6,000$", told, re.MULTILINE)
    assert re.search(r"^CTR\s+0\.400%$", told, re.MULTILINE)
    assert re.search(r"^First event\s+2026-03-03 \d\d:\d\d:\d\d UTC$", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (
            ["batch", "--impressions", "5"],
            {"advertiser_ids": [1, 2], "campaign_ids": [1, 2, 3, 4, 5, 6], "impressions": 30},
        ),
        (["advertisers", "--count", "3"], {"advertiser_ids": [1, 2, 3], "impressions": 0}),
        (["history", "--events", "0", "--campaigns", "2", "--advertisers", "1"], {"campaign_ids": [1, 2], "clicks": 0}),
    ],
)
def test_json_is_one_object_on_stdout(conn: Connection, args: list[str], keys: dict[str, Any]) -> None:
    shown = json.loads(run(*args, "--json"))
    assert {key: shown[key] for key in keys} == keys
    assert set(shown) == {"advertiser_ids", "campaign_ids", "impressions", "clicks"}


def test_seed_and_now_repeat_a_run(conn: Connection) -> None:
    def made(seed: str) -> tuple[Any, Any]:
        run("reset", "--yes")
        run("batch", "--seed", seed, "--now", "2026-03-11T12:00:00+01:00")
        return (
            value(conn, "SELECT array_agg(name ORDER BY id) FROM campaign"),
            value(conn, "SELECT array_agg(created_at ORDER BY id) FROM impressions"),
        )

    first = made("5")
    assert made("5") == first
    assert made("6")[0] != first[0]


def test_history_in_bulk(conn: Connection) -> None:
    told = run(
        "history",
        "--events",
        "3000",
        "--days",
        "10",
        "--campaigns",
        "5",
        "--advertisers",
        "2",
        "--batch-rows",
        "500",
        "--seed",
        "1",
        "--now",
        "2026-03-11T12:00:00Z",
    )
    assert told.startswith("Added 2 advertisers (ids 1 to 2), 5 campaigns (ids 1 to 5), ")
    events = value(conn, "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM clicks)")
    assert 2_900 < events <= 3_050
    assert value(conn, "SELECT count(*) FROM (SELECT FROM impressions GROUP BY inserted_at) AS e") == -(-events // 500)


def test_reset_asks_first(conn: Connection) -> None:
    run("batch")
    denied = click.testing.CliRunner().invoke(cli.seed_group, ["reset"], input="n\n")
    assert denied.exit_code == 1
    assert "Delete all advertising data in " in denied.stderr
    assert value(conn, "SELECT count(*) FROM campaign") == 6
    assert "--full-refresh" in run("reset", answer="y\n")
    assert value(conn, "SELECT count(*) FROM campaign") == 0


def test_reset_told_yes_does_not_ask(conn: Connection) -> None:
    run("batch")
    assert json.loads(run("reset", "--yes", "--json"))["reset"].endswith("/" + value(conn, "SELECT current_database()"))
    assert value(conn, "SELECT count(*) FROM campaign") == 0


def test_the_schema_is_made_where_it_is_missing(conn: Connection) -> None:
    first = click.testing.CliRunner().invoke(cli.seed_group, ["stats", "--json"])
    assert "Created the source schema in " in first.stderr
    again = click.testing.CliRunner().invoke(cli.seed_group, ["stats", "--json"])
    assert again.stderr == ""


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["campaigns", "--advertiser-id", "99"], "There is no advertiser 99: create one with `seed advertisers --count 1`, which prints its id."),
        (["impressions", "--campaign-id", "99"], "There is no campaign 99: create one with `seed campaigns --advertiser-id ID --count 1`, which prints its id."),
        (["clicks", "--campaign-id", "-1"], "There is no campaign -1: create one with `seed campaigns --advertiser-id ID --count 1`, which prints its id."),
        (["impressions", "--campaign-id", "9" * 30], f"There is no campaign {'9' * 30}: create one with `seed campaigns --advertiser-id ID --count 1`, which prints its id."),
        (["advertisers", "--count", "-1"], "count must be 0 or more, not -1."),
        (["campaigns", "--advertiser-id", "1", "--count", "-1"], "count must be 0 or more, not -1."),
        (["impressions", "--campaign-id", "1", "--count", "-5"], "count must be 0 or more, not -5."),
        (["impressions", "--campaign-id", "1", "--count", "9" * 20], f"count must be at most 1,000,000,000,000, not {int('9' * 20):,}."),
        (["impressions", "--campaign-id", "1", "--days", "0"], "days must be 1 or more, not 0."),
        (["clicks", "--campaign-id", "1", "--ratio", "1.5"], "ratio must lie between 0 and 1, not 1.5: 0.004 is one click in 250 impressions."),
        (["clicks", "--campaign-id", "1", "--ratio", "nan"], "ratio must lie between 0 and 1, not nan: 0.004 is one click in 250 impressions."),
        (["batch", "--ctr", "-0.1"], "ctr must lie between 0 and 1, not -0.1: 0.004 is one click in 250 impressions."),
        (["batch", "--advertisers", "-2"], "advertisers must be 0 or more, not -2."),
        (["batch", "--campaigns", "-3"], "campaigns must be 0 or more, not -3."),
        (["batch", "--impressions", "-1"], "impressions must be 0 or more, not -1."),
        (["batch", "--advertisers", "2000", "--campaigns", "2000"], "advertisers × campaigns must be at most 1,000,000, not 4,000,000."),
        (["batch", "--batch-rows", "0"], "batch_rows must be 1 or more, not 0."),
        (["history", "--events", "-1"], "events must be 0 or more, not -1."),
        (["history", "--days", "5000"], "days must be at most 3,650, not 5,000."),
        (["stream", "--rate", "0"], "rate must be a number of impressions a second above 0, up to a million, not 0."),
        (["stream", "--duration", "inf"], "duration must be a number of seconds above 0, not inf."),
        (["stream"], "No campaign is in flight today, so there is no traffic to write: create some with `seed batch`."),
        (["batch", "--now", "yesterday"], "--now must be a time with its zone, such as 2026-03-01T12:00:00Z, not 'yesterday'."),
        (["batch", "--now", "2026-03-01T12:00:00"], "--now must be a time with its zone, such as 2026-03-01T12:00:00Z, not '2026-03-01T12:00:00'."),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_writes_nothing(conn: Connection, args: list[str], sentence: str) -> None:
    assert refused(*args) == (2, sentence)
    left = "SELECT (SELECT count(*) FROM advertiser) + (SELECT count(*) FROM campaign) + (SELECT count(*) FROM impressions)"
    assert value(conn, left) == 0


def test_now_may_not_lie_in_the_future(conn: Connection) -> None:
    code, sentence = refused("batch", "--now", "2999-01-01T00:00:00Z")
    assert code == 2
    assert sentence.startswith("--now must not lie in the future; by the server's clock it is 2")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://planner:hunter2@127.0.0.1:1/ads",
        "host=127.0.0.1 port=1 dbname=ads user=planner password=hunter2",
    ],
)
def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("POSTGRES_DSN", dsn)
    code, sentence = refused("stats")
    assert code == 4
    assert sentence.startswith("PostgreSQL at 127.0.0.1:1/ads cannot be reached (")
    assert sentence.endswith("check that it runs and that POSTGRES_DSN is right.")
    assert "hunter2" not in sentence
    assert "\n" not in sentence


def test_a_dsn_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DSN", "postgres server hunter2")
    assert refused("stats") == (2, "POSTGRES_DSN must read postgresql://user:password@host:5432/database.")


def test_a_role_that_may_not_write(conn: Connection, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run("batch")
    role = "reader_" + value(conn, "SELECT md5(current_database())")[:10]
    with conn.cursor() as cursor:
        cursor.execute(
            f"CREATE ROLE {role}; GRANT {role} TO CURRENT_USER; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        )
    try:
        monkeypatch.setenv("PGOPTIONS", f"-c role={role}")
        assert json.loads(run("stats", "--json"))["campaigns"] == 6
        code, sentence = refused("impressions", "--campaign-id", "1")
        assert code == 1
        assert sentence.startswith("PostgreSQL refused a statement: permission denied for table impressions; grant ")
    finally:
        with conn.cursor() as cursor:
            cursor.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_lost_connection_says_what_stays(conn: Connection) -> None:
    cutting = """
        CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
        CREATE TRIGGER cut AFTER INSERT ON impressions FOR EACH STATEMENT EXECUTE FUNCTION cut();
    """
    run("advertisers")
    with conn.cursor() as cursor:
        cursor.execute(cutting)
    code, sentence = refused("batch")
    assert code == 4
    assert "The connection to PostgreSQL was lost" in sentence
    assert value(conn, "SELECT count(*) FROM impressions") == 0
    assert value(conn, "SELECT count(*) FROM campaign") == 6


def test_main_prints_errors_and_exits_with_their_code(conn: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["impressions", "--campaign-id", "7"])
    assert left.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("Error: There is no campaign 7: ")


def test_ctrl_c_ends_a_stream_cleanly_with_its_total(conn: Connection, postgres_dsn: str) -> None:
    run("batch", "--impressions", "0")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "stream", "--rate", "200", "--duration", "3600", "--json"],
        env={**os.environ, "POSTGRES_DSN": postgres_dsn},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not value(conn, "SELECT count(*) FROM impressions"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (0, "")
    added = json.loads(out)
    assert added["impressions"] == value(conn, "SELECT count(*) FROM impressions") > 0
    assert added["clicks"] == value(conn, "SELECT count(*) FROM clicks")
