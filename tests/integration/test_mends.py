"""What mends the live table while a shadow of it is being filled: the swap must not undo it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, rebuild, sync, target_events
from tests.integration.test_pipeline import campaigns
from tests.integration.test_reconcile import fill as fill_source
from tests.integration.test_reconcile import lose, silently, write
from tests.integration.test_refresh import fill, finish, started
from tests.integration.test_replay import EVERYTHING
from worker import mending, refresh
from worker.celery import Servers
from worker.errors import SchemaMismatch, Superseded
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS, Stream
from worker.tasks.quality import load_released
from worker.tasks.reconcile import compare, replay_window

IMPRESSIONS, CLICKS = STREAMS["impressions"], STREAMS["clicks"]

Mend = Callable[[Servers], object]


def heal(servers: Servers) -> None:
    for stream in EVENT_STREAMS:
        assert compare(servers, stream, heal=True).agrees


def replay(servers: Servers) -> None:
    for stream in EVENT_STREAMS:
        assert replay_window(servers, stream, EVERYTHING, dry_run=False).differs


def damage(writer: Connection) -> None:
    """Rows gone and rows changed where no window can find it, in both streams."""
    for stream in EVENT_STREAMS:
        write(writer, f"DELETE FROM {stream.source_table} WHERE id <= 40")
        silently(writer, f"UPDATE {stream.source_table} SET campaign_id = 5 WHERE id BETWEEN 51 AND 60")


@pytest.mark.parametrize("mend", [heal, replay])
@pytest.mark.parametrize("streams", [None, [IMPRESSIONS], [CLICKS]], ids=["all", "impressions", "clicks"])
def test_what_is_mended_while_a_shadow_is_filled_stays_mended(
    servers: Servers, writer: Connection, mend: Mend, streams: list[Stream] | None
) -> None:
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "mended", streams)
    fill(servers, run)
    damage(writer)
    mend(servers)
    assert_agreement(writer, servers)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)


@pytest.mark.parametrize("mend", [heal, replay])
def test_what_is_mended_before_a_shadow_is_filled_stays_mended(
    servers: Servers, writer: Connection, mend: Mend
) -> None:
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "early")
    damage(writer)
    mend(servers)
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)


@pytest.mark.parametrize("mend", [heal, replay])
def test_a_tombstone_waits_in_the_shadow_for_a_window_that_was_read_before_it(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch, mend: Mend
) -> None:
    """The window's snapshot still shows the rows; they arrive after the tombstones."""
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "late")
    read_events = servers.source.read_events

    def read(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        chunks = list(read_events(*arguments, **options))
        other = Servers.open(servers.settings)
        damage(writer)
        mend(other)
        other.close()
        yield from chunks

    monkeypatch.setattr(servers.source, "read_events", read)
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)


@pytest.mark.parametrize("mend", [heal, replay])
@pytest.mark.parametrize("after", [1, 2])
def test_a_swap_between_the_writes_of_a_mend_changes_nothing(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch, mend: Mend, after: int
) -> None:
    """The names change hands after the first or the second table was written."""
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "between")
    fill(servers, run)
    damage(writer)
    original = mending.holds
    looks = []

    def swapped(*arguments: Any) -> bool:
        looks.append(arguments)
        if len(looks) == after:
            other = Servers.open(servers.settings)
            finish(other, run)
            other.close()
        return original(*arguments)

    monkeypatch.setattr(mending, "holds", swapped)
    mend(servers)
    assert len(looks) > after
    assert servers.sink.uuid(EVENTS_TABLE) == run.target_uuid
    rebuild(servers)
    assert_agreement(writer, servers)


