"""The faults: each is a context manager that injects on entry and heals on exit, and says what must hold afterwards.

A fault draws its parameters from the schedule's generator and nothing else, so a seed names the whole run. `Scene` is
what faults act on; what must hold once everything is healed goes to `Scene.afterwards`, and what can be healed only once
the other fault of a pair has given its server back to `Scene.repairs`, which come first.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import psycopg2

from embedded.stack import SERVICES, restart
from tests import processes
from tests.chaos import checker, points, writers
from tests.chaos.stage import CANARY, Process, Stage, Violation, eventually, signal_to
from worker import refresh
from worker.streams import EVENT_STREAMS, EVENTS_TABLE, STREAMS
from worker.windows import format_instant, from_micros, parse_instant

Params = dict[str, Any]
Subject = Literal["worker", "redis", "clickhouse", "postgres", "delivery", "data", "clock"]

LEDGER = ("sync_commits", "sync_totals")
"""The tables that say what is loaded."""

WIPED_SECONDS = 10.0
PATIENCE = 180.0
"""Seconds until something that has not come counts as never coming."""

REFUSED = "until a full refresh of all events"
"""In the sentence with which everything is refused of a source that went back in time."""

REREAD_SECONDS = 400.0
"""The same for new rows after a fault. How long they take is in the report; this tells late from never. Latest are tables
restored to before a refresh that was swapped in since: their ledger says nothing of the table that is live, so everything
is read again, a million rows of one transaction perhaps, while other stages work."""


@dataclass
class Scene:
    """What faults act on: the stage, the writers, and the checks that are due when everything is healed."""

    stage: Stage
    writers: writers.Writers
    repairs: list[Callable[[], None]] = field(default_factory=list)
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    wiped: list[float] = field(default_factory=list)
    refreshes: list[str] = field(default_factory=list)
    backups: bool = False

    def refresh_ends(self, run_id: str) -> None:
        """By the next rest the refresh must have ended, and not failed."""
        self.refreshes.append(run_id)

    def refreshes_ended(self) -> None:
        """Waits for the refreshes begun since the last rest. Raises `Violation`."""
        began, self.refreshes, begun = time.monotonic(), [], self.refreshes
        with self.stage.servers() as servers:
            for run_id in begun:

                def ended(run_id: str = run_id) -> bool:
                    found = servers.ledger.run(run_id)
                    # One that began before the source went back in time ends so; whoever set it back asks for another.
                    if found is not None and found.state == "failed" and REFUSED not in found.message:
                        raise Violation(f"refresh {run_id} failed: {found.message}")
                    # Its message may be lost with Redis before anybody read it: then there never was such a run.
                    return time.monotonic() - began > 5 if found is None else found.state != "running"

                eventually(ended, f"refresh {run_id} ends", PATIENCE)

    def watermarks_return(self) -> None:
        """Once everything is healed, Redis must hold the right watermarks within ten seconds."""

        def right() -> None:
            took = eventually(
                lambda: not checker.compare_watermarks(self.stage), "watermarks are right again", 3 * WIPED_SECONDS
            )
            self.wiped.append(took)

        self.afterwards.insert(0, right)


def _wait(condition: Callable[[], bool], what: str, seconds: float) -> None:
    eventually(condition, what, seconds)


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault. `draw` chooses its parameters. During some, `progress` must be made: new rows be loaded."""

    name: str
    subject: Subject
    inject: Callable[..., AbstractContextManager[None]]
    draw: Callable[[random.Random], Params]
    weight: float = 1.0
    progress: bool = False

    def pairs_with(self, other: Fault) -> bool:
        """Whether both can be on at once: never two of one subject, nor one that needs progress with one that may
        keep the servers from any until it is healed, which may be later."""
        if self.subject == other.subject:
            return False
        return not (self.progress and other.subject in SERVICES) and not (other.progress and self.subject in SERVICES)


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    subject: Subject,
    draw: Callable[[random.Random], Params] | None = None,
    weight: float = 1.0,
    *,
    progress: bool = False,
) -> Callable[[Callable[..., Iterator[None]]], Callable[..., Iterator[None]]]:
    """Registers a generator function as a fault: up to its `yield` it injects, after that it heals."""

    def register(function: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
        FAULTS[name] = Fault(name, subject, contextmanager(function), draw or (lambda rng: {}), weight, progress)
        return function

    return register


# 1. Workers and their children, at every step of a window, a rebuild and a refresh

WINDOW_STEPS = (
    "taken off", "claimed", "copying", "inserting", "chunk inserted", "verifying", "marking", "unledgered",
    "committed", "publishing",
)  # fmt: skip
REBUILD_STEPS = ("built", "day published", "rebuilt")
REFRESH_STEPS = ("shadow created", "shadowed", "unswapped", "swapping", "swapped", "replaced dropped")
STEP_SECONDS = 8.0


def _strike(scene: Scene, step: str, action: str, **told: Any) -> dict[str, Any] | None:
    """Lays the trap, waits until somebody ran into it, and takes it away if nobody did."""
    with scene.stage.trap(step, action, **told) as name:
        if step in REFRESH_STEPS:
            scene.refresh_ends(scene.stage.refresh())
        if step == "campaigns staged":
            scene.stage.send("worker.tasks.sync.plan", {"streams": ["campaigns"]}, "realtime", expires=30)
        note = scene.stage.sprung(name, 2 * STEP_SECONDS if step in REFRESH_STEPS else STEP_SECONDS)
    if note is None:
        scene.unreached.append(f"{action} at {step}")
    return note


def _delay(rng: random.Random, step: str) -> Params:
    return {"delay": round(rng.uniform(0, 0.012), 4)} if step in {"inserting", "swapping"} else {}


def _register_kills() -> None:
    for step in (*WINDOW_STEPS, *REBUILD_STEPS, *REFRESH_STEPS, "campaigns staged"):
        weight = 0.5 if step in REFRESH_STEPS or step == "campaigns staged" else 1.0

        def kill_child(scene: Scene, step: str = step, **told: Any) -> Iterator[None]:
            _strike(scene, step, "kill child", **told)
            yield

        def kill_worker(scene: Scene, step: str = step, action: str = "kill worker", **told: Any) -> Iterator[None]:
            _strike(scene, step, action, **told)
            yield

        def draw_child(rng: random.Random, step: str = step) -> Params:
            return _delay(rng, step)

        def draw_worker(rng: random.Random, step: str = step) -> Params:
            return {"action": rng.choice(["kill worker", "kill parent"]), **_delay(rng, step)}

        fault(f"kill child at {step}", "worker", draw_child, weight)(kill_child)
        fault(f"kill worker at {step}", "worker", draw_worker, 0.35 * weight)(kill_worker)


_register_kills()


@fault(
    "zombie",
    "worker",
    lambda rng: {
        "step": rng.choice((*WINDOW_STEPS[1:], *REBUILD_STEPS, "unswapped")),
        "seconds": round(rng.uniform(3.5, 5.5), 1),
    },
    2.0,
)
def zombie(scene: Scene, step: str, seconds: float) -> Iterator[None]:
    """A child stops in the middle of its work for longer than its lease, and then goes on as if nothing happened."""
    note = _strike(scene, step, "stop")
    if note is None:
        yield
        return
    until = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, until - time.monotonic()))
    signal_to(note["pid"], signal.SIGCONT)


