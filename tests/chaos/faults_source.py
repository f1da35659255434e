"""Faults of the source itself: tables rewritten while they are read, and a clock that was set back."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import psycopg2

from tests.chaos import writers
from tests.chaos.faults import STEP_SECONDS, Scene, fault
from tests.chaos.stage import Violation, eventually, signal_to
from worker.streams import EVENTS_TABLE, STREAMS
from worker.windows import format_instant

MIGRATION = "chaos migration"
DDL_SECONDS = 4.0
"""How long the statements wait for a lock: an open transaction of somebody else's may keep them from it."""

REWRITES = {
    "column": ["ALTER TABLE {table} ADD COLUMN made uuid DEFAULT gen_random_uuid()", "ALTER TABLE {table} DROP COLUMN made"],
    "type": ["ALTER TABLE {table} ALTER COLUMN created_at TYPE timestamptz USING created_at + interval '0 s'"],
    "emptied": [
        "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM {table}",
        "TRUNCATE {table}",
        "INSERT INTO {table} SELECT * FROM kept",
    ],
    "anew": [
        "CREATE TABLE anew (LIKE {table} INCLUDING ALL)",
        "INSERT INTO anew SELECT * FROM {table}",
        "SELECT setval(pg_get_serial_sequence('anew', 'id'), nextval(pg_get_serial_sequence('{table}', 'id')) + 1000)",
        "DO $$ DECLARE made text; BEGIN FOR made IN SELECT pg_get_triggerdef(oid) FROM pg_trigger "
        "WHERE tgrelid = '{table}'::regclass AND NOT tgisinternal LOOP "
        "EXECUTE replace(made, ' ON public.{table} ', ' ON public.anew '); END LOOP; END $$",
        "DROP TABLE {table}",
        "ALTER TABLE anew RENAME TO {table}",
    ],
    "unlogged": ["ALTER TABLE {table} SET UNLOGGED", "ALTER TABLE {table} SET LOGGED"],
}  # fmt: skip
"""Each is one transaction that leaves every row as it was, in files of another name."""


class _Migration(threading.Thread):
    """Runs the statements in one transaction; `done` and `waits` say how far it is."""

    def __init__(self, dsn: str, table: str, kind: str) -> None:
        super().__init__(name="migration", daemon=True)
        self._dsn, self._table, self._kind = dsn, table, kind
        self.done = threading.Event()
        self.committed = False

    def run(self) -> None:
        try:
            with closing(psycopg2.connect(self._dsn, application_name=MIGRATION, connect_timeout=5)) as connection:
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL lock_timeout = '{DDL_SECONDS:g}s'")
                    # Before anything is copied, or rows written meanwhile would be lost by the statements themselves.
                    cursor.execute(f"LOCK TABLE {self._table} IN ACCESS EXCLUSIVE MODE")
                    for statement in REWRITES[self._kind]:
                        cursor.execute(statement.format(table=self._table))
                connection.commit()
                self.committed = True
        except psycopg2.Error:
            self.committed = False
        finally:
            self.done.set()

    def waits(self, scene: Scene) -> bool:
        """Whether it waits for somebody's lock."""
        rows = scene.stage.write(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'", MIGRATION
        )
        return bool(rows)


def _rewritten(scene: Scene, table: str, kind: str, note: dict[str, object] | None, step: str) -> None:
    """Begins the statements while a reader stands still, and lets it go on once they have committed or wait for it."""
    if note is None:
        scene.unreached.append(f"stop at {step}")
    migration = _Migration(scene.stage.settings.postgres_dsn, table, kind)
    migration.start()
    try:
        with suppress(Violation, psycopg2.Error):
            eventually(lambda: migration.done.is_set() or migration.waits(scene), "it commits or waits", DDL_SECONDS)
    finally:
        if note is not None:
            signal_to(int(str(note["pid"])), signal.SIGCONT)
    migration.join(2 * DDL_SECONDS)
    if not migration.committed:
        scene.unreached.append(f"{table} rewritten: {kind}")


