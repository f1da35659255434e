"""A run that cannot succeed ends with the cause; a dimension that shrank is believed when a person says so."""

from __future__ import annotations

from psycopg2.extensions import connection as Connection

from tests.e2e.test_cli import command
from tests.integration.test_pipeline import campaigns, write
from tests.processes import workers
from worker.celery import Servers
from worker.config import Settings


def test_a_run_ends_with_the_cause_and_goes_on_once_a_person_says_so(
    settings: Settings, servers: Servers, writer: Connection
) -> None:
    campaigns(writer)
    with workers(settings):
        assert command(settings, "pipeline").returncode == 0
        write(writer, "TRUNCATE campaign CASCADE")
        failed = command(settings, "pipeline", "--stream", "campaigns")
        assert failed.returncode == 1
        assert "Table campaign shows 0 of the 3 campaigns that are known" in failed.stderr
        assert "--accept-shrink" in failed.stderr
        status = command(settings, "status")
        assert "campaigns cannot be read, tried" in status.stdout
        refused = command(settings, "pipeline", "--stream", "clicks", "--accept-shrink")
        assert refused.returncode == 2
        done = command(settings, "pipeline", "--stream", "campaigns", "--accept-shrink")
        assert done.returncode == 0, done.stderr
    alive = servers.sink.query("looking", "SELECT count() FROM campaign_dimension WHERE NOT is_deleted")
    assert alive == [(0,)]
