"""Defects planted on either side, found to the row, named and mended; and nothing named that only moves."""

from __future__ import annotations

import random
import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, source_performance, sync, target_events, target_performance
from worker import calendars, metrics, reconcile
from worker.celery import Servers
from worker.reconcile import EVER, Defect, Event, Result, days_within
from worker.streams import EVENT_STREAMS, STREAMS, Stream
from worker.tasks.reconcile import compare
from worker.windows import to_micros

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
ELSEWHERE = 3_000_000_000
"""Added to an id, it is one that no event has."""

NEWER = 2**20
"""Added to a version, it is that of a snapshot a few transactions later."""


def write(writer: Connection, statement: str, *parameters: Any) -> list[Any]:
    with writer.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def silently(writer: Connection, statement: str, *parameters: Any) -> None:
    """A change no trigger sees, so that `inserted_at` stays: what windows can never find."""
    write(writer, "SET session_replication_role = replica")
    try:
        write(writer, statement, *parameters)
    finally:
        write(writer, "RESET session_replication_role")


def pass_by(writer: Connection, count: int = 20) -> None:
    """Lets so many transactions pass at the source, so that its snapshots are above what was planted as `NEWER`."""
    for _ in range(count):
        write(writer, "SELECT pg_current_xact_id()")


def fill(writer: Connection, impressions: int = 600, clicks: int = 200) -> None:
    """Events of five campaigns and of none, over four days up to 2026-11-18, also ids far apart."""
    write(writer, "TRUNCATE impressions, clicks, campaign, advertiser RESTART IDENTITY CASCADE")
    write(writer, "INSERT INTO advertiser (name) VALUES ('Acme')")
    write(
        writer,
        "INSERT INTO campaign (name, bid, budget, advertiser_id) "
        "SELECT 'campaign ' || n, 0.3 + 0.17 * n, 100, 1 FROM generate_series(1, 5) AS n",
    )
    for table, count in (("impressions", impressions), ("clicks", clicks)):
        write(
            writer,
            f"INSERT INTO {table} (id, campaign_id, created_at) SELECT n + CASE WHEN n > %s THEN 5000000000 ELSE 0 END, "
            "CASE WHEN n %% 50 <> 0 THEN 1 + n %% 5 END, "
            "'2026-11-15T00:00:00Z'::timestamptz + n * interval '96 hours' / %s FROM generate_series(1, %s) AS n",
            count * 9 // 10,
            count + 1,
            count,
        )


def found(result: Result) -> dict[int, str]:
    return {defect.event_id: defect.cause for defect in result.defects}


def look(servers: Servers, stream: Stream = IMPRESSIONS, *, heal: bool = False) -> Result:
    return compare(servers, stream, heal=heal)


def plant_row(
    servers: Servers, stream: Stream, event_id: int, *, campaign: str = "campaign_id", version: str = "_version",
    at: str = "created_at", deleted: int = 0, again: bool = False,
) -> None:  # fmt: skip
    """Writes a version of an event into ClickHouse; columns are expressions over the stored one."""
    servers.sink.command(
        "planting",
        f"INSERT INTO ad_events (event_type, event_id, campaign_id, created_at, inserted_at, _version, _deleted) "
        f"SELECT event_type, event_id, {campaign}, {at}, inserted_at, {version}, {deleted} FROM ad_events FINAL "
        "WHERE event_type = %(type)s AND event_id = %(id)s" + (" SETTINGS insert_deduplicate = 0" if again else ""),
        {"type": stream.event_type, "id": event_id},
    )


