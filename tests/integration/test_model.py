"""Planner, ledger and watermark under every interleaving of messages: lost, late, twice, failed, with Redis emptied.

The model is small: messages handed out, in any order and any number of times. What must hold is checked after every
step against the rows themselves.
"""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

import hypothesis
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns, write
from tests.integration.test_refresh import fill, finish, started
from worker import pipeline, planner
from worker.celery import Servers
from worker.errors import Superseded
from worker.ledger import Run
from worker.planner import Plan
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.windows import ORIGIN, Window

LEDGER_TABLES = ("ad_events", "sync_commits", "sync_attempts", "sync_runs", "day_marks", "daily_campaign_performance")
IMPRESSIONS = STREAMS["impressions"]


def machine(servers: Servers, writer: Connection) -> type[RuleBasedStateMachine]:
    settings = servers.settings.model_copy(update={"window_rows": 7, "chunk_rows": 5, "window_limit": 4})

    class Interleavings(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[Plan, Window]] = []
            self.refreshes: list[Run] = []
            self.highest = ORIGIN
            self.number = 0

        @initialize()
        def empty(self) -> None:
            write(writer, "TRUNCATE impressions, clicks, campaign, advertiser")
            for table in LEDGER_TABLES:
                servers.sink.command("emptying", f"TRUNCATE TABLE {table}")
            redis.Redis.from_url(settings.redis_url).flushdb()
            self.campaign = campaigns(writer, 1)[0]

        @rule(count=st.integers(1, 20))
        def write_rows(self, count: int) -> None:
            add(writer, "impressions", self.campaign, count)

        @rule(count=st.integers(1, 5))
        def update_rows(self, count: int) -> None:
            write(
                writer,
                "UPDATE impressions SET created_at = created_at + interval '1 day' "
                "WHERE id IN (SELECT id FROM impressions ORDER BY id LIMIT %s)",
                count,
            )

        @rule()
        def claim(self) -> None:
            (planned,) = planner.plan(servers.source, servers.ledger, servers.store, settings, [IMPRESSIONS])
            windows = list(planned.windows)
            assert all(a.hi <= b.lo for a, b in pairwise(windows)), "planned windows overlap"
            covered = servers.ledger.coverage([IMPRESSIONS], {EVENTS_TABLE: planned.target_uuid})["impressions"]
            flying = servers.store.in_flight(IMPRESSIONS, planned.target_uuid)
            assert not any(w.overlaps(other) for w in windows for other in (*covered.windows, *flying))
            servers.store.take_off(IMPRESSIONS, planned.target_uuid, windows, 3600, "realtime")
            self.messages += [(planned, window) for window in windows]

        def _load(self, planned: Plan, window: Window) -> None:
            with servers.store.window_lease(IMPRESSIONS, planned.target_uuid, window, 30) as held:
                assert held is not None
                try:
                    pipeline.load_window(
                        servers.source, servers.sink, servers.ledger, settings, IMPRESSIONS, window,
                        table=EVENTS_TABLE, uuid=planned.target_uuid,
                    )  # fmt: skip
                except Superseded:
                    # Planned before a refresh swapped, delivered after it: only then may a window be given up.
                    assert servers.ledger.live([IMPRESSIONS])[EVENTS_TABLE] != planned.target_uuid

        @precondition(lambda self: self.messages)
        @rule(data=st.data(), keep=st.booleans())
        def deliver(self, data: st.DataObject, keep: bool) -> None:
            position = data.draw(st.integers(0, len(self.messages) - 1))
            planned, window = self.messages[position]
            if not keep:  # else it is delivered again some time
                del self.messages[position]
            self._load(planned, window)

        @precondition(lambda self: self.messages)
        @rule(data=st.data())
        def fail(self, data: st.DataObject) -> None:
            planned, window = self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))
            servers.ledger.note_failure(IMPRESSIONS, planned.target_uuid, window, "", "made to fail")
            servers.store.land(IMPRESSIONS, planned.target_uuid, window)

        @precondition(lambda self: self.messages)
        @rule()
        def lose_messages(self) -> None:
            self.messages.clear()

        @rule()
        def leases_expire(self) -> None:
            for shadow in {planned.target_uuid for planned, _ in self.messages}:
                servers.store.clear_flight(IMPRESSIONS, shadow)

        @rule()
        def lose_redis(self) -> None:
            redis.Redis.from_url(settings.redis_url).flushdb()

        @rule()
        def begin_refresh(self) -> None:
            self.number += 1
            self.refreshes.append(started(servers, f"model-{self.number}", [IMPRESSIONS]))

        @precondition(lambda self: self.refreshes)
        @rule(data=st.data())
        def finish_refresh(self, data: st.DataObject) -> None:
            run = self.refreshes.pop(data.draw(st.integers(0, len(self.refreshes) - 1)))
            # A window that waits in flight would hold the swap for half a minute of real time.
            for planned, _ in self.messages:
                servers.store.clear_flight(IMPRESSIONS, planned.target_uuid)
            try:
                fill(servers, run)
                finish(servers, run)
            except Superseded:
                servers.ledger.end_run(run, "superseded")
            except Exception as error:
                if "code 60" not in str(error):  # its shadow was dropped by a newer refresh while it was filled
                    raise
                servers.ledger.end_run(run, "superseded")

        @invariant()
        def the_watermark_never_passes_a_row_that_is_not_there(self) -> None:
            at = self._watermark()
            (expected,) = write(writer, "SELECT count(*) FROM impressions WHERE inserted_at < %s", at)[0]
            (found,) = servers.sink.query(
                "counting",
                "SELECT count() FROM ad_events FINAL WHERE event_type = 'impression' AND inserted_at < %(at)s",
                {"at": at},
            )[0]
            # An updated row moves ahead of the watermark at the source while its old version is still here.
            assert found >= expected

        @invariant()
        def the_watermark_never_goes_back(self) -> None:
            at = self._watermark()
            assert at >= self.highest
            self.highest = at

        def _watermark(self) -> datetime:
            targets = servers.ledger.live(EVENT_STREAMS)
            return planner.publish_watermarks(servers.ledger, servers.store, [IMPRESSIONS], targets)[
                "impressions"
            ].watermark

        def teardown(self) -> None:
            for planned, _ in self.messages:
                servers.store.clear_flight(IMPRESSIONS, planned.target_uuid)
            if hasattr(self, "campaign"):
                redis.Redis.from_url(settings.redis_url).flushdb()
                sync(servers)
                assert_agreement(writer, servers)

    return Interleavings


def test_no_interleaving_leaves_a_gap_or_takes_the_watermark_past_one(servers: Servers, writer: Connection) -> None:
    factory: Any = machine(servers, writer)
    run_state_machine_as_test(
        factory,
        settings=hypothesis.settings(
            max_examples=10,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
