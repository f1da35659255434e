"""dlt's own load of the same table, where dlt is installed: `uv pip install 'dlt[clickhouse,sql_database,parquet]' connectorx`.

It is in no lock: nobody who runs the product needs it.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.rows import Totals
from worker.config import Settings
from worker.sink import Sink, quoted

BACKENDS = ("connectorx", "pyarrow")
"""Its fastest ways of reading PostgreSQL; both end as Parquet that ClickHouse is given over HTTP."""

INSTALL = "uv pip install 'dlt[clickhouse,sql_database,parquet]' connectorx"


def available() -> bool:
    """Whether dlt and what it reads and writes with are installed."""
    return all(find_spec(name) for name in ("dlt", "connectorx", "sqlalchemy", "clickhouse_connect", "pyarrow"))


class Dlt:
    """dlt with a home, a ClickHouse database and a door of its own."""

    def __init__(self, settings: Settings, home: Path, http_port: int) -> None:
        address = settings.sink_address
        self._settings, self._home = settings, home
        self._credentials = {
            "host": address.host,
            "port": address.port,
            "http_port": http_port,
            "username": address.user,
            "password": address.password,
            "database": address.database,
            "secure": 0,
        }

    def load(self, backend: str) -> tuple[float, Totals]:
        """Seconds of one run that replaces the table, from extraction to the last row in place, and what is there then."""
        dlt: Any = importlib.import_module("dlt")
        sources: Any = importlib.import_module("dlt.sources.sql_database")
        name = f"bench_{backend}"
        pipeline = dlt.pipeline(
            name,
            destination=dlt.destinations.clickhouse(credentials=self._credentials),
            dataset_name=name,
            pipelines_dir=str(self._home / "pipelines"),
        )
        table = sources.sql_table(
            credentials=self._settings.source_dsn.replace("postgresql://", "postgresql+psycopg2://", 1),
            table="impressions",
            backend=backend,
            chunk_size=500_000,
        )
        begun = time.perf_counter()
        pipeline.run(table, write_disposition="replace", loader_file_format="parquet")
        return time.perf_counter() - begun, self._totals(f"{name}___impressions")

    def _totals(self, table: str) -> Totals:
        with Sink(self._settings) as sink:
            (found,) = sink.query(
                "adding up dlt's table",
                f"""
                SELECT count(), sum(toInt128(id)), sum(toInt128(ifNull(campaign_id, 0))),
                    sum(toInt128(toUnixTimestamp64Micro(assumeNotNull(created_at)))),
                    sum(toInt128(toUnixTimestamp64Micro(assumeNotNull(inserted_at)))),
                    max(toUnixTimestamp64Micro(assumeNotNull(inserted_at)))
                FROM {quoted(table)}
                """,  # noqa: S608 - a quoted name
            )
        return Totals(*(int(value) for value in found))


@contextmanager
def opened(settings: Settings) -> Iterator[Dlt]:
    """dlt before the ClickHouse of these settings, which reads files of this machine; gone at the end."""
    from bench import httpdoor

    address = settings.sink_address
    reached = {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "database": address.database,
    }
    home = Path(tempfile.mkdtemp(prefix="bench-dlt-"))
    os.environ.update(
        RUNTIME__DLTHUB_TELEMETRY="false",
        RUNTIME__LOG_LEVEL="ERROR",
        DLT_DATA_DIR=str(home),
        DLT_PROJECT_DIR=str(home),
    )
    try:
        with httpdoor.opened(reached, home) as port:
            yield Dlt(settings, home, port)
    finally:
        shutil.rmtree(home, ignore_errors=True)
