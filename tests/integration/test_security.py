"""What may be sent, by whom, and what each role may do: on real servers and a real worker."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import psycopg2
import pytest
import redis
from celery import Celery
from psycopg2.extensions import connection as Connection

from embedded import postgres, process
from embedded.clickhouse import daemon
from embedded.stack import Addresses
from tests.integration.test_pipeline import add, campaigns
from tests.processes import ROOT, celery, end, ready, until
from worker import dimensions, doctor, metrics, migrate, observe, pipeline, planner, refresh
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.errors import HorizonUnsafe, SinkFailure
from worker.ledger import Run
from worker.sink import Sink
from worker.source import Source
from worker.streams import STREAMS

# Messages


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery[Any]]:
    made = create_app(settings)
    yield made
    made.close()


@pytest.fixture
def log(settings: Settings, tmp_path: Path) -> Iterator[Path]:
    """The log of a worker that serves every queue."""
    path = tmp_path / "worker.log"
    worker = celery(
        settings,
        ["worker", "-n", "guarded@localhost", "-Q", "realtime,maintenance,backfill", "-c", "1"],
        path,
        {"LOG_FORMAT": "json"},
    )
    try:
        until(lambda: ready(settings, "guarded@localhost"), "the worker answers")
        yield path
    finally:
        end(worker)


def sent(settings: Settings, body: bytes, content_type: str, task: str) -> str:
    """Puts a message into the queue as somebody with the broker's password, but not our code, would."""
    name = str(uuid.uuid4())
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": name, "root_id": name, "argsrepr": "", "kwargsrepr": ""},
        "properties": {
            "correlation_id": name,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "retailmedia", "routing_key": "realtime"},
            "delivery_tag": name,
            "body_encoding": "base64",
        },
    }
    client = redis.Redis.from_url(settings.redis_url)
    client.lpush("realtime", json.dumps(message))
    client.close()
    return name