def _window_rows(scene: Scene, note: dict[str, Any], statement: str) -> int:
    """Runs an UPDATE on the rows of the window a trap was sprung in; returns how many it moved."""
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute(
            statement.format(table=STREAMS[note["stream"]].source_table),
            {"lo": note["lo"], "hi": note["hi"], "canary": CANARY},
        )
        return cursor.rowcount


@fault("overtaken zombie", "worker", lambda rng: {"seconds": round(rng.uniform(3.7, 5.2), 1)})
def overtaken(scene: Scene, seconds: float) -> Iterator[None]:
    """A child stops between reading rows and inserting them; they change and are loaded by others; then it inserts."""
    with scene.stage.trap("copying", "stop", only={"table": EVENTS_TABLE}) as name:
        note = scene.stage.sprung(name, STEP_SECONDS)
        if note is not None:
            _window_rows(
                scene,
                note,
                "UPDATE {table} SET campaign_id = 2 + (id + coalesce(campaign_id, 0) + 1) %% 11, "
                "created_at = created_at + interval '1 hour' "
                "WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s AND campaign_id IS DISTINCT FROM %(canary)s "
                "AND created_at BETWEEN '2000-01-01' AND '2100-01-01'",
            )
    if note is None:
        scene.unreached.append("stop at copying")
        yield
        return
    until = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, until - time.monotonic()))
    signal_to(note["pid"], signal.SIGCONT)


@fault("rows move between two readings", "worker")
def moved_between(scene: Scene) -> Iterator[None]:
    """The first half of a window is inserted; some of its rows move away; its reader dies; it is read again."""
    # Enough rows of one instant for several chunks, whatever the others write.
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT 2 + n %% 5, %s::timestamptz + n * interval '1 s' FROM generate_series(1, %s) AS n",
            (f"{writers.day(3)}T00:00:00Z", int(2.5 * scene.stage.settings.chunk_rows)),
        )
        cursor.execute("SELECT inserted_at FROM impressions ORDER BY id DESC LIMIT 1")
        found = cursor.fetchone()
        assert found is not None
    until = time.monotonic() + STEP_SECONDS
    note, meant = None, False
    while time.monotonic() < until:
        with scene.stage.trap("chunk inserted", "stop", only={"stream": "impressions", "table": EVENTS_TABLE}) as name:
            note = scene.stage.sprung(name, max(0.0, until - time.monotonic()))
            meant = note is not None and note["lo"] <= found[0].isoformat() < note["hi"]
            if note is not None and meant:
                _window_rows(
                    scene,
                    note,
                    "UPDATE {table} SET campaign_id = 3 WHERE inserted_at >= %(lo)s AND inserted_at < %(hi)s "
                    "AND id %% 2 = 0 AND campaign_id IS DISTINCT FROM %(canary)s",
                )
        if note is None or meant:
            break
        signal_to(note["pid"], signal.SIGCONT)
    if note is None or not meant:
        scene.unreached.append("stop at chunk inserted")
        yield
        return
    signal_to(note["pid"], signal.SIGKILL)
    yield


@fault("worker killed", "worker", lambda rng: {"name": rng.choice(["fresh", "bulk"])}, 0.5)
def worker_killed(scene: Scene, name: str) -> Iterator[None]:
    scene.stage.send_signal(name, signal.SIGKILL, group=True)
    yield


@fault("children killed", "worker", lambda rng: {"name": rng.choice(["fresh", "bulk"])})
def children_killed(scene: Scene, name: str) -> Iterator[None]:
    for pid in scene.stage.children(name):
        signal_to(pid, signal.SIGKILL)
    yield


@fault("all killed", "worker", weight=0.3)
def all_killed(scene: Scene) -> Iterator[None]:
    """Both workers and beat at once, as when their machine goes."""
    for name in scene.stage.processes:
        scene.stage.send_signal(name, signal.SIGKILL, group=True)
    yield


