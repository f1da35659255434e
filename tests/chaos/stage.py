"""The stage on which faults happen: an embedded stack of its own, Celery's processes, and whoever restarts them.

Everything lives below one folder and ends with `close`, also what was killed, stopped or orphaned meanwhile.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import redis
from celery import Celery
from psycopg2.extensions import connection as Connection

import seed.schema
from embedded import stack
from tests import processes
from tests.nursery import Child
from worker import migrate, pipeline
from worker.celery import Servers, create_app
from worker.config import Settings, load
from worker.sink import Sink
from worker.windows import to_micros

QUEUES = {"fresh": "realtime,maintenance", "bulk": "backfill,realtime,maintenance"}
"""Two workers, each of which can keep the pipeline going while the other is down."""

MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
ROOM = 8 << 30
"""A stage is thrown away within minutes, so it lives in memory where so many bytes of it are free: a fifth of the
processors' time went into the file system of its servers. What is killed is processes, never the machine, so what they
wrote is there afterwards either way."""

TICK_SECONDS = 3.0
"""From tick to tick, under faults."""

CAMPAIGNS = 12
CANARY = 1
"""The campaign whose rows tell how far the pipeline is; nobody else writes for it."""


class Violation(AssertionError):
    """The promise was broken."""


@dataclass
class Process:
    """A process that is started again whenever it ends, as a container would be, while it is `wanted`."""

    name: str
    arguments: list[str]
    clock: float = 0.0
    wanted: bool = True
    popen: Child | None = None
    starts: int = 0


@dataclass
class Stage:
    """Opened by `open_stage`. Server connections made here are the harness's own, one try a statement."""

    home: Path
    settings: Settings
    mutant: str = ""
    tick_seconds: float = TICK_SECONDS
    keep: bool = False
    """Whether the folder, with data and logs, stays when the stage closes."""
    processes: dict[str, Process] = field(default_factory=dict)
    groups: set[int] = field(default_factory=set)
    _closing: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _keeper: threading.Thread | None = None

    # Processes of Celery

    def start_processes(self) -> None:
        """Two workers and beat, and a thread that starts them again when they end."""
        for name in ("traps", "taken", "sprung"):
            (self.home / "chaos" / name).mkdir(parents=True, exist_ok=True)
        (self.home / "beat").mkdir(exist_ok=True)
        for name, queues in QUEUES.items():
            arguments = ["worker", "-n", f"{name}@localhost", "-Q", queues, "-c", "2"]
            self.processes[name] = Process(name, arguments)
        self.processes["beat"] = Process("beat", ["beat"])
        for process in self.processes.values():
            self.start(process)
        for name in QUEUES:
            processes.until(lambda name=name: self.answers(name), f"worker {name} answers")  # type: ignore[misc]
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def start(self, process: Process) -> None:
        """Starts it now."""
        with self._lock:
            process.popen = processes.celery(
                self.settings,
                process.arguments,
                self.home / "logs" / f"{process.name}.log",
                self.environment(process.clock),
                module="tests.chaos.process",
            )
            process.starts += 1
            self.groups.add(process.popen.pid)

    def environment(self, clock: float) -> dict[str, str]:
        """What a process of the product is told beyond the addresses of its servers."""
        settings = self.settings
        return {
            "CHAOS_FOLDER": str(self.home / "chaos"),
            "CHAOS_MUTANT": self.mutant,
            "CHAOS_CLOCK": str(clock),
            "CHAOS_TICK": str(self.tick_seconds),
            "VISIBILITY_TIMEOUT_SECONDS": str(settings.visibility_timeout_seconds),
            "POSTGRES_STATEMENT_TIMEOUT_SECONDS": str(settings.postgres_statement_timeout_seconds),
            "CLICKHOUSE_TIMEOUT_SECONDS": str(settings.clickhouse_timeout_seconds),
            "CONNECT_TIMEOUT_SECONDS": str(settings.connect_timeout_seconds),
            "RETRY_TOTAL_SECONDS": str(settings.retry_total_seconds),
            "CHUNK_ROWS": str(settings.chunk_rows),
            "FRESH_SECONDS": str(settings.fresh_seconds),
            "HORIZON_ALERT_SECONDS": str(settings.horizon_alert_seconds),
            "REPORTING_TIMEZONE": settings.reporting_timezone,
            "LOG_FORMAT": "json",
        }

    def _keep(self) -> None:
        while not self._closing.wait(0.1):
            for process in list(self.processes.values()):
                with self._lock:
                    ended = process.popen is not None and process.popen.poll() is not None
                    if ended and process.wanted and not self._closing.is_set():
                        self.start(process)

    def answers(self, name: str) -> bool:
        """Whether the worker of that name answers."""
        with suppress(Exception):
            return processes.ready(self.settings, f"{name}@localhost")
        return False

    def send_signal(self, name: str, number: int, *, group: bool = False) -> None:
        """Sends a signal to a process, or to it and its children; one that is gone is no error."""
        popen = self.processes[name].popen
        if popen is not None and popen.poll() is None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(popen.pid, number)

    def children(self, name: str) -> list[int]:
        """Process ids of a worker's pool."""
        popen = self.processes[name].popen
        if popen is None or popen.poll() is not None:
            return []
        with suppress(OSError):
            told = Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text()
            return [int(pid) for pid in told.split()]
        return []

    # Servers

    @contextmanager
    def postgres(self) -> Iterator[Connection]:
        """A session with the source, autocommit; closed at the end."""
        connection = psycopg2.connect(self.settings.postgres_dsn, application_name="chaos", connect_timeout=5)
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()

    def write(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs one statement on the source and returns its rows. Tries for a while: the server may be coming up."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.postgres() as connection, connection.cursor() as cursor:
                    cursor.execute(statement, parameters or None)
                    return cursor.fetchall() if cursor.description else []
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    @contextmanager
    def servers(self) -> Iterator[Servers]:
        """The product's own view of the servers, for this thread; closed at the end."""
        opened = Servers.open(self.settings.model_copy(update={"retry_attempts": 8}))
        try:
            yield opened
        finally:
            opened.close()

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A session with Redis; closed at the end."""
        client = redis.Redis.from_url(self.settings.redis_url, socket_timeout=10, decode_responses=True)
        try:
            yield client
        finally:
            client.close()

    def kill(self, service: stack.Service, number: int = signal.SIGKILL) -> None:
        """Sends a signal to a server; one that is gone is no error."""
        with suppress(stack.StackError):
            stack.kill(self.home, service, number)

    def restart(self, service: stack.Service, *, empty: bool = False) -> None:
        """Starts a server again, after killing what is left of it; Redis without its data if `empty`."""
        self.kill(service)
        if empty:
            for path in (self.home / "redis").glob("*.aof"):
                path.unlink()
        stack.restart(self.home, service)

    def pid(self, service: stack.Service) -> int:
        """Process id of a server; 0 if it does not run."""
        return stack.status(self.home)[service].pid or 0

    # Messages

    @contextmanager
    def app(self) -> Iterator[Celery[Any]]:
        """A Celery app on the stage's broker; closed at the end."""
        made = create_app(self.settings)
        try:
            yield made
        finally:
            made.close()

    def send(self, task: str, kwargs: Mapping[str, Any], queue: str, **options: Any) -> str:
        """Sends a message, trying for a while: the broker may be coming up. Returns the task's id."""
        deadline = time.monotonic() + 20
        with self.app() as app:
            while True:
                try:
                    # Nobody reads the result, and subscribing to it is tried for 20 s while Redis is down.
                    sent = app.send_task(
                        task, kwargs=dict(kwargs), queue=queue, retry=False, ignore_result=True, **options
                    )
                    return str(sent.id)
                except Exception:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)

    def refresh(self, **kwargs: Any) -> str:
        """Asks for a full refresh; returns its run id."""
        run_id = pipeline.new_run_id(to_micros(self.write("SELECT clock_timestamp()")[0][0]))
        self.send("worker.tasks.refresh.full_refresh", {"run_id": run_id, **kwargs}, "backfill")
        return run_id

    # Traps

    def arm(self, step: str, action: str, **told: Any) -> str:
        """Lays a trap at a step; returns its id. One trap a step: a second takes the place of the first."""
        name = secrets.token_hex(6)
        building = self.home / "chaos" / f"building-{name}"
        building.write_text(json.dumps({"id": name, "action": action, **told}))
        os.replace(building, self._trap(step))
        return name

    def _trap(self, step: str) -> Path:
        return self.home / "chaos" / "traps" / step.replace(" ", "-")

    def disarm(self, step: str) -> None:
        """Takes a trap or a condition away, if it is still there."""
        self._trap(step).unlink(missing_ok=True)

    @contextmanager
    def trap(self, step: str, action: str, **told: Any) -> Iterator[str]:
        """Lays a trap for the length of the block. If the block fails, whoever was stopped in it goes on."""
        name = self.arm(step, action, **told)
        try:
            yield name
        except BaseException:
            self.disarm(step)
            note = self.sprung(name, 0)
            if note is not None and action == "stop":
                signal_to(note["pid"], signal.SIGCONT)
            raise
        self.disarm(step)

    def sprung(self, name: str, seconds: float) -> dict[str, Any] | None:
        """What the process noted that ran into the trap; None if none did within that time."""
        path = self.home / "chaos" / "sprung" / name
        deadline = time.monotonic() + seconds
        while True:
            with suppress(FileNotFoundError):
                found: dict[str, Any] = json.loads(path.read_text())
                return found
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    @contextmanager
    def condition(self, name: str) -> Iterator[None]:
        """Holds a condition on for the length of the block."""
        self._trap(name).touch()
        try:
            yield
        finally:
            self.disarm(name)

    def reports(self) -> list[str]:
        """What processes reported so far."""
        with suppress(FileNotFoundError):
            return (self.home / "chaos" / "reports").read_text().splitlines()
        return []

    # The end

    def close(self) -> None:
        """Ends every process that was started here, and the stack."""
        self._closing.set()
        for process in self.processes.values():
            process.wanted = False
        if self._keeper is not None:
            self._keeper.join(5)
        with self._lock:
            for group in self.groups:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
            for process in self.processes.values():
                if process.popen is not None:
                    process.popen.wait()
        for service in stack.SERVICES:
            self.kill(service, signal.SIGCONT)
        stack.stop(self.home)


