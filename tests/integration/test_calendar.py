"""Days are cut by one calendar: the product's own, whatever the servers and the operating system hold."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import sync, target_performance
from tests.integration.test_checks import check
from tests.integration.test_metrics import restated, settle
from tests.integration.test_pipeline import campaigns, write
from worker import calendar, calendars, metrics, migrate, planner, seals
from worker.calendar import Calendar, own
from worker.celery import Servers
from worker.config import Settings
from worker.errors import SchemaMismatch
from worker.ledger import Failure, Ledger
from worker.sink import Sink
from worker.streams import STREAMS
from worker.tasks.reconcile import compare
from worker.windows import Window, to_micros


@pytest.mark.parametrize(
    ("zone", "moments", "expected"),
    [
        # Standard time all the year since 2026, which not every copy of the zone data knows.
        ("America/Vancouver", ["2026-11-20T07:30:00Z"], {"2026-11-20": 1}),
        ("America/Edmonton", ["2026-11-20T06:30:00Z"], {"2026-11-20": 1}),
        ("Africa/Casablanca", ["2027-02-10T23:30:00Z"], {"2027-02-10": 1}),
        # The clock goes back over midnight at 02:31Z: the 7th has begun and goes on.
        (
            "America/St_Johns",
            ["2010-11-07T02:29:59Z", "2010-11-07T02:30:30Z", "2010-11-07T03:00:00Z", "2010-11-07T03:31:00Z"],
            {"2010-11-06": 1, "2010-11-07": 3},
        ),
        # The 30th was left out.
        ("Pacific/Apia", ["2011-12-30T09:59:59Z", "2011-12-30T10:00:00Z"], {"2011-12-29": 1, "2011-12-31": 1}),
    ],
)
def test_days_are_built_where_calendars_differ(
    bare_settings: Settings, writer: Connection, zone: str, moments: list[str], expected: dict[str, int]
) -> None:
    settings = bare_settings.model_copy(update={"reporting_timezone": zone})
    with contextlib.closing(Servers.open(settings)) as servers:
        migrate.migrate(servers.sink, settings)
        (campaign, *_) = campaigns(writer)
        for moment in moments:
            write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, %s)", campaign, moment)
        sync(servers)
        assert {str(row[0]): row[3] for row in target_performance(servers)} == expected


PLACES = ["America/Vancouver", "Asia/Kathmandu"]
MOMENTS = ["2026-11-20T07:30:00Z", "2026-11-20T18:20:00Z", "2026-11-20T20:00:00Z", "2026-11-25T12:00:00Z"]


class Died(BaseException):
    """The process is gone: nothing it would have done after this happens."""


@contextlib.contextmanager
def dying(patch: pytest.MonkeyPatch, statement: int, *, after: bool) -> Iterator[None]:
    """Within, the process dies at that statement: before ClickHouse gets it, or after it was carried out."""
    original, seen = Sink._once, itertools.count()

    def once(*args: Any, **kwargs: Any) -> Any:
        number = next(seen)
        if number < statement:
            return original(*args, **kwargs)
        if number == statement and after:
            original(*args, **kwargs)
        raise Died

    with patch.context() as here:
        here.setattr(Sink, "_once", once)
        yield


def counted(servers: Servers) -> dict[str, int]:
    return {str(row[0]): row[3] for row in target_performance(servers)}


def expected(zone: str) -> dict[str, int]:
    return dict(Counter(str(own(zone).day_of(datetime.fromisoformat(moment))) for moment in MOMENTS))


def loaded(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    for moment in MOMENTS:
        write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, %s)", campaign, moment)
    sync(servers)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_process_killed_at_any_step_of_a_change_of_zone_leaves_days_to_be_recut(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    loaded(servers, writer)
    for step, zone in enumerate(itertools.cycle(PLACES)):
        elsewhere = servers.settings.model_copy(update={"reporting_timezone": zone})
        died = False
        with dying(monkeypatch, step, after=after), Sink(elsewhere) as sink:
            try:
                migrate.migrate(sink, elsewhere)
            except Died:
                died = True
        migrate.migrate(servers.sink, elsewhere)
        metrics.rebuild(servers.sink, elsewhere, metrics.dirty_days(servers.sink))
        assert counted(servers) == expected(zone), f"died at statement {step}"
        assert [entry.state for entry in migrate.status(servers.sink, elsewhere) if entry.state != "applied"] == []
        if not died:
            break
    assert step > 8


def test_a_change_that_its_maker_did_not_live_to_end_is_ended_by_a_sweep(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(servers, writer)
    elsewhere = servers.settings.model_copy(update={"reporting_timezone": PLACES[0]})
    with monkeypatch.context() as here:
        here.setattr(Ledger, "mark_days", lambda *args: (_ for _ in ()).throw(Died))
        with pytest.raises(Died):
            migrate.migrate(servers.sink, elsewhere)
    assert calendars.told(servers.sink, elsewhere)[0] == "wrong"
    # Whoever cuts days by the calendar of before does nothing.
    for refused in (
        lambda: metrics.rebuild(servers.sink, servers.settings, [date(2026, 11, 20)]),
        lambda: calendars.keep_current(servers.sink, servers.ledger, servers.settings),
    ):
        with pytest.raises(
            SchemaMismatch, match="days are cut in America/Vancouver, but REPORTING_TIMEZONE is UTC here"
        ):
            refused()
    calendars.keep_current(servers.sink, servers.ledger, elsewhere)
    metrics.rebuild(servers.sink, elsewhere, metrics.dirty_days(servers.sink))
    assert counted(servers) == expected(PLACES[0])


def outdated_vancouver() -> Calendar:
    """Vancouver as it was known before its standard time changed."""
    new = own(PLACES[0])
    change = datetime(2026, 11, 1, 9, tzinfo=UTC)
    kept = sum(start < to_micros(change) for start in new.starts)
    return Calendar(new.zone, "2025b", (*new.starts[:kept], to_micros(change)), (*new.offsets[:kept], -8 * 3600))


def test_newer_zone_data_recuts_the_days_it_moves_and_no_others(
    bare_settings: Settings, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bare_settings.model_copy(update={"reporting_timezone": PLACES[0]})
    old = outdated_vancouver()
    with contextlib.closing(Servers.open(settings)) as servers:
        with monkeypatch.context() as here:
            here.setattr(calendar, "own", lambda zone: old)
            migrate.migrate(servers.sink, settings)
            loaded(servers, writer)
            (campaign, *_) = campaigns(writer)
            write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, '2026-10-20T07:30:00Z')", campaign)
            sync(servers)
            assert counted(servers) == {"2026-10-20": 1, "2026-11-19": 1, "2026-11-20": 2, "2026-11-25": 1}
        assert metrics.dirty_days(servers.sink) == []
        assert settle(servers) > date(2026, 11, 20)
        assert calendars.told(servers.sink, settings)[0] == "note"
        assert calendars.keep_current(servers.sink, servers.ledger, settings) == own(PLACES[0])
        assert [str(day) for day in metrics.dirty_days(servers.sink)] == ["2026-11-25", "2026-11-20", "2026-11-19"]
        # A worker whose data is older cuts days by the calendar in force all the same.
        with monkeypatch.context() as here:
            here.setattr(calendar, "own", lambda zone: old)
            assert calendars.keep_current(servers.sink, servers.ledger, settings).alike(
                date(2026, 11, 20), own(PLACES[0])
            )
            metrics.rebuild(servers.sink, settings, metrics.dirty_days(servers.sink))
            state, says, _ = calendars.told(servers.sink, settings)
            assert (state, "here it is 2025b, older, and not used" in says) == ("note", True)
        assert counted(servers) == {"2026-10-20": 1, "2026-11-20": 3, "2026-11-25": 1}
        assert {(row[0], row[-1]) for row in restated(servers)} == {
            ("2026-11-19", "time zone"),
            ("2026-11-20", "time zone"),
        }
        assert calendars.told(servers.sink, settings)[0] == "ok"
        assert calendars.keep_current(servers.sink, servers.ledger, settings) == own(PLACES[0])
        assert metrics.dirty_days(servers.sink) == []


@pytest.mark.parametrize("zone", ["America/Vancouver", "America/St_Johns", "Pacific/Apia", "Asia/Kathmandu"])
def test_clickhouse_reads_the_same_calendar(settings: Settings, writer: Connection, zone: str) -> None:
    with contextlib.closing(Servers.open(settings.model_copy(update={"reporting_timezone": zone}))) as servers:
        migrate.migrate(servers.sink, servers.settings)
        cut = own(zone)
        rows = servers.sink.query(
            "looking",
            "SELECT date_id, begins_at, ends_at FROM reporting_calendar "
            "WHERE date_id IN ('1900-01-02', '2010-11-07', '2011-12-30', '2026-11-20', '2299-12-30') ORDER BY date_id",
        )
        assert len(rows) == 5
        for day, begins, ends in rows:
            assert (begins, ends) == cut.bounds(day)
        before, now = datetime.now(UTC), servers.sink.query("looking", "SELECT today FROM reporting_day")
        assert now[0][0] in {cut.day_of(before), cut.day_of(datetime.now(UTC))}
        (campaign, *_) = campaigns(writer)
        # Each hour around a day that began twice, and one that was left out.
        write(
            writer,
            "INSERT INTO impressions (campaign_id, created_at) SELECT %s, day + n * interval '20 minutes' FROM "
            "unnest(ARRAY['2010-11-06 00:00:30Z', '2011-12-29 00:00:30Z', '2026-11-01Z']::timestamptz[]) AS day, "
            "generate_series(0, 200) AS n",
            campaign,
        )
        sync(servers)
        found = check(servers, "metrics_equal_events", "views_equal_events", "date_dimension", "no_campaign")
        assert {name: result.state for name, result in found.items()} == dict.fromkeys(found, "passed")


def test_days_that_are_no_whole_quarters_are_compared_exactly(bare_settings: Settings, writer: Connection) -> None:
    settings = bare_settings.model_copy(update={"reporting_timezone": "Africa/Monrovia"})
    with contextlib.closing(Servers.open(settings)) as servers:
        migrate.migrate(servers.sink, settings)
        (campaign, *_) = campaigns(writer)
        # Midnight was at 00:44:30 UTC.
        for moment in ("1971-06-02T00:44:29Z", "1971-06-02T00:44:30Z", "1971-06-02T00:46:00Z", "1971-06-03T00:44:29Z"):
            write(writer, "INSERT INTO impressions (campaign_id, created_at) VALUES (%s, %s)", campaign, moment)
        sync(servers)
        rows = {date(1971, 6, 1): 1, date(1971, 6, 2): 3}
        result = compare(servers, STREAMS["impressions"], heal=False)
        assert {day.day: (day.source_rows, day.target_rows) for day in result.days} == {
            d: (n, n) for d, n in rows.items()
        }
        made, apart = seals.seal(servers.source, servers.sink, servers.ledger, settings, sorted(rows))
        assert apart == []
        assert {seal.date_id: seal.content("impressions").rows for seal in made} == rows


def test_windows_that_fail_for_another_time_zone_are_not_halved(servers: Servers) -> None:
    elsewhere = servers.settings.model_copy(update={"reporting_timezone": "Asia/Kathmandu"})
    with pytest.raises(SchemaMismatch) as raised:
        calendars.in_force(servers.sink, elsewhere)
    now = servers.ledger.now()
    window = Window(now - timedelta(days=1), now)
    for told, parts in ((str(raised.value), 1), ("a row is to blame", 2)):
        assert len(planner.again(window, [Failure(window, 9, now, told, now)], [])) == parts