@fault("beat killed", "worker", weight=0.4)
def beat_killed(scene: Scene) -> Iterator[None]:
    scene.stage.send_signal("beat", signal.SIGKILL)
    yield


def _others_go_past(scene: Scene, note: dict[str, Any], seconds: float) -> None:
    """Waits until a window behind the one a trap was sprung in is committed, and asks for it to be planned."""
    stream, hi = STREAMS[note["stream"]], parse_instant(note["hi"])
    asked = 0.0

    def gone_past() -> bool:
        nonlocal asked
        # The next tick would come when the lease is over and the window itself is handed out again.
        if time.monotonic() - asked > 0.6:
            scene.stage.send("worker.tasks.sync.plan", {"streams": [stream.name]}, "realtime", expires=30)
            asked = time.monotonic()
        covered = servers.ledger.coverage([stream], servers.ledger.live([stream]))[stream.name]
        return any(window.lo >= hi for window in covered.windows)

    with scene.stage.servers() as servers:
        try:
            eventually(gone_past, "others go past the window", seconds, every=0.1)
        except Violation:
            scene.unreached.append("others going past a window in hand")


def _row_of_each(scene: Scene) -> None:
    for table in writers.TABLES:
        scene.stage.write(f"INSERT INTO {table} (campaign_id, created_at) VALUES (3, now())")


@fault("window lost with its message", "worker")
def window_lost(scene: Scene) -> Iterator[None]:
    """A worker dies with a window in hand, Redis loses the message, and others load later windows meanwhile."""
    # An open transaction of theirs would keep the horizon, and so everybody, before the window's end.
    with scene.writers.paused():
        _row_of_each(scene)
        note = _strike(scene, "claimed", "stop", only={"table": EVENTS_TABLE})
        try:
            if note is not None:
                _row_of_each(scene)
                _others_go_past(scene, note, 2.5)
            with scene.stage.redis() as client:
                client.flushall()
        finally:
            if note is not None:
                signal_to(note["parent"], signal.SIGKILL)
                signal_to(note["pid"], signal.SIGKILL)
    yield
    scene.watermarks_return()


# 2. Redis


@fault(
    "redis killed", "redis", lambda rng: {"empty": rng.random() < 0.6, "seconds": round(rng.uniform(0, 2.5), 1)}, 1.5
)
def redis_killed(scene: Scene, empty: bool, seconds: float) -> Iterator[None]:
    scene.stage.kill("redis")
    time.sleep(seconds)
    yield
    scene.stage.restart("redis", empty=empty)
    scene.watermarks_return()


@fault("redis flushed amid a chord", "redis", weight=1.5)
def redis_flushed(scene: Scene) -> Iterator[None]:
    deadline = time.monotonic() + 3
    with scene.stage.redis() as client:
        while time.monotonic() < deadline:
            if any(True for _ in client.scan_iter("*.j", count=1000)):
                break
        client.flushall()
    yield
    scene.watermarks_return()


@fault(
    "redis stopped",
    "redis",
    lambda rng: {"seconds": round(rng.uniform(2, 5) if rng.random() < 0.7 else rng.uniform(10.5, 12), 1)},
)
def redis_stopped(scene: Scene, seconds: float) -> Iterator[None]:
    scene.stage.kill("redis", signal.SIGSTOP)
    until = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, until - time.monotonic()))
    scene.stage.kill("redis", signal.SIGCONT)


@fault("watermarks deleted", "redis")
def watermarks_deleted(scene: Scene) -> Iterator[None]:
    with scene.stage.redis() as client:
        for key in list(client.scan_iter("retailmedia:watermark:*")):
            client.delete(key)
    yield
    scene.watermarks_return()


def _logged(scene: Scene, event: str, offsets: dict[Path, int]) -> bool:
    for path in (scene.stage.home / "logs").glob("*.log"):
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            if event.encode() in file.read():
                return True
    return False


def _log_ends(scene: Scene) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (scene.stage.home / "logs").glob("*.log")}


@fault("watermark set into the future", "redis", lambda rng: {"stream": rng.choice([s.name for s in EVENT_STREAMS])})
def watermark_ahead(scene: Scene, stream: str) -> Iterator[None]:
    """Somebody writes a watermark by hand: it must be noticed and not believed."""
    ends = _log_ends(scene)
    key = f"retailmedia:watermark:{stream}"

    def told() -> bool:
        with scene.stage.redis() as client:
            current = json.loads(client.get(key) or "{}")
            if not current:
                return False
            current["at"] = format_instant(parse_instant(current["at"]) + timedelta(days=1))
            client.set(key, json.dumps(current))
        return True

    eventually(told, "there is a watermark to change", 40)
    yield
    scene.watermarks_return()
    scene.afterwards.append(
        lambda: _wait(lambda: _logged(scene, "watermark.ahead_of_ledger", ends), "the forged watermark was noticed", 40)
    )


@fault("redis memory full", "redis", lambda rng: {"seconds": round(rng.uniform(1, 4), 1)})
def redis_full(scene: Scene, seconds: float) -> Iterator[None]:
    with scene.stage.redis() as client:
        client.config_set("maxmemory", "1")
    time.sleep(seconds)
    yield
    with scene.stage.redis() as client:
        client.config_set("maxmemory", "0")


# 3. ClickHouse


@fault("clickhouse killed", "clickhouse", lambda rng: {"seconds": round(rng.uniform(0, 2), 1)})
def clickhouse_killed(scene: Scene, seconds: float) -> Iterator[None]:
    scene.stage.kill("clickhouse")
    time.sleep(seconds)
    yield
    scene.stage.restart("clickhouse")


