"""`reconcile`, `replay` and `verify` as people call them: what they print, and their exit codes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.e2e.test_cli import command, told
from tests.integration.test_reconcile import fill, lose, silently, write
from worker import metrics
from worker.celery import Servers
from worker.streams import STREAMS
from worker.tasks.seals import seal_due

IMPRESSIONS = STREAMS["impressions"]


@pytest.fixture
def filled(servers: Servers, writer: Connection) -> Servers:
    fill(writer)
    sync(servers)
    return servers


def test_reconcile_says_what_differs_and_mends_it(filled: Servers, writer: Connection) -> None:
    settings = filled.settings
    equal = command(settings, "reconcile")
    assert equal.returncode == 0, equal.stderr
    assert "impressions: 600 events of 4 days" in equal.stdout
    assert equal.stdout.count("both sides hold the same") == 2
    write(writer, "DELETE FROM impressions WHERE id = 4")
    silently(writer, "UPDATE clicks SET campaign_id = 5 WHERE id = 2")
    found = command(settings, "reconcile")
    assert "reconcile --heal" in told(found, 3)
    assert "1 extra" in found.stdout
    assert "1 stale" in found.stdout
    one = command(settings, "reconcile", "--stream", "clicks", "--from", "2026-11-16", "--json")
    assert one.returncode == 0
    shown = json.loads(one.stdout)
    assert [day["day"] for day in shown["streams"]["clicks"]["days"]] == ["2026-11-16", "2026-11-17", "2026-11-18"]
    failed = command(settings, "reconcile", "--json", "--to", "2026-11-15")
    assert failed.returncode == 3
    defects = json.loads(failed.stdout)["streams"]["impressions"]["defects"]
    assert [(defect["event_id"], defect["cause"], defect["source"]) for defect in defects] == [(4, "extra", None)]
    mended = command(settings, "reconcile", "--heal")
    assert mended.returncode == 0, mended.stderr
    assert mended.stdout.count("1 differed and were mended") == 2
    assert command(settings, "reconcile").returncode == 0


def test_reconcile_mends_no_more_than_it_may(filled: Servers, writer: Connection) -> None:
    write(writer, "DELETE FROM impressions WHERE id < 10")
    refused = command(filled.settings, "reconcile", "--heal", RECONCILE_HEAL_LIMIT="5")
    assert "it was not mended" in told(refused, 3)
    assert "RECONCILE_HEAL_LIMIT (5)" in refused.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reconcile", "--from", "yesterday"), "--from takes a day"),
        (("reconcile", "--from", "2026-11-17", "--to", "2026-11-16"), "before the first"),
        (("reconcile", "--stream", "campaigns"), "read whole"),
        (("replay", "--from", "2026-11-17"), "--to"),
        (("replay", "--from", "2026-11-17", "--to", "then"), "--to: 'then' is not an instant"),
        (("replay", "--from", "2026-11-17", "--to", "2026-11-17"), "end after it begins"),
        (("verify", "someday"), "takes a day"),
    ],
)
def test_wrong_usage_is_one_sentence(filled: Servers, arguments: tuple[str, ...], words: str) -> None:
    assert words in told(command(filled.settings, *arguments), 2)


def test_replay_shows_and_brings_over(filled: Servers, writer: Connection) -> None:
    settings = filled.settings
    lose(filled, IMPRESSIONS, [1, 2])
    days = ("--from", "2000-01-01", "--to", "2100-01-01")
    shown = command(settings, "replay", *days, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "impressions: 600 rows read again; 2 missing; nothing was changed." in shown.stdout
    assert "clicks: 200 rows read again; ClickHouse holds the same." in shown.stdout
    assert "+2" in shown.stdout
    done = json.loads(command(settings, "replay", *days, "--json", "--stream", "impressions").stdout)
    assert (done["impressions"]["missing"], done["impressions"]["applied"]) == (2, True)
    assert_agreement(writer, filled)
    later = command(settings, "replay", "--from", "2099-01-01T00:00Z", "--to", "2099-01-02T00:00Z")
    assert "nothing to replay" in told(later, 2)


def test_verify_says_sealed_or_which_part_differs(filled: Servers, writer: Connection) -> None:
    settings = filled.settings
    assert "has no seal" in told(command(settings, "verify", "2026-11-15"), 1)
    metrics.note_finality(filled.sink, settings, datetime(2026, 11, 18, tzinfo=UTC) + timedelta(hours=120))
    seal_due(filled)
    held = command(settings, "verify", "2026-11-15")
    assert held.returncode == 0, held.stderr
    assert "The day is as it was sealed." in held.stdout
    assert "Seal 1 of 2026-11-15" in held.stdout
    write(writer, "DELETE FROM impressions WHERE id = 4")
    broken = command(settings, "verify", "2026-11-15")
    assert "impressions: rows, impressions: content" in told(broken, 3)
    content = json.loads(command(settings, "verify", "2026-11-15", "--json").stdout)
    assert not content["sealed"]
    assert content["seal"]["number"] == 1
    assert [part["name"] for part in content["parts"] if not part["holds"]] == [
        "impressions: rows",
        "impressions: content",
    ]


def test_sealed_days_are_taken_from_only_when_asked_for(filled: Servers, writer: Connection) -> None:
    settings = filled.settings
    metrics.note_finality(
        filled.sink, settings, datetime(2026, 11, 18, tzinfo=UTC) + timedelta(hours=settings.finality_hours)
    )
    seal_due(filled)
    write(writer, "DELETE FROM impressions WHERE id = 4")
    left = command(settings, "reconcile", "--heal", "--stream", "impressions")
    assert left.returncode == 3
    assert "1 events that the source no longer has lie on sealed days" in " ".join(left.stdout.split())
    alone = command(settings, "reconcile", "--sealed")
    assert "--heal" in told(alone, 2)
    window = ("--from", "2020-01-01", "--to", "2100-01-01", "--stream", "impressions")
    replayed = json.loads(command(settings, "replay", *window, "--json").stdout)["impressions"]
    assert (replayed["left_on_sealed_days"], replayed["extra"]) == (1, 0)
    kept = json.loads(command(settings, "reconcile", "--json", SOURCE_KEEPS_DAYS="1").stdout)["streams"]["impressions"]
    assert (kept["agrees"], kept["no_longer_kept_at_the_source"]) == (True, 1)
    mended = command(settings, "reconcile", "--heal", "--sealed")
    assert mended.returncode == 0, mended.stderr
    assert_agreement(writer, filled)
