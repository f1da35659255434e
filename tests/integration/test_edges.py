"""The edges: what they read is what the database has, what they retry is what may pass, and nothing waits for ever."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg2
import pytest
import structlog
from clickhouse_driver.errors import ServerException
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from embedded import stack as embedded_stack
from tests.agreement import assert_agreement, sync
from tests.conftest import administer
from tests.integration.test_pipeline import add, campaigns, write
from worker import sink as sink_module
from worker import source as source_module
from worker import transient
from worker.celery import Servers
from worker.config import Settings
from worker.errors import (
    BadInput,
    HorizonUnsafe,
    RefusedRows,
    SchemaMismatch,
    SinkFailure,
    SourceFailure,
    TransientSink,
    TransientSource,
)
from worker.sink import Sink, literal
from worker.source import Source
from worker.streams import STREAMS
from worker.windows import ORIGIN, Window, cut, to_micros

IMPRESSIONS = STREAMS["impressions"]

instants = st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31)).map(  # noqa: DTZ001
    lambda value: value.replace(tzinfo=UTC)
)
rows = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(1, 2**63 - 1)),
        st.one_of(st.none(), st.sampled_from(["infinity", "-infinity"]), instants),
    ),
    min_size=1,
    max_size=30,
)


@hypothesis_settings(max_examples=25)
@given(rows=rows, chunk=st.integers(1, 9))
def test_columns_hold_what_postgresql_holds(
    servers: Servers, writer: Connection, rows: list[tuple[int | None, datetime | str | None]], chunk: int
) -> None:
    write(writer, "ALTER TABLE impressions DROP CONSTRAINT IF EXISTS impressions_campaign_id_fkey")
    write(writer, "ALTER TABLE impressions ALTER created_at DROP NOT NULL")
    write(writer, "TRUNCATE impressions")
    for campaign, created in rows:
        write(writer, "INSERT INTO impressions (campaign_id, created_at) VALUES (%s, %s)", campaign, created)
    expected = write(
        writer,
        "SELECT id, coalesce(campaign_id, 0), isfinite(created_at), coalesce(created_at, '-infinity') > now(), "
        "CASE WHEN isfinite(created_at) THEN (extract(epoch FROM created_at) * 1000000)::bigint END, "
        "(extract(epoch FROM inserted_at) * 1000000)::bigint FROM impressions ORDER BY inserted_at, id",
    )
    with servers.source.snapshot([IMPRESSIONS]):
        chunks = list(servers.source.read_events(IMPRESSIONS, Window(ORIGIN, servers.source.now()), chunk))
    assert [len(part) for part in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    read = [
        values
        for part in chunks
        for values in zip(
            part.event_id.tolist(),
            part.campaign_id.tolist(),
            part.created_at.tolist(),
            part.inserted_at.tolist(),
            strict=True,
        )
    ]
    extremes = np.iinfo(np.int64)
    assert read == [
        (i, c, micros if finite else extremes.max if later else extremes.min, inserted)
        for i, c, finite, later, micros, inserted in expected
    ]


def test_both_ways_of_reading_a_copy_give_the_same_chunks(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 5000)
    window = Window(ORIGIN, servers.source.now())

    def read() -> list[list[int]]:
        with servers.source.snapshot([IMPRESSIONS]):
            return [part.event_id.tolist() for part in servers.source.read_events(IMPRESSIONS, window, 777)]

    direct = read()
    monkeypatch.setattr(Source, "_from_socket", Source._through_libpq)
    assert read() == direct
    assert sum(map(len, direct)) == 5000
    monkeypatch.undo()
    assert read() == direct, "the session is as it was"


def test_a_reader_that_stops_early_leaves_a_source_that_works(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 20_000)
    window = Window(ORIGIN, servers.source.now())
    with servers.source.snapshot([IMPRESSIONS]):
        chunks = servers.source.read_events(IMPRESSIONS, window, 100)
        assert len(next(chunks)) == 100
        chunks.close()  # type: ignore[attr-defined]
    assert servers.source.count(IMPRESSIONS, window) == 20_000


def test_an_error_in_the_middle_of_a_copy_carries_its_cause(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 200_000)
    victim = Source(servers.settings)
    window = Window(ORIGIN, servers.source.now())

    def read() -> None:
        with victim.snapshot([IMPRESSIONS]):
            for position, _ in enumerate(victim.read_events(IMPRESSIONS, window, 100)):
                if position == 0:
                    write(
                        writer,
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE strpos(query, 'COPY (') > 0 AND datname = current_database() AND pid <> pg_backend_pid()",
                    )

    with pytest.raises(TransientSource):
        read()
    assert victim.count(IMPRESSIONS, window) == 200_000
    victim.close()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("08006", True), ("53300", True), ("57P01", True), ("57014", True), ("40001", True), ("40P01", True),
        ("58030", True), (None, True), ("42P01", False), ("42501", False), ("22012", False), ("28P01", False),
        ("3D000", False), ("XX000", False),
    ],
)  # fmt: skip
def test_the_table_of_transient_sqlstates(state: str | None, expected: bool) -> None:
    assert transient.postgres(state) is expected


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (252, TransientSink), (241, TransientSink), (159, TransientSink), (210, TransientSink), (202, TransientSink),
        (242, TransientSink), (321, RefusedRows), (407, RefusedRows), (469, RefusedRows), (516, SinkFailure),
        (62, SinkFailure), (47, SinkFailure), (497, SinkFailure), (60, SchemaMismatch),
    ],
)  # fmt: skip
def test_the_table_of_clickhouse_codes(code: int, kind: type[Exception]) -> None:
    error = sink_module._translated("testing", ServerException("because", code), "here")
    assert isinstance(error, kind)
    assert isinstance(error, TransientSink) == (kind is TransientSink)


def test_a_retry_says_why_and_what_is_not_transient_fails_at_once(servers: Servers) -> None:
    tries = 0

    def work() -> None:
        nonlocal tries
        tries += 1
        raise TransientSink("too many parts")

    with structlog.testing.capture_logs() as events, pytest.raises(TransientSink):
        servers.sink.retried(work)
    assert tries == servers.settings.retry_attempts
    retries = [event for event in events if event["event"] == "sink.retry"]
    assert [event["cause"] for event in retries] == ["too many parts"] * (tries - 1)
    assert all(event["wait_seconds"] >= 0 for event in retries)
    with structlog.testing.capture_logs() as events, pytest.raises(SinkFailure, match="code 47"):
        servers.sink.query("asking nonsense", "SELECT no_such_column FROM ad_events")
    assert events == []


@pytest.fixture
def impatient(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"clickhouse_timeout_seconds": 1, "postgres_statement_timeout_seconds": 1, "connect_timeout_seconds": 2,
                "retry_attempts": 1}
    )  # fmt: skip


def test_a_clickhouse_that_hangs_is_given_up(impatient: Settings, stack_home: Path) -> None:
    with Sink(impatient) as sink:
        sink.ping()
        embedded_stack.kill(stack_home, "clickhouse", signal.SIGSTOP)
        try:
            with pytest.raises(TransientSink):
                sink.query("asking", "SELECT 1")
        finally:
            embedded_stack.kill(stack_home, "clickhouse", signal.SIGCONT)
        assert sink.query("asking again", "SELECT 1") == [(1,)]


def test_a_statement_that_takes_too_long_is_ended_by_postgresql(impatient: Settings, writer: Connection) -> None:
    with Source(impatient) as source, pytest.raises(TransientSource, match="57014"):
        source._query("sleeping", "SELECT pg_sleep(60)")


class Blackhole:
    """A TCP relay that stops relaying when told: a server that is there and says nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.silent = threading.Event()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(one, other), daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                if self.silent.is_set():
                    continue
                other.sendall(data)

    def close(self) -> None:
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def blackhole(impatient: Settings) -> Iterator[tuple[Blackhole, Settings]]:
    parts = urlsplit(impatient.postgres_dsn)
    relay = Blackhole(parts.hostname or "", parts.port or 0)
    dsn = impatient.postgres_dsn.replace(f":{parts.port}/", f":{relay.port}/")
    yield relay, impatient.model_copy(update={"postgres_dsn": dsn})
    relay.close()