def _kill_clickhouse(scene: Scene, step: str, delay: float) -> Iterator[None]:
    try:
        _strike(scene, step, "kill other", victim=scene.stage.pid("clickhouse"), delay=delay)
        time.sleep(0.3)
        yield
    finally:
        # Where asking for the refresh failed, another one may have run into the trap before.
        scene.stage.restart("clickhouse")


@fault("clickhouse killed mid-insert", "clickhouse", lambda rng: {"delay": round(rng.uniform(0, 0.02), 4)})
def clickhouse_killed_inserting(scene: Scene, delay: float) -> Iterator[None]:
    yield from _kill_clickhouse(scene, "inserting", delay)


@fault("clickhouse killed mid-swap", "clickhouse", lambda rng: {"delay": round(rng.uniform(0, 0.008), 4)}, 0.7)
def clickhouse_killed_swapping(scene: Scene, delay: float) -> Iterator[None]:
    yield from _kill_clickhouse(scene, "swapping", delay)


@fault("clickhouse killed mid-rebuild", "clickhouse", lambda rng: {"step": rng.choice(["built", "day published"])})
def clickhouse_killed_rebuilding(scene: Scene, step: str) -> Iterator[None]:
    yield from _kill_clickhouse(scene, step, 0.0)


@fault("clickhouse restarted", "clickhouse", weight=0.7)
def clickhouse_restarted(scene: Scene) -> Iterator[None]:
    scene.stage.kill("clickhouse", signal.SIGTERM)
    yield
    restart(scene.stage.home, "clickhouse")


@fault("clickhouse stopped", "clickhouse", lambda rng: {"seconds": round(rng.uniform(2, 8), 1)})
def clickhouse_stopped(scene: Scene, seconds: float) -> Iterator[None]:
    scene.stage.kill("clickhouse", signal.SIGSTOP)
    until = time.monotonic() + seconds
    yield
    time.sleep(max(0.0, until - time.monotonic()))
    scene.stage.kill("clickhouse", signal.SIGCONT)


LIMITS = "parts_to_throw_insert, parts_to_delay_insert"


def _event_tables(scene: Scene) -> list[str]:
    with scene.stage.servers() as servers:
        return [EVENTS_TABLE, *(shadow.name for shadow in refresh.shadows(servers.sink))]


@fault("clickhouse too many parts", "clickhouse", lambda rng: {"seconds": round(rng.uniform(1, 3), 1)})
def too_many_parts(scene: Scene, seconds: float) -> Iterator[None]:
    with scene.stage.servers() as servers:
        servers.sink.command(
            "limiting parts",
            f"ALTER TABLE {EVENTS_TABLE} MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1",
        )
    time.sleep(seconds)
    yield

    def reset() -> bool:
        # A refresh begun meanwhile has copied the limit.
        for name in _event_tables(scene):
            with scene.stage.servers() as servers, suppress(Exception):
                servers.sink.command("lifting the limit", f"ALTER TABLE {name} RESET SETTING {LIMITS}", retry=False)
        with scene.stage.servers() as servers:
            found = servers.sink.query(
                "looking for limits",
                "SELECT count() FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'ad_events') "
                "AND engine_full LIKE '%parts_to_throw_insert%'",
            )
        return bool(found[0][0] == 0)

    eventually(reset, "the limit on parts is lifted", 20)


@fault("clickhouse out of memory", "clickhouse", lambda rng: {"seconds": round(rng.uniform(1, 4), 1)})
def out_of_memory(scene: Scene, seconds: float) -> Iterator[None]:
    with scene.stage.condition(points.STARVE_INSERTS):
        time.sleep(seconds)
        yield


def _tables(scene: Scene) -> list[str]:
    with scene.stage.servers() as servers:
        rows = servers.sink.query(
            "listing tables",
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree' "
            "AND NOT startsWith(name, 'ad_events_shadow_') AND name NOT LIKE '%staging%' "
            "AND name NOT IN ('schema_migrations', 'sync_runs', 'source_generations')",
        )
    return [name for (name,) in rows]


def _copy_table(scene: Scene, name: str, origin: str, target: str) -> None:
    """Makes the table `target.name` hold exactly the parts of `origin.name`."""
    with scene.stage.servers() as servers:

        def partitions(database: str) -> set[str]:
            rows = servers.sink.query(
                "listing partitions",
                "SELECT partition_id, min(rows) FROM system.parts "
                "WHERE database = %(database)s AND table = %(table)s AND active GROUP BY partition_id HAVING sum(rows) > 0",
                {"database": database, "table": name},
            )
            for partition, least in rows:
                if least == 0:
                    # What a dropped part leaves behind for a while; copying it fails with code 226.
                    servers.sink.command(
                        "merging empty parts away",
                        f"OPTIMIZE TABLE {database}.{name} PARTITION ID %(partition)s FINAL",
                        {"partition": partition},
                    )
            return {partition for partition, _ in rows}

        wanted = partitions(origin)
        for partition in sorted(wanted):
            servers.sink.command(
                "copying a partition",
                f"ALTER TABLE {target}.{name} REPLACE PARTITION ID %(partition)s FROM {origin}.{name}",
                {"partition": partition},
            )
        for partition in sorted(partitions(target) - wanted):
            servers.sink.command(
                "dropping a partition",
                f"ALTER TABLE {target}.{name} DROP PARTITION ID %(partition)s",
                {"partition": partition},
            )


