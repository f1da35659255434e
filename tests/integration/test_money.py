"""Money at the source's precision: bids finer than a cent, what cannot be kept, and what an older schema left."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync, target_performance
from tests.conftest import in_database
from tests.integration.test_metrics import ask, settle
from tests.integration.test_pipeline import add, campaigns, write
from worker import doctor, metrics, migrate, money, queries, screens, seals
from worker.celery import Servers
from worker.config import Settings
from worker.sink import Sink, quoted

BIDS = (Decimal("0.0075"), Decimal("0.1299"), Decimal("1.005"))
DAY = "2026-11-02"


def fine_bids(writer: Connection) -> list[int]:
    """Three campaigns whose bids have four decimals, with 1,000 impressions and clicks each."""
    write(writer, "ALTER TABLE campaign ALTER COLUMN bid TYPE numeric(12, 4)")
    ids = campaigns(writer)[:3]
    for campaign, bid in zip(ids, BIDS, strict=True):
        write(writer, "UPDATE campaign SET bid = %s WHERE id = %s", bid, campaign)
        for table in ("impressions", "clicks"):
            add(writer, table, campaign, 1000, at=f"{DAY}T08:00:00Z")
    return ids


@pytest.mark.parametrize(("model", "divisor"), [("cpc", 1), ("cpm", 1000), ("cpi", 1)])
def test_bids_finer_than_a_cent_are_paid_to_the_last_digit(
    servers: Servers, writer: Connection, model: str, divisor: int
) -> None:
    ids = fine_bids(writer)
    sync(servers)
    if model == "cpc":
        assert_agreement(writer, servers)
    changed = servers.settings.model_copy(update={"pricing_model": model})
    metrics.rebuild(servers.sink, changed, metrics.outdated_days(servers.sink, changed))
    expected = {campaign: bid * 1000 / divisor for campaign, bid in zip(ids, BIDS, strict=True)}
    assert {row[1]: row[4] for row in target_performance(servers)} == expected
    summary = ask(servers, "campaign_summary")
    assert {row["campaign_id"]: row["spend"] for row in summary} == expected
    # Under cpc the click costs the bid; a thousand impressions cost what was spent, which is the same count here.
    assert {row["campaign_id"]: row["cpm"] for row in summary} == expected
    # Ratios are rounded to six decimals, half away from zero.
    a_click = {c: (spend / 1000).quantize(Decimal("0.000001"), ROUND_HALF_UP) for c, spend in expected.items()}
    assert {row["campaign_id"]: row["cpc"] for row in summary} == a_click
    dimension = servers.sink.query("looking", "SELECT campaign_id, bid_amount FROM campaign_dimension")
    assert {campaign: bid for campaign, bid in dimension if campaign in ids} == dict(zip(ids, BIDS, strict=True))
    (total,) = servers.sink.query("adding", "SELECT sum(spend) FROM advertiser_daily")[0]
    assert total == sum(expected.values())


# What does not fit


@pytest.mark.parametrize(
    ("column", "kind", "value", "told"),
    [
        (
            "bid",
            "numeric(20, 8)",
            "0.12345678",
            "'0.12345678' does not fit, an amount has at most 12 digits before the point and 6 after it",
        ),
        ("bid", "numeric", "Infinity", "'Infinity' is no amount"),
        ("budget", "numeric", "1e17", "does not fit, an amount has at most 12 digits"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_cut(
    servers: Servers, writer: Connection, column: str, kind: str, value: str, told: str
) -> None:
    (campaign, *_) = campaigns(writer)
    sync(servers)
    write(writer, f"ALTER TABLE campaign ALTER COLUMN {column} TYPE {kind}")
    write(writer, f"UPDATE campaign SET {column} = %s WHERE id = %s", value, campaign)
    sync(servers)
    aside = "SELECT rule FROM quarantine WHERE stream = 'campaigns' AND event_id = %(id)s"
    ((rule,),) = servers.sink.query("looking", aside, {"id": campaign})
    assert rule.startswith(f"{column} cannot be loaded")
    assert told in rule
    kept = "SELECT bid_amount, budget_amount FROM campaign_dimension WHERE campaign_id = %(id)s"
    assert servers.sink.query("looking", kept, {"id": campaign}) == [(Decimal("0.47"), Decimal(100))]


def test_the_largest_amounts_come_back_exactly(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(writer, "ALTER TABLE campaign ALTER COLUMN bid TYPE numeric(18, 6), ALTER COLUMN budget TYPE numeric(18, 6)")
    write(writer, "UPDATE campaign SET bid = 999999999999.999999, budget = 100000000000.000001 WHERE id = %s", campaign)
    add(writer, "clicks", campaign, 1000, at=f"{DAY}T08:00:00Z")
    sync(servers)
    assert_agreement(writer, servers)
    kept = "SELECT bid_amount, budget_amount FROM campaign_dimension WHERE campaign_id = %(id)s"
    largest = (money.LARGEST, Decimal("100000000000.000001"))
    assert servers.sink.query("looking", kept, {"id": campaign}) == [largest]
    assert [row["spend"] for row in ask(servers, "campaign_summary")] == [money.LARGEST * 1000]


# What an older schema left


OLD_HASH = (
    "sum(cityHash64(campaign_id, impressions_count, clicks_count, toString(spend_amount), toString(pricing_model)))"
)
LAST_BEFORE = "0062"


def test_seals_of_an_older_schema_hold_after_the_upgrade(servers: Servers, writer: Connection, tmp_path: Path) -> None:
    """A database with the schema of before is filled with what it held of a sealed day, and migrated."""
    ids = campaigns(writer)
    for campaign in (*ids, None):
        add(writer, "impressions", campaign, 20, at=f"{DAY}T08:00:00Z")
        add(writer, "clicks", campaign, 3, at=f"{DAY}T08:00:00Z")
    sync(servers)
    settle(servers)
    day = date.fromisoformat(DAY)
    ((made, *_), _) = seals.seal(servers.source, servers.sink, servers.ledger, servers.settings, [day])

    earlier = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, earlier)
    for path in earlier.iterdir():
        if path.name >= LAST_BEFORE:
            path.unlink()
    database = f"{servers.sink.database}_old"
    settings = servers.settings.model_copy(
        update={"clickhouse_dsn": in_database(servers.settings.clickhouse_dsn, database)}
    )
    with contextlib.closing(Servers.open(settings)) as old:
        migrate.migrate(old.sink, settings, earlier)
        columns = (
            "date_id, campaign_id, impressions_count, clicks_count, spend_amount, ctr, cpm, cpc, impressions_by_hour, "
            "clicks_by_hour, pricing_model, updated_at"
        )
        old.sink.command(
            "as it was",
            f"INSERT INTO daily_campaign_performance ({columns}) SELECT {columns} "
            f"FROM {servers.sink.database}.daily_campaign_performance",
        )
        (kind,) = old.sink.query("looking", "SELECT toTypeName(any(spend_amount)) FROM daily_campaign_performance")[0]
        assert kind == "Decimal(38, 5)"
        (digest,) = old.sink.query("hashing", f"SELECT {OLD_HASH} FROM daily_campaign_performance")[0]
        names = [field.name for field in fields(seals.Seal)]
        old.sink.insert_rows("day_seals", names, [seals._row(replace(made, metrics_hash=digest))])
        assert migrate.migrate(old.sink, settings)
        found = seals.metrics_of(old.sink, day)
        assert (found.rows, found.content_hash, found.spend) == (made.metrics_rows, digest, made.spend)
        # The same again, with the events: nothing of the seal has changed, and no seal is made anew.
        sync(old)
        verdict = seals.verify(old.source, old.sink, old.ledger, settings, day)
        assert [part.name for part in verdict.parts if not part.holds] == []
        again, _ = seals.seal(old.source, old.sink, old.ledger, settings, [day])
        assert again == []
        old.sink.command("cleaning up", f"DROP DATABASE {database} SYNC")


def test_an_upgrade_keeps_what_was_there_and_can_be_killed_between_any_two_files(
    bare_settings: Settings, tmp_path: Path
) -> None:
    earlier = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, earlier)
    new = sorted(path.name for path in earlier.iterdir() if path.name >= LAST_BEFORE)
    for name in new:
        (earlier / name).unlink()
    with Sink(bare_settings) as sink:
        migrate.migrate(sink, bare_settings, earlier)
        sink.command(
            "a campaign",
            "INSERT INTO campaign_history (campaign_id, valid_from, bid_amount, budget_amount, _version) "
            "VALUES (1, '2026-01-01', 12345678.91, 99999999.99, 1)",
        )
        sink.command(
            "a word",
            "INSERT INTO daily_campaign_history (date_id, campaign_id, slot, said_at, spend_amount, spend_before, was_final) "
            f"VALUES ('{DAY}', 1, now(), now(), 12345678901234567890.12345, 1.5, true)",
        )
        for name in new:
            shutil.copy(migrate.MIGRATIONS / name, earlier / name)
            for _ in range(2):
                # Killed after it was applied and before that was noted: applied again at the next start.
                assert migrate.migrate(sink, bare_settings, earlier) == [name]
                sink.command(
                    "forgetting",
                    f"ALTER TABLE schema_migrations DELETE WHERE name = '{name}' SETTINGS mutations_sync = 2",
                )
            migrate.migrate(sink, bare_settings, earlier)
        assert sink.query("looking", "SELECT bid_amount, budget_amount FROM campaign_dimension") == [
            (Decimal("12345678.91"), Decimal("99999999.99"))
        ]
        said = "SELECT value_before, value_after FROM metric_restatements WHERE column_name = 'spend_amount'"
        assert sink.query("looking", said) == [(Decimal("1.5"), Decimal("12345678901234567890.12345"))]
        sink.command("cleaning up", f"DROP DATABASE {quoted(sink.database)} SYNC")


# What doctor says of it


def looked_at(servers: Servers) -> dict[str, tuple[str, str]]:
    found = doctor.examine(servers.settings, now=lambda: datetime.now(UTC), workers=dict, queues=frozenset())
    return {one.what: (one.state, f"{one.found} → {one.mend}") for one in found if one.about == "PostgreSQL"}


def test_doctor_finds_nothing_to_lose_in_the_schema_as_it_is(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    found = looked_at(servers)
    assert {what: found[what][0] for what in found if what.startswith("types ")} == {
        "types advertiser": "ok", "types campaign": "ok", "types impressions": "ok", "types clicks": "ok",
    }  # fmt: skip
    assert not [what for what in found if "." in what or what.startswith("campaign ")]


def test_doctor_names_columns_and_campaigns_that_lose_something(servers: Servers, writer: Connection) -> None:
    fine, large, _ = campaigns(writer)
    write(writer, "CREATE DOMAIN price AS numeric(20, 8)")
    write(writer, "ALTER TABLE campaign ALTER COLUMN bid TYPE price, ALTER COLUMN budget TYPE double precision")
    write(writer, "ALTER TABLE campaign ALTER COLUMN start_date TYPE timestamp")
    write(writer, "UPDATE campaign SET bid = 0.12345678 WHERE id = %s", fine)
    write(writer, "UPDATE campaign SET budget = 1e17 WHERE id = %s", large)
    write(writer, "INSERT INTO campaign (id, name, bid, budget) VALUES (0, 'none', 1, 1)")
    found = looked_at(servers)
    assert {what: state for what, (state, _) in found.items() if what.startswith("campaign")} == {
        "campaign.bid": "wrong", "campaign.budget": "wrong", "campaign.start_date": "note", "campaign 0": "wrong",
        f"campaign {fine}": "wrong", f"campaign {large}": "wrong",
    }  # fmt: skip
    assert "numeric(20,8) holds more than is kept" in found["campaign.bid"][1]
    assert "0.12345678, which has more than the 6 decimals that are kept → correct it" in found[f"campaign {fine}"][1]
    assert "cannot be told from no campaign" in found["campaign 0"][1]
    assert found["types clicks"][0] == "ok"


def test_bids_an_older_schema_cut_are_read_again_and_their_days_priced_anew(
    servers: Servers, writer: Connection
) -> None:
    """The row at the source is as it was: it is the same version, and not an edit from now on."""
    ids = fine_bids(writer)
    known = write(writer, "SELECT id, trunc(bid, 2), budget, updated_at FROM campaign WHERE id = ANY (%s)", ids)
    servers.sink.insert_rows(
        "campaign_history",
        (
            "campaign_id",
            "valid_from",
            "campaign_name",
            "bid_amount",
            "budget_amount",
            "updated_at",
            "loaded_at",
            "_version",
        ),
        [(c, at, "as it was", bid, budget, at, datetime(2026, 1, 1, tzinfo=UTC), 1) for c, bid, budget, at in known],
    )
    sync(servers)
    assert_agreement(writer, servers)
    versions = "SELECT campaign_id, bid_amount FROM campaign_history FINAL ORDER BY campaign_id"
    assert servers.sink.query("looking", versions) == [*zip(sorted(ids), BIDS, strict=True)]
    # An edit of a version that was read whole holds from its time on.
    write(writer, "UPDATE campaign SET bid = 0.0076 WHERE id = %s", ids[0])
    sync(servers)
    assert servers.sink.query("counting", "SELECT count() FROM campaign_history FINAL") == [(4,)]
    assert min(row[4] for row in target_performance(servers)) == Decimal("7.5")


# How it is written


def test_a_millionth_of_a_thousandth_is_written_in_digits_everywhere(
    servers: Servers, writer: Connection, tmp_path: Path
) -> None:
    (campaign, *_) = campaigns(writer)
    write(writer, "ALTER TABLE campaign ALTER COLUMN bid TYPE numeric(18, 6)")
    write(writer, "UPDATE campaign SET bid = 0.000001 WHERE id = %s", campaign)
    add(writer, "impressions", campaign, 1, at=f"{DAY}T08:00:00Z")
    sync(servers)
    changed = servers.settings.model_copy(update={"pricing_model": "cpm"})
    metrics.rebuild(servers.sink, changed, metrics.outdated_days(servers.sink, changed))
    answer = queries.run(servers.sink, queries.find("campaign_summary"), {})
    place = answer.columns.index("spend")
    assert answer.rows[0][place] == Decimal("0.000000001")
    for form in ("csv", "json", "table", "parquet"):
        screens.answer(answer, form, tmp_path / form)
    assert next(csv.DictReader((tmp_path / "csv").open()))["spend"] == "0.000000001"
    assert json.loads((tmp_path / "json").read_text())[0]["spend"] == "0.000000001"
    assert "0.000000001" in (tmp_path / "table").read_text()
    assert pq.read_table(tmp_path / "parquet")["spend"].to_pylist() == [Decimal("0.000000001")]
    exact = "SELECT toString(%(amount)s), %(amount)s = spend FROM (SELECT sum(spend_amount) AS spend FROM daily_campaign_performance)"
    assert servers.sink.query("asking", exact, {"amount": answer.rows[0][place]}) == [("0.000000001", 1)]