def signal_to(pid: int, number: int) -> None:
    """Sends a signal to a process; one that is gone is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def eventually(condition: Callable[[], bool], what: str, seconds: float, every: float = 0.05) -> float:
    """Waits for a condition, looking `every` so many seconds, and returns how long that took. Raises `Violation`; errors of servers count as not yet."""
    began = time.monotonic()
    while True:
        cause = ""
        try:
            if condition():
                return time.monotonic() - began
        except Violation:
            raise
        except Exception as error:
            cause = f" ({type(error).__name__}: {error})"
        if time.monotonic() - began > seconds:
            raise Violation(f"not within {seconds:g} s: {what}{cause}")
        time.sleep(every)


@contextmanager
def open_stage(
    *, mutant: str = "", keep: bool = False, tick_seconds: float = TICK_SECONDS, **overrides: Any
) -> Iterator[Stage]:
    """A stage with both schemas, campaigns and running processes. Its folder goes at the end unless it is to `keep`."""
    home = Path(tempfile.mkdtemp(prefix="chaos-", dir=_in_memory()))
    made: Stage | None = None
    try:
        found = stack.start(home)
        given = {
            "postgres_dsn": found.postgres_dsn,
            "clickhouse_dsn": found.clickhouse_dsn,
            "redis_url": found.redis_url,
            "retailmedia_home": home,
            "horizon_margin_ms": 20,
            "lease_seconds": 3,
            "window_rows": 3000,
            "chunk_rows": 10_000,
            "fresh_seconds": 10,
            "visibility_timeout_seconds": 180,
            # A million rows of one instant are one statement: thirteen seconds where three stages share two processors.
            "postgres_statement_timeout_seconds": 30,
            "clickhouse_timeout_seconds": 5,
            "connect_timeout_seconds": 2,
            "retry_total_seconds": 10,
            "horizon_alert_seconds": 2,
        }
        settings = load(**{**given, **overrides})
        made = Stage(home, settings, mutant, tick_seconds, keep)
        _prepare(made)
        made.start_processes()
        yield made
    finally:
        if made is not None:
            made.close()
        else:
            stack.stop(home)
        if not (made.keep if made is not None else keep):
            shutil.rmtree(home, ignore_errors=True)


def _in_memory() -> Path | None:
    # Whoever names a folder wants that one.
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM:
        return None
    return MEMORY


def _prepare(stage: Stage) -> None:
    with stage.postgres() as connection:
        connection.autocommit = False
        seed.schema.create(connection)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO advertiser (name) VALUES ('Acme'), ('Bolt')")
            cursor.execute(
                "INSERT INTO campaign (name, bid, budget, advertiser_id) "
                "SELECT 'campaign ' || n, CASE WHEN n = 2 THEN 0 ELSE 0.3 + 0.17 * n END, 100, 1 + n %% 2 "
                "FROM generate_series(1, %s) AS n",
                (CAMPAIGNS,),
            )
            # Bids finer than a cent: what a product counts in cents goes wrong here.
            cursor.execute("ALTER TABLE campaign ALTER COLUMN bid TYPE numeric(18, 6)")
            cursor.execute("UPDATE campaign SET bid = bid + 0.000101 * id WHERE bid > 0")
            # Events of campaigns that do not exist are among what must be survived.
            for table in ("impressions", "clicks"):
                cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {table}_campaign_id_fkey")
    with Sink(stage.settings) as sink:
        migrate.migrate(sink, stage.settings)
        sink.command("making room for backups", "CREATE DATABASE IF NOT EXISTS chaos_backup")
