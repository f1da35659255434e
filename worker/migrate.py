"""Brings the ClickHouse schema up to date from `clickhouse/migrations/`, one statement a file, in order of number.

A file that was applied and has changed or vanished since is refused: the schema in front of us would not be the one
the files describe. Files that name a setting (`{reporting_timezone}`) hold CREATE OR REPLACE and are applied again
when that setting changes, unless a later file replaces what they make: then only the record is renewed. A runner may die
between a statement and the note that it was applied, and then the statement runs again: one that must not says so in a
line `-- unless: SELECT …`, and is passed over where that answers other than 0.

With `CLICKHOUSE_CLUSTER` set, the database is made on every server of that cluster with engine Replicated, and tables
get replicated engines: whatever is created, altered, exchanged or dropped in it on one replica happens on all, so
staging tables, rebuilds and swaps need to know nothing of it. The cluster has one shard; what analysts read also stands
as a Distributed table, for which any replica will do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import structlog

from worker import calendars
from worker.config import Settings
from worker.errors import SchemaMismatch
from worker.ledger import Ledger
from worker.sink import Sink, literal, quoted
from worker.sql import CLICKHOUSE, named

log = structlog.get_logger()

MIGRATIONS = CLICKHOUSE / "migrations"
DISTRIBUTED = ("ad_events", "daily_campaign_performance")
"""Tables that on a cluster can also be read as `…_distributed`."""

_VIEW = re.compile(r"^CREATE OR REPLACE VIEW (?P<view>\w+)", re.MULTILINE)
_NAME = re.compile(r"^\d{4}_[a-z0-9_]+\.sql$")
_ALTER = re.compile(r"^ALTER TABLE", re.MULTILINE)
_UNLESS = re.compile(r"^-- unless: (?P<query>SELECT .+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """A file: its name, its text, and the statement it is with the settings filled in."""

    name: str
    text: str
    statement: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def unless(self) -> str:
        """The question whose answer says whether the statement has been run already; empty where it may run twice."""
        found = _UNLESS.search(self.text)
        return found["query"] if found else ""

    @property
    def rendered(self) -> str:
        """SHA-256 of the statement."""
        return hashlib.sha256(self.statement.encode()).hexdigest()

    @property
    def view(self) -> str:
        """The view that the file makes or replaces; empty where it is another statement."""
        found = _VIEW.search(self.text)
        return found["view"] if found else ""


@dataclass(frozen=True, slots=True)
class Status:
    """A migration and how it stands with the server."""

    name: str
    state: Literal["applied", "pending", "outdated", "changed", "vanished"]
    applied_at: datetime | None = None


_ENGINE = re.compile(r"^(?P<head>ENGINE = )(?P<engine>\w*MergeTree)\b", re.MULTILINE)


def replicated(statement: str) -> str:
    """The statement with replicated engines, whose deduplication is a setting of another name.

    Engines take the path and name of a replica from the server's `default_replica_path` and `default_replica_name`;
    a Replicated database insists on that.
    """
    with_engines = _ENGINE.sub(r"\g<head>Replicated\g<engine>", statement)
    return with_engines.replace("non_replicated_deduplication_window", "replicated_deduplication_window")


def create_database(settings: Settings, database: str) -> str:
    """The statement that makes the database: on one server, or on every server of the cluster."""
    if not settings.clickhouse_cluster:
        return f"CREATE DATABASE IF NOT EXISTS {quoted(database)}"
    path = literal(f"/clickhouse/databases/{database}")
    on_all = f"CREATE DATABASE IF NOT EXISTS {quoted(database)} ON CLUSTER {quoted(settings.clickhouse_cluster)}"
    # Braces are the servers' own macros.
    return f"{on_all} ENGINE = Replicated({path}, '{{shard}}', '{{replica}}')"


def distributed(settings: Settings, database: str) -> list[str]:
    """The statements that make the Distributed tables of a cluster."""
    names = {"cluster": literal(settings.clickhouse_cluster), "database": literal(database)}
    return [
        named("migrate", "create_distributed").format(
            distributed=quoted(f"{table}_distributed"), table=quoted(table), **names
        )
        for table in DISTRIBUTED
    ]


def migrations(settings: Settings, folder: Path = MIGRATIONS) -> list[Migration]:
    """The files in order. Raises `SchemaMismatch` for a file whose name has no number."""
    result = []
    for path in sorted(folder.glob("*.sql")):
        if not _NAME.match(path.name):
            raise SchemaMismatch(f"{path.name} is not named like 0001_what_it_makes.sql.")
        text = path.read_text(encoding="utf-8")
        zone = literal(settings.reporting_timezone)
        statement = text.replace("'{reporting_timezone}'", zone)
        result.append(Migration(path.name, text, replicated(statement) if settings.clickhouse_cluster else statement))
    numbers = [migration.name[:4] for migration in result]
    twice = {number for number in numbers if numbers.count(number) > 1}
    if twice:
        raise SchemaMismatch(f"Two migrations carry the number {', '.join(sorted(twice))}.")
    return result


def status(sink: Sink, settings: Settings, folder: Path = MIGRATIONS) -> list[Status]:
    """How each file, and each file that was applied and is gone, stands with the server."""
    applied: dict[str, tuple[str, str, datetime]] = {}
    bare = Sink(settings, database="default")
    with bare:
        if bare.named("migrate", "history_exists", {"database": sink.database})[0][0]:
            for name, checksum, rendered, at in sink.named("migrate", "history"):
                applied[name] = (checksum, rendered, at)
    result = []
    for migration in migrations(settings, folder):
        if migration.name not in applied:
            result.append(Status(migration.name, "pending"))
            continue
        checksum, rendered, at = applied.pop(migration.name)
        if checksum != migration.checksum:
            result.append(Status(migration.name, "changed", at))
        elif rendered != migration.rendered:
            result.append(Status(migration.name, "outdated", at))
        else:
            result.append(Status(migration.name, "applied", at))
    result.extend(Status(name, "vanished", at) for name, (_, _, at) in applied.items())
    return sorted(result, key=lambda entry: entry.name)


def migrate(sink: Sink, settings: Settings, folder: Path = MIGRATIONS) -> list[str]:
    """Applies what is pending or outdated; returns the names. Raises `SchemaMismatch` before changing anything."""
    with Sink(settings, database="default") as bare:
        found = bare.named("doctor", "database", {"database": sink.database})
        if found and (found[0][0] == "Replicated") != bool(settings.clickhouse_cluster):
            raise SchemaMismatch(
                f"Database {sink.database} has engine {found[0][0]}, which "
                f"{'is not for a cluster' if settings.clickhouse_cluster else 'needs CLICKHOUSE_CLUSTER'}; name another "
                "database in CLICKHOUSE_DSN, and a pipeline run fills it."
            )
        bare.command("creating the database", create_database(settings, sink.database))
    standing = status(sink, settings, folder)
    for state, told in (("changed", "was changed after it was applied"), ("vanished", "was applied and is gone")):
        names = [entry.name for entry in standing if entry.state == state]
        if names:
            raise SchemaMismatch(
                f"Migration {', '.join(names)} {told}; restore the file as it was and put the change in a new one."
            )
    history = named("migrate", "create_history")
    sink.command("creating the migration history", replicated(history) if settings.clickhouse_cluster else history)
    due = {entry.name: entry.state for entry in standing if entry.state != "applied"}
    known = migrations(settings, folder)
    pending = [migration for migration in known if due.get(migration.name) == "pending"]
    outdated = [migration for migration in known if due.get(migration.name) == "outdated"]
    _apply(sink, pending, known)
    # Before the files that name the time zone: of whoever dies in between, the next one finds them outdated still.
    recut = bool(outdated) or settings.reporting_timezone != "UTC"
    calendars.migrate(sink, Ledger(sink), settings, recut=recut)
    _apply(sink, outdated, known, _replaced(known))
    done = sorted(due)
    if settings.clickhouse_cluster:
        for statement in distributed(settings, sink.database):
            sink.command("creating a Distributed table", statement)
    return done


def _renew_views(sink: Sink, found: Sequence[Migration], altered: Migration) -> None:
    """After a table was altered: makes the views of earlier files anew, before the change counts as applied.

    A view keeps the column types of the day it was made, and casts to them: a finer amount would be cut without a word.
    """
    if not _ALTER.search(altered.statement):
        return
    earlier = {one.view: one for one in found if one.view and one.name < altered.name}
    for one in earlier.values():
        sink.command(f"making the view of {one.name} anew", one.statement)


def _apply(sink: Sink, due: Sequence[Migration], known: Sequence[Migration], replaced: Set[str] = frozenset()) -> None:
    for migration in due:
        # Put in place again, an earlier definition of a view would stand until the later one followed.
        if migration.name not in replaced:
            doing = f"applying {migration.name}"
            if not migration.unless or not sink.query(doing, migration.unless)[0][0]:
                # With an unknown outcome it is asked again whether it was run.
                sink.command(doing, migration.statement, retry=not migration.unless)
            _renew_views(sink, known, migration)
        row = (migration.name, migration.checksum, migration.rendered)
        sink.insert_rows("schema_migrations", ("name", "checksum", "rendered"), [row])
        log.info("migrate.applied", name=migration.name)


def _replaced(known: Sequence[Migration]) -> set[str]:
    """Files whose view a later one replaces."""
    last = {migration.view: migration.name for migration in known if migration.view}
    return {migration.name for migration in known if migration.view and last[migration.view] != migration.name}


def require_current(sink: Sink, settings: Settings) -> None:
    """Raises `SchemaMismatch` unless every migration is applied."""
    behind = [entry.name for entry in status(sink, settings) if entry.state != "applied"]
    if behind:
        raise SchemaMismatch(
            f"The schema of ClickHouse database {sink.database} is not current ({', '.join(behind)}); "
            "run `retailmedia migrate`."
        )