def test_a_postgresql_that_falls_silent_is_given_up(
    blackhole: tuple[Blackhole, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, through_it = blackhole
    monkeypatch.setattr(source_module, "GRACE_SECONDS", 0.5)
    with Source(through_it) as source:
        source.ping()
        relay.silent.set()
        with pytest.raises(TransientSource):
            source.now()


def test_a_copy_that_falls_silent_is_given_up(
    blackhole: tuple[Blackhole, Settings], writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, through_it = blackhole
    monkeypatch.setattr(source_module, "GRACE_SECONDS", 0.5)
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 10_000)
    with Source(through_it) as source:
        window = Window(ORIGIN, source.now())

        def read() -> None:
            with source.snapshot([IMPRESSIONS]):
                relay.silent.set()
                list(source.read_events(IMPRESSIONS, window, 100))

        with pytest.raises(TransientSource):
            read()


@pytest.fixture
def role(settings: Settings, writer: Connection) -> Iterator[tuple[str, str]]:
    """A role that may write events, and its DSN."""
    name = f"other_{settings.sink_address.database}"
    administer(settings.postgres_dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    try:
        for table in ("advertiser", "campaign", "impressions", "clicks"):
            write(writer, f"GRANT SELECT, INSERT ON {table} TO {name}")
        parts = urlsplit(settings.postgres_dsn)
        yield name, f"postgresql://{name}:x@{parts.hostname}:{parts.port}{parts.path}"
    finally:
        administer(settings.postgres_dsn, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_a_role_that_cannot_see_others_is_refused_with_the_grant_that_helps(
    settings: Settings, writer: Connection, role: tuple[str, str]
) -> None:
    name, dsn = role
    with Source(settings.model_copy(update={"postgres_dsn": dsn})) as source:
        with pytest.raises(HorizonUnsafe, match=f'GRANT pg_read_all_stats TO "{name}"'):
            source.horizon()
        write(writer, f"GRANT pg_read_all_stats TO {name}")
        assert source.horizon().at is not None
        # The session that was trusted is not trusted for ever.
        write(writer, f"REVOKE pg_read_all_stats FROM {name}")
        with pytest.raises(HorizonUnsafe, match="GRANT pg_read_all_stats"):
            source.horizon()


def test_sessions_cannot_write(servers: Servers) -> None:
    with pytest.raises(SourceFailure, match="25006"):
        servers.source._query("writing", "CREATE TABLE never (x int)")


@given(
    st.one_of(
        st.text(),
        st.integers(-(2**62), 2**62),
        st.booleans(),
        st.none(),
        instants.filter(lambda v: 1900 < v.year < 2299),
    )
)
@hypothesis_settings(max_examples=60)
def test_a_literal_means_its_value(servers: Servers, value: object) -> None:
    text = f"SELECT {literal(value)}"
    if isinstance(value, str) and "\x00" in value:
        assert servers.sink.query("asking", f"SELECT length({literal(value)})") == [(len(value.encode()),)]
        return
    if isinstance(value, datetime):
        # As a number: the driver reads times through a float, a microsecond off from the year 2242 on.
        (micros,) = servers.sink.query("asking", f"SELECT toUnixTimestamp64Micro({literal(value)})")[0]
        assert micros == to_micros(value)
        return
    (found,) = servers.sink.query("asking", text)[0]
    assert found == value


def test_planning_uses_the_index(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 20_000)
    add(writer, "clicks", campaign, 20_000)
    write(writer, "ANALYZE")
    source = psycopg2.connect(servers.settings.postgres_dsn)
    until = servers.source.now()
    with source.cursor() as cursor:
        for name in ("first_row", "boundary", "boundary_after"):
            for stream in ("impressions", "clicks"):
                statement = servers.source._on_table(name, STREAMS[stream])
                cursor.execute("EXPLAIN " + statement.as_string(cursor), {"lo": ORIGIN, "hi": until, "rows": 500})
                plan = "\n".join(row[0] for row in cursor.fetchall())
                assert "Index Only Scan" in plan, plan
                assert "Seq Scan" not in plan
    source.close()


def test_nothing_new_reads_a_handful_of_index_pages(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50_000)
    sync(servers)
    write(writer, "VACUUM ANALYZE impressions")
    watermark = servers.ledger.coverage([IMPRESSIONS], servers.ledger.live([IMPRESSIONS]))["impressions"].watermark
    with writer.cursor() as cursor:
        statement = servers.source._on_table("first_row", IMPRESSIONS)
        cursor.execute(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement.as_string(cursor),
            {"lo": watermark, "hi": servers.source.now()},
        )
        plan = cursor.fetchone()[0][0]["Plan"]  # type: ignore[index]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 6


def test_large_windows_are_cut_by_statistics_and_hold_about_what_they_should(
    servers: Servers, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A million rows are cut without walking over those the statistics know; what came since is walked.
    _fill(writer, 900_000, "2026-11-20T08:00:00Z")
    write(writer, "VACUUM ANALYZE impressions")
    walked: list[int] = []
    query = servers.source._query

    def counted(doing: str, statement: Any, parameters: Any = None) -> Any:
        if doing == "cutting windows":
            walked.append(parameters["rows"])
        return query(doing, statement, parameters)

    monkeypatch.setattr(servers.source, "_query", counted)
    whole = Window(ORIGIN, servers.source.now())
    windows = cut(whole, servers.source.boundaries(IMPRESSIONS, whole, 100_000, 20))
    sizes = [servers.source.count(IMPRESSIONS, window) for window in windows]
    assert sum(sizes) == 900_000
    assert 8 <= len(sizes) <= 10
    assert all(50_000 < size < 200_000 for size in sizes)
    assert sum(walked) <= 100_000

    _fill(writer, 300_000, "2026-11-20T09:00:00Z")
    whole = Window(ORIGIN, servers.source.now())
    later = cut(whole, servers.source.boundaries(IMPRESSIONS, whole, 100_000, 20))
    sizes = [servers.source.count(IMPRESSIONS, window) for window in later]
    assert sum(sizes) == 1_200_000
    assert all(size < 200_000 for size in sizes)
    assert later[:7] == windows[:7]

    # The first few of them are the same few.
    assert servers.source.boundaries(IMPRESSIONS, whole, 100_000, 3) == [window.hi for window in later[:3]]


def _fill(writer: Connection, rows: int, since: str) -> None:
    (campaign, *_) = campaigns(writer)
    write(
        writer,
        "INSERT INTO impressions (campaign_id, created_at, inserted_at) "
        "SELECT %s, now(), %s::timestamptz + n * interval '1 ms' FROM generate_series(1, %s) AS n",
        campaign,
        since,
        rows,
    )


def test_one_transaction_may_touch_ids_of_any_number_of_partitions(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    write(
        writer,
        "INSERT INTO impressions (id, campaign_id, created_at) "
        "SELECT 1 + n * 10000000::bigint, %s, '2026-11-18T10:00:00Z' FROM generate_series(0, 150) AS n",
        campaign,
    )
    sync(servers)
    assert_agreement(writer, servers)


def test_rows_of_one_window_may_lie_in_any_number_of_days(servers: Servers) -> None:
    days = [date(1990, 1, 1) + timedelta(days=n) for n in range(13_000)]
    servers.ledger.mark_days(days[:-500], again=days[-1000:])
    marked = servers.sink.query("looking", "SELECT date_id, again FROM day_marks ORDER BY date_id")
    assert marked == [(day, day in days[-500:]) for day in days]


def test_a_role_whose_transactions_are_not_tracked_is_refused_and_named(
    settings: Settings, writer: Connection, role: tuple[str, str]
) -> None:
    name, dsn = role
    administer(settings.postgres_dsn, f"ALTER ROLE {name} SET track_activities = off")
    with Source(settings) as source:
        assert source.horizon().at is not None
        with contextlib.closing(psycopg2.connect(dsn)) as untracked:
            write(untracked, "INSERT INTO impressions (campaign_id, created_at) VALUES (NULL, now())")
            with pytest.raises(HorizonUnsafe, match=f"{name}.*track_activities"):
                source.horizon()


def test_transactions_that_follow_each_other_in_one_message_hold_the_horizon_at_its_start(
    settings: Settings, writer: Connection
) -> None:
    # Each is stamped with the start of the message, and between two of them none is open.
    ended = threading.Event()
    with contextlib.closing(psycopg2.connect(settings.postgres_dsn)) as busy, Source(settings) as source:
        busy.autocommit = True
        begun = source.now()

        def many() -> None:
            try:
                write(busy, "BEGIN; COMMIT; " * 60_000)
            finally:
                ended.set()

        thread = threading.Thread(target=many)
        thread.start()
        try:
            pid = busy.info.backend_pid
            while not ended.is_set():
                began = write(
                    writer, "SELECT query_start FROM pg_stat_activity WHERE pid = %s AND state = 'active'", pid
                )
                horizon = source.horizon()
                if began and began[0][0] > begun and not ended.is_set():
                    assert horizon.at is not None
                    assert horizon.at <= began[0][0]
        finally:
            thread.join()


@pytest.mark.parametrize(
    "dsn",
    [
        "sync:s3cret/part@db:5432/ads",
        "postgres//sync:s3cret/part@db:5432/ads",
        "postgresql://sync:s3cret/part@db/ads",
        "postgresql://sync:s3cret%part@db:5432/ads",
        "host=db passwort=s3cret/part",
    ],
)
def test_a_malformed_dsn_is_refused_without_its_password(settings: Settings, dsn: str) -> None:
    broken = settings.model_copy(update={"postgres_dsn": dsn})
    with Source(broken) as source, pytest.raises((SourceFailure, BadInput)) as refusal:
        source.now()
    for told in (str(refusal.value), broken.server_label("postgres")):
        assert "s3cret" not in told
        assert "part" not in told