def _drawn(rng: random.Random) -> dict[str, object]:
    return {"kind": rng.choice(sorted(REWRITES)), "table": rng.choice(writers.TABLES)}


@fault("table rewritten mid-window", "worker", _drawn, 1.5)
def rewritten_window(scene: Scene, kind: str, table: str) -> Iterator[None]:
    """A window's reader has its snapshot and has read nothing yet when the table is rewritten under it."""
    stream = next(stream.name for stream in STREAMS.values() if stream.source_table == table)
    scene.stage.write(
        f"INSERT INTO {table} (campaign_id, created_at) SELECT 3, %s::timestamptz FROM generate_series(1, 50)",
        f"{writers.day(2)}T12:00:00Z",
    )
    with scene.stage.trap("snapshot taken", "stop", only={"stream": stream, "table": EVENTS_TABLE}) as name:
        note = scene.stage.sprung(name, STEP_SECONDS)
    _rewritten(scene, table, kind, note, "snapshot taken")
    yield


@fault("table rewritten mid-dimension", "worker", lambda rng: {"kind": rng.choice(sorted(REWRITES))})
def rewritten_dimension(scene: Scene, kind: str) -> Iterator[None]:
    """The same of campaigns, each of which would be gone at the source for as long as until the next reading."""
    with scene.stage.trap("staging", "stop") as name:
        scene.stage.send("worker.tasks.sync.plan", {"streams": ["campaigns"]}, "realtime", expires=30)
        note = scene.stage.sprung(name, STEP_SECONDS)
    _rewritten(scene, "campaign", kind, note, "staging")
    gone = _gone_campaigns(scene)
    if gone:
        raise Violation(f"campaigns marked deleted after their table was rewritten: {gone}")
    yield


def _gone_campaigns(scene: Scene) -> list[int]:
    there = {row[0] for row in scene.stage.write("SELECT id FROM campaign")}
    with scene.stage.servers() as servers:
        rows = servers.sink.query(
            "looking for campaigns", "SELECT campaign_id FROM campaign_dimension WHERE is_deleted"
        )
    return sorted(number for (number,) in rows if number in there)


@fault("clock set back", "clock", lambda rng: {"seconds": rng.randint(25, 55)}, 0.3)
def clock_set_back(scene: Scene, seconds: int) -> Iterator[None]:
    """Ticks left behind what a clock showed that has been set back since: live tables are refused until a full refresh."""
    stage = scene.stage
    with stage.servers() as servers:

        def noticed() -> bool:
            if servers.ledger.setback():
                return True
            # A tick under way writes what it saw after this.
            ahead = format_instant(servers.source.now() + timedelta(seconds=seconds))
            with stage.redis() as client:
                for stream in STREAMS:
                    told: dict[Any, Any] = {
                        "horizon": ahead,
                        "complete_through": ahead,
                        "seen_at": ahead,
                        "held_by": "",
                    }
                    client.hset(f"retailmedia:observed:{stream}", mapping=told)
            stage.send("worker.tasks.sync.plan", {"streams": ["impressions"]}, "realtime", expires=30)
            return False

        try:
            eventually(noticed, "the clock is noticed", 15, every=0.3)
        except Violation:
            with stage.redis() as client:
                client.delete(*(f"retailmedia:observed:{stream}" for stream in STREAMS))
            if not servers.ledger.setback():
                scene.unreached.append("a clock set back is noticed")
    yield

    def begun_anew() -> None:
        began = time.monotonic()
        with stage.servers() as servers:
            while servers.ledger.setback():
                run_id = stage.refresh()
                with suppress(Violation):
                    eventually(lambda: not servers.ledger.setback(), f"refresh {run_id} begins anew", 30, every=0.2)
                if time.monotonic() - began > 180:
                    raise Violation("no full refresh ended the refusal of a source whose clock was set back")

    scene.repairs.append(begun_anew)