class Exploit:
    """What a pickled message can do: run a program when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml", "text/plain"])
def test_a_message_that_is_not_json_is_refused_and_logged(
    settings: Settings, servers: Servers, app: Celery[Any], log: Path, tmp_path: Path, content_type: str
) -> None:
    proof = tmp_path / "proof"
    pickled = pickle.dumps(([Exploit(proof)], {}, {}))
    name = sent(settings, pickled, content_type, "worker.tasks.pipeline.run")
    until(lambda: name in log.read_text(), "the refusal is logged")
    lines = [json.loads(line) for line in log.read_text().splitlines() if "message.refused" in line]
    assert [(line["task_id"], line["reason"]) for line in lines] == [(name, "content type")]
    # The worker goes on, and nothing is left to be delivered again.
    answer = app.send_task("worker.tasks.maintenance.converge", queue="maintenance").get(timeout=30)
    assert set(answer) in ({"days", "runs"}, {"skipped"})
    assert not proof.exists()
    client = redis.Redis.from_url(settings.redis_url)
    # The answer is there a moment before its own message is taken off.
    until(lambda: client.hlen("unacked") == 0, "nothing is left to be delivered again")
    client.close()

    def counted() -> list[tuple[dict[str, str], float]]:
        found = observe.sums(servers.store)
        return [(dict(entry.labels), entry.value) for entry in found if entry.name == "messages_refused"]

    until(lambda: counted() == [({"reason": "content type"}, 1.0)], "it is counted")


def test_an_oversized_message_is_refused_and_logged(settings: Settings, app: Celery[Any], log: Path) -> None:
    body = json.dumps([[], {"streams": ["clicks"], "run_id": "x" * settings.message_limit_bytes}, {}]).encode()
    name = sent(settings, body, "application/json", "worker.tasks.pipeline.run")
    until(lambda: "message.refused" in log.read_text(), "the refusal is logged")
    (line,) = [json.loads(line) for line in log.read_text().splitlines() if "message.refused" in line]
    # Not read at all: whose it is, nobody knows.
    assert line["reason"] == "size"
    assert line["bytes"] > len(body)
    assert name not in log.read_text()
    assert "xxxxxxxx" not in log.read_text()
    app.send_task("worker.tasks.maintenance.converge", queue="maintenance").get(timeout=30)


HOSTILE = [
    ("worker.tasks.pipeline.run", {"streams": ["impressions; DROP TABLE ad_events"]}, "There is no stream"),
    ("worker.tasks.pipeline.run", {"streams": {"impressions": 1}}, "takes a list of names"),
    ("worker.tasks.pipeline.run", {"postgres_dsn": "postgresql://elsewhere/x"}, "takes streams"),
    ("worker.tasks.pipeline.run", {"run_id": "a' OR 1=1 --"}, "run_id holds up to 40"),
    ("worker.tasks.refresh.full_refresh", {"metrics_update": 1}, "metrics_update is true or false"),
    ("worker.tasks.refresh.step", {"run_id": "../../etc/passwd"}, "run_id holds up to 40"),
    ("worker.tasks.maintenance.sweep", {"sql": "SELECT 1"}, "sweep takes nothing"),
    *(
        (
            "worker.tasks.sync.load_window",
            {"stream": "clicks", "lo": "2026-01-01T00:00:00Z", "hi": "2026-01-02T00:00:00Z",
             "target": "00000000-0000-0000-0000-000000000001", "table": table},
            "table is ad_events or a shadow of it",
        )
        for table in ("file('/etc/passwd')", "system.users", "remote('elsewhere', system.one)", "ad_events_shadow_`x`")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("task", "kwargs", "told"), HOSTILE)
def test_no_argument_names_a_server_a_file_or_a_statement(
    app: Celery[Any], task: str, kwargs: dict[str, Any], told: str
) -> None:
    app.loader.import_default_modules()
    result = app.tasks[task].apply(kwargs=kwargs)
    assert result.failed()
    assert told in str(result.result)


def test_hostile_names_are_data(servers: Servers, writer: Connection) -> None:
    names = ["'); DROP TABLE ad_events; --", "`x`", "\\' OR 1=1", "{retailmedia}", "%(lo)s %s %%", "\x01\t\n"]
    with writer.cursor() as cursor:
        for name in names:
            cursor.execute("INSERT INTO advertiser (name) VALUES (%s) RETURNING id", (name,))
            ((advertiser,),) = cursor.fetchall()
            cursor.execute(
                "INSERT INTO campaign (name, advertiser_id, bid, budget) VALUES (%s, %s, 1, 9)", (name, advertiser)
            )
    for stream in ("advertisers", "campaigns"):
        uuids = servers.ledger.live([STREAMS[stream]])
        dimensions.load_dimension(
            servers.source, servers.sink, servers.ledger, servers.settings, STREAMS[stream],
            uuid=uuids[STREAMS[stream].target], run_id="",
        )  # fmt: skip
    found = servers.sink.query("reading", "SELECT campaign_name, advertiser_name FROM campaign_dimension")
    assert sorted(found) == sorted((name, name) for name in names)
    assert servers.sink.uuid("ad_events")


# Roles


@pytest.fixture
def limited_source(stack: Addresses, source_dsn: str) -> Iterator[str]:
    """The source as the role of deploy/postgres/roles.sql, made as the compose file makes it."""
    password = "s3cret'quoted"
    owner = urlsplit(stack.postgres_dsn)
    # Twice, as after an upgrade.
    script = (ROOT / "deploy/postgres/roles.sql").read_text() * 2 + (ROOT / "deploy/postgres/limits.sql").read_text()
    role = f"sync_{uuid.uuid4().hex[:8]}"
    subprocess.run(
        [
            str(postgres.binaries() / "psql"),
            source_dsn,
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            f"sync_password={password}",
        ],
        input=script.replace("retailmedia_sync", role),
        text=True,
        check=True,
        capture_output=True,
    )
    yield f"postgresql://{role}:{quote(password)}@{owner.hostname}:{owner.port}{urlsplit(source_dsn).path}"
    connection = psycopg2.connect(source_dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"DROP OWNED BY {role}; DROP ROLE {role}; DROP SCHEMA retailmedia CASCADE")
    connection.close()


def test_the_role_of_the_source_is_enough_and_no_more(
    settings: Settings, writer: Connection, limited_source: str
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    limited = settings.model_copy(update={"postgres_dsn": limited_source})
    servers = Servers.open(limited)
    writing = psycopg2.connect(settings.source_dsn)
    try:
        servers.source.require_safe()
        assert servers.source.privileges()["sees_statements"] is False
        assert _everything(servers) == 50
        with writing.cursor() as cursor:
            cursor.execute("INSERT INTO advertiser (name) VALUES ('a literal of somebody else')")
            cursor.execute("SELECT pg_backend_pid(), transaction_timestamp()")
            ((pid, began),) = cursor.fetchall()
        held = servers.source.horizon()
        assert [(one.who, one.since) for one in held.holders if one.who == f"pid {pid}"] == [(f"pid {pid}", began)]
        assert held.at is not None
        assert held.at <= began
        with psycopg2.connect(limited_source) as looking, looking.cursor() as cursor:
            cursor.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", (pid,))
            assert cursor.fetchall() == [("<insufficient privilege>",)]
            cursor.execute("SELECT * FROM retailmedia.sessions() AS one WHERE one::text LIKE '%literal of somebody%'")
            assert cursor.fetchall() == []
        looking.close()
    finally:
        writing.close()
        servers.close()
    connection = psycopg2.connect(limited_source)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in (
            "DELETE FROM clicks",
            "SET default_transaction_read_only = off; INSERT INTO advertiser (name) VALUES ('x')",
            "SET default_transaction_read_only = off; CREATE TABLE mine (x int)",
            "SELECT * FROM pg_authid",
            "SELECT pg_read_file('/etc/passwd')",
            "COPY clicks TO PROGRAM 'cat'",
            *(
                f"SET default_transaction_read_only = off; {statement}"
                for statement in (
                    "CREATE TEMPORARY TABLE mine (x int)",
                    "SELECT lo_create(0)",
                    "SELECT lo_from_bytea(0, 'x')",
                    "SELECT pg_logical_emit_message(false, 'x', 'y')",
                    "SELECT pg_notify('x', 'y')",
                    "CREATE SCHEMA mine",
                    "CREATE OR REPLACE FUNCTION retailmedia.sessions() RETURNS int LANGUAGE sql AS 'SELECT 1'",
                    "SELECT pg_terminate_backend(pid) FROM retailmedia.sessions() WHERE usename <> current_user",
                )
            ),
        ):
            with pytest.raises(
                psycopg2.Error, match=r"permission denied|read-only transaction|privileges|must be owner"
            ):
                cursor.execute(statement)
    connection.close()


def test_a_function_whose_owner_sees_nothing_is_not_believed(
    settings: Settings, writer: Connection, limited_source: str
) -> None:
    blind = f"blind_{uuid.uuid4().hex[:8]}"
    with writer.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {blind}; ALTER FUNCTION retailmedia.sessions() OWNER TO {blind}")
    try:
        limited = settings.model_copy(update={"postgres_dsn": limited_source})
        with Source(limited) as source, pytest.raises(HorizonUnsafe, match="cannot see when other roles"):
            source.horizon()
    finally:
        with writer.cursor() as cursor:
            cursor.execute(f"REASSIGN OWNED BY {blind} TO CURRENT_USER; DROP OWNED BY {blind}; DROP ROLE {blind}")


def _everything(servers: Servers) -> int:
    """Loads, publishes, rebuilds and refreshes: every kind of statement there is. Returns the events loaded."""
    rows = 0
    chosen = list(STREAMS.values())
    for planned in planner.plan(servers.source, servers.ledger, servers.store, servers.settings, chosen):
        if planned.stream.kind == "dimension":
            dimensions.load_dimension(
                servers.source, servers.sink, servers.ledger, servers.settings, planned.stream,
                uuid=planned.target_uuid, run_id="",
            )  # fmt: skip
        for window in planned.windows if planned.stream.kind == "events" else ():
            rows += pipeline.load_window(
                servers.source, servers.sink, servers.ledger, servers.settings, planned.stream, window,
                table="ad_events", uuid=planned.target_uuid,
            ).loaded  # fmt: skip
    planner.publish_watermarks(servers.ledger, servers.store, chosen, servers.ledger.live(chosen))
    servers.ledger.mark_days(metrics.outdated_days(servers.sink, servers.settings))
    from worker.windows import ORIGIN

    days = metrics.dirty_days(servers.sink, ORIGIN)
    metrics.rebuild(servers.sink, servers.settings, days)
    return rows


@dataclass(frozen=True)
class Engine:
    settings: Settings
    start: Any


ROLES = (ROOT / "deploy/clickhouse/roles.sql").read_text()
GRANTS = re.compile(
    r"^(?P<what>(?:GRANT|REVOKE) [^;]+?) (?:TO|FROM) (?P<user>retailmedia_\w+);", re.MULTILINE | re.DOTALL
)


def grants(user: str) -> list[str]:
    """The grants of a user in deploy/clickhouse/roles.sql and what is taken from them, in their order."""
    found = [" ".join(match["what"].split()) for match in GRANTS.finditer(ROLES) if match["user"] == user]
    assert found
    return found


def fixed(user: str) -> list[str]:
    """The settings that deploy/clickhouse/roles.sql lets a user not change."""
    (listed,) = re.findall(rf"^ALTER USER {user} SETTINGS ([^;]+);", ROLES, re.MULTILINE) or [""]
    return re.findall(r"(\w+) CONST", listed)


LIMITED = """
import sys
from embedded.clickhouse import engine
grants = "".join(f"<query>{{grant}}</query>" for grant in {grants!r})
engine._USERS = engine._USERS.replace("</quota>", "</quota><grants>" + grants + "</grants>", 1)
fixed = "".join(f"<{{name}}><const/></{{name}}>" for name in {fixed!r})
engine._USERS = engine._USERS.replace("</default></profiles>", f"<constraints>{{fixed}}</constraints></default></profiles>")
from embedded.clickhouse.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def engine(tmp_path: Path, settings: Settings) -> Iterator[Any]:
    """Starts a ClickHouse engine of its own whose only user has these grants; one at a time."""
    home = tmp_path / "limited"
    (home / "clickhouse").mkdir(parents=True)
    (home / "logs").mkdir()
    (home / "clickhouse/access.json").write_text(json.dumps({"user": "limited", "password": "pw"}))
    running: list[subprocess.Popen[bytes]] = []

    def stop() -> None:
        for one in running:
            one.terminate()
            one.wait(30)
        running.clear()

    def start(user: str, *more: str) -> Settings:
        stop()
        port = process.free_port()
        limits = LIMITED.format(grants=[*more, *grants(user)], fixed=fixed(user))
        command = [sys.executable, "-c", limits, "--root", str(home / "clickhouse")]
        command += ["--port", str(port), "--access", str(home / "clickhouse/access.json")]
        with (home / "logs/out.log").open("ab") as out:
            running.append(
                subprocess.Popen(
                    [*command, "--engine-log", str(home / "logs/engine.log")],
                    cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, stderr=out,
                )
            )  # fmt: skip
        until(lambda: daemon.answers(port, "limited", "pw"), "the engine answers")
        return settings.model_copy(update={"clickhouse_dsn": f"clickhouse://limited:pw@127.0.0.1:{port}/retailmedia"})

    yield start
    stop()


