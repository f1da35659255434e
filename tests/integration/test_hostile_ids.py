"""Ids at the edges of 64 bits are compared, mended and read again as any other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync
from tests.integration.test_reconcile import lose, silently, write
from tests.integration.test_replay import EVERYTHING, figures
from worker.celery import Servers
from worker.streams import STREAMS
from worker.tasks.reconcile import compare, replay_window

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]
EDGES = [-(2**63), -(2**63) + 1, -(2**31) - 1, -4097, -64, -1, 0, 1, 63, 64, 4096, 2**31, 2**62, 2**63 - 2, 2**63 - 1]


def filled(servers: Servers, writer: Connection, ids: list[int]) -> None:
    write(writer, "TRUNCATE impressions, clicks, campaign, advertiser RESTART IDENTITY CASCADE")
    write(writer, "INSERT INTO campaign (name, bid, budget) SELECT 'c' || n, 1, 100 FROM generate_series(1, 5) AS n")
    for table in ("impressions", "clicks"):
        for event_id in ids:
            write(
                writer,
                f"INSERT INTO {table} (id, campaign_id, created_at) VALUES (%s, 1, '2026-11-15T10:00Z')",
                event_id,
            )
    sync(servers)


def test_ids_at_the_edges_agree_and_are_mended(servers: Servers, writer: Connection) -> None:
    filled(servers, writer, EDGES)
    assert_agreement(writer, servers)
    assert compare(servers, IMPRESSIONS, heal=False).agrees
    for event_id in EDGES:
        silently(writer, "UPDATE impressions SET campaign_id = 2 WHERE id = %s", event_id)
    seen = compare(servers, IMPRESSIONS, heal=True)
    assert {defect.event_id: defect.cause for defect in seen.defects} == dict.fromkeys(EDGES, "stale")
    assert seen.agrees
    assert_agreement(writer, servers)


@pytest.mark.parametrize("ids", [[-(2**63), 2**63 - 1], [-1, 0], EDGES])
def test_ids_at_the_edges_are_read_again(servers: Servers, writer: Connection, ids: list[int]) -> None:
    filled(servers, writer, ids)
    lose(servers, CLICKS, ids[:1])
    write(writer, "DELETE FROM clicks WHERE id = %s", ids[-1])
    assert figures(replay_window(servers, CLICKS, EVERYTHING, dry_run=False)) == (1, 1, 0)
    rebuild(servers)
    assert_agreement(writer, servers)


hostile = st.one_of(st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1))


@given(ids=st.lists(hostile, min_size=1, max_size=8, unique=True), data=st.data())
@hypothesis_settings(max_examples=8)
def test_whatever_the_ids_what_differs_is_named(
    servers: Servers, writer: Connection, ids: list[int], data: st.DataObject
) -> None:
    ids = sorted({*ids, 2**63 - 1})
    servers.sink.command("emptying", "TRUNCATE TABLE ad_events SYNC")
    servers.sink.command("emptying", "TRUNCATE TABLE sync_commits SYNC")
    filled(servers, writer, ids)
    assert compare(servers, IMPRESSIONS, heal=False).agrees
    wrong = data.draw(st.lists(st.sampled_from(ids), unique=True))
    wrong.append(2**63 - 1)
    gone = data.draw(st.lists(st.sampled_from(ids), unique=True))
    for event_id in wrong:
        silently(writer, "UPDATE impressions SET campaign_id = 3 WHERE id = %s", event_id)
    for event_id in gone:
        write(writer, "DELETE FROM impressions WHERE id = %s", event_id)
    expected = {**dict.fromkeys(wrong, "stale"), **dict.fromkeys(gone, "extra")}
    seen = compare(servers, IMPRESSIONS, heal=True)
    assert {defect.event_id: defect.cause for defect in seen.defects} == expected
    assert seen.agrees
    assert not replay_window(servers, IMPRESSIONS, EVERYTHING, dry_run=True).differs
