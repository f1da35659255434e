"""Rows that are set aside, released and discarded: counts always balance, metrics follow, nothing waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, source_events, sync, target_events, target_performance
from tests.e2e.test_cli import command, told
from tests.integration.test_checks import check, failed
from tests.integration.test_pipeline import add, campaigns, write
from worker import pipeline, quarantine
from worker.celery import Servers
from worker.config import Settings
from worker.errors import BadInput
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.tasks.quality import load_released
from worker.windows import ORIGIN, Window

STRICT: dict[str, Any] = {"cleansing": {"future": "quarantine", "too old": "flag", "no campaign": "quarantine"}}


@pytest.fixture
def bare_settings(bare_settings: Settings) -> Settings:
    return bare_settings.model_copy(update=STRICT)


def states(servers: Servers) -> dict[tuple[str, int], str]:
    return {(held.stream, held.event_id): held.state for held in quarantine.rows(servers.sink)}


def assert_balance(servers: Servers, writer: Connection) -> None:
    """Every row of the source is loaded or in quarantine, none is both; so says every window of the ledger."""
    there = {(kind + "s", number) for kind, number, *_ in source_events(writer)}
    loaded = {(kind + "s", number) for kind, number, *_ in target_events(servers)}
    aside = {key for key, state in states(servers).items() if state != "loaded"}
    assert loaded & aside == set()
    assert loaded | aside == there
    unbalanced = servers.sink.query(
        "looking", "SELECT * FROM sync_commits WHERE extracted != rows + quarantined AND kind = 'window'"
    )
    assert unbalanced == []
    assert failed(check(servers, "conservation")) == set()
    # The metrics count what is loaded, no more and no less.
    assert sum(row[2] + row[3] for row in target_performance(servers)) == len(loaded)


def test_a_rule_sets_rows_aside_and_flags_rows_and_the_rest_is_loaded(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 5)
    add(writer, "impressions", None, 2)
    add(writer, "clicks", campaign, 1, at="1999-06-01T00:00:00Z")
    write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, now() + interval '2 h')", campaign)
    sync(servers)
    held = quarantine.rows(servers.sink)
    assert sorted((row.stream, row.event_id, row.rule, row.state) for row in held) == [
        ("clicks", 2, "future: the event happened after its row was written", "held"),
        ("impressions", 6, "no campaign: the event names no campaign", "held"),
        ("impressions", 7, "no campaign: the event names no campaign", "held"),
    ]
    flagged = servers.sink.query("looking", "SELECT stream, event_id, rule FROM flagged_events FINAL")
    assert flagged == [("clicks", 1, "too old: the event happened before CLEANSING_EARLIEST")]
    assert len(target_events(servers)) == 6
    assert_balance(servers, writer)
    # And no watermark waits for a row that is held.
    coverage = servers.ledger.coverage(EVENT_STREAMS, servers.ledger.live(EVENT_STREAMS))
    newest = write(
        writer,
        "SELECT max(inserted_at) FROM (SELECT inserted_at FROM clicks UNION ALL SELECT inserted_at FROM impressions) AS e",
    )
    assert all(found.watermark > newest[0][0] for found in coverage.values())


def test_a_released_row_is_loaded_and_its_metrics_follow(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(
        writer,
        "INSERT INTO clicks (campaign_id, created_at) SELECT %s, now() + n * interval '30 h' FROM generate_series(0, 3) AS n",
        campaign,
    )
    sync(servers)
    assert list(states(servers).values()) == ["held"] * 3
    quarantine.decide(servers.sink, quarantine.rows(servers.sink, ids=[2, 3]), "release", "their clock is ahead")
    assert states(servers)[("clicks", 2)] == "released"
    assert_balance(servers, writer)
    # The source has not changed since, so this reading has the version of the first.
    assert load_released(servers)["loaded"] >= 2
    assert states(servers) == {("clicks", 2): "loaded", ("clicks", 3): "loaded", ("clicks", 4): "held"}
    assert_balance(servers, writer)
    assert load_released(servers)["windows"] == 0
    quarantine.decide(servers.sink, quarantine.rows(servers.sink, states=["held"]), "release", "")
    load_released(servers)
    assert_agreement(writer, servers)


def test_a_decision_outlives_every_later_reading(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", None, 3)
    add(writer, "impressions", campaign, 2)
    sync(servers)
    quarantine.decide(servers.sink, quarantine.rows(servers.sink, ids=[1]), "release", "")
    quarantine.decide(servers.sink, quarantine.rows(servers.sink, ids=[2]), "discard", "test traffic")
    load_released(servers)
    add(writer, "clicks", campaign, 1)
    uuid = servers.ledger.live(EVENT_STREAMS)[EVENTS_TABLE]
    window = Window(ORIGIN, servers.source.now())
    args = (servers.source, servers.sink, servers.ledger, servers.settings, STREAMS["impressions"], window)
    pipeline.load_window(*args, table=EVENTS_TABLE, uuid=uuid, again="test")
    sync(servers)
    expected = {("impressions", 1): "loaded", ("impressions", 2): "discarded", ("impressions", 3): "held"}
    # Touched at the source without a change, the rows are read again.
    assert {key: state for key, state in states(servers).items() if state != "loaded"} == {
        key: state for key, state in expected.items() if state != "loaded"
    }
    write(writer, "UPDATE impressions SET campaign_id = campaign_id")
    sync(servers)
    assert {key: state for key, state in states(servers).items() if state != "loaded"} == {
        key: state for key, state in expected.items() if state != "loaded"
    }
    assert_balance(servers, writer)
    # With another content it is another row, and judged anew.
    write(writer, "UPDATE impressions SET created_at = created_at + interval '1 s' WHERE id IN (1, 2)")
    sync(servers)
    assert states(servers) == dict.fromkeys(expected, "held")
    assert_balance(servers, writer)


def test_a_row_corrected_at_the_source_leaves_quarantine_by_itself(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", None, 2)
    sync(servers)
    write(writer, "UPDATE impressions SET campaign_id = %s WHERE id = 1", campaign)
    sync(servers)
    assert states(servers) == {("impressions", 1): "loaded", ("impressions", 2): "held"}
    assert_balance(servers, writer)


def test_a_row_clickhouse_cannot_hold_cannot_be_released(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(writer, "INSERT INTO clicks (campaign_id, created_at) VALUES (%s, 'infinity')", campaign)
    sync(servers)
    (held,) = quarantine.rows(servers.sink)
    assert not held.can_be_loaded
    with pytest.raises(BadInput, match="correct it at the source"):
        quarantine.decide(servers.sink, [held], "release", "")
    assert states(servers) == {("clicks", 1): "held"}


def test_many_rows_of_one_window_are_released_in_one_reading(servers: Servers, writer: Connection) -> None:
    for _ in range(quarantine.INSTANTS + 5):
        add(writer, "impressions", None, 2)
    sync(servers)
    quarantine.decide(servers.sink, quarantine.rows(servers.sink), "release", "")
    assert load_released(servers)["windows"] == 1
    assert_agreement(writer, servers)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("good"), st.integers(1, 4)),
        st.tuples(st.just("bad"), st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(1, 12)),
        st.tuples(st.just("discard"), st.integers(1, 12)),
        st.tuples(st.just("correct"), st.integers(1, 12)),
        st.tuples(st.just("spoil"), st.integers(1, 12)),
        st.tuples(st.just("touch"), st.integers(1, 12)),
        st.tuples(st.just("load released"), st.just(0)),
        st.tuples(st.just("sync"), st.just(0)),
    ),
    min_size=4,
    max_size=14,
)


@hypothesis_settings(max_examples=12)
@given(story=actions)
def test_counts_balance_after_any_story(servers: Servers, writer: Connection, story: list[tuple[str, int]]) -> None:
    if not write(writer, "SELECT FROM campaign"):
        campaigns(writer)
    for action, number in [*story, ("sync", 0), ("load released", 0)]:
        match action:
            case "good":
                add(writer, "impressions", 1, number)
            case "bad":
                add(writer, "impressions", None, number)
            case "release" | "discard":
                found = quarantine.rows(servers.sink, ids=[number], states=["held", "released", "discarded"])
                quarantine.decide(servers.sink, found, action, "")
            case "correct":
                write(writer, "UPDATE impressions SET campaign_id = 1 WHERE id = %s", number)
            case "spoil":
                write(writer, "UPDATE impressions SET campaign_id = NULL WHERE id = %s", number)
            case "touch":
                write(writer, "UPDATE impressions SET campaign_id = campaign_id WHERE id = %s", number)
            case "load released":
                load_released(servers)
            case "sync":
                sync(servers)
                assert_balance(servers, writer)
    rebuild(servers)
    assert_balance(servers, writer)
    assert "released" not in states(servers).values()


def test_the_command_line(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    add(writer, "impressions", None, 4)
    sync(servers)
    strict = {"CLEANSING": json.dumps(STRICT["cleansing"])}

    def run(*words: str) -> Any:
        done = command(servers.settings, "quarantine", *words, "--json", **strict)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run("list")["counts"] == {"impressions": {"held": 4}}
    shown = run("show", "impressions", "2")
    assert shown["state"] == "held"
    assert shown["row"]["campaign_id"] is None
    assert run("release", "impressions", "1", "2", "--reason", "house ads")["rows"] == 2
    assert run("discard", "--rule", "no campaign")["rows"] == 2
    assert run("list", "--state", "discarded")["counts"] == {"impressions": {"discarded": 2, "loaded": 2}}
    assert run("show", "impressions", "1")["reason"] == "house ads"
    assert_balance(servers, writer)
    refused = command(servers.settings, "quarantine", "release", **strict)
    assert "--all" in told(refused, 2)
    assert "99" in told(command(servers.settings, "quarantine", "discard", "impressions", "99", **strict), 2)
    # As a person sees it.
    assert "house ads" in command(servers.settings, "quarantine", "show", "impressions", "1", **strict).stdout
    assert "discarded" in command(servers.settings, "quarantine", "list", "--state", "discarded", **strict).stdout


def test_the_check_command(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    add(writer, "impressions", 1, 4)
    sync(servers)
    done = command(servers.settings, "check", "--json")
    assert done.returncode == 0, done.stderr
    assert {row["state"] for row in json.loads(done.stdout)["checks"]} == {"passed"}
    write(writer, "UPDATE campaign SET bid = -1 WHERE id = 2")
    sync(servers)
    done = command(servers.settings, "check", "bid_not_positive", "--json")
    assert "bid_not_positive" in told(done, 3)
    assert json.loads(done.stdout)["checks"][0]["samples"][0]["campaign_id"] == 2
    done = command(servers.settings, "check")
    assert "bid_not_positive" in told(done, 3)
    assert "Do campaigns have a bid of zero or less?" in done.stdout
    assert command(servers.settings, "check", "no_campaign", "--since", "2026-11-01").returncode == 0
    assert "there is no check" in told(command(servers.settings, "check", "nope"), 2).lower()
