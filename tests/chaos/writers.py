"""Hostile writers: many clients of the source that do what real ones do, with less shame.

Transactions that stay open before their first write and after it, savepoints, rollbacks, prepared transactions, COPY
of many rows at one instant, events that move between campaigns and days, and rows that cannot be loaded. Seeded, but
what is in the source at the end is the truth, whatever each of them got done.
"""

from __future__ import annotations

import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor

from tests.chaos.stage import CAMPAIGNS, Stage

TABLES = ("impressions", "clicks")

NEIGHBOURS = 300
"""How far apart the ids of events are that move together."""

UNLOADABLE = ("9999-12-31T00:00:00Z", "infinity", "-infinity", "1850-01-01T00:00:00Z")
"""Times that ClickHouse cannot keep: such rows belong in quarantine."""

ODD = ("1970-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "1905-06-01T00:00:00Z", "2285-01-01T00:00:00Z")
"""Times that look wrong and must be loaded all the same."""


def day(ago: int) -> str:
    """The date so many days before today's, in UTC.

    Days of a calendar would all be final some days after they were written down here, and every change a restatement
    whose cause must be found, as it is with few changes of any real day.
    """
    return (datetime.now(UTC).date() - timedelta(days=ago)).isoformat()


def some_days(rng: random.Random) -> list[int]:
    """How many days ago one transaction's events happened: on one or two of the last days, sometimes one long before.

    Few, since every day costs the product a rebuild: with all days in every transaction a run spends its time on those
    and not on faults.
    """
    days = [rng.randint(1, 4) for _ in range(rng.randint(1, 2))]
    return [*days, rng.randint(5, 18)] if rng.random() < 0.25 else days


def moment(rng: random.Random, days: list[int]) -> str:
    """When an event happened: some time on one of these days."""
    ago = rng.choice(days)
    return f"{day(ago)}T{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}Z"


def campaign(rng: random.Random) -> int | None:
    """Whose event it was: a campaign's, nobody's, or an unknown campaign's."""
    drawn = rng.random()
    if drawn < 0.03:
        return None
    if drawn < 0.06:
        return 900_000_000 + rng.randrange(5)
    return rng.randint(2, CAMPAIGNS)


def table(rng: random.Random) -> str:
    """Four impressions for a click."""
    return TABLES[0] if rng.random() < 0.8 else TABLES[1]


class Writers:
    """The writers' threads. `pause` returns when none of them has a transaction open, prepared ones included."""

    def __init__(self, stage: Stage, seed: int, *, tricklers: int = 4, pace: float = 2.0) -> None:
        self._stage = stage
        self._pace = pace
        self._open = threading.Event()
        self._closing = threading.Event()
        self._busy: dict[str, bool] = {}
        self._prepared = ""
        self.counts: Counter[str] = Counter()
        acts: dict[str, Callable[[Cursor, random.Random], None]] = {
            **{f"trickler {n}": self._trickle for n in range(tricklers)},
            "mover": self._move,
            "bulk": self._bulk,
            "preparer": self._prepare,
        }
        self._threads = [
            threading.Thread(
                target=self._run, args=(name, act, random.Random(f"{seed} {name}")), name=name, daemon=True
            )
            for name, act in acts.items()
        ]

    def start(self) -> None:
        """Begins to write."""
        self._open.set()
        for thread in self._threads:
            thread.start()

    def pause(self, seconds: float = 20) -> None:
        """Lets open transactions end and begins no others."""
        self._open.clear()
        deadline = time.monotonic() + seconds
        while any(self._busy.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        finish_prepared(self._stage)

    def resume(self) -> None:
        """Writes on."""
        self._open.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Silence for the length of the block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def close(self) -> None:
        """Ends all threads."""
        self._closing.set()
        self._open.set()
        for thread in self._threads:
            thread.join(15)

    def _wait(self, seconds: float) -> None:
        self._closing.wait(seconds * self._pace)

    def _run(self, name: str, act: Callable[[Cursor, random.Random], None], rng: random.Random) -> None:
        connection: Any = None
        while not self._closing.is_set():
            self._open.wait()
            self._busy[name] = True
            # Closed between the look above and here.
            if not self._open.is_set():
                self._busy[name] = False
                continue
            try:
                if connection is None or connection.closed:
                    connection = psycopg2.connect(
                        self._stage.settings.postgres_dsn,
                        application_name="chaos writer",
                        connect_timeout=3,
                        options="-c statement_timeout=15000",
                    )
                with connection.cursor() as cursor:
                    act(cursor, rng)
                connection.rollback()
            except (psycopg2.Error, OSError):
                self.counts["transactions broken"] += 1
                with suppress(Exception):
                    connection.close()
                connection = None
                self._busy[name] = False
                self._closing.wait(0.2)
            self._busy[name] = False
            self._wait(rng.uniform(0.05, 0.3))
        with suppress(Exception):
            connection.close()

    def _add(self, cursor: Cursor, rng: random.Random, count: int) -> int:
        days = some_days(rng)
        for _ in range(count):
            drawn = rng.random()
            at = rng.choice(UNLOADABLE) if drawn < 0.01 else rng.choice(ODD) if drawn < 0.02 else moment(rng, days)
            cursor.execute(f"INSERT INTO {table(rng)} (campaign_id, created_at) VALUES (%s, %s)", (campaign(rng), at))
        return count

    def _trickle(self, cursor: Cursor, rng: random.Random) -> None:
        cursor.execute("SELECT 1")  # the transaction is open and has written nothing
        if rng.random() < 0.3:
            self._wait(rng.uniform(0.2, 0.8) if rng.random() < 0.9 else rng.uniform(1.5, 3))
        written = self._add(cursor, rng, rng.randint(1, 8))
        if rng.random() < 0.3:
            cursor.execute("SAVEPOINT halfway")
            more = self._add(cursor, rng, rng.randint(1, 8))
            if rng.random() < 0.5:
                cursor.execute("ROLLBACK TO SAVEPOINT halfway")
            else:
                written += more
        if rng.random() < 0.3:
            self._wait(rng.uniform(0.1, 0.8) if rng.random() < 0.9 else rng.uniform(1, 3))
        if rng.random() < 0.12:
            cursor.connection.rollback()
            self.counts["transactions rolled back"] += 1
        else:
            cursor.connection.commit()
            self.counts["rows inserted"] += written

    def _move(self, cursor: Cursor, rng: random.Random) -> None:
        self.counts["rows updated"] += move(cursor, rng, rng.randint(1, 40))
        if rng.random() < 0.2:
            self._wait(rng.uniform(0.1, 1))
        cursor.connection.commit()
        self._wait(rng.uniform(0.1, 0.6))

    def _bulk(self, cursor: Cursor, rng: random.Random) -> None:
        count = rng.randint(50, 800) if rng.random() < 0.8 else rng.randint(1500, 2500)
        copy(cursor, rng, count)
        if rng.random() < 0.2:
            self._wait(rng.uniform(0.1, 1))
        cursor.connection.commit()
        self.counts["rows inserted"] += count
        self._wait(rng.uniform(2, 6))

    def _prepare(self, cursor: Cursor, rng: random.Random) -> None:
        # Whoever coordinates two phases ends, after a crash, what it left prepared; else nothing is planned any more.
        if self._prepared:
            cursor.connection.autocommit = True
            with suppress(psycopg2.errors.UndefinedObject):
                cursor.execute("ROLLBACK PREPARED %s", (self._prepared,))
            cursor.connection.autocommit = False
            self._prepared = ""
        name = f"brief {rng.getrandbits(48):x}"
        written = self._add(cursor, rng, rng.randint(1, 5))
        self._prepared = name
        cursor.execute("PREPARE TRANSACTION %s", (name,))
        # The block it was in is over; the session itself has nothing open from here on.
        cursor.connection.commit()
        self._wait(rng.uniform(0.1, 0.7))
        cursor.connection.autocommit = True
        try:
            kept = rng.random() < 0.7
            cursor.execute(f"{'COMMIT' if kept else 'ROLLBACK'} PREPARED %s", (name,))
            self._prepared = ""
            self.counts["rows inserted" if kept else "rows rolled back"] += written
        finally:
            if not cursor.connection.closed:
                cursor.connection.autocommit = False
        self._wait(rng.uniform(3, 8))


def move(cursor: Cursor, rng: random.Random, count: int) -> int:
    """Moves events to other campaigns and days, mostly recent ones; returns how many. Commits nothing."""
    chosen = table(rng)
    cursor.execute(f"SELECT coalesce(max(id), 0) FROM {chosen}")
    found = cursor.fetchone()
    last = int(found[0]) if found else 0
    if not last:
        return 0
    # Neighbours, of a few transactions and so of a few days, mostly of late.
    first = rng.randint(max(1, last - 3000) if rng.random() < 0.75 else 1, last)
    ids = [rng.randint(first, min(last, first + NEIGHBOURS)) for _ in range(count)]
    change, value = rng.choice(
        [
            ("campaign_id = %s", campaign(rng)),
            ("created_at = %s", moment(rng, some_days(rng))),
            ("created_at = created_at + %s * interval '1 day'", rng.randint(-3, 3)),
            ("created_at = %s", rng.choice((*UNLOADABLE, *ODD))),
            ("campaign_id = campaign_id + 0 * %s", 1),
        ]
    )
    if "interval" in change:
        change = change.replace(
            "created_at +",
            f"CASE WHEN created_at BETWEEN '2000-01-01' AND '2100-01-01' THEN created_at ELSE '{day(4)}' END +",
        )
    if value in UNLOADABLE or value in ODD:
        ids = ids[:3]
    # In order, so that two movers cannot wait for each other.
    cursor.execute(
        f"UPDATE {chosen} SET {change} WHERE id IN "
        f"(SELECT id FROM {chosen} WHERE id = ANY(%s) AND campaign_id IS DISTINCT FROM 1 ORDER BY id FOR UPDATE)",
        (value, ids),
    )
    return cursor.rowcount


def copy(cursor: Cursor, rng: random.Random, count: int) -> None:
    """Copies rows into one table; commits nothing."""
    lines = []
    days = some_days(rng)
    for _ in range(count):
        whose = campaign(rng)
        lines.append(f"{whose if whose is not None else chr(92) + 'N'}\t{moment(rng, days)}\n")
    cursor.copy_expert(f"COPY {table(rng)} (campaign_id, created_at) FROM STDIN", io.StringIO("".join(lines)))


def finish_prepared(stage: Stage) -> None:
    """Commits or rolls back, by turns, every transaction that was left prepared."""
    for position, (gid,) in enumerate(stage.write("SELECT gid FROM pg_prepared_xacts ORDER BY gid")):
        with suppress(psycopg2.errors.UndefinedObject, psycopg2.errors.ObjectInUse):
            stage.write(f"{'ROLLBACK' if position % 2 else 'COMMIT'} PREPARED %s", gid)