def back_up(scene: Scene) -> None:
    """Copies every table, the ledger first: it must not speak of rows that are not in the copy."""
    names = sorted(_tables(scene), key=lambda name: name not in LEDGER)
    database = scene.stage.settings.sink_address.database
    with scene.stage.servers() as servers:
        for name in names:
            servers.sink.command("making room", f"CREATE TABLE IF NOT EXISTS chaos_backup.{name} AS {database}.{name}")
    for name in names:
        _copy_table(scene, name, database, "chaos_backup")
    scene.backups = True


@fault("ledger restored", "clickhouse", lambda rng: {"quiet": rng.random() < 0.4})
def ledger_restored(scene: Scene, quiet: bool) -> Iterator[None]:
    """The ledger is from a while ago, the data and Redis are ahead of it. `quiet`: nobody writes meanwhile."""
    database = scene.stage.settings.sink_address.database
    with ExitStack() as silence:
        if quiet:
            silence.enter_context(scene.writers.paused())
            time.sleep(1)
        for name in LEDGER:
            _copy_table(scene, name, "chaos_backup", database)
        if quiet:
            time.sleep(4)
            eventually(lambda: not checker.compare_watermarks(scene.stage), "watermarks follow the restored ledger", 30)
    yield
    scene.watermarks_return()


@fault("all tables restored", "clickhouse", weight=0.7)
def all_restored(scene: Scene) -> Iterator[None]:
    """ClickHouse goes back to a backup, as one does it: nobody works meanwhile. Redis knows nothing of it."""
    database = scene.stage.settings.sink_address.database
    for name in scene.stage.processes:
        scene.stage.processes[name].wanted = False
        scene.stage.send_signal(name, signal.SIGKILL, group=True)
    try:
        with scene.stage.servers() as servers:
            names = {
                row[0]
                for row in servers.sink.query(
                    "listing", "SELECT name FROM system.tables WHERE database = 'chaos_backup'"
                )
            }
        for name in sorted(names, key=lambda name: name not in LEDGER):
            _copy_table(scene, name, "chaos_backup", database)
    finally:
        for name in scene.stage.processes:
            scene.stage.processes[name].wanted = True
    yield


# 4. PostgreSQL


@fault("postgres killed", "postgres", lambda rng: {"seconds": round(rng.uniform(0, 2), 1)})
def postgres_killed(scene: Scene, seconds: float) -> Iterator[None]:
    scene.stage.kill("postgres")
    time.sleep(seconds)
    yield
    scene.stage.restart("postgres")


@fault("postgres crash restart", "postgres")
def postgres_crash(scene: Scene) -> Iterator[None]:
    """One backend dies badly: the server ends all sessions and recovers by itself."""
    with suppress(psycopg2.Error):
        pid = scene.stage.write("SELECT pid FROM pg_stat_activity WHERE application_name = 'chaos writer' LIMIT 1")
        if pid:
            signal_to(pid[0][0], signal.SIGKILL)
    yield
    eventually(lambda: scene.stage.write("SELECT 1") == [(1,)], "PostgreSQL answers", 30)


def _readers(scene: Scene, function: str) -> int:
    rows = scene.stage.write(
        f"SELECT {function}(pid) FROM pg_stat_activity WHERE application_name = 'retailmedia reader'"
    )
    return len(rows)


@fault("readers terminated mid-copy", "postgres", weight=1.5)
def readers_terminated(scene: Scene) -> Iterator[None]:
    note = _strike(scene, "copying", "stop")
    _readers(scene, "pg_terminate_backend")
    if note is not None:
        signal_to(note["pid"], signal.SIGCONT)
    yield


@fault("postgres connections exhausted", "postgres", lambda rng: {"seconds": round(rng.uniform(0.5, 2), 1)}, 0.4)
def connections_exhausted(scene: Scene, seconds: float) -> Iterator[None]:
    """Every slot is taken; readers that lose theirs get none."""
    taken: list[Any] = []
    try:
        with suppress(psycopg2.Error):
            while len(taken) < 400:
                taken.append(
                    psycopg2.connect(scene.stage.settings.postgres_dsn, application_name="chaos", connect_timeout=5)
                )
        for connection in taken:
            connection.autocommit = True
        if taken:
            with taken[0].cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'retailmedia reader'"
                )
        # Faster than they come back.
        with suppress(psycopg2.Error):
            while len(taken) < 400:
                taken.append(
                    psycopg2.connect(scene.stage.settings.postgres_dsn, application_name="chaos", connect_timeout=5)
                )
        time.sleep(seconds)
        yield
    finally:
        for connection in taken:
            with suppress(psycopg2.Error):
                connection.close()


@fault("statements cancelled", "postgres")
def statements_cancelled(scene: Scene) -> Iterator[None]:
    until = time.monotonic() + 1
    while time.monotonic() < until:
        with suppress(psycopg2.Error):
            _readers(scene, "pg_cancel_backend")
        time.sleep(0.02)
    yield


@fault("statement timeout", "postgres", weight=0.4)
def statement_timeout(scene: Scene) -> Iterator[None]:
    """A lock keeps every reader waiting past its statement_timeout."""
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '5s'")
        with suppress(psycopg2.Error):
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE impressions, clicks IN ACCESS EXCLUSIVE MODE")
            time.sleep(scene.stage.settings.postgres_statement_timeout_seconds + 1.5)
        with suppress(psycopg2.Error):
            cursor.execute("ROLLBACK")
    yield


def _observed(scene: Scene, field_name: str) -> str:
    with scene.stage.redis() as client:
        return str(client.hget("retailmedia:observed:impressions", field_name) or "")


