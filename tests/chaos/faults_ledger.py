"""Faults of the ledger's age, and of what merges take away between two readings."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from uuid import uuid4

from tests.chaos import checker
from tests.chaos.faults import STEP_SECONDS, Params, Scene, fault
from tests.chaos.stage import Violation, eventually, signal_to
from worker.coverage import CHECKPOINT_AFTER
from worker.streams import EVENTS_TABLE, STREAMS

QUICK_SECONDS = 3.0
"""How long reading the ledger may take here, beside everything else that goes on."""

OLD = """
INSERT INTO sync_commits (stream, target_uuid, lo, hi, kind, version, rows, system_id, timeline, committed_at)
SELECT %(stream)s, toUUID(%(uuid)s), until - toIntervalSecond(10 * (number + 2)) AS lo, lo + toIntervalSecond(10), 'window',
    bitShiftLeft(toUInt64(%(generation)s), 56) + number, 0, 0, 0, now64(6, 'UTC') - toIntervalMinute(intDiv(number * %(days)s * 1440, %(rows)s))
FROM (SELECT number, %(until)s AS until FROM numbers(%(rows)s))
SETTINGS max_partitions_per_insert_block = 0
"""


def _old(rng: random.Random) -> Params:
    return {"rows": rng.choice([50_000, 200_000]), "days": rng.choice([365, 800])}


@fault("a ledger a year old", "data", _old)
def old_ledger(scene: Scene, rows: int, days: int) -> Iterator[None]:
    """Commits of a long past, of the live tables and of ones that are gone; those older than the ledger keeps expire."""
    streams = list(STREAMS.values())
    with scene.stage.servers() as servers:
        live = servers.ledger.live(streams)
        before = servers.ledger.coverage(streams, live)
        generations = servers.ledger.generations()
        for stream in streams:
            for uuid in (live[stream.target], uuid4()):
                until = before[stream.name].watermark
                parameters = {"stream": stream.name, "uuid": str(uuid), "until": until, "rows": rows // 4, "days": days}
                number = generations[-1].number if generations else 1
                servers.sink.command("growing the ledger old", OLD, {**parameters, "generation": number})
        servers.sink.command("letting the ledger expire", "OPTIMIZE TABLE sync_commits")

        def quick() -> bool:
            began = time.monotonic()
            found = servers.ledger.coverage(streams, servers.ledger.live(streams))
            took = time.monotonic() - began
            for stream in streams:
                same = servers.ledger.live(streams)[stream.target] == live[stream.target]
                if same and found[stream.name].watermark < before[stream.name].watermark:
                    raise Violation(f"the watermark of {stream.name} went back with an old ledger")
            return took < QUICK_SECONDS and all(one.commits <= 2 * CHECKPOINT_AFTER for one in found.values())

        # A checkpoint comes with the next tick where what was put in reaches beyond the last one.
        eventually(quick, "an old ledger is read as quickly as a young one", 90)
    eventually(lambda: not checker.compare_watermarks(scene.stage), "watermarks are those of the ledger", 60)
    yield


@fault(
    "merges between two readings",
    "worker",
    lambda rng: {"day": f"2024-{rng.randint(1, 12):02}-{rng.randint(2, 28):02}"},
)
def merged_between(scene: Scene, day: str) -> Iterator[None]:
    """Events move from a day that nobody else writes to, so that nothing else has it rebuilt, to another; a child dies
    when they are inserted; they are merged, and move on before they are read again: what told of the day they left is
    nowhere but in the ledger."""
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT 2 + n %% 5, %s::timestamptz + n * interval '1 s' FROM generate_series(1, 40) AS n RETURNING id",
            (f"{day}T01:00:00Z",),
        )
        ids = [event_id for (event_id,) in cursor.fetchall()]

        def move() -> str:
            cursor.execute(
                "UPDATE impressions SET created_at = created_at - interval '1 day' WHERE id = ANY(%s) RETURNING inserted_at",
                (ids,),
            )
            return str(cursor.fetchone()[0].isoformat())  # type: ignore[index]

        with scene.stage.servers() as servers:
            loaded = (
                "SELECT count() FROM ad_events FINAL WHERE event_type = 'impression' AND event_id BETWEEN {} AND {}"
            )
            asked = loaded.format(min(ids), max(ids))
            eventually(lambda: servers.sink.query("looking", asked)[0][0] >= len(ids), "new events are loaded", 60)
            moved = move()
            note, meant, until = None, False, time.monotonic() + STEP_SECONDS
            while time.monotonic() < until and not meant:
                only = {"stream": "impressions", "table": EVENTS_TABLE}
                with scene.stage.trap("chunk inserted", "stop", only=only) as name:
                    note = scene.stage.sprung(name, max(0.0, until - time.monotonic()))
                meant = note is not None and note["lo"] <= moved < note["hi"]
                if note is not None and not meant:
                    signal_to(note["pid"], signal.SIGCONT)
            if note is None or not meant:
                scene.unreached.append("stop at chunk inserted")
                yield
                return
            try:
                servers.sink.command("merging", f"OPTIMIZE TABLE {EVENTS_TABLE} FINAL")
                move()
            finally:
                signal_to(note["pid"], signal.SIGKILL)
    yield