def plant(servers: Servers, writer: Connection, kind: str, stream: Stream, event_id: int) -> str:
    """Plants one defect and returns the cause by which it must be named, empty where it is none."""
    table = stream.source_table
    if kind == "buried":
        plant_row(servers, stream, event_id, version=f"_version + {NEWER}", deleted=1)
        pass_by(writer)
        return "missing"
    if kind == "deleted at the source":
        write(writer, f"DELETE FROM {table} WHERE id = %s", event_id)
        return "extra"
    if kind == "never at the source":
        servers.sink.command(
            "planting",
            "INSERT INTO ad_events (event_type, event_id, campaign_id, created_at, inserted_at, _version) "
            f"SELECT event_type, event_id + {ELSEWHERE}, campaign_id, created_at, inserted_at, _version FROM ad_events FINAL "
            "WHERE event_type = %(type)s AND event_id = %(id)s",
            {"type": stream.event_type, "id": event_id},
        )
        return "extra"
    if kind == "changed silently":
        silently(writer, f"UPDATE {table} SET campaign_id = coalesce(campaign_id, 0) %% 5 + 1 WHERE id = %s", event_id)
        return "stale"
    if kind == "moved silently":
        silently(writer, f"UPDATE {table} SET created_at = created_at - interval '30 hours' WHERE id = %s", event_id)
        return "stale"
    if kind == "other values":
        plant_row(servers, stream, event_id, campaign="campaign_id + 1", version=f"_version + {NEWER}")
        pass_by(writer)
        return "stale"
    if kind == "other time":
        plant_row(servers, stream, event_id, at="created_at + toIntervalMicrosecond(1)", version="_version + 1")
        return "stale"
    if kind == "stored twice":
        # Readers and merges make one of them.
        plant_row(servers, stream, event_id, again=True)
        return ""
    assert kind == "stored twice, once wrong"
    plant_row(servers, stream, event_id, campaign="campaign_id + 1")
    return "duplicate"


KINDS = (
    "lost", "buried", "deleted at the source", "never at the source", "changed silently", "moved silently",
    "other values", "other time", "stored twice", "stored twice, once wrong",
)  # fmt: skip


def ids_of(writer: Connection, stream: Stream) -> list[int]:
    return [row[0] for row in write(writer, f"SELECT id FROM {stream.source_table} ORDER BY id")]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_exactly_what_was_planted_is_found_and_mended(servers: Servers, writer: Connection, seed: int) -> None:
    rng = random.Random(seed)
    fill(writer)
    sync(servers)
    planted: dict[Stream, dict[int, str]] = {stream: {} for stream in EVENT_STREAMS}
    plan = {
        stream: list(zip(kinds, rng.sample(ids_of(writer, stream), len(kinds)), strict=True))
        for stream in EVENT_STREAMS
        for kinds in [[rng.choice(KINDS) for _ in range(rng.randrange(1, 25))]]
    }
    for stream, chosen in plan.items():
        lost = [event_id for kind, event_id in chosen if kind == "lost"]
        lose(servers, stream, lost)
        planted[stream].update(dict.fromkeys(lost, "missing"))
    # Merges may take copies away at any time, so the parts lie still until they were looked at.
    servers.sink.command("holding merges", "SYSTEM STOP MERGES ad_events")
    for stream, chosen in plan.items():
        for kind, event_id in chosen:
            if kind != "lost":
                cause = plant(servers, writer, kind, stream, event_id)
                if cause:
                    planted[stream][event_id + (ELSEWHERE if kind == "never at the source" else 0)] = cause
    for stream in EVENT_STREAMS:
        seen = look(servers, stream)
        assert found(seen) == planted[stream]
        assert seen.agrees is not bool(planted[stream])
        assert not any(defect.mended for defect in seen.defects)
        healed = look(servers, stream, heal=True)
        assert found(healed) == planted[stream]
        assert healed.agrees
        assert all(defect.mended for defect in healed.defects)
        after = look(servers, stream)
        assert after.agrees
        assert not after.defects
    assert [row[:4] for row in target_events(servers)] == write(writer, SOURCE_EVENTS)
    assert target_performance(servers) == source_performance(writer)
    assert not metrics.dirty_days(servers.sink)


def lose(servers: Servers, stream: Stream, ids: list[int]) -> None:
    """Takes every version of these events away."""
    if ids:
        servers.sink.command(
            "losing events",
            "ALTER TABLE ad_events DELETE WHERE event_type = %(type)s AND event_id IN %(ids)s SETTINGS mutations_sync = 2",
            {"type": stream.event_type, "ids": tuple(ids)},
        )


