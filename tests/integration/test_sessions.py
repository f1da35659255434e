"""What a session with PostgreSQL must be, and what the reader must be let see, before anything is read."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection

from tests.agreement import assert_agreement, sync
from tests.integration.test_pipeline import add, campaigns, write
from worker import doctor
from worker.celery import Servers
from worker.config import Settings
from worker.errors import SourceFailure, TransientSource
from worker.sessions import READER
from worker.source import Source
from worker.streams import STREAMS
from worker.windows import ORIGIN, Window

IMPRESSIONS, CAMPAIGNS = STREAMS["impressions"], STREAMS["campaigns"]


def behind(settings: Settings, port: int) -> Settings:
    """The same settings, the source at another port of this machine."""
    own = urlsplit(settings.source_dsn)
    dsn = settings.source_dsn.replace(f":{own.port}/", f":{port}/")
    return settings.model_copy(update={"postgres_dsn": dsn})


@pytest.fixture
def pgbouncer(settings: Settings, tmp_path: Path) -> Iterator[int]:
    """PgBouncer in transaction mode, configured as is often advised; its port."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed; the relay below stands for it")
    own = urlsplit(settings.source_dsn)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    path = tmp_path / "pgbouncer.ini"
    path.write_text(
        f"[databases]\n* = host={own.hostname} port={own.port} user={own.username} password={own.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\nignore_startup_parameters = options\nmax_client_conn = 50\ndefault_pool_size = 5\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *user, str(path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, "pgbouncer does not listen"
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


class Impostor:
    """Relays to PostgreSQL and gives clients another backend's process id, as a pooler does."""

    def __init__(self, host: str, port: int) -> None:
        self._far = (host, port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._far)
                for one, other, rewritten in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._carry, args=(one, other, rewritten), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket, rewritten: bool) -> None:
        pending = rewritten
        with suppress(OSError):
            while data := one.recv(65_536):
                # BackendKeyData: 'K', its length, a process id, a secret.
                place = data.find(b"K\x00\x00\x00\x0c") if pending else -1
                if place >= 0:
                    data = data[: place + 5] + struct.pack(">i", 4_242_424) + data[place + 9 :]
                    pending = False
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


def test_a_pooler_that_shares_sessions_is_refused_by_name(settings: Settings, pgbouncer: int) -> None:
    with Source(behind(settings, pgbouncer)) as source, pytest.raises(SourceFailure, match="PgBouncer") as refused:
        source.now()
    assert not isinstance(refused.value, TransientSource)


def test_whoever_gives_another_process_id_is_refused(settings: Settings) -> None:
    own = urlsplit(settings.source_dsn)
    relay = Impostor(str(own.hostname), own.port or 5432)
    try:
        with Source(behind(settings, relay.port)) as source, pytest.raises(SourceFailure, match="pooler"):
            source.now()
    finally:
        relay.close()


def test_rows_of_a_writer_behind_a_pooler_are_not_lost(servers: Servers, writer: Connection, pgbouncer: int) -> None:
    (campaign, *_) = campaigns(writer)
    dsn = behind(servers.settings, pgbouncer).source_dsn
    # A client that carries our name leaves it on the server's session, which the next client gets.
    with closing(psycopg2.connect(dsn, application_name=READER)) as named:
        named.autocommit = True
        write(named, "SELECT 1")
    with closing(psycopg2.connect(dsn, application_name=READER)) as late:
        write(late, "INSERT INTO impressions (campaign_id) SELECT %s FROM generate_series(1, 100)", campaign)
        add(writer, "impressions", campaign, 10)
        sync_some(servers)
        late.commit()
    sync(servers)
    assert_agreement(writer, servers)


def sync_some(servers: Servers) -> None:
    """Loads what lies below the horizon now, which may be held back."""
    from worker import pipeline, planner

    planned = planner.plan(servers.source, servers.ledger, servers.store, servers.settings, [IMPRESSIONS])[0]
    for window in planned.windows:
        pipeline.load_window(
            servers.source, servers.sink, servers.ledger, servers.settings, IMPRESSIONS, window,
            table="ad_events", uuid=planned.target_uuid,
        )  # fmt: skip


