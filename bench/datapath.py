"""The same rows from PostgreSQL into ClickHouse, the product's way and others', and the limit none can pass.

Every case begins with an empty table of the product's structure and ends with the sums of both sides compared.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from statistics import median
from urllib.parse import urlsplit

import psycopg2
from clickhouse_driver import Client

from bench import dltload
from bench.fleet import Fault, await_that, working
from bench.measures import Findings, Goal, Line, State, paired, rotated
from bench.rows import Totals, add_campaigns, add_events, source_totals, target_totals
from bench.stage import Options, Stage, connected
from worker import dimensions, pipeline
from worker.celery import Servers, create_app
from worker.sink import quoted
from worker.source import copy_statement
from worker.streams import EVENTS_TABLE, STREAMS, Stream
from worker.windows import ORIGIN, Window, from_micros, to_micros

IMPRESSIONS = STREAMS["impressions"]
LOOP_ROWS = 300_000
"""Rows of the row loop: it would take too long over all of them, and takes each as long as the one before."""

ENOUGH_ROUNDS = 3
PATIENCE_SECONDS = 120.0
"""On a machine that is busy with other things, rounds beyond the first three are left out after this long."""

LIBPQ, SOCKET = "limit, by psycopg2", "limit, by the socket"
WINDOW, CELERY = "ours, one window", "ours, through Celery"
FUNCTION, LOOP = "postgresql()", "row loop"
DLT = {f"dlt, {backend}": backend for backend in dltload.BACKENDS}
CASES = (LIBPQ, SOCKET, WINDOW, CELERY, FUNCTION, LOOP, *DLT)
GROUP = "data path, narrow rows"


class _Discard:
    """A file that keeps nothing but how much it was given."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        """Takes a row."""
        self.bytes += len(data)
        return len(data)


@contextmanager
def empty_table(here: Servers) -> Iterator[str]:
    """A new table with the structure of `ad_events`, dropped at the end, its merges with it."""
    name = "bench_events"
    here.sink.command("making a table", f"CREATE TABLE {name} AS {EVENTS_TABLE}")
    try:
        yield name
    finally:
        here.sink.command("dropping a table", f"DROP TABLE IF EXISTS {name} SYNC")


def read_statement(here: Servers, stream: Stream, window: Window) -> bytes:
    """The statement the product reads a window with."""
    with connected(here.settings.source_dsn) as connection, connection.cursor() as cursor:
        statement: bytes = cursor.mogrify(copy_statement(stream), {"lo": window.lo, "hi": window.hi})
    return statement


def read_by_libpq(dsn: str, statement: bytes) -> float:
    """Seconds until psycopg2 has handed over and forgotten every row."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        sink = _Discard()
        begun = time.perf_counter()
        cursor.copy_expert(statement, sink)
        return time.perf_counter() - begun


def read_by_socket(dsn: str, statement: bytes) -> float:
    """Seconds until every byte of the answer has come through the session's own socket; none is looked at."""
    ready = (b"Z\x00\x00\x00\x05I", b"Z\x00\x00\x00\x05T")
    buffer = bytearray(1 << 20)
    with connected(dsn) as connection, socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.settimeout(120)
        begun = time.perf_counter()
        wire.sendall(struct.pack(">ci", b"Q", len(statement) + 5) + statement + b"\x00")
        # A row could end like the message that says the server is ready; the server then sends more within a moment.
        while True:
            size = wire.recv_into(buffer)
            if not size:
                raise Fault("PostgreSQL closed the connection in the middle of a copy")
            if bytes(buffer[max(0, size - 6) : size]) in ready:
                return time.perf_counter() - begun


def load_one_window(here: Servers, window: Window, table: str) -> float:
    """Seconds of the product's own loading of one window, commit included."""
    begun = time.perf_counter()
    pipeline.load_window(
        here.source,
        here.sink,
        here.ledger,
        here.settings,
        IMPRESSIONS,
        window,
        table=table,
        uuid=here.sink.uuid(table),
    )
    return time.perf_counter() - begun


def load_by_function(here: Servers, table: str) -> float:
    """Seconds of ClickHouse's reading PostgreSQL itself: the whole table, in no order."""
    parts = urlsplit(here.settings.source_dsn)
    statement = f"""
        INSERT INTO {quoted(table)} (event_type, event_id, campaign_id, created_at, inserted_at, _version)
        SELECT 'impression', id, ifNull(campaign_id, 0), created_at, inserted_at, 1
        FROM postgresql('{parts.hostname}:{parts.port}', '{parts.path[1:]}', 'impressions', '{parts.username}',
            '{parts.password}')
    """  # noqa: S608 - addresses of our own making
    begun = time.perf_counter()
    here.sink.command("reading PostgreSQL", statement, retry=False)
    return time.perf_counter() - begun