def test_who_dies_after_the_live_table_was_written_leaves_nothing_undone(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one to look finds both sides equal, and mends no shadow any more."""
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "died")
    fill(servers, run)
    damage(writer)
    original = mending.holds

    def dies(sink: Any, name: str, uuid: Any) -> bool:
        if name == EVENTS_TABLE:
            raise KeyboardInterrupt
        return original(sink, name, uuid)

    for stream in EVENT_STREAMS:
        with monkeypatch.context() as patched:
            patched.setattr(mending, "holds", dies)
            with pytest.raises(KeyboardInterrupt):
                compare(servers, stream, heal=True)
    heal(servers)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)


def test_shadows_are_written_around_the_live_table_and_one_that_goes_is_no_error(servers: Servers) -> None:
    names = ["ad_events_shadow_a", "ad_events_shadow_b"]
    for name in names:
        servers.sink.command("leaving a shadow", f"CREATE TABLE {name} AS ad_events")
    seen: list[str] = []

    def insert(name: str) -> None:
        seen.append(name)
        if name == names[0]:
            servers.sink.command("dropping", f"DROP TABLE {name} SYNC")
            raise SchemaMismatch(f"{name} is gone.")
        if name == EVENTS_TABLE:
            servers.sink.command("leaving a shadow", "CREATE TABLE ad_events_shadow_c AS ad_events")

    mending.write_everywhere(servers.sink, insert)
    assert seen == [*names, EVENTS_TABLE, names[1], "ad_events_shadow_c"]
    for name in (names[1], "ad_events_shadow_c"):
        servers.sink.command("dropping", f"DROP TABLE {name} SYNC")


def test_what_fails_on_the_live_table_is_an_error(servers: Servers) -> None:
    def insert(name: str) -> None:
        raise SchemaMismatch(f"{name} has no such column.")

    with pytest.raises(SchemaMismatch, match="no such column"):
        mending.write_everywhere(servers.sink, insert)


def altered(servers: Servers, table: str = EVENTS_TABLE) -> None:
    servers.sink.command("altering", f"ALTER TABLE {table} ADD COLUMN further Int64 DEFAULT 7")


def restored(servers: Servers) -> None:
    servers.sink.command("altering back", f"ALTER TABLE {EVENTS_TABLE} DROP COLUMN further")


def test_a_shadow_of_an_older_shape_is_not_swapped_in(servers: Servers, writer: Connection) -> None:
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "older-shape")
    fill(servers, run)
    altered(servers)
    try:
        live = servers.sink.uuid(EVENTS_TABLE)
        with pytest.raises(
            Superseded, match=r"ad_events was altered while .* was filled .*ask for another full refresh"
        ):
            finish(servers, run)
        assert servers.sink.uuid(EVENTS_TABLE) == live
        assert not servers.store.gate_closed()
        # A mend that the shadow's shape cannot take must not fail because of it.
        damage(writer)
        heal(servers)
        assert_agreement(writer, servers)
    finally:
        restored(servers)


def test_a_table_altered_while_a_refresh_waits_for_its_swap_is_seen(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "altered-late")
    fill(servers, run)
    original = refresh._drop_older

    def alter(*arguments: Any) -> None:
        altered(servers)
        original(*arguments)

    monkeypatch.setattr(refresh, "_drop_older", alter)
    try:
        with pytest.raises(Superseded, match="altered"):
            finish(servers, run)
    finally:
        restored(servers)


def test_a_row_released_from_quarantine_while_a_shadow_is_filled_is_in_it(servers: Servers, writer: Connection) -> None:
    from worker import quarantine

    servers.settings = servers.settings.model_copy(update={"cleansing": {"no campaign": "quarantine"}})
    campaigns(writer)
    fill_source(writer, 100, 100)
    sync(servers)
    held = quarantine.rows(servers.sink, stream=IMPRESSIONS)
    assert held
    run = started(servers, "released")
    fill(servers, run)
    quarantine.decide(servers.sink, held, "release", "they are right")
    assert load_released(servers)["loaded"] >= len(held)
    before = target_events(servers)
    finish(servers, run)
    assert target_events(servers) == before


def test_a_shadow_begun_while_the_abandoned_are_looked_for_is_kept(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_source(writer, 10, 10)
    sync(servers)
    begun: list[Any] = []

    def then_one_begins(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any) -> Any:
            seen = original(*arguments)
            if not begun:
                begun.append(None)
                begun[0] = started(servers, "newborn")
            return seen

        monkeypatch.setattr(owner, name, wrapped)

    then_one_begins(refresh, "shadows")
    then_one_begins(servers.ledger, "open_runs")
    assert refresh.drop_abandoned(servers.sink, servers.ledger) == []
    (run,) = begun
    fill(servers, run)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)


def test_lost_rows_come_back_in_both_tables(servers: Servers, writer: Connection) -> None:
    fill_source(writer, 100, 100)
    sync(servers)
    run = started(servers, "lost", [IMPRESSIONS])
    fill(servers, run)
    for table in (EVENTS_TABLE, refresh.shadow_name(run.run_id)):
        servers.sink.command(
            "losing events", f"ALTER TABLE {table} DELETE WHERE event_id IN (3, 4) SETTINGS mutations_sync = 2"
        )
    lose(servers, CLICKS, [9])
    heal(servers)
    finish(servers, run)
    rebuild(servers)
    assert_agreement(writer, servers)
