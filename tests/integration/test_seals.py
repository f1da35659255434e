"""Days sealed when they are final, looked at again, and sealed anew when they were restated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import rebuild, sync
from tests.integration.test_reconcile import fill, lose, plant_row, silently, write
from worker import metrics, seals
from worker.celery import Servers
from worker.errors import RetailMediaError
from worker.seals import Seal, Verdict
from worker.streams import STREAMS
from worker.tasks.reconcile import compare
from worker.tasks.seals import seal_due

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
DAY, NEXT = date(2026, 11, 15), date(2026, 11, 16)
AFTER = datetime(2026, 11, 18, tzinfo=UTC)


def declare_final(servers: Servers, through: datetime = AFTER) -> None:
    metrics.note_finality(servers.sink, servers.settings, through + timedelta(hours=servers.settings.finality_hours))


@pytest.fixture
def sealed(servers: Servers, writer: Connection) -> Servers:
    """Three days final and sealed, the fourth not final yet."""
    fill(writer)
    sync(servers)
    declare_final(servers)
    assert seal_due(servers) == {"sealed": 3, "renewed": 0}
    return servers


def verdict(servers: Servers, day: date = DAY) -> Verdict:
    return seals.verify(servers.source, servers.sink, servers.ledger, servers.settings, day)


def broken(found: Verdict) -> set[str]:
    return {part.name for part in found.parts if not part.holds}


def last(servers: Servers, day: date = DAY) -> Seal:
    found = seals.last_seal(servers.sink, day)
    assert found is not None
    return found


def test_a_seal_says_what_the_day_held(sealed: Servers, writer: Connection) -> None:
    found = last(sealed)
    for place, table in enumerate(("impressions", "clicks")):
        rows = write(
            writer,
            f"SELECT count(*), min(id), max(id) FROM {table} WHERE created_at >= %s AND created_at < %s",
            DAY,
            NEXT,
        )[0]
        assert (found.rows[place], found.first_ids[place], found.last_ids[place]) == rows
    spend = write(
        writer,
        "SELECT sum(bid) FROM clicks JOIN campaign ON campaign.id = campaign_id "
        "WHERE clicks.created_at >= %s AND clicks.created_at < %s",
        DAY,
        NEXT,
    )[0][0]
    assert (found.spend, found.pricing_model, found.reporting_timezone) == (spend, "cpc", "UTC")
    assert (found.number, found.replaces, found.code_version) == (1, 0, seals.code_version())
    with sealed.source.snapshot() as snapshot:
        assert (found.source_system_id, found.source_timeline) == (snapshot.system_id, snapshot.timeline)
        assert 0 < found.source_snapshot <= snapshot.version(1)
    assert len({last(sealed, DAY + timedelta(days=n)).content_hashes for n in range(3)}) == 3


def test_a_day_as_it_was_is_sealed(sealed: Servers) -> None:
    for number in range(3):
        found = verdict(sealed, DAY + timedelta(days=number))
        assert found.holds
        assert found.notes == ()
        assert len(found.parts) == 11
    assert seal_due(sealed) == {"sealed": 0, "renewed": 0}


def test_a_day_that_is_not_final_has_no_seal(sealed: Servers) -> None:
    with pytest.raises(RetailMediaError, match="2026-11-18 has no seal"):
        verdict(sealed, date(2026, 11, 18))


def test_nothing_is_sealed_before_any_day_is_final(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    assert seal_due(servers) == {"sealed": 0}


def of_source(stream: str) -> set[str]:
    return {f"{stream}: rows", f"{stream}: content"}


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (lambda s, w: write(w, "DELETE FROM impressions WHERE id = 5"), of_source("impressions")),
        (lambda s, w: write(w, "DELETE FROM clicks WHERE id = 1"), {*of_source("clicks"), "clicks: ids"}),
        (lambda s, w: silently(w, "UPDATE clicks SET campaign_id = 5 WHERE id = 2"), {"clicks: content"}),
        (
            lambda s, w: silently(w, "UPDATE impressions SET created_at = created_at + interval '1 us' WHERE id = 6"),
            {"impressions: content"},
        ),
        (lambda s, w: lose(s, IMPRESSIONS, [7]), of_source("impressions")),
        (lambda s, w: plant_row(s, CLICKS, 3, campaign="5", version="_version + 1"), {"clicks: content"}),
        (
            lambda s, w: s.sink.command(
                "breaking",
                "ALTER TABLE daily_campaign_performance UPDATE clicks_count = clicks_count + 1 "
                "WHERE date_id = '2026-11-15' AND campaign_id = 2 SETTINGS mutations_sync = 2",
            ),
            {"metrics: content"},
        ),
        (
            lambda s, w: s.sink.command(
                "breaking",
                "ALTER TABLE daily_campaign_performance UPDATE spend_amount = spend_amount + toDecimal128('0.00001', 5) "
                "WHERE date_id = '2026-11-15' AND campaign_id = 2 SETTINGS mutations_sync = 2",
            ),
            {"metrics: content", "metrics: spend"},
        ),
        (
            lambda s, w: s.sink.command(
                "breaking",
                "ALTER TABLE daily_campaign_performance DELETE WHERE date_id = '2026-11-15' AND campaign_id = 0 "
                "SETTINGS mutations_sync = 2",
            ),
            {"metrics: rows", "metrics: content"},
        ),
        (
            lambda s, w: s.sink.command(
                "breaking",
                "ALTER TABLE daily_campaign_performance UPDATE pricing_model = 'cpm' "
                "WHERE date_id = '2026-11-15' SETTINGS mutations_sync = 2",
            ),
            {"metrics: content", "pricing model"},
        ),
        (
            lambda s, w: setattr(
                s, "settings", s.settings.model_copy(update={"reporting_timezone": "America/New_York"})
            ),
            {"time zone"},
        ),
    ],
    ids=[
        "deleted at the source", "first one deleted", "campaign changed at the source", "time changed at the source",
        "lost in the target", "changed in the target", "counts", "spend", "a campaign gone", "pricing model", "time zone",
    ],
)  # fmt: skip
def test_the_part_that_differs_is_named(
    sealed: Servers, writer: Connection, break_it: Callable[[Servers, Connection], object], parts: set[str]
) -> None:
    break_it(sealed, writer)
    assert broken(verdict(sealed)) == parts
    assert verdict(sealed, NEXT).holds or parts == {"time zone"}


def test_which_side_differs_is_told(sealed: Servers, writer: Connection) -> None:
    lose(sealed, IMPRESSIONS, [7])
    part = next(part for part in verdict(sealed).parts if part.name == "impressions: rows")
    assert part.source == part.sealed == part.target + 1


def test_another_version_of_the_program_is_only_noted(sealed: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "code_version", lambda: "9.9")
    found = verdict(sealed)
    assert found.holds
    assert len(found.notes) == 1
    assert "9.9" in found.notes[0]


def test_a_restated_day_gets_a_seal_that_names_the_one_before(sealed: Servers, writer: Connection) -> None:
    first = last(sealed)
    # Late: it happened on a day that is sealed.
    write(writer, "INSERT INTO clicks (id, campaign_id, created_at) VALUES (77777, 3, '2026-11-15T23:00:00Z')")
    sync(sealed)
    assert broken(verdict(sealed)) >= {"clicks: rows", "clicks: ids", "clicks: content", "metrics: spend"}
    assert seal_due(sealed) == {"sealed": 1, "renewed": 1}
    second = last(sealed)
    assert (second.number, second.replaces) == (2, 1)
    assert second.rows == (first.rows[0], first.rows[1] + 1)
    assert second.spend == first.spend + Decimal("0.81")
    assert verdict(sealed).holds
    kept = sealed.sink.query("reading", "SELECT number, replaces FROM day_seals FINAL WHERE date_id = '2026-11-15'")
    assert sorted(kept) == [(1, 0), (2, 1)]
    assert seal_due(sealed) == {"sealed": 0, "renewed": 0}


def test_a_day_rebuilt_to_the_same_keeps_its_seal(sealed: Servers) -> None:
    before = last(sealed)
    sealed.ledger.mark_days([DAY])
    rebuild(sealed)
    assert seals.due(sealed.sink, NEXT) == [DAY]
    assert seal_due(sealed) == {"sealed": 0, "renewed": 0}
    assert seals.due(sealed.sink, NEXT) == []
    after = last(sealed)
    assert after.looked_at > before.looked_at
    assert {f.name for f in fields(Seal) if getattr(before, f.name) != getattr(after, f.name)} == {"looked_at"}


def test_a_day_on_which_the_sides_differ_waits(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    declare_final(servers)
    lose(servers, IMPRESSIONS, [5])
    assert seal_due(servers) == {"sealed": 2, "renewed": 0, "sides_differ": ["2026-11-15"]}
    assert seals.last_seal(servers.sink, DAY) is None
    assert compare(servers, IMPRESSIONS, heal=True).agrees
    assert seal_due(servers) == {"sealed": 1, "renewed": 0}
    assert verdict(servers).holds


def test_a_day_not_rebuilt_yet_waits(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    declare_final(servers)
    servers.ledger.mark_days([NEXT])
    assert seal_due(servers) == {"sealed": 2, "renewed": 0}
    rebuild(servers)
    assert seal_due(servers) == {"sealed": 1, "renewed": 0}