def _says(scene: Scene, what: str, began: float, patience: float = 15) -> None:
    # Not a promise while another fault is on at the same time, so a silence is only noted.
    try:
        eventually(lambda: what in _observed(scene, "held_by"), f"held_by says {what}", patience)
    except Violation:
        scene.unreached.append(f"held_by names {what}")


@fault(
    "transaction held open",
    "postgres",
    lambda rng: {
        "seconds": round(rng.uniform(3.5, 6) if rng.random() < 0.85 else rng.uniform(10, 20), 1),
        "writes_first": rng.random() < 0.3,
    },
)
def transaction_held(scene: Scene, seconds: float, writes_first: bool) -> Iterator[None]:
    """A transaction stays open, and writes at its end: its rows are stamped with its beginning."""
    connection = psycopg2.connect(scene.stage.settings.postgres_dsn, application_name="chaos holder")
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            found = cursor.fetchone()
            pid = found[0] if found else 0
            if writes_first:
                _late_rows(cursor)
            began = time.monotonic()
            yield
            with suppress(psycopg2.Error):
                _says(scene, f"pid {pid}", began, scene.stage.settings.horizon_alert_seconds + 5)
                time.sleep(max(0.0, seconds - (time.monotonic() - began)))
                _late_rows(cursor)
                connection.commit()
    finally:
        connection.close()


def _late_rows(cursor: Any) -> None:
    for table in writers.TABLES:
        cursor.execute(
            f"INSERT INTO {table} (campaign_id, created_at) "
            "SELECT 2 + n %% 7, %s::timestamptz FROM generate_series(1, 40) AS n",
            (f"{writers.day(2)}T12:00:00Z",),
        )


@fault(
    "transaction prepared", "postgres", lambda rng: {"seconds": round(rng.uniform(3, 6), 1), "kept": rng.random() < 0.8}
)
def transaction_prepared(scene: Scene, seconds: float, kept: bool) -> Iterator[None]:
    """A prepared transaction waits for its second phase: nothing may be planned, and somebody must say why."""
    name = f"held {time.monotonic_ns():x}"
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        _late_rows(cursor)
        cursor.execute(f"PREPARE TRANSACTION '{name}'")
    began = time.monotonic()
    yield
    _says(scene, name, began, 5)
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    with suppress(psycopg2.errors.UndefinedObject):
        scene.stage.write(f"{'COMMIT' if kept else 'ROLLBACK'} PREPARED '{name}'")


# 5. Delivery


def _in_flight(scene: Scene) -> list[tuple[str, str, str, str]]:
    with scene.stage.redis() as client:
        found = []
        for key in client.scan_iter("retailmedia:inflight:*"):
            _, _, stream, uuid = str(key).split(":")
            if stream in ("impressions", "clicks"):
                for member in client.zrange(key, 0, -1):
                    lo, hi = str(member).split("/")
                    found.append((stream, uuid, lo, hi))
        return found


def _deliver(scene: Scene, stream: str, uuid: str, lo: str, hi: str, queue: str) -> None:
    kwargs = {"stream": stream, "lo": lo, "hi": hi, "target": uuid}
    scene.stage.send("worker.tasks.sync.load_window", kwargs, queue)


@fault("delivered twice at once", "delivery", lambda rng: {"without_leases": rng.random() < 0.5}, 1.5)
def delivered_twice(scene: Scene, without_leases: bool) -> Iterator[None]:
    """Windows that are being loaded are delivered again, twice each; `without_leases` Redis forgets who holds them."""
    found: list[tuple[str, str, str, str]] = []
    deadline = time.monotonic() + 4
    while not found and time.monotonic() < deadline:
        found = _in_flight(scene)
    for window in found[:3]:
        if without_leases:
            with scene.stage.redis() as client:
                for key in list(client.scan_iter("retailmedia:lease:*")):
                    client.delete(key)
        for queue in ("realtime", "backfill"):
            _deliver(scene, *window, queue)
    if not found:
        scene.unreached.append("a window in flight")
    yield


@fault("redelivered late", "delivery", lambda rng: {"count": rng.randint(1, 6), "position": rng.random()}, 1.5)
def redelivered_late(scene: Scene, count: int, position: float) -> Iterator[None]:
    """Messages of long ago come again: windows loaded since, also for tables replaced since; callbacks; steps."""
    with scene.stage.servers() as servers:
        rows = servers.sink.query(
            "looking for old windows",
            "SELECT stream, toString(target_uuid), toUnixTimestamp64Micro(lo), toUnixTimestamp64Micro(hi) FROM sync_commits "
            "WHERE kind = 'window' AND stream IN ('impressions', 'clicks') ORDER BY committed_at LIMIT 5000",
        )
        runs = servers.ledger.last_runs(3)
    start = int(position * max(0, len(rows) - count))
    for stream, uuid, lo, hi in rows[start : start + count]:
        _deliver(scene, stream, uuid, format_instant(from_micros(lo)), format_instant(from_micros(hi)), "backfill")
    scene.stage.send("worker.tasks.metrics.advance", {"streams": ["impressions"]}, "realtime")
    for run in runs:
        scene.stage.send("worker.tasks.refresh.step", {"run_id": run.run_id}, "backfill")
    yield


@fault("two beats", "delivery", lambda rng: {"seconds": round(rng.uniform(2, 4), 1)}, 0.6)
def two_beats(scene: Scene, seconds: float) -> Iterator[None]:
    stage = scene.stage
    second = Process("second beat", ["beat", "-s", str(stage.home / "beat" / "second")])
    stage.start(second)
    time.sleep(seconds + 2)  # it needs a while to come up
    yield
    assert second.popen is not None
    processes.end(second.popen, signal.SIGTERM, 10)


