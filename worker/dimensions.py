"""Loads a dimension from PostgreSQL into ClickHouse: read whole, in one snapshot, each time; what changed is written.

A row that cannot be loaded is set aside with its reason, and its last version stays in force until a later reading can
load it. A reading that shows too few of the rows that are known is not believed, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from worker import setbacks
from worker.config import Settings
from worker.dimension_rows import FIELDS, Reader, Refused, form_of
from worker.errors import DimensionShrank, VerificationFailed
from worker.ledger import Ledger
from worker.sink import Sink, quoted
from worker.source import Source
from worker.sql import chunks, named
from worker.streams import Stream
from worker.windows import MICROSECOND, ORIGIN, Window, instant

DIMENSION_STAGING = "dimension_staging_"
ROWS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a dimension: every row extracted was loaded or quarantined."""

    extracted: int
    loaded: int
    quarantined: int


@dataclass(slots=True)
class _Staged:
    """What was seen of a reading: the ids of rows in the staging table, and the rows that cannot be loaded."""

    ids: set[int] = field(default_factory=set)
    refused: list[Refused] = field(default_factory=list)

    @property
    def extracted(self) -> int:
        return len(self.ids) + len(self.refused)


def load_dimension(
    source: Source,
    sink: Sink,
    ledger: Ledger,
    settings: Settings,
    stream: Stream,
    *,
    uuid: UUID,
    run_id: str = "",
    accept_shrink: bool = False,
) -> Loaded:
    """Reads a dimension whole, in one snapshot, and writes the rows that changed; commits up to the snapshot's horizon.

    Rows that are gone at the source are marked deleted; `accept_shrink` says that it is meant, however many they are.
    Raises `SourceMismatch` for a table without the columns that are needed, `DimensionShrank` where too few rows are
    left, and `TransientSource`, `TransientSink` or `VerificationFailed` where another try may help; nothing of the
    dimension was written then.
    """
    horizon = source.horizon().at
    statement = named("dimensions", f"create_staging_{stream.name}")
    with (
        setbacks.reading(source, ledger, settings, [stream], [uuid]) as read,
        sink.staging(DIMENSION_STAGING, statement) as staging,
    ):
        snapshot, version = read.snapshot, read.version
        table = quoted(staging)
        staged = _stage(source, sink, stream, staging)
        count = sink.query("counting staged rows", named("dimensions", "staged_count").format(staging=table))[0][0]
        if count != len(staged.ids):
            raise VerificationFailed(f"{stream.name}: read {len(staged.ids)} rows, ClickHouse staged {count}.")
        if not accept_shrink:
            _require_rows(sink, settings, stream, version, staged.extracted)
        _set_aside(sink, stream, staged, run_id, version)
        sink.command(
            f"writing {stream.name}",
            named("dimensions", f"merge_{stream.name}").format(staging=table),
            {"version": version, "taken_at": snapshot.taken_at},
        )
    # Without a horizon (a prepared transaction holds it) the rows are good but prove nothing about completeness.
    if horizon is not None and horizon > ORIGIN + MICROSECOND:
        ledger.commit(
            stream,
            uuid,
            Window(ORIGIN, horizon),
            run_id=run_id,
            version=version,
            rows=len(staged.ids),
            quarantined=len(staged.refused),
            content_hash=0,
            snapshot=snapshot,
            extracted=staged.extracted,
        )
    return Loaded(staged.extracted, len(staged.ids), len(staged.refused))


def _stage(source: Source, sink: Sink, stream: Stream, staging: str) -> _Staged:
    """Puts the rows that can be loaded into the staging table, and of the others the ids."""
    fields, table = FIELDS[stream.name], stream.source_table
    columns = source.columns(table)
    forms = [(one.source, form_of(one, table, columns)) for one in fields]
    bases = {column.name: column.base for column in columns}
    database, python, label = source.encoding()
    floats = frozenset(place for place, one in enumerate(fields) if bases[one.source] == "float8")
    reader = Reader(stream.name, python, label, floats)
    targets = [one.target for one in fields]
    staged = _Staged()
    for batch in source.read_dimension(table, forms, database):
        rows = []
        for raw in batch:
            row = reader.row(raw)
            if not isinstance(row, Refused) and row[0] in staged.ids:
                row = reader.refused(raw, f"id cannot be loaded: another row has {row[0]}, too")
            if isinstance(row, Refused):
                staged.refused.append(row)
            else:
                staged.ids.add(int(str(row[0])))
                rows.append(row)
        sink.insert_rows(staging, targets, rows)
    # An id of 0 is none, so nothing of it may stay in force.
    held = sorted({row.row_id for row in staged.refused if row.row_id} - staged.ids)
    for some in chunks(held, ROWS_AT_ONCE):
        sink.insert_rows(staging, (targets[0], "held"), [(row_id, True) for row_id in some])
    return staged


def _require_rows(sink: Sink, settings: Settings, stream: Stream, version: int, found: int) -> None:
    """Raises `DimensionShrank` where fewer of the rows known are left than may be believed."""
    percent = settings.dimension_max_shrink_percent
    alive = sink.named("dimensions", f"alive_{stream.name}", {"version": version})[0][0]
    if not alive or percent >= 100 or (found and 100 * found >= (100 - percent) * alive):
        return
    raise DimensionShrank(
        f"Table {stream.source_table} shows {found:,} of the {alive:,} {stream.name} that are known, fewer than "
        f"DIMENSION_MAX_SHRINK_PERCENT={percent:g} lets be believed, so none was marked deleted and nothing was written. "
        "Once the rows are back it goes on by itself; where they were deleted on purpose, say so: "
        f"`retailmedia pipeline --stream {stream.name} --accept-shrink`."
    )


def _set_aside(sink: Sink, stream: Stream, staged: _Staged, run_id: str, version: int) -> None:
    """Writes down which rows cannot be loaded, where that is news, and which of those before can, or are gone."""
    known: dict[str, tuple[int, str, str, str, datetime]] = {
        key: (row_id, rule, row, run, instant(at))
        for key, row_id, rule, row, run, at in sink.named("dimensions", "set_aside", {"stream": stream.name})
    }
    refused: Mapping[str, Refused] = {row.key: row for row in staged.refused}
    news = [
        (stream.name, row.key, row.row_id, "held", row.row, row.rule, run_id, version)
        for row in refused.values()
        if row.key not in known or known[row.key][1:3] != (row.rule, row.row)
    ]
    over = [
        (stream.name, key, row_id, "loaded" if row_id in staged.ids else "gone", row, rule, run, version, at)
        for key, (row_id, rule, row, run, at) in known.items()
        if key not in refused
    ]
    columns = ("stream", "key", "row_id", "state", "row", "rule", "run_id", "_version")
    _write(sink, columns, news)
    _write(sink, (*columns, "quarantined_at"), over)


def _write(sink: Sink, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    for some in chunks(rows, ROWS_AT_ONCE):
        sink.insert_rows("quarantined_dimension_rows", columns, some)