def test_a_name_is_no_mark_of_a_reader(servers: Servers, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    late = psycopg2.connect(servers.settings.source_dsn, application_name=READER)
    write(late, "INSERT INTO impressions (campaign_id) SELECT %s FROM generate_series(1, 100)", campaign)
    # Later rows, so that there is a window behind those still to come.
    add(writer, "impressions", campaign, 10)
    holders = [holder.who for holder in servers.source.horizon().holders]
    sync_some(servers)
    late.commit()
    sync(servers)
    assert_agreement(writer, servers)
    assert holders == [f"pid {late.info.backend_pid}"]
    late.close()


def test_a_mark_of_another_session_marks_nobody(servers: Servers) -> None:
    with servers.source.snapshot():
        first = Source(servers.settings)
        with first.snapshot():
            mark = write_one(
                servers.settings,
                "SELECT classid::int, objid::bigint::int FROM pg_locks WHERE locktype = 'advisory' LIMIT 1",
            )
            late = psycopg2.connect(servers.settings.source_dsn)
            write(late, "SELECT pg_advisory_lock_shared(%s, %s)", *mark)
            assert [holder.who for holder in servers.source.horizon().holders] == [f"pid {late.info.backend_pid}"]
            late.close()
        first.close()


def write_one(settings: Settings, statement: str) -> tuple[int, int]:
    with closing(psycopg2.connect(settings.source_dsn)) as connection:
        found: tuple[int, int] = write(connection, statement)[0]
        return found


def test_settings_of_a_role_do_not_reach_our_sessions(servers: Servers, writer: Connection) -> None:
    role = write(writer, "SELECT current_user")[0][0]
    hostile = {
        "default_transaction_isolation": "'repeatable read'", "statement_timeout": "1", "lock_timeout": "1",
        "TimeZone": "'America/St_Johns'", "row_security": "on", "default_transaction_read_only": "off",
    }  # fmt: skip
    database = write(writer, "SELECT current_database()")[0][0]
    for name, value in hostile.items():
        # In a session that is open already: a new one would have them.
        write(writer, f"ALTER ROLE {role} IN DATABASE {database} SET {name} = {value}")
    with Source(servers.settings) as source:
        columns, rows = source.described(
            "looking", "SELECT current_setting('TimeZone'), current_setting('row_security')"
        )
        assert rows == [("UTC", "off")], columns
        assert source.described("looking", "SHOW transaction_isolation")[1] == [("read committed",)]


def test_a_setting_that_is_not_in_force_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker import sessions

    original = sessions.options
    monkeypatch.setattr(
        sessions, "options", lambda s, given="": original(s, given).replace("-c row_security=off", "-c row_security=on")
    )
    with Source(settings) as source, pytest.raises(SourceFailure, match="row_security is 'on', not 'off'"):
        source.now()


def test_options_of_the_dsn_hold_beside_ours(settings: Settings, writer: Connection) -> None:
    write(writer, "CREATE SCHEMA shop")
    write(writer, "CREATE TABLE shop.impressions (LIKE public.impressions INCLUDING ALL)")
    joined = f"{settings.source_dsn}?options=-csearch_path%3Dshop,public%20-cTimeZone%3DAsia/Tokyo"
    with Source(settings.model_copy(update={"postgres_dsn": joined})) as source:
        found = source.described(
            "looking", "SELECT 'impressions'::regclass = 'shop.impressions'::regclass, current_setting('TimeZone')"
        )[1]
    assert found == [(True, "UTC")]


# What the reader is let see


@pytest.fixture
def limited(settings: Settings, writer: Connection) -> Iterator[Settings]:
    """Settings of a role that may read everything and owns nothing."""
    name = f"reader_{os.urandom(4).hex()}"
    write(writer, f"CREATE ROLE {name} LOGIN PASSWORD 'secret' IN ROLE pg_read_all_stats")
    write(writer, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    own = urlsplit(settings.source_dsn)
    dsn = f"postgresql://{name}:secret@{own.hostname}:{own.port}{own.path}"
    yield settings.model_copy(update={"postgres_dsn": dsn})
    write(writer, f"DROP OWNED BY {name}")
    write(writer, f"DROP ROLE {name}")


@pytest.fixture
def reader(limited: Settings) -> Iterator[Servers]:
    opened = Servers.open(limited)
    yield opened
    opened.close()


def findings(settings: Settings) -> dict[str, doctor.Finding]:
    found = doctor._postgres(settings, lambda: psycopg2_now(settings))
    return {finding.what: finding for finding in found}


def psycopg2_now(settings: Settings):  # type: ignore[no-untyped-def]
    with Source(settings) as source:
        return source.now()


def test_a_policy_on_a_table_is_refused(reader: Servers, limited: Settings, writer: Connection) -> None:
    (campaign, other, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    add(writer, "impressions", other, 50)
    write(writer, "ALTER TABLE impressions ENABLE ROW LEVEL SECURITY")
    write(writer, f"CREATE POLICY only_one ON impressions USING (campaign_id = {campaign})")
    with pytest.raises(
        SourceFailure, match=r"Row level security on impressions hides rows from role reader_.*BYPASSRLS"
    ):
        sync(reader)
    assert reader.sink.query("counting", "SELECT count() FROM ad_events") == [(0,)]
    assert findings(limited)["table impressions"].state == "wrong"
    role = urlsplit(limited.source_dsn).username
    write(writer, f'ALTER ROLE "{role}" BYPASSRLS')
    sync(reader)
    assert_agreement(writer, reader)


def test_a_policy_behind_a_view_is_refused(reader: Servers, writer: Connection) -> None:
    campaigns(writer)
    role = urlsplit(reader.settings.source_dsn).username
    write(writer, "ALTER TABLE campaign RENAME TO every_campaign")
    write(writer, "CREATE VIEW campaign WITH (security_invoker = true) AS SELECT * FROM every_campaign")
    write(writer, f'GRANT SELECT ON campaign TO "{role}"')
    sync(reader, streams=[CAMPAIGNS])
    write(writer, "ALTER TABLE every_campaign ENABLE ROW LEVEL SECURITY")
    with pytest.raises(SourceFailure, match=r"row-level security policy for table .every_campaign"):
        sync(reader, streams=[CAMPAIGNS])


def test_grants_on_columns_alone_are_refused(reader: Servers, limited: Settings, writer: Connection) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    role = urlsplit(limited.source_dsn).username
    write(writer, f'REVOKE SELECT ON impressions FROM "{role}"')
    write(writer, f'GRANT SELECT (id, campaign_id, created_at, inserted_at) ON impressions TO "{role}"')
    with pytest.raises(
        SourceFailure, match=r"may not read table impressions, only some of its columns; .*GRANT SELECT"
    ):
        sync(reader)
    assert findings(limited)["table impressions"].state == "wrong"


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        ("CREATE VIEW {name} AS SELECT * FROM kept", "a view"),
        ("CREATE MATERIALIZED VIEW {name} AS SELECT * FROM kept", "a materialized view"),
    ],
)
def test_events_come_from_tables_alone(servers: Servers, writer: Connection, made: str, kind: str) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    write(writer, "ALTER TABLE impressions RENAME TO kept")
    write(writer, made.format(name="impressions"))
    with pytest.raises(SourceFailure, match=f"impressions is {kind} at the source, and must be a table"):
        sync(servers, streams=[IMPRESSIONS])
    assert findings(servers.settings)["table impressions"].state == "wrong"


@pytest.mark.parametrize("kind", ["timestamptz(0)", "timestamptz(3)"])
def test_a_stamp_that_is_rounded_is_refused(servers: Servers, writer: Connection, kind: str) -> None:
    """Rounded down it lies before its transaction began, where the horizon may have been already."""
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    sync(servers)
    write(writer, f"ALTER TABLE impressions ALTER inserted_at TYPE {kind}")
    add(writer, "impressions", campaign, 5)
    told = kind.replace("timestamptz", "timestamp")
    with pytest.raises(SourceFailure, match=re.escape(f"Column inserted_at of impressions is {told} with time zone")):
        sync(servers)
    assert findings(servers.settings)["table impressions"].found == f"inserted_at is {told} with time zone"
    assert servers.sink.query("counting", "SELECT count() FROM ad_events") == [(50,)]


def test_a_foreign_part_of_an_event_table_is_refused(servers: Servers, writer: Connection) -> None:
    write(writer, "CREATE FOREIGN DATA WRAPPER nothing")
    write(writer, "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing")
    write(writer, "CREATE FOREIGN TABLE far () INHERITS (impressions) SERVER elsewhere")
    with (
        pytest.raises(SourceFailure, match="Part far of impressions is a foreign table"),
        servers.source.snapshot([IMPRESSIONS]),
    ):
        raise AssertionError("a snapshot was taken")
    assert "far" in findings(servers.settings)["table impressions"].found


def test_a_dimension_may_be_a_view_and_no_more(servers: Servers, writer: Connection) -> None:
    campaigns(writer)
    write(writer, "ALTER TABLE campaign RENAME TO every_campaign")
    write(writer, "CREATE VIEW campaign AS SELECT * FROM every_campaign")
    sync(servers, streams=[CAMPAIGNS])
    assert servers.sink.query("counting", "SELECT count() FROM campaign_dimension") == [(3,)]
    assert findings(servers.settings)["table campaign"].state == "ok"
    write(writer, "DROP VIEW campaign")
    write(writer, "CREATE MATERIALIZED VIEW campaign AS SELECT * FROM every_campaign")
    with pytest.raises(SourceFailure, match="must be a table or a view"):
        sync(servers, streams=[CAMPAIGNS])


def test_children_without_what_a_watermark_needs_are_named(servers: Servers, writer: Connection) -> None:
    write(writer, "CREATE TABLE impressions_old () INHERITS (impressions)")
    found = findings(servers.settings)["table impressions"]
    assert found.state == "wrong"
    assert "impressions_old" in found.found


# Locks


def test_a_lock_that_is_not_granted_says_who_holds_it(settings: Settings, writer: Connection) -> None:
    impatient = settings.model_copy(update={"lock_wait_seconds": 1})
    with closing(psycopg2.connect(settings.source_dsn, application_name="a migration")) as holder:
        write(holder, "LOCK TABLE impressions IN ACCESS EXCLUSIVE MODE")
        told = rf"LOCK_WAIT_SECONDS\): pid {holder.info.backend_pid} of user \w+ \(a migration\), .* holds ACCESS EXCLUSIVE on impressions"
        with Source(impatient) as source:
            with pytest.raises(TransientSource, match=told), source.snapshot([IMPRESSIONS]):
                raise AssertionError("a snapshot was taken")
            patient = settings.model_copy(update={"lock_wait_seconds": 1, "retry_attempts": 1})
        with Source(patient) as source, pytest.raises(TransientSource, match=told):
            source.count(IMPRESSIONS, Window(ORIGIN, source.now()))
        holder.rollback()
        with Source(impatient) as source, source.snapshot([IMPRESSIONS]):
            assert source.count(IMPRESSIONS, Window(ORIGIN, source.now())) == 0


def test_what_was_not_locked_is_not_read(servers: Servers) -> None:
    window = Window(ORIGIN, servers.source.now())
    with servers.source.snapshot([CAMPAIGNS]):
        with pytest.raises(RuntimeError, match="impressions is read outside"):
            next(servers.source.read_events(IMPRESSIONS, window, 10))
        with pytest.raises(RuntimeError, match="impressions is read outside"):
            servers.source.in_snapshot("looking", "replay", "present", IMPRESSIONS, {"ids": [1]})
        with pytest.raises(RuntimeError, match="advertiser is read outside"):
            next(servers.source.read_dimension("advertiser", [("id", "as_text")], "UTF8"))
        assert list(servers.source.read_dimension("campaign", [("id", "as_text")], "UTF8")) == []


def test_a_session_that_ends_under_its_snapshot_is_worth_another_try(servers: Servers, writer: Connection) -> None:
    with servers.source.snapshot([CAMPAIGNS]):
        _, ((pid,),) = servers.source.described("asking", "SELECT pg_backend_pid()")
        write(writer, "SELECT pg_terminate_backend(%s)", pid)
        # Asked again in a session of its own, which does not see the snapshot.
        servers.source.encoding()
        with pytest.raises(TransientSource, match="ended the session"):
            list(servers.source.read_dimension("campaign", [("id", "as_text")], "UTF8"))
