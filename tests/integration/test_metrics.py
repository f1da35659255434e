"""What the numbers mean: prices, days, finality, and the record of what days said."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import rebuild, source_performance, sync, target_performance
from tests.integration.test_pipeline import add, campaigns, write
from tests.integration.test_refresh import fill, finish, started
from worker import metrics, migrate, pipeline, queries, standing
from worker.celery import Servers
from worker.config import Settings
from worker.errors import TransientSink
from worker.sink import Sink
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window

IMPRESSIONS = STREAMS["impressions"]
DAY = "2026-11-02"


def ask(servers: Servers, name: str, **parameters: str) -> list[dict[str, Any]]:
    answer = queries.run(servers.sink, queries.find(name), parameters)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def settle(servers: Servers) -> date:
    """Declares final what may be, as the sweep does."""
    complete = standing.complete_through(servers.source, servers.ledger, EVENT_STREAMS)
    return metrics.note_finality(servers.sink, servers.settings, complete)


def restated(servers: Servers) -> set[tuple[str, int, str, Decimal, Decimal, str]]:
    return {
        (
            str(row["date_id"]), row["campaign_id"], row["column_name"].split("_")[0], row["value_before"],
            row["value_after"], row["cause"],
        )
        for row in ask(servers, "restatements")
    }  # fmt: skip


def said(servers: Servers) -> list[Any]:
    """What the record says last, in the form of `target_performance`."""
    rows = ask(servers, "campaign_daily", limit="100000")
    found = [tuple(row[name] for name in ("date_id", "campaign_id", "impressions", "clicks", "spend")) for row in rows]
    return sorted(found)


# Prices


def test_a_bid_edited_mid_month_prices_each_half_with_its_own(servers: Servers, writer: Connection) -> None:
    middle = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=10)
    (campaign, *_) = campaigns(writer)
    begun = middle - timedelta(days=20)
    write(writer, "UPDATE campaign SET bid = 0.37, updated_at = %s WHERE id = %s", begun, campaign)
    for offset, count in (
        (timedelta(days=-9), 11),
        (timedelta(seconds=-1), 3),
        (timedelta(0), 5),
        (timedelta(days=9), 7),
    ):
        write(
            writer,
            "INSERT INTO clicks (campaign_id, created_at) SELECT %s, %s FROM generate_series(1, %s)",
            campaign,
            middle + offset,
            count,
        )
    sync(servers)
    assert [row[4] for row in target_performance(servers)] == [Decimal(n) * Decimal("0.37") for n in (11, 8, 7)]
    write(writer, "UPDATE campaign SET bid = 1.25, updated_at = %s WHERE id = %s", middle, campaign)
    sync(servers)
    # 11 x 0.37 = 4.07; on the day itself 3 x 0.37 + 5 x 1.25 = 7.36; 7 x 1.25 = 8.75
    assert [row[4] for row in target_performance(servers)] == [Decimal("4.07"), Decimal("7.36"), Decimal("8.75")]
    assert metrics.outdated_days(servers.sink, servers.settings) == []


def test_another_pricing_model_makes_every_day_outdated(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)  # its bid is 0.47
    for day in (3, 4, 5):
        add(writer, "impressions", campaign, 1000, at=f"2026-11-0{day}T08:00:00Z")
    sync(servers)
    assert {row[4] for row in target_performance(servers)} == {Decimal(0)}
    for model, spend in (("cpm", Decimal("0.47")), ("cpi", Decimal("470"))):
        changed = servers.settings.model_copy(update={"pricing_model": model})
        days = metrics.outdated_days(servers.sink, changed)
        assert [day.day for day in days] == [5, 4, 3]
        metrics.rebuild(servers.sink, changed, days)
        assert {row[4] for row in target_performance(servers)} == {spend}
        assert {row["pricing_model"] for row in ask(servers, "campaign_summary")} == {model}
        assert metrics.outdated_days(servers.sink, changed) == []


# Days


def test_scattered_days_are_built_in_one_statement_and_each_event_has_the_bid_of_its_moment(
    settings: Settings, writer: Connection
) -> None:
    with contextlib.closing(
        Servers.open(settings.model_copy(update={"reporting_timezone": "America/New_York"}))
    ) as here:
        migrate.migrate(here.sink, here.settings)
        (campaign, other, *_) = campaigns(writer)
        noon = datetime(2026, 3, 8, 16, tzinfo=UTC)  # of a day of 23 hours there
        write(
            writer, "UPDATE campaign SET bid = 0.5, updated_at = %s WHERE id = %s", noon - timedelta(days=90), campaign
        )
        write(writer, "UPDATE campaign SET bid = 3, updated_at = %s WHERE id = %s", noon - timedelta(days=90), other)
        sync(here)
        # Midnight there, a moment before it, and the middle of the day; far before and far after.
        moments = [datetime(2026, 3, 8, 5, tzinfo=UTC), datetime(2026, 3, 8, 4, 59, 59, tzinfo=UTC)]
        moments += [noon - timedelta(microseconds=1), noon, noon - timedelta(days=40), noon + timedelta(days=60)]
        for moment in moments:
            for each in (campaign, other):
                write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, %s)", each, moment)
        write(writer, "UPDATE campaign SET bid = 2, updated_at = %s WHERE id = %s", noon, campaign)
        sync(here, metrics_update=False)
        days = metrics.dirty_days(here.sink)
        assert [str(day) for day in days] == ["2026-05-07", "2026-03-08", "2026-03-07", "2026-01-27"]
        assert len(metrics.batches(sorted(days))) == 1
        metrics.rebuild(here.sink, here.settings, days)
        spend = {(str(day), c): (clicks, spent) for day, c, _, clicks, spent in target_performance(here)}
    half, two, three = Decimal("0.5"), Decimal(2), Decimal(3)
    assert spend == {
        ("2026-01-27", campaign): (1, half), ("2026-01-27", other): (1, three),
        ("2026-03-07", campaign): (1, half), ("2026-03-07", other): (1, three),
        ("2026-03-08", campaign): (3, 2 * half + two), ("2026-03-08", other): (3, 3 * three),
        ("2026-05-07", campaign): (1, two), ("2026-05-07", other): (1, three),
    }  # fmt: skip


def test_days_that_are_too_much_together_are_parted_and_the_newest_come_first(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (campaign, *_) = campaigns(writer)
    for day in (1, 4, 7, 10, 13):
        add(writer, "impressions", campaign, 10, at=f"2026-11-{day:02}T08:00:00Z")
    sync(servers, metrics_update=False)
    built: list[int] = []
    whole = metrics._rebuild_batch

    def limited(sink: Sink, settings: Settings, days: list[date]) -> metrics.Rebuilt:
        if len(days) > 2:
            raise TransientSink("ClickHouse failed while building metrics: Timeout exceeded (code 159).", code=159)
        built.extend(day.day for day in days)
        return whole(sink, settings, days)

    monkeypatch.setattr(metrics, "_rebuild_batch", limited)
    assert metrics.rebuild(servers.sink, servers.settings, metrics.dirty_days(servers.sink)).days == 5
    assert built == [10, 13, 7, 1, 4]
    assert target_performance(servers) == source_performance(writer)


@pytest.mark.parametrize(
    ("day", "hours", "doubled"),
    [("2026-03-29", 23, None), ("2026-10-25", 25, 2), ("2026-06-10", 24, None)],
)
def test_days_of_23_and_25_hours(
    bare_settings: Settings, writer: Connection, day: str, hours: int, doubled: int | None
) -> None:
    settings = bare_settings.model_copy(update={"reporting_timezone": "Europe/Berlin"})
    with contextlib.closing(Servers.open(settings)) as servers:
        migrate.migrate(servers.sink, settings)
        (campaign, *_) = campaigns(writer)
        # One impression in the middle of each UTC hour around the day.
        write(
            writer,
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT %s, %s::date - interval '23.5 hours' + n * interval '1 hour' FROM generate_series(0, 71) AS n",
            campaign,
            day,
        )
        sync(servers)
        assert target_performance(servers) == source_performance(writer, "Europe/Berlin")
        assert {str(row[0]): row[2] for row in target_performance(servers)}[day] == hours
        by_hour = {
            row["hour"]: row["impressions"] for row in ask(servers, "hourly_pattern", first_day=day, last_day=day)
        }
        expected = dict.fromkeys(range(24), 1)
        if hours == 23:
            expected[2] = 0
        if doubled is not None:
            expected[doubled] = 2
        assert by_hour == expected


def test_another_time_zone_cuts_every_day_anew(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 5, at="2026-11-02T23:30:00Z")
    add(writer, "impressions", campaign, 3, at="2026-11-03T10:00:00Z")
    sync(servers)
    assert {str(row[0]): row[2] for row in target_performance(servers)} == {"2026-11-02": 5, "2026-11-03": 3}
    settle(servers)
    elsewhere = servers.settings.model_copy(update={"reporting_timezone": "Europe/Berlin"})
    migrate.migrate(servers.sink, elsewhere)
    metrics.rebuild(servers.sink, elsewhere, metrics.dirty_days(servers.sink))
    assert {str(row[0]): row[2] for row in target_performance(servers)} == {"2026-11-03": 8}
    assert {row[-1] for row in restated(servers)} == {"time zone"}
    assert target_performance(servers) == said(servers)


# Finality and restatements


def test_a_day_is_final_so_many_hours_after_its_end(servers: Servers) -> None:
    berlin = servers.settings.model_copy(update={"reporting_timezone": "Europe/Berlin", "finality_hours": 120})
    migrate.migrate(servers.sink, berlin)
    end_of_the_25_hour_day = datetime(2026, 10, 25, 23, tzinfo=UTC)
    final_from = end_of_the_25_hour_day + timedelta(hours=120)
    assert metrics.final_through(servers.sink) is None
    assert metrics.note_finality(servers.sink, berlin, final_from - timedelta(microseconds=1)) == date(2026, 10, 24)
    assert metrics.note_finality(servers.sink, berlin, final_from) == date(2026, 10, 25)
    assert metrics.final_through(servers.sink) == date(2026, 10, 25)
    # A day stays final whatever the setting becomes.
    metrics.note_finality(servers.sink, berlin.model_copy(update={"finality_hours": 1000}), final_from)
    assert metrics.final_through(servers.sink) == date(2026, 10, 25)


def test_the_first_load_restates_nothing_and_provisional_days_neither(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    today = datetime.now(UTC).isoformat()
    add(writer, "impressions", campaign, 10, at=f"{DAY}T10:00:00Z")
    add(writer, "impressions", campaign, 10, at=today)
    sync(servers)
    settle(servers)
    add(writer, "impressions", campaign, 10, at=today)
    sync(servers)
    assert restated(servers) == set()
    final = {row["is_final"] for row in ask(servers, "campaign_daily", first_day=DAY, last_day=DAY)}
    assert final == {True}
    assert {row["is_final"] for row in ask(servers, "campaign_daily", first_day=today[:10])} == {False}


def prepared(servers: Servers, writer: Connection) -> tuple[int, int]:
    """Two campaigns (bids 0.47 and 0.64) with ten impressions and two clicks each on a day that is final."""
    first, second, _ = campaigns(writer)
    write(writer, "UPDATE campaign SET updated_at = '2026-10-01T00:00:00Z'")
    for campaign in (first, second):
        add(writer, "impressions", campaign, 10, at=f"{DAY}T10:00:00Z")
        add(writer, "clicks", campaign, 2, at=f"{DAY}T10:00:00Z")
    sync(servers)
    assert settle(servers) >= date.fromisoformat(DAY)
    return first, second


def test_late_rows_restate_a_final_day(servers: Servers, writer: Connection) -> None:
    first, _ = prepared(servers, writer)
    add(writer, "clicks", first, 1, at=f"{DAY}T20:00:00Z")
    before = servers.ledger.now()
    sync(servers)
    assert restated(servers) == {
        (DAY, first, "clicks", Decimal(2), Decimal(3), "late rows"),
        (DAY, first, "spend", Decimal("0.94"), Decimal("1.41"), "late rows"),
    }
    as_of = before.strftime("%Y-%m-%dT%H:%M:%S.%f")
    (then,) = [row for row in ask(servers, "campaign_daily", as_of=as_of) if row["campaign_id"] == first]
    (now,) = [row for row in ask(servers, "campaign_daily") if row["campaign_id"] == first]
    assert (then["clicks"], then["spend"], now["clicks"], now["spend"]) == (2, Decimal("0.94"), 3, Decimal("1.41"))
    # Nothing changes, so nothing is restated again.
    metrics.rebuild(servers.sink, servers.settings, [date.fromisoformat(DAY)])
    assert len(restated(servers)) == 2


def test_a_final_day_without_events_that_gets_some_is_restated(servers: Servers, writer: Connection) -> None:
    first, _ = prepared(servers, writer)
    add(writer, "impressions", first, 4, at="2026-10-20T20:00:00Z")
    sync(servers)
    assert restated(servers) == {("2026-10-20", first, "impressions", Decimal(0), Decimal(4), "late rows")}


def test_an_update_restates_the_day_left_and_the_day_reached(servers: Servers, writer: Connection) -> None:
    first, second = prepared(servers, writer)
    write(
        writer,
        "UPDATE impressions SET created_at = '2026-10-30T10:00:00Z' WHERE id = "
        "(SELECT min(id) FROM impressions WHERE campaign_id = %s)",
        first,
    )
    sync(servers)
    assert restated(servers) == {
        (DAY, first, "impressions", Decimal(10), Decimal(9), "update"),
        ("2026-10-30", first, "impressions", Decimal(0), Decimal(1), "update"),
    }
    write(writer, "UPDATE clicks SET campaign_id = %s WHERE campaign_id = %s", second, first)
    sync(servers)
    assert (DAY, first, "spend", Decimal("0.94"), Decimal(0), "update") in restated(servers)
    assert (DAY, second, "clicks", Decimal(2), Decimal(4), "update") in restated(servers)
    assert target_performance(servers) == said(servers)


def test_a_bid_edit_restates_spend(servers: Servers, writer: Connection) -> None:
    first, _ = prepared(servers, writer)
    write(writer, "UPDATE campaign SET bid = 1.00, updated_at = %s WHERE id = %s", f"{DAY}T00:00:00Z", first)
    sync(servers)
    assert restated(servers) == {(DAY, first, "spend", Decimal("0.94"), Decimal("2.00"), "bid edit")}


def missed(writer: Connection, campaign: int) -> None:
    """A row that was written behind the watermark, as no honest source does: only reading again finds it."""
    write(
        writer,
        "INSERT INTO impressions (campaign_id, created_at, inserted_at) "
        "SELECT %s, %s, min(inserted_at) FROM impressions",
        campaign,
        f"{DAY}T12:00:00Z",
    )


def test_a_replay_that_finds_a_row_restates_its_day(servers: Servers, writer: Connection) -> None:
    first, _ = prepared(servers, writer)
    missed(writer, first)
    pipeline.load_window(
        servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, Window(ORIGIN, servers.source.now()),
        table=EVENTS_TABLE, uuid=servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE],
    )  # fmt: skip
    rebuild(servers)
    assert restated(servers) == {(DAY, first, "impressions", Decimal(10), Decimal(11), "replay")}


def test_a_full_refresh_that_finds_a_row_restates_its_day(servers: Servers, writer: Connection) -> None:
    first, _ = prepared(servers, writer)
    missed(writer, first)
    run = started(servers, "restating")
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)
    assert restated(servers) == {(DAY, first, "impressions", Decimal(10), Decimal(11), "full refresh")}
    assert target_performance(servers) == said(servers)


# The record of what days said


def test_a_rebuild_that_dies_before_publishing_leaves_a_record_that_comes_true(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = prepared(servers, writer)
    add(writer, "clicks", first, 1, at=f"{DAY}T20:00:00Z")
    published = metrics._publish

    def dies(*_: Any) -> dict[date, int]:
        raise TransientSink("killed here")

    monkeypatch.setattr(metrics, "_publish", dies)
    with pytest.raises(TransientSink):
        sync(servers)
    monkeypatch.setattr(metrics, "_publish", published)
    # More arrives before the next attempt: it compares with what was written down, not with what readers saw.
    add(writer, "clicks", first, 1, at=f"{DAY}T21:00:00Z")
    sync(servers)
    assert target_performance(servers) == said(servers)
    assert {row[2:] for row in restated(servers) if row[2] == "clicks"} == {
        ("clicks", Decimal(2), Decimal(3), "late rows"),
        ("clicks", Decimal(3), Decimal(4), "late rows"),
    }


def test_rebuilds_at_once_leave_one_record(servers: Servers, writer: Connection) -> None:
    first, second = prepared(servers, writer)
    days = [date.fromisoformat(DAY)]

    def at_once() -> None:
        with Sink(servers.settings) as sink:
            metrics.rebuild(sink, servers.settings, days)

    for round_number in range(3):
        add(writer, "impressions", first if round_number % 2 else second, 2, at=f"{DAY}T15:00:00Z")
        sync(servers, metrics_update=False)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(at_once) for _ in range(4)]:
                done.result()
        rebuild(servers)
        assert target_performance(servers) == said(servers)
        twice = "SELECT count() FROM daily_campaign_performance GROUP BY date_id, campaign_id HAVING count() > 1"
        assert servers.sink.query("looking for rows published twice", twice) == []
    changes = sum(int(row[4] - row[3]) for row in restated(servers) if row[2] == "impressions")
    assert changes == 6


def test_a_day_published_twice_at_once_is_outdated(servers: Servers, writer: Connection) -> None:
    prepared(servers, writer)
    servers.sink.command(
        "publishing it beside itself",
        "INSERT INTO daily_campaign_performance SELECT * REPLACE (updated_at + INTERVAL 1 SECOND AS updated_at) "
        "FROM daily_campaign_performance",
    )
    assert [str(day) for day in metrics.outdated_days(servers.sink, servers.settings)] == [DAY]
    rebuild(servers)
    assert target_performance(servers) == source_performance(writer)


def test_a_provisional_day_is_remembered_by_the_quarter_of_an_hour(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    for _ in range(4):
        add(writer, "impressions", campaign, 1, at="2026-11-18T10:00:00Z")
        sync(servers)
    servers.sink.command("merging", "OPTIMIZE TABLE daily_campaign_history FINAL")
    ((count, slots),) = servers.sink.query(
        "counting", "SELECT count(), uniqExact(slot) FROM daily_campaign_history WHERE NOT was_final"
    )
    assert count == slots <= 2
    assert target_performance(servers) == said(servers)
