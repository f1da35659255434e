"""Faults in which somebody mends: rows deleted at the source are taken away, wrong ones set right, amid all the rest.

A deletion is something only reconciliation sees, so a backup put back later would bring such rows back for good: whatever
is deleted here is written again in the end.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2

from tests.chaos import writers
from tests.chaos.faults import Scene, fault
from tests.chaos.stage import Violation, eventually, signal_to
from worker.streams import STREAMS
from worker.tasks.reconcile import replay_window
from worker.windows import Window, instant

DELETED = 12
"""Rows of each table that are deleted."""

HELD_SECONDS = 40.0
"""A refresh gets to its swap in five or so; three stages share two processors."""

ASK_AGAIN = 3.0
"""Seconds after which a comparison is asked for once more: another one may have been at it."""

Ids = dict[str, list[int]]


def _present(scene: Scene, ids: Ids) -> int:
    """How many of these events readers see."""
    found = 0
    with scene.stage.servers() as servers:
        for table, some in ids.items():
            rows = servers.sink.query(
                "looking for rows",
                "SELECT count() FROM ad_events FINAL WHERE event_type = %(type)s AND event_id IN %(ids)s",
                {"type": STREAMS[table].event_type, "ids": tuple(some)},
            )
            found += rows[0][0]
    return found


def _write(scene: Scene, ids: Ids | None = None) -> Ids:
    """Writes rows to both tables, with these ids or new ones. Of today: from a sealed day nothing would be taken."""
    day, result = writers.day(0), {}
    for table in writers.TABLES:
        if ids is None:
            rows = scene.stage.write(
                f"INSERT INTO {table} (campaign_id, created_at) SELECT 3, %s FROM generate_series(1, %s) RETURNING id",
                f"{day}T09:00:00Z",
                DELETED,
            )
            result[table] = [row[0] for row in rows]
        else:
            scene.stage.write(
                f"INSERT INTO {table} (id, campaign_id, created_at) SELECT id, 3, %s FROM unnest(%s) AS id "
                "ON CONFLICT DO NOTHING",
                f"{day}T09:00:00Z",
                ids[table],
            )
    return ids or result


def _heal(scene: Scene, done: Callable[[], bool]) -> bool:
    """Asks for a comparison that mends, again and again until it has; False if it did not come to it."""
    asked = [0.0]

    def looked() -> bool:
        if time.monotonic() - asked[0] > ASK_AGAIN:
            asked[0] = time.monotonic()
            scene.stage.send("worker.tasks.reconcile.run", {"heal": True}, "maintenance", expires=30)
        return done()

    with suppress(Violation):
        eventually(looked, "what differs is mended", 20, every=0.2)
        return True
    return False


@contextmanager
def _refresh_held(scene: Scene) -> Iterator[str]:
    """A full refresh that stands right before its swap, with its shadow filled; empty if none came to it in time."""
    with scene.stage.trap("unswapped", "stop") as name:
        run_id = scene.stage.refresh()
        note = scene.stage.sprung(name, HELD_SECONDS)
    scene.refresh_ends(run_id)
    try:
        yield run_id if note else ""
    finally:
        if note:
            signal_to(note["pid"], signal.SIGCONT)


def _swapped(scene: Scene, run_id: str) -> bool:
    with scene.stage.servers() as servers:
        run = servers.ledger.run(run_id)
        return run is not None and run.target_uuid == servers.sink.uuid("ad_events")


def _mended_amid_a_refresh(scene: Scene, mend: Callable[[Ids], bool]) -> Iterator[None]:
    """Rows are deleted and taken away while a shadow that has them waits for its swap. They must stay away."""
    ids = _write(scene)
    with suppress(Violation):
        eventually(lambda: _present(scene, ids) == 2 * DELETED, "rows are loaded", 20)
    held = ""
    mended = False
    try:
        with _refresh_held(scene) as held:
            for table, some in ids.items():
                scene.stage.write(f"DELETE FROM {table} WHERE id = ANY (%s)", some)
            mended = bool(held) and mend(ids)
        if mended:
            with suppress(Violation):
                eventually(lambda: _swapped(scene, held), "the refresh swaps", 20)
                came_back = _present(scene, ids)
                if came_back:
                    scene.afterwards.append(
                        lambda: _say(f"a swap brought {came_back} rows back that had been taken away")
                    )
        else:
            scene.unreached.append("a mend in the middle of a refresh" if held else "a refresh right before its swap")
        yield
    finally:
        _write(scene, ids)


def _say(what: str) -> None:
    raise Violation(what)


@fault("heal in the middle of a refresh", "clickhouse", weight=0.7)
def heal_amid_a_refresh(scene: Scene) -> Iterator[None]:
    yield from _mended_amid_a_refresh(scene, lambda ids: _heal(scene, lambda: _present(scene, ids) == 0))


@fault("replay in the middle of a refresh", "clickhouse", weight=0.7)
def replay_amid_a_refresh(scene: Scene) -> Iterator[None]:
    began = instant(scene.stage.write("SELECT clock_timestamp() - interval '1 second'")[0][0])

    def replay(ids: Ids) -> bool:
        with scene.stage.servers() as servers, suppress(Exception):
            window = Window(began, servers.source.now())
            for table in ids:
                replay_window(servers, STREAMS[table], window, dry_run=False)
            return _present(scene, ids) == 0
        return False

    yield from _mended_amid_a_refresh(scene, replay)


@fault("heal while a row changes", "postgres", lambda rng: {"campaign": rng.randint(4, 9)}, 0.7)
def heal_while_a_row_changes(scene: Scene, campaign: int) -> Iterator[None]:
    """What heals was read one transaction before what a tick reads, and written after it. The tick's must stay.

    Nobody else writes meanwhile: then nothing but that transaction is between the versions of the two snapshots.
    """
    ids = _write(scene)
    event_id = ids["clicks"][0]
    with suppress(Violation):
        eventually(lambda: _present(scene, ids) == 2 * DELETED, "rows are loaded", 20)
    reached = False
    try:
        with scene.writers.paused():
            reached = _healed_late(scene, event_id, campaign)
        if not reached:
            scene.unreached.append("a heal while a row changes")
        yield
    finally:
        if not reached:
            # Nothing else would bring over what no trigger saw.
            scene.stage.write("UPDATE clicks SET campaign_id = %s WHERE id = %s", campaign, event_id)


def _healed_late(scene: Scene, event_id: int, campaign: int) -> bool:
    stage = scene.stage
    # A change that no window can find.
    with stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute("UPDATE clicks SET campaign_id = 2 WHERE id = %s", (event_id,))
    changing = psycopg2.connect(stage.settings.postgres_dsn, application_name="chaos", connect_timeout=5)
    note: dict[str, Any] | None = None
    try:
        with changing.cursor() as cursor:
            cursor.execute("UPDATE clicks SET campaign_id = %s WHERE id = %s", (campaign, event_id))
        # Once a later one is over, this one stands as in progress in every snapshot.
        stage.write("SELECT pg_current_xact_id()")
        with stage.trap("mending", "stop") as name:
            _heal(scene, lambda: stage.sprung(name, 0) is not None)
            note = stage.sprung(name, 0)
        if note is None:
            return False
        changing.commit()

        def loaded() -> bool:
            with stage.servers() as servers:
                rows = servers.sink.query(
                    "looking for a row",
                    "SELECT campaign_id FROM ad_events FINAL WHERE event_type = 'click' AND event_id = %(id)s",
                    {"id": event_id},
                )
                return rows == [(campaign,)]

        with suppress(Violation):
            eventually(loaded, "a tick loads the change", 15)
            return True
        return False
    finally:
        changing.close()
        if note is not None:
            signal_to(note["pid"], signal.SIGCONT)