SOURCE_EVENTS = """
SELECT kind, id, coalesce(campaign_id, 0), (extract(epoch FROM created_at) * 1000000)::bigint
FROM (SELECT 'impression' AS kind, * FROM impressions UNION ALL SELECT 'click', * FROM clicks) AS events
ORDER BY kind DESC, id
"""


def test_both_databases_mix_alike(servers: Servers, writer: Connection) -> None:
    edges = [
        (event_id, campaign, created)
        for event_id in (50, 2**31, 2**62, 2**63 - 50)
        for campaign in (1, 2**31 - 1, 2**31, 2**62, 2**63 - 1)
        for created in ("1900-01-02T00:00:00Z", "1969-12-31T23:59:59.999999Z", "2299-12-29T23:59:59.999999Z")
    ]
    # An id of its own for each, on both sides of every edge.
    values = [(edge[0] + number % 30 - 15, edge[1], edge[2]) for number, edge in enumerate(edges)]
    write(writer, "ALTER TABLE impressions DROP CONSTRAINT impressions_campaign_id_fkey")
    for value in values:
        write(writer, "INSERT INTO impressions (id, campaign_id, created_at) VALUES (%s, %s, %s)", *value)
    clock = servers.source.now()
    inserted = to_micros(clock - timedelta(days=1))
    stored = [
        Defect(event_id, "missing", Event(campaign, to_micros(datetime.fromisoformat(created)), inserted), None, 1)
        for event_id, campaign, created in values
    ]
    reconcile.write(servers.sink, IMPRESSIONS, stored)
    parameters = {
        "horizon": clock + timedelta(days=1), "lo": EVER.lo, "hi": EVER.hi, "held": [], "event_type": "impression",
    }  # fmt: skip
    both = reconcile._Comparison(servers.source, servers.sink, IMPRESSIONS, EVER, parameters)
    with servers.source.snapshot([IMPRESSIONS]):
        ours = both.ours("quarters", "adding up")
    theirs = both.theirs("quarters", "adding up")
    assert sum(row[1] for row in ours) == len(values) == 60
    assert len(ours) == 3
    assert reconcile.differing(ours, theirs) == []