def test_the_users_of_clickhouse_are_enough_and_no_more(
    engine: Any, writer: Connection, settings: Settings, tmp_path: Path
) -> None:
    (campaign, *_) = campaigns(writer)
    add(writer, "impressions", campaign, 50)
    add(writer, "clicks", campaign, 5)

    owner = engine("retailmedia_owner", "GRANT SELECT ON system.*")
    with Sink(owner) as sink:
        assert migrate.migrate(sink, owner)
        assert migrate.migrate(sink, owner) == []
        refused_disks(sink, tmp_path)
        refused(
            sink, "CREATE TABLE f (x Int8) ENGINE = File(CSV)", "CREATE TABLE u (x Int8) ENGINE = URL('http://x/', CSV)"
        )

    syncing = engine("retailmedia_sync")
    servers = Servers.open(syncing)
    try:
        assert _everything(servers) == 55
        now = servers.source.now()
        run = Run("refresh-1", "refresh", ("impressions", "clicks"), True, until=now, started_at=now)
        events = [STREAMS["impressions"], STREAMS["clicks"]]
        run = refresh.begin(servers.source, servers.sink, servers.ledger, syncing, events, run)
        servers.sink.command(
            "swapping", f"EXCHANGE TABLES {refresh.shadow_name(run.run_id)} AND ad_events", retry=False
        )
        servers.sink.drop_abandoned("nothing", 0)
        refused(servers.sink, *FORBIDDEN, "ALTER TABLE ad_events ADD COLUMN x Int8")
        refused_disks(servers.sink, tmp_path)
        (told,) = [one.found for one in clickhouse_of_doctor(syncing) if one.what == "rights"]
        assert "fetch" not in told
        lasting = [name for name in tables_of_migrations() if name != "ad_events"]
        refused(servers.sink, *(f"DROP TABLE {name}" for name in lasting))
        refused(servers.sink, *(f"EXCHANGE TABLES {name} AND ad_events" for name in lasting))
        assert servers.sink.query("looking", "SELECT readonly FROM system.merge_tree_settings WHERE name = 'disk'") == [
            (1,)
        ]
    finally:
        servers.close()

    reading = engine("retailmedia_reader")
    with Sink(reading) as sink:
        sink.query("reading", "SELECT * FROM daily_campaign_performance")
        refused(
            sink,
            *FORBIDDEN,
            "INSERT INTO day_marks SELECT today(), now64(6)",
            "DROP TABLE day_marks",
            "TRUNCATE TABLE day_marks",
        )


