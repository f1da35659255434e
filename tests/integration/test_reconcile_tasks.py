"""What beat calls: recent days, all days in turn, seals."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_reconcile import fill, write
from worker import metrics, reconcile, seals
from worker.celery import Servers
from worker.errors import BadInput
from worker.streams import STREAMS
from worker.tasks import reconcile as reconcile_tasks
from worker.tasks import seals as seal_tasks


@pytest.fixture
def here(servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """A filled source, synced, and tasks that find these servers."""
    for module in (reconcile_tasks, seal_tasks):
        monkeypatch.setattr(module, "servers", lambda: servers)
    fill(writer)
    sync(servers)
    return servers


def test_recent_days_are_compared_and_mended(here: Servers, writer: Connection) -> None:
    write(
        writer,
        "INSERT INTO impressions (id, campaign_id, created_at) VALUES (7001, 1, now()), (7002, 2, now() - interval '9 days')",
    )
    write(writer, "INSERT INTO clicks (id, campaign_id, created_at) VALUES (7003, 1, now() + interval '3 days')")
    sync(here)
    write(writer, "DELETE FROM impressions WHERE id IN (7001, 7002)")
    write(writer, "DELETE FROM clicks WHERE id = 7003")
    days = here.settings.reconcile_recent_days
    found = reconcile_tasks.recent()
    assert {name: (each["found"], each["mended"]) for name, each in found.items()} == {
        "impressions": (1, 1),
        "clicks": (1, 1),
    }
    oldest = here.sink.query("reading", "SELECT min(date_id) FROM reconciliations")[0][0]
    assert oldest >= datetime.now(UTC).date() - timedelta(days=days)
    # The older one is found in its turn.
    assert reconcile_tasks.rotate()["impressions"]["mended"] == 1
    assert_agreement(writer, here)


def test_all_days_come_round(here: Servers, writer: Connection) -> None:
    here.settings = here.settings.model_copy(update={"reconcile_rotation_days": 3})
    write(writer, "DELETE FROM impressions WHERE created_at >= '2026-11-18T20:00:00Z'")
    first = reconcile_tasks.rotate(heal=False)
    assert (first["impressions"]["days"], first["impressions"]["agrees"]) == (3, True)
    second = reconcile_tasks.rotate(heal=False)
    assert (second["impressions"]["days"], second["impressions"]["agrees"]) == (3, False)
    assert second["impressions"]["mended"] == 0
    looked = reconcile.rotation(here.sink, here.settings, STREAMS["impressions"])
    assert looked[0] == date(2026, 11, 17)


def test_days_by_hand(here: Servers, writer: Connection) -> None:
    write(writer, "DELETE FROM clicks WHERE id = 1")
    assert list(reconcile_tasks.run(streams=["impressions"])) == ["impressions"]
    assert reconcile_tasks.run(first="2026-11-16")["clicks"]["agrees"]
    assert reconcile_tasks.run(first="2026-11-15", last="2026-11-15")["clicks"]["mended"] == 1
    with pytest.raises(BadInput, match="first is a day"):
        reconcile_tasks.run(first="soon")
    with pytest.raises(BadInput, match="dimension"):
        reconcile_tasks.run(streams=["campaigns"])
    with pytest.raises(BadInput, match="not mend"):
        reconcile_tasks.run(mend=True)


def test_a_stream_is_compared_by_one_at_a_time(here: Servers) -> None:
    with here.store.lease("reconcile:clicks", 60) as held:
        assert held is not None
        found = reconcile_tasks.recent()
    assert "skipped" in found["clicks"]
    assert "skipped" not in found["impressions"]


def test_final_days_are_sealed(here: Servers) -> None:
    assert seal_tasks.seal() == {"sealed": 0}
    metrics.note_finality(here.sink, here.settings, datetime(2026, 12, 31, tzinfo=UTC))
    assert seal_tasks.seal() == {"sealed": 4, "renewed": 0}
    assert seals.last_seal(here.sink, date(2026, 11, 18)) is not None
    with here.store.lease("seal", 60):
        assert "skipped" in seal_tasks.seal()


def test_tables_of_replays_that_died_are_dropped(here: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    def left() -> list[tuple[str]]:
        return here.sink.query(
            "looking",
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'replay_')",
        )

    for name in ("replay_shadow_ab", "replay_plan_ab"):
        here.sink.command("leaving a table", f"CREATE TABLE {name} AS ad_events")
    reconcile_tasks.rotate()
    assert len(left()) == 2
    monkeypatch.setattr(reconcile_tasks, "ABANDONED_SECONDS", -1)
    reconcile_tasks.rotate()
    assert left() == []