def load_row_by_row(here: Servers, table: str, limit: int) -> float:
    """Seconds of a cursor's rows handed to clickhouse-driver, 50,000 at a time."""
    address = here.settings.sink_address
    client = Client(address.host, address.port, user=address.user, password=address.password, database=address.database)
    connection = psycopg2.connect(here.settings.source_dsn)
    try:
        begun = time.perf_counter()
        with connection.cursor("rows") as cursor:
            cursor.itersize = 50_000
            cursor.execute(
                "SELECT 'impression', id, coalesce(campaign_id, 0), created_at, inserted_at, 1 FROM impressions "
                "WHERE id <= %s ORDER BY inserted_at, id",
                (limit,),
            )
            while rows := cursor.fetchmany(50_000):
                client.execute(
                    f"INSERT INTO {quoted(table)} "
                    "(event_type, event_id, campaign_id, created_at, inserted_at, _version) VALUES",
                    rows,
                )
        return time.perf_counter() - begun
    finally:
        connection.close()
        client.disconnect()


def load_through_celery(here: Servers, last: datetime) -> float:
    """Seconds from the call of a run to its end: rows and metrics in place, the watermark past the `last` row."""
    app = create_app(here.settings)
    try:
        run_id = pipeline.new_run_id(to_micros(here.source.now()))
        # The servers are on this machine, so the ledger's clock is ours; asking it often would cost the run's processors.
        called = datetime.now(UTC)
        app.send_task(
            "worker.tasks.pipeline.run", kwargs={"streams": ["impressions"], "run_id": run_id}, queue="realtime"
        )

        def ended() -> bool:
            found = here.ledger.run(run_id)
            return found is not None and found.state != "running"

        await_that(ended, "a run ends", 120, every=0.1)
    finally:
        app.close()
    run = here.ledger.run(run_id)
    if run is None or run.state != "succeeded":
        raise Fault(f"the run {run_id} ended as {run.state if run else 'nothing'}: {run.message if run else ''}")
    watermark = here.store.watermark(IMPRESSIONS)
    if watermark is None or watermark.at <= last:
        raise Fault(f"the run {run_id} succeeded and the watermark has not passed the last row")
    return (run.updated_at - called).total_seconds()


def begin_anew(here: Servers) -> None:
    """Puts an empty table in the place of `ad_events`, so that nothing counts as loaded, and forgets the metrics."""
    here.sink.command("making a table", f"CREATE TABLE ad_events_fresh AS {EVENTS_TABLE}")
    here.sink.command("exchanging tables", f"EXCHANGE TABLES {EVENTS_TABLE} AND ad_events_fresh", retry=False)
    here.sink.command("dropping a table", "DROP TABLE ad_events_fresh SYNC")
    for table in ("daily_campaign_performance", "day_marks", "empty_days"):
        here.sink.command("emptying a table", f"TRUNCATE TABLE {table}")


def metrics_agree(here: Servers, expected: Totals) -> bool:
    """Whether every event is counted in the metrics, each campaign's with it."""
    (found,) = here.sink.query(
        "adding up metrics",
        "SELECT sum(impressions_count), sum(impressions_count * campaign_id) FROM daily_campaign_performance",
    )
    return (int(found[0]), int(found[1])) == (expected.count, expected.campaigns)


class _Path:
    """The cases on one source. Each returns rows per second, or None where the sums of both sides differ."""

    def __init__(
        self, alone: Servers, fleet: Servers, window: Window, loop_rows: int, dlt: dltload.Dlt | None = None
    ) -> None:
        self._alone, self._fleet, self._window, self._dlt = alone, fleet, window, dlt
        dsn = alone.settings.source_dsn
        self._totals = source_totals(dsn)
        self._few = source_totals(dsn, limit=loop_rows)
        self._statement = read_statement(alone, IMPRESSIONS, window)

    def once(self, case: str) -> float | None:
        """One round of one case."""
        rows, dsn = self._totals.count, self._alone.settings.source_dsn
        if case == LIBPQ:
            return rows / read_by_libpq(dsn, self._statement)
        if case == SOCKET:
            return rows / read_by_socket(dsn, self._statement)
        if case == CELERY:
            begin_anew(self._fleet)
            seconds = load_through_celery(self._fleet, from_micros(self._totals.last))
            agreed = target_totals(self._fleet.sink, EVENTS_TABLE) == self._totals
            return rows / seconds if agreed and metrics_agree(self._fleet, self._totals) else None
        if case in DLT and self._dlt is not None:
            seconds, found = self._dlt.load(DLT[case])
            return rows / seconds if found == self._totals else None
        ways: dict[str, tuple[Callable[[str], float], Totals]] = {
            WINDOW: (lambda table: load_one_window(self._alone, self._window, table), self._totals),
            FUNCTION: (lambda table: load_by_function(self._alone, table), self._totals),
            LOOP: (lambda table: load_row_by_row(self._alone, table, self._few.count), self._few),
        }
        work, expected = ways[case]
        with empty_table(self._alone) as table:
            seconds = work(table)
            return expected.count / seconds if target_totals(self._alone.sink, table) == expected else None