FORBIDDEN = (
    "CREATE USER other",
    "GRANT SELECT ON *.* TO default",
    "DROP DATABASE retailmedia",
    "CREATE DATABASE other",
    "SELECT * FROM file('/etc/passwd', 'LineAsString')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 'x String')",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "SYSTEM SHUTDOWN",
)


ACCESS_DENIED = 497
BAD_ARGUMENTS, CONSTRAINT_VIOLATION = 36, 452
UNKNOWN_USER, UNKNOWN_ROLE, NOWHERE_TO_KEEP = 192, 511, 514


def refused(sink: Sink, *statements: str) -> None:
    codes: dict[str, int | None] = {}
    for statement in statements:
        codes[statement] = 0
        try:
            sink.command("trying", statement, retry=False)
        except SinkFailure as error:
            codes[statement] = error.code
    assert codes == dict.fromkeys(statements, ACCESS_DENIED)


def clickhouse_of_doctor(settings: Settings) -> list[doctor.Finding]:
    found = doctor.examine(settings, now=lambda: datetime.now(UTC), workers=dict, queues=frozenset())
    return [one for one in found if one.about == "ClickHouse"]


def test_doctor_says_what_a_user_with_every_right_could_do(settings: Settings) -> None:
    (told,) = [one for one in clickhouse_of_doctor(settings) if one.what == "rights"]
    assert told.state == "note"
    assert "a host to fetch from and write to" in told.found
    assert "roles.sql" in told.mend


