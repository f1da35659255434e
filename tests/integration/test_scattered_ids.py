"""Ids that lie so far apart that each row would take a partition are refused, before anything of them is inserted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns, write
from worker import doctor, pipeline, planner
from worker.celery import Servers
from worker.errors import ScatteredIds
from worker.idshape import CAUSE
from worker.ledger import Failure
from worker.planner import HOPELESS, SPLIT_AFTER, Plan
from worker.streams import EVENTS_TABLE, STREAMS

IMPRESSIONS = STREAMS["impressions"]
CLICKS = STREAMS["clicks"]

SPREAD = {
    "snowflakes": "%s::bigint * 41943040 + 1152921504606846976",
    "random": "('x' || substr(md5(%s::text), 1, 16))::bit(64)::bigint",
    "negative": "%s::bigint * -41943040",
}


def scatter(writer: Connection, campaign: int, ids: str, rows: int = 2000, begin: int = 1) -> None:
    write(
        writer,
        f"INSERT INTO impressions (id, campaign_id, created_at) "
        f"SELECT {ids.replace('%s', 'n')}, {campaign}, '2026-11-18T10:00:00Z' FROM generate_series({begin}, {begin + rows - 1}) AS n",
    )


def plan(servers: Servers) -> dict[str, Plan]:
    plans = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS, CLICKS])
    return {planned.stream.name: planned for planned in plans}


@pytest.mark.parametrize("shape", SPREAD)
def test_a_stream_whose_ids_are_scattered_is_refused_before_its_first_load(
    servers: Servers, writer: Connection, shape: str
) -> None:
    (campaign, *_) = campaigns(writer)
    scatter(writer, campaign, SPREAD[shape])
    add(writer, "clicks", campaign, 10)
    for _ in range(2):
        plans = plan(servers)
        assert plans["impressions"].windows == ()
        (failure,) = plans["impressions"].waiting
        assert CAUSE in failure.error
        assert failure.count == HOPELESS, "a run that waits for it ends with the cause"
    assert plans["clicks"].windows, "the other streams go on"
    noted = servers.ledger.failures(IMPRESSIONS, plans["impressions"].target_uuid, plans["impressions"].watermark)
    assert [one.error for one in noted] == [failure.error], "it is shown where a failing window is"


@pytest.mark.parametrize("shape", SPREAD)
def test_a_chunk_of_scattered_ids_is_refused_whole(servers: Servers, writer: Connection, shape: str) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    scatter(writer, campaign, SPREAD[shape])
    (window,) = plan(servers)["impressions"].windows
    uuid = servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE]
    with pytest.raises(ScatteredIds, match=CAUSE):
        pipeline.load_window(
            servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window, table=EVENTS_TABLE, uuid=uuid
        )  # fmt: skip
    assert servers.sink.query("counting", "SELECT count() FROM ad_events") == [(50,)]
    assert servers.sink.query("counting", "SELECT count() FROM quarantined_events") == [(0,)]
    for _ in range(SPLIT_AFTER + 1):
        servers.ledger.note_failure(IMPRESSIONS, uuid, window, "", f"impressions: the table {CAUSE}")
    again = plan(servers)["impressions"]
    pieces = [*again.windows, *(one.window for one in again.waiting)]
    assert window in pieces
    assert not any(window.lo < piece.lo < window.hi for piece in pieces), "its halves would add partitions bit by bit"


def test_dense_ids_with_an_outlier_and_interleaved_ranges_load(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    scatter(writer, campaign, "%s", rows=3000)
    scatter(writer, campaign, "9223372036854775800 + %s", rows=1)
    scatter(writer, campaign, "-%s", rows=100)
    scatter(writer, campaign, "%s % 16 * 1000000000000 + 100000000 + %s / 16", rows=3200)
    sync(servers)
    assert_agreement(writer, servers)


def test_other_failures_are_halved_as_ever(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10)
    (window,) = plan(servers)["impressions"].windows
    waiting: list[Failure] = []
    now = datetime.now(UTC)
    failed = Failure(window, SPLIT_AFTER, now, "timeout", now, recent=SPLIT_AFTER)
    assert len(planner.again(window, [failed], waiting)) == 2
    assert planner.again(window, [replace(failed, error=CAUSE)], waiting) == []
    assert [one.window for one in waiting] == [window]


@pytest.mark.parametrize(("ids", "word", "state"), [
    ("%s", "dense", "ok"), ("%s * 40", "gaps", "ok"), (SPREAD["snowflakes"], "scattered", "wrong"),
    (SPREAD["random"], "scattered", "wrong"),
])  # fmt: skip
def test_doctor_says_how_ids_are_spread(servers: Servers, writer: Connection, ids: str, word: str, state: str) -> None:
    (campaign, *_) = campaigns(writer)
    scatter(writer, campaign, ids)
    findings = {
        finding.what: finding
        for finding in doctor.examine(servers.settings, now=lambda: datetime.now(UTC), workers=dict, queues=frozenset())
    }
    assert findings["ids of clicks"].found == "there are no rows yet"
    found = findings["ids of impressions"]
    assert (found.state, found.found.split(":")[0]) == (state, word)
    assert (CAUSE in found.mend) == (state == "wrong")