@fault("refresh amid ticks", "delivery", lambda rng: {"streams": rng.choice([None, None, ["clicks"], ["impressions"]])})
def refresh_amid_ticks(scene: Scene, streams: list[str] | None) -> Iterator[None]:
    scene.refresh_ends(scene.stage.refresh(streams=streams))
    yield


@fault("two refreshes", "delivery", lambda rng: {"apart": round(rng.uniform(0, 1), 2)})
def two_refreshes(scene: Scene, apart: float) -> Iterator[None]:
    scene.refresh_ends(scene.stage.refresh())
    time.sleep(apart)
    scene.refresh_ends(scene.stage.refresh())
    yield


@fault("overtaken refresh", "delivery", weight=0.7)
def overtaken_refresh(scene: Scene) -> Iterator[None]:
    """A refresh stops right before its swap; a newer one swaps; the older one goes on. Nothing of it may show."""
    stage = scene.stage
    with stage.trap("swapping", "stop") as name:
        first = stage.refresh()
        note = stage.sprung(name, 2 * STEP_SECONDS)
    if note is None:
        scene.unreached.append("stop at swapping")
        scene.refresh_ends(first)
        yield
        return
    try:
        second = stage.refresh()

        def swapped() -> bool:
            with stage.servers() as servers:
                run = servers.ledger.run(second)
                return run is not None and run.target_uuid == servers.sink.uuid(EVENTS_TABLE)

        # Sooner than the task's hard limit ends the stopped process.
        with suppress(Violation):
            eventually(swapped, "the newer refresh swaps", 12)
        scene.refresh_ends(second)
        yield
    finally:
        signal_to(note["pid"], signal.SIGCONT)
    scene.refresh_ends(first)


@fault("tasks revoked and terminated", "delivery")
def revoked(scene: Scene) -> Iterator[None]:
    with scene.stage.app() as app, suppress(Exception):
        for _ in range(4):
            active = app.control.inspect(timeout=0.7).active() or {}
            ids = [task["id"] for tasks in active.values() for task in tasks]
            if ids:
                app.control.revoke(ids, terminate=True, signal="SIGKILL")
                break
        else:
            scene.unreached.append("an active task to revoke")
    yield


def _shut_down(scene: Scene, name: str, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        scene.stage.send_signal(name, number)
        time.sleep(0.3)


NAMES = ["fresh", "bulk"]


@fault("warm shutdown", "delivery", lambda rng: {"name": rng.choice(NAMES)}, 0.5)
def warm(scene: Scene, name: str) -> Iterator[None]:
    _shut_down(scene, name, (signal.SIGTERM,))
    yield


@fault("soft shutdown", "delivery", lambda rng: {"name": rng.choice(NAMES)}, 0.5)
def soft(scene: Scene, name: str) -> Iterator[None]:
    _shut_down(scene, name, (signal.SIGQUIT,))
    yield


@fault("cold shutdown", "delivery", lambda rng: {"name": rng.choice(NAMES)}, 0.5)
def cold(scene: Scene, name: str) -> Iterator[None]:
    _shut_down(scene, name, (signal.SIGQUIT, signal.SIGQUIT))
    yield


@fault(
    "chord callback lost",
    "delivery",
    lambda rng: {"day": f"2026-0{rng.randint(1, 9)}-{rng.randint(10, 28)}"},
    progress=True,
)
def callback_lost(scene: Scene, day: str) -> Iterator[None]:
    """Rows of a day of their own are the last ones written, and no callback comes until their metrics are there."""
    stage = scene.stage

    def agrees() -> bool:
        expected = stage.write(
            "SELECT count(*) FROM impressions WHERE (created_at AT TIME ZONE 'UTC')::date = %s AND campaign_id = 3", day
        )
        with stage.servers() as servers:
            found = servers.sink.query(
                "reading metrics",
                "SELECT sum(impressions_count) FROM daily_campaign_performance "
                "WHERE date_id = toDate32(%(day)s) AND campaign_id = 3",
                {"day": day},
            )
        return bool(expected[0][0] == found[0][0])

    with scene.writers.paused(), stage.condition(points.LOSE_CALLBACKS):
        lost = sum(told == "callback lost" for told in stage.reports())
        stage.write(
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT 3, %s::timestamptz + n * interval '1 minute' FROM generate_series(1, 50) AS n",
            # At noon it is the same day in every zone that stages are in.
            f"{day}T12:00:00Z",
        )
        with suppress(Violation):
            eventually(
                lambda: sum(told == "callback lost" for told in stage.reports()) > lost,
                "a callback is lost",
                STEP_SECONDS,
            )
        yield
        eventually(agrees, f"metrics of {day} follow without their callback", PATIENCE)


# 6. Data


def _insert(scene: Scene, rows: list[tuple[int | None, str]]) -> None:
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        for table in writers.TABLES:
            for campaign, at in rows:
                cursor.execute(f"INSERT INTO {table} (campaign_id, created_at) VALUES (%s, %s)", (campaign, at))


@fault("poison rows", "data", lambda rng: {"count": rng.randint(1, 20)})
def poison(scene: Scene, count: int) -> Iterator[None]:
    _insert(scene, [(2 + n % 5, writers.UNLOADABLE[n % len(writers.UNLOADABLE)]) for n in range(count)])
    yield


@fault("poison heals and spreads", "data")
def poison_moves(scene: Scene) -> Iterator[None]:
    """Rows set aside become good, and good rows become such that must be set aside."""
    for table in writers.TABLES:
        scene.stage.write(
            f"UPDATE {table} SET created_at = CASE WHEN created_at = 'infinity' THEN '{writers.day(4)}'::timestamptz "
            f"ELSE 'infinity' END WHERE id IN (SELECT id FROM {table} WHERE campaign_id IS DISTINCT FROM {CANARY} "
            f"ORDER BY created_at = 'infinity' DESC, id DESC LIMIT 12)"
        )
    yield


@fault("orphans and nobody's", "data")
def orphans(scene: Scene) -> Iterator[None]:
    _insert(
        scene,
        [(whose, f"{writers.day(3)}T{hour:02d}:00:00Z") for hour, whose in enumerate((987_654_321, None, 2), 8)] * 5,
    )
    yield


@fault("years 1970 and 9999", "data")
def odd_years(scene: Scene) -> Iterator[None]:
    _insert(scene, [(4, at) for at in (*writers.ODD, "9999-12-31T23:59:59Z", "1970-01-01T00:00:00.000001Z")])
    yield


@fault("new campaign", "data", lambda rng: {"bid": rng.choice(["0", "0.01", "99999999.99", "1.37"])}, 0.5)
def new_campaign(scene: Scene, bid: str) -> Iterator[None]:
    """Its events arrive before the campaign does."""
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO campaign (name, bid, budget, advertiser_id) VALUES ('new', %s, 1, 1) RETURNING id", (bid,)
        )
        found = cursor.fetchone()
        assert found is not None
        for table in writers.TABLES:
            cursor.execute(
                f"INSERT INTO {table} (campaign_id, created_at) SELECT %s, %s FROM generate_series(1, 9)",
                (*found, f"{writers.day(4)}T07:00:00Z"),
            )
    yield