def tables_of_migrations() -> list[str]:
    """The tables that migrations make and leave, and the one that records them."""
    files = [*(ROOT / "clickhouse/migrations").glob("*.sql"), ROOT / "worker/sql/migrate.sql"]
    text = "".join(path.read_text() for path in files)
    made = re.findall(r"^CREATE TABLE IF NOT EXISTS (\w+)", text, re.MULTILINE)
    return sorted(set(made) - set(re.findall(r"^DROP TABLE IF EXISTS (\w+)", text, re.MULTILINE)))


def refused_disks(sink: Sink, folder: Path) -> None:
    """No table can name a disk of its own, so that the server neither asks nor writes to a host or folder of its choice."""
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_PUT = do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{host.server_port}"
        for disk in (
            f"type = web, endpoint = '{place}/w/'",
            f"type = s3, endpoint = '{place}/bucket/k/', access_key_id = 'a', secret_access_key = 'b'",
            f"type = local, path = '{folder}/local/'",
            f"type = object_storage, object_storage_type = local, metadata_type = plain, path = '{folder}/objects/'",
            f"type = cache, disk = 'backups', path = '{folder}/cache/', max_size = '1Mi'",
        ):
            for kind in ("TABLE", "TEMPORARY TABLE"):
                statement = (
                    f"CREATE {kind} elsewhere (x Int8) ENGINE = MergeTree ORDER BY x SETTINGS disk = disk({disk})"
                )
                with pytest.raises(SinkFailure) as caught:
                    sink.command("trying", statement, retry=False)
                assert caught.value.code in {BAD_ARGUMENTS, CONSTRAINT_VIOLATION, ACCESS_DENIED}, statement
        with pytest.raises(SinkFailure, match="should not be changed"):
            sink.command("trying", "SET merge_tree_disk = 'backups'", retry=False)
        host.shutdown()
    assert asked == []