def test_values_that_change_places_are_seen(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    # Counts and sums of every column stay as they are.
    one, other = write(
        writer, "SELECT id, campaign_id FROM impressions WHERE campaign_id IN (1, 2) ORDER BY id LIMIT 2"
    )
    assert one[1] != other[1]
    silently(writer, "UPDATE impressions SET campaign_id = %s WHERE id = %s", other[1], one[0])
    silently(writer, "UPDATE impressions SET campaign_id = %s WHERE id = %s", one[1], other[0])
    assert found(look(servers)) == {one[0]: "stale", other[0]: "stale"}


def test_only_the_days_asked_for_are_looked_at(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    days = [date(2026, 11, 15 + n) for n in range(4)]
    lost = [
        write(writer, "SELECT min(id) FROM impressions WHERE created_at >= %s", day)[0][0] for day in days
    ]  # fmt: skip
    write(writer, "DELETE FROM impressions WHERE id = ANY (%s)", lost)
    result = compare(
        servers,
        IMPRESSIONS,
        days_within(days[1], days[2], calendars.in_force(servers.sink, servers.settings)),
        heal=True,
    )
    assert sorted(found(result)) == lost[1:3]
    assert {entry.day for entry in result.days} == set(days[1:3])
    assert sorted(found(look(servers))) == [lost[0], lost[3]]


def test_more_than_the_limit_is_not_touched(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    before = target_events(servers)
    write(writer, "DELETE FROM impressions WHERE id <= 11")
    servers.settings = servers.settings.model_copy(update={"reconcile_heal_limit": 10})
    result = look(servers, heal=True)
    assert (len(result.defects), result.too_many, result.agrees) == (11, True, False)
    assert target_events(servers) == before
    servers.settings = servers.settings.model_copy(update={"reconcile_heal_limit": 11})
    assert look(servers, heal=True).agrees
    assert_agreement(writer, servers)


def test_quarantined_rows_are_no_defects(servers: Servers, writer: Connection) -> None:
    fill(writer)
    write(writer, "UPDATE impressions SET created_at = 'infinity' WHERE id = 5")
    sync(servers)
    assert look(servers).agrees
    # Kept out by a rule of another kind: the source could load it.
    plant_row(servers, IMPRESSIONS, 7, version=f"_version + {NEWER}", deleted=1)
    pass_by(writer)
    assert found(look(servers)) == {7: "missing"}
    servers.sink.insert_rows(
        "quarantined_events",
        ("stream", "event_id", "row", "rule", "lo", "hi", "run_id", "_version"),
        [("impressions", 7, "{}", "a rule", EVER.lo, EVER.hi, "", 1)],
    )
    result = look(servers, heal=True)
    assert result.agrees
    assert not result.defects
    # Earlier copies of it are nobody's concern either.
    servers.sink.command("holding merges", "SYSTEM STOP MERGES ad_events")
    for campaign in (1, 2):
        servers.sink.command(
            "planting",
            "INSERT INTO ad_events (event_type, event_id, campaign_id, created_at, inserted_at, _version) "
            "SELECT 'impression', 7, %(campaign)s, created_at, inserted_at, 1 FROM ad_events FINAL WHERE event_id = 8 "
            "AND event_type = 'impression' SETTINGS insert_deduplicate = 0",
            {"campaign": campaign},
        )
    assert reconcile._repeated(servers.sink, IMPRESSIONS, EVER, 10) == [7]
    assert look(servers).agrees
    servers.sink.command("letting merges go", "SYSTEM START MERGES ad_events")
    # Loaded after all, it is compared like any other.
    write(writer, "UPDATE impressions SET campaign_id = 1 WHERE id = 7")
    lose(servers, IMPRESSIONS, [7])
    sync(servers)
    silently(writer, "UPDATE impressions SET campaign_id = 4 WHERE id = 7")
    assert found(look(servers)) == {7: "stale"}


def test_what_is_written_meanwhile_is_no_defect(servers: Servers, writer: Connection) -> None:
    fill(writer, 3000, 500)
    sync(servers)
    stop = threading.Event()
    failed: list[BaseException] = []
    changes = [0]

    def hostile(number: int) -> None:
        rng = random.Random(number)
        connection = psycopg2.connect(servers.settings.source_dsn)
        try:
            while not stop.is_set():
                with connection, connection.cursor() as cursor:
                    which = [rng.randrange(1, 2600) for _ in range(40)]
                    cursor.execute(
                        "UPDATE impressions SET campaign_id = 1 + (id + %s) %% 5, "
                        "created_at = created_at + %s * interval '1 hour' WHERE id = ANY (%s)",
                        (rng.randrange(5), rng.randrange(-30, 30), sorted(which)),
                    )
                    cursor.execute(
                        "INSERT INTO impressions (campaign_id, created_at) "
                        "SELECT 1 + n % 5, '2026-11-17T10:00:00Z' FROM generate_series(1, 20) AS n"
                    )
                    changes[0] += 1
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    write(writer, "SELECT setval(pg_get_serial_sequence('impressions', 'id'), 6000000000)")
    loader = Servers.open(servers.settings)

    def loading() -> None:
        try:
            while not stop.is_set():
                sync(loader, streams=[IMPRESSIONS], metrics_update=False)
        except BaseException as error:
            failed.append(error)
        finally:
            loader.close()

    threads = [threading.Thread(target=hostile, args=(1,)), threading.Thread(target=loading)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            seen = changes[0]
            result = look(servers, heal=number % 2 == 1)
            assert found(result) == {}
            assert result.agrees
            while changes[0] == seen and not failed:
                stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    # What is wrong is still seen, and nothing else was touched.
    sync(servers)
    assert_agreement(writer, servers)
    silently(writer, "UPDATE impressions SET campaign_id = 9 - campaign_id WHERE id = 2601 AND campaign_id IS NOT NULL")
    assert list(found(look(servers))) == [2601]


def test_a_row_loaded_between_the_two_looks_is_no_defect(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer)
    sync(servers)
    horizon = reconcile.watermark(servers.ledger, IMPRESSIONS)
    looks: list[str] = []

    def then_all_changes(name: str) -> None:
        original = getattr(reconcile, name)

        def wrapped(*arguments: Any) -> Any:
            seen = original(*arguments)
            looks.append(name)
            if len(looks) == 1:
                write(writer, "UPDATE impressions SET campaign_id = campaign_id % 5 + 1 WHERE id <= 10")
                other = Servers.open(servers.settings)
                sync(other, metrics_update=False)
                other.close()
            return seen

        monkeypatch.setattr(reconcile, name, wrapped)

    then_all_changes("target_state")
    then_all_changes("source_state")
    ids = list(range(1, 21))
    judged = reconcile._judged(
        servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, ids, horizon, set()
    )
    assert len(looks) == 2
    assert judged == []


def test_a_comparison_is_written_down(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    silently(writer, "UPDATE impressions SET created_at = created_at + interval '1 day' WHERE id = 3")
    look(servers, heal=True)
    rows = servers.sink.query(
        "reading",
        "SELECT date_id, toString(state), source_rows, target_rows, source_hash = target_hash, stale, mended, sample "
        "FROM reconciliations FINAL ORDER BY date_id",
    )
    assert [row[1] for row in rows] == ["mended", "mended", "equal", "equal"]
    assert [row[3] - row[2] for row in rows] == [1, -1, 0, 0]
    assert [row[4] for row in rows] == [0, 0, 1, 1]
    assert [row[5:7] for row in rows] == [(1, 1), (1, 1), (0, 0), (0, 0)]
    assert '"event_id": 3' in rows[0][7]
    assert target_performance(servers) == source_performance(writer)


def test_days_of_a_mending_that_died_are_rebuilt_by_the_next(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(writer)
    sync(servers)
    write(writer, "DELETE FROM impressions WHERE id < 5")

    class Died(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "rebuild", die)
        with pytest.raises(Died):
            look(servers, heal=True)
    # The events are right, so that no comparison would find anything; whatever said that the day is dirty is gone.
    servers.sink.command("forgetting", "TRUNCATE TABLE day_marks")
    assert target_performance(servers) != source_performance(writer)
    assert look(servers, heal=True).agrees
    assert target_performance(servers) == source_performance(writer)
    assert reconcile.unfinished_days(servers.sink) == []


def test_a_final_day_that_is_mended_is_restated(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    metrics.note_finality(servers.sink, servers.settings, datetime.now(UTC))
    first = write(writer, "SELECT created_at::date FROM impressions WHERE id = 4")[0][0]
    metrics.note_finality(servers.sink, servers.settings, datetime(2026, 12, 31, tzinfo=UTC))
    write(writer, "DELETE FROM impressions WHERE id = 4")
    assert look(servers, heal=True).agrees
    restated = servers.sink.query(
        "reading", "SELECT date_id, column_name, value_before - value_after, cause FROM metric_restatements"
    )
    assert [(row[0], row[1], int(row[2]), row[3]) for row in restated] == [
        (first, "impressions_count", 1, "reconciliation")
    ]
    assert rebuild(servers) == 0


def test_days_take_turns(servers: Servers, writer: Connection) -> None:
    fill(writer)
    sync(servers)
    servers.settings = servers.settings.model_copy(update={"reconcile_rotation_days": 3})
    days = [date(2026, 11, 15 + n) for n in range(4)]
    assert reconcile.rotation(servers.sink, servers.settings, IMPRESSIONS) == days[:3]
    for day in days[:3]:
        compare(
            servers, IMPRESSIONS, days_within(day, day, calendars.in_force(servers.sink, servers.settings)), heal=False
        )
    assert reconcile.rotation(servers.sink, servers.settings, IMPRESSIONS) == [days[3], days[0], days[1]]


def test_nothing_loaded_is_nothing_to_compare(servers: Servers) -> None:
    result = look(servers, heal=True)
    assert result.agrees
    assert result.days == ()