@fault("events move", "data", lambda rng: {"count": rng.randint(50, 400), "seed": rng.getrandbits(32)})
def events_move(scene: Scene, count: int, seed: int) -> Iterator[None]:
    """Many events change campaign and day in one transaction."""
    with suppress(psycopg2.Error), scene.stage.postgres() as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            writers.move(cursor, random.Random(seed), count)
        connection.commit()
    yield


@fault("large transaction", "data", lambda rng: {"rows": rng.randint(10_000, 60_000)}, 0.4)
def large(scene: Scene, rows: int) -> Iterator[None]:
    """Many rows share one instant."""
    _at_one_instant(scene, rows)
    yield


@fault("huge transaction", "data", lambda rng: {"rows": 1_000_000}, 0.1)
def huge(scene: Scene, rows: int) -> Iterator[None]:
    """A million rows share one instant."""
    _at_one_instant(scene, rows)
    yield


def _at_one_instant(scene: Scene, rows: int) -> None:
    with scene.stage.postgres() as connection, connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(
            "INSERT INTO impressions (campaign_id, created_at) "
            "SELECT 2 + n %% 10, %s::timestamptz + (n %% 300000) * interval '1 s' FROM generate_series(1, %s) AS n",
            (f"{writers.day(5)}T00:00:00Z", rows),
        )


# 7. Clocks


@fault(
    "clocks wrong",
    "clock",
    lambda rng: {
        "hours": rng.choice([1, -1]),
        "names": rng.choice([["fresh", "bulk"], ["fresh", "bulk", "beat"]]),
    },
    0.3,
    progress=True,
)
def clocks_wrong(scene: Scene, hours: int, names: list[str]) -> Iterator[None]:
    """Processes come up an hour ahead of or behind the servers; everything must go on as ever."""
    stage = scene.stage
    for name in names:
        stage.processes[name].clock = 3600.0 * hours
        stage.send_signal(name, signal.SIGKILL, group=True)
    try:
        for name in names:
            if name in ("fresh", "bulk"):
                with suppress(Violation):
                    eventually(lambda name=name: stage.answers(name), f"{name} answers", 15)  # type: ignore[misc]
        canary(stage, what="while clocks are wrong")
        yield
    finally:
        for name in names:
            stage.processes[name].clock = 0.0
            stage.send_signal(name, signal.SIGTERM if name != "beat" else signal.SIGKILL)


# What every healed fault ends in

CANARY_DAY = writers.day(3)
"""Among the days that change all the time: one of its own would be one more to rebuild after each fault."""


def canary(stage: Stage, *, what: str = "after healing", seconds: float = PATIENCE) -> float:
    """Writes one impression and one click and returns how long it takes until both are counted.

    Raises `Violation` if they never are.
    """
    for table in writers.TABLES:
        stage.write(f"INSERT INTO {table} (campaign_id, created_at) VALUES (%s, %s)", CANARY, f"{CANARY_DAY}T12:00:00Z")
    expected = tuple(
        stage.write(f"SELECT count(*) FROM {table} WHERE campaign_id = %s", CANARY)[0][0] for table in writers.TABLES
    )

    with ExitStack() as open_servers:
        servers = open_servers.enter_context(stage.servers())

        def counted() -> bool:
            rows = servers.sink.query(
                "looking for the canary",
                "SELECT impressions_count, clicks_count FROM daily_campaign_performance "
                "WHERE date_id = toDate32(%(day)s) AND campaign_id = %(campaign)s",
                {"day": CANARY_DAY, "campaign": CANARY},
            )
            return rows == [expected]

        return eventually(counted, f"new rows are counted {what}", seconds, every=0.2)


# At the end: these modules register faults with what stands above.
from tests.chaos import faults_calendar, faults_dimensions, faults_ledger, faults_mends, faults_money, faults_source  # noqa: E402, F401
