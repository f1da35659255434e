"""Migrations: applied once and in order; what was applied must stay as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from worker import migrate
from worker.celery import Servers
from worker.config import Settings
from worker.errors import SchemaMismatch, SinkFailure
from worker.sink import Sink


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS, target)
    return target


def test_a_second_run_applies_nothing(servers: Servers) -> None:
    assert migrate.migrate(servers.sink, servers.settings) == []
    assert {entry.state for entry in migrate.status(servers.sink, servers.settings)} == {"applied"}
    migrate.require_current(servers.sink, servers.settings)


def test_before_the_first_run_everything_is_pending(bare_settings: Settings) -> None:
    with Sink(bare_settings) as sink:
        assert {entry.state for entry in migrate.status(sink, bare_settings)} == {"pending"}
        with pytest.raises(SchemaMismatch, match="retailmedia migrate"):
            migrate.require_current(sink, bare_settings)


@pytest.mark.parametrize(("change", "told"), [("change", "was changed"), ("remove", "is gone")])
def test_a_changed_or_vanished_file_is_refused_before_anything_is_applied(
    servers: Servers, folder: Path, change: str, told: str
) -> None:
    path = folder / "0003_advertiser_dimension.sql"
    if change == "change":
        path.write_text(path.read_text() + "\n-- a word\n")
    else:
        path.unlink()
    (folder / "0999_more.sql").write_text("CREATE TABLE more (x Int8) ENGINE = MergeTree ORDER BY x")
    with pytest.raises(SchemaMismatch, match=told):
        migrate.migrate(servers.sink, servers.settings, folder)
    with pytest.raises(SchemaMismatch):
        servers.sink.uuid("more")


def test_a_new_file_is_applied(servers: Servers, folder: Path) -> None:
    (folder / "0999_more.sql").write_text("CREATE TABLE more (x Int8) ENGINE = MergeTree ORDER BY x")
    assert migrate.migrate(servers.sink, servers.settings, folder) == ["0999_more.sql"]
    assert servers.sink.uuid("more")


@pytest.mark.parametrize("name", ["fix.sql", "1_fix.sql"])
def test_a_file_without_a_number_is_refused(servers: Servers, folder: Path, name: str) -> None:
    (folder / name).write_text("SELECT 1")
    with pytest.raises(SchemaMismatch, match="not named like"):
        migrate.migrate(servers.sink, servers.settings, folder)


def test_another_time_zone_renews_the_views_that_name_it(servers: Servers) -> None:
    elsewhere = servers.settings.model_copy(update={"reporting_timezone": "Asia/Kathmandu"})
    outdated = [entry.name for entry in migrate.status(servers.sink, elsewhere) if entry.state == "outdated"]
    assert outdated == [
        "0004_campaign_dimension.sql", "0019_reporting_day.sql", "0060_reporting_day_of_calendar.sql",
    ]  # fmt: skip
    assert migrate.migrate(servers.sink, elsewhere) == outdated
    (shown,) = servers.sink.query("looking", "SHOW CREATE TABLE reporting_day")[0]
    assert "Asia/Kathmandu" in shown
    # An earlier definition is not put in the place of the one that followed it.
    assert "reporting_calendars" in shown
    (dimension,) = servers.sink.query("looking", "SHOW CREATE TABLE campaign_dimension")[0]
    assert "reporting_day" in dimension


def test_the_calendar_reaches_five_years_ahead(servers: Servers) -> None:
    ((first, ahead, weekend, total),) = servers.sink.query(
        "looking",
        "SELECT min(date_id), max(date_id) >= addYears(today(), 5), "
        "countIf(is_weekend != (toDayOfWeek(date_id) IN (6, 7))), count() - uniqExact(date_id) FROM date_dimension",
    )
    assert str(first) == "1970-01-01"
    assert ahead
    assert (weekend, total) == (0, 0)


def test_on_a_cluster_every_table_is_replicated_and_deduplicates(settings: Settings, servers: Servers) -> None:
    clustered = settings.model_copy(update={"clickhouse_cluster": "main"})
    alone = {migration.name: migration.statement for migration in migrate.migrations(settings)}
    for migration in migrate.migrations(clustered):
        statement = migration.statement
        # The engine parses it; what Keeper does with it cannot be tried here.
        servers.sink.query("parsing", "SELECT formatQuery(%(text)s)", {"text": statement})
        if "CREATE TABLE" in statement:
            assert "ENGINE = Replicated" in statement, migration.name
        assert "non_replicated" not in statement
        back = statement.replace("ENGINE = Replicated", "ENGINE = ").replace(
            " replicated_deduplication", " non_replicated_deduplication"
        )
        assert back == alone[migration.name]
    made = migrate.create_database(clustered, "retailmedia")
    (told,) = servers.sink.query("parsing", "SELECT formatQuery(%(text)s)", {"text": made})[0]
    assert "ON CLUSTER main" in told
    assert "Replicated('/clickhouse/databases/retailmedia', '{shard}', '{replica}')" in told


def test_on_a_cluster_analysts_read_a_distributed_table(settings: Settings, servers: Servers) -> None:
    clustered = settings.model_copy(update={"clickhouse_cluster": "ma'in"})
    for table, statement in zip(migrate.DISTRIBUTED, migrate.distributed(clustered, "retailmedia"), strict=True):
        (told,) = servers.sink.query("parsing", "SELECT formatQuery(%(text)s)", {"text": statement})[0]
        plain = told.replace("`", "")
        assert f"CREATE OR REPLACE TABLE {table}_distributed AS {table}" in plain
        assert rf"ENGINE = Distributed('ma\'in', 'retailmedia', {table}, campaign_id)" in plain
        # Rows of one campaign stay together, and the column is there.
        servers.sink.query("looking", f"SELECT campaign_id FROM {table} LIMIT 1")
        # The engine takes the statement up to the cluster it does not know.
        with pytest.raises(SinkFailure, match="CLUSTER_DOESNT_EXIST"):
            servers.sink.command("making it", statement.replace("'retailmedia'", f"'{servers.sink.database}'"))


def test_a_database_of_one_server_is_not_taken_for_a_clusters(settings: Settings, servers: Servers) -> None:
    clustered = settings.model_copy(update={"clickhouse_cluster": "main"})
    with pytest.raises(SchemaMismatch, match="engine Atomic, which is not for a cluster"):
        migrate.migrate(servers.sink, clustered)
    assert migrate.migrate(servers.sink, settings) == []