def narrow_source(stage: Stage, name: str, rows: int) -> str:
    """The DSN of a new source with that many impressions."""
    dsn = stage.source(name)
    with connected(dsn) as connection:
        add_campaigns(connection)
    add_events(dsn, rows)
    return dsn


def sync_dimensions(here: Servers) -> None:
    """Reads advertisers and campaigns, in this process."""
    for name in ("advertisers", "campaigns"):
        stream = STREAMS[name]
        uuid = here.ledger.live([stream])[stream.target]
        dimensions.load_dimension(here.source, here.sink, here.ledger, here.settings, stream, uuid=uuid)


def measure(stage: Stage, options: Options, dsn: str) -> Findings:
    """All cases in alternation, after one round that does not count. Leaves nothing behind in ClickHouse."""
    settings = [stage.settings(dsn), stage.settings(dsn)]
    alone, fleet = (Servers.open(each) for each in settings)
    samples: dict[str, list[float]] = {case: [] for case in CASES}
    troubles: dict[str, str] = {}
    try:
        sync_dimensions(fleet)
        until = alone.source.now()
        with ExitStack() as opened:
            dlt = opened.enter_context(dltload.opened(alone.settings)) if dltload.available() else None
            path = _Path(alone, fleet, Window(ORIGIN, until), min(LOOP_ROWS, options.rows), dlt)
            opened.enter_context(working(fleet.settings))
            begun = time.monotonic()
            for number in range(-1, options.rounds):
                if number >= ENOUGH_ROUNDS and time.monotonic() - begun > PATIENCE_SECONDS:
                    break
                for case in rotated(CASES, number):
                    if case in troubles or (case in DLT and (dlt is None or number >= ENOUGH_ROUNDS)):
                        continue
                    try:
                        rate = path.once(case)
                    except Exception as error:  # a case that fails is a finding; the others go on
                        troubles[case] = f"{type(error).__name__}: {str(error)[:200]}"
                        continue
                    if rate is None:
                        troubles[case] = "source and target do not agree"
                    elif number >= 0:
                        samples[case].append(rate)
    finally:
        alone.close()
        fleet.close()
        for each in settings:
            stage.drop(each)
    return findings(samples, troubles, rows=options.rows)


def findings(samples: dict[str, list[float]], troubles: dict[str, str], *, rows: int) -> Findings:
    """Lines and goals of the samples, rows per second by case."""
    good = {case: () if case in troubles else tuple(samples.get(case, ())) for case in CASES}
    # What was measured in the same round is compared, and of the two ways of reading the faster one is the limit.
    limit = tuple(max(pair) for pair in zip(good[LIBPQ], good[SOCKET], strict=False))
    notes = {
        LIBPQ: "the same COPY, copy_expert, every row thrown away",
        SOCKET: "the same COPY, bytes read off the session's socket and thrown away",
        WINDOW: "COPY → columns → blocks, verified and committed, one warm process",
        CELERY: "run called → windows on 2 processes → metrics → watermark",
        FUNCTION: "INSERT … SELECT … FROM postgresql(…), whole table",
        LOOP: f"server-side cursor → tuples → clickhouse-driver, first {min(rows, LOOP_ROWS):,} rows",
        **dict.fromkeys(DLT, "its sql_table into its ClickHouse destination, Parquet over HTTP; no metrics"),
    }
    result = Findings()
    for case in CASES:
        others = {"limit": limit}
        if case not in (LIBPQ, SOCKET):
            others |= {"postgresql()": good[FUNCTION], "row loop": good[LOOP]}
        ratios = {name: paired(good[case], other) for name, other in others.items() if good[case] and other}
        state: State = "failed" if case in troubles else "ok" if good[case] else "not measured"
        note = troubles.get(case) or (notes[case] if good[case] else f"dlt is not installed ({dltload.INSTALL})")
        result.lines.append(Line(GROUP, case, "rows/s", good[case], ratios, note, state))

    fastest = max((good[case] for case in DLT), key=lambda rates: median(rates) if rates else 0.0)
    result.goals += [
        Goal("one window, narrow, of the limit", "at least", 0.75, "×", paired(good[WINDOW], limit)),
        Goal("one window, narrow, of postgresql()", "at least", 1.3, "×", paired(good[WINDOW], good[FUNCTION])),
        Goal("through Celery, 2 processes, of one window", "at least", 0.9, "×", paired(good[CELERY], good[WINDOW])),
        Goal("one window, of the row loop", "at least", 8, "×", paired(good[WINDOW], good[LOOP])),
        Goal(
            "one window, of dlt's fastest backend",
            "at least",
            3,
            "×",
            paired(good[WINDOW], fastest),
            note="" if fastest else "dlt was not measured",
        ),
    ]
    return result