def test_the_roles_of_clickhouse_name_every_table_and_are_statements_it_understands(engine: Any) -> None:
    """Where the engine has nowhere to keep users, it still parses each statement and knows the settings named."""
    taken = {words.split("retailmedia.")[1] for words in grants("retailmedia_sync") if words.startswith("REVOKE")}
    assert taken == set(tables_of_migrations()) - {"ad_events"}, "deploy/clickhouse/roles.sql must revoke each"
    text = re.sub(r"^--.*$", "", ROLES, flags=re.MULTILINE)
    statements = [one.strip() for one in text.split(";") if "USER" in one or "GRANT" in one or "REVOKE" in one]
    assert len(statements) > 30
    administrator = engine("retailmedia_owner", "GRANT ALL ON *.* WITH GRANT OPTION")
    with Sink(administrator, database="default") as sink:
        for statement in statements:
            with pytest.raises(SinkFailure) as caught:
                sink.command("trying", re.sub(r"\{\w+\}", "ab" * 32, statement), retry=False)
            assert caught.value.code in {NOWHERE_TO_KEEP, UNKNOWN_USER, UNKNOWN_ROLE}, (statement, str(caught.value))


def test_the_server_is_kept_from_what_no_grant_stands_for() -> None:
    """Read as text: the embedded engine takes no such configuration, and its file() reads whatever its user can."""
    limits = ElementTree.parse(ROOT / "deploy/clickhouse/limits.xml").getroot()  # noqa: S314 - our own file
    assert limits.findtext("access_control_improvements/table_engines_require_grant") == "true"
    assert str(limits.findtext("user_files_path")).startswith("/var/lib/clickhouse/no_")
    assert not limits.findtext("allowed_disks_for_table_engines")
    assert limits.find(".//custom_local_disks_base_directory") is None
    for name in ("from_env", "from_zk", "include"):
        assert limits.findtext(f"dynamic_disk_allow_{name}") == "false"
    granted = {
        (user, engine)
        for user in ("retailmedia_owner", "retailmedia_sync", "retailmedia_reader")
        for line in grants(user)
        for engine in re.findall(r"TABLE ENGINE ON (\w+)", line)
    }
    assert all(engine == "Memory" or engine.endswith("MergeTree") for _, engine in granted)
    made = "".join(path.read_text() for path in (ROOT / "clickhouse/migrations").glob("*.sql"))
    made += "".join(path.read_text() for path in (ROOT / "worker/sql").glob("*.sql"))
    engines = set(re.findall(r"ENGINE = (\w+)", made)) - {"Distributed", "Replicated"}
    assert {("retailmedia_owner", engine) for engine in engines} <= granted
