"""Runs the checks in `clickhouse/checks/` and keeps what they found. Holds no check and no rendering.

A check is one SELECT in a file of its own that returns the failing rows; those in `source/` ask PostgreSQL, the others
ClickHouse. The comment at its head is the question, followed by lines `Severity:`, `Owner:`, `Do:`, `Grain:` and, for
a check too heavy for every rebuild, `Runs: nightly`. Then each threshold is a line
`SET param_max_ctr = '0.5'; -- meaning` (PostgreSQL: `SET check.max_ctr = '0.5'; -- meaning`), which stands in the
statement as `{max_ctr:Float64}` (`current_setting('check.max_ctr')::float`): the files run in each server's own client.
`first_day`, `last_day`, `zone`, `complete_through`, `impressions_through`, `clicks_through` and `max_lag_seconds` are
filled in by whoever runs a check; `CHECK_THRESHOLDS` outranks everything.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from worker.config import Settings
from worker.errors import BadInput, RetailMediaError
from worker.sink import Sink, literal
from worker.source import Source
from worker.sql import CLICKHOUSE, named
from worker.streams import EVENT_STREAMS
from worker.windows import ORIGIN, format_instant, instant

log = structlog.get_logger()

CHECKS = CLICKHOUSE / "checks"
Severity = Literal["error", "warn", "info"]
State = Literal["passed", "failed", "broken"]
Trigger = Literal["rebuild", "nightly", "manual"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

FIRST_DAY, LAST_DAY = date(1900, 1, 2), date(2299, 12, 30)
"""The days between which an event can happen."""

RANGES = 4
"""Runs of days that one round of checks looks at one by one; more are joined over the smallest gaps."""

NEARBY = timedelta(days=3)
"""Days no further apart are looked at in one go."""

PUBLISHING = timedelta(seconds=60)
"""How long after the moment its metrics speak of a day may be published."""

_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
_HEADS = ("Severity", "Owner", "Do", "Grain", "Runs")
_PARAMETER = re.compile(
    r"^SET (?:param_|check\.)(?P<name>[a-z][a-z0-9_]*) = '(?P<default>[^'\\]*)'; -- (?P<meaning>.+)$\n?", re.MULTILINE
)
_PLACE = re.compile(r"\{(?P<name>[a-z][a-z0-9_]*):(?P<type>[A-Za-z0-9_(), ']+)\}")
_SOURCE_PLACE = re.compile(r"current_setting\('check\.(?P<name>[a-z][a-z0-9_]*)'\)")


@dataclass(frozen=True, slots=True)
class Check:
    """A file of `clickhouse/checks/`. `fault` says why it cannot be used; empty for all others.

    `thresholds` are the parameters' defaults, as text, with their meanings in `meanings`.
    """

    name: str
    asks: Literal["target", "source"]
    question: str
    severity: Severity
    owner: str
    todo: str
    grain: str
    nightly: bool
    thresholds: Mapping[str, str]
    meanings: Mapping[str, str]
    statement: str
    fault: str = ""

    @property
    def by_day(self) -> bool:
        """Whether it can look at some days only."""
        return {"first_day", "last_day"} <= set(self.thresholds)


@dataclass(frozen=True, slots=True)
class Scope:
    """The runs of reporting days to look at, both ends included, and on what occasion."""

    trigger: Trigger
    ranges: tuple[tuple[date, date], ...] = ((FIRST_DAY, LAST_DAY),)

    @property
    def ends(self) -> tuple[date, date]:
        """The first and the last day of all."""
        return min(lo for lo, _ in self.ranges), max(hi for _, hi in self.ranges)


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found: how many failing rows, and some of them as JSON objects by column."""

    check: Check
    state: State
    failing: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    message: str = ""
    seconds: float = 0.0
    statement: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it is an error in the data."""
        return self.state == "failed" and self.check.severity == "error"


def read(path: Path, folder: Path = CHECKS) -> Check:
    """The check in a file; with its `fault` where the file is not one."""
    asks: Literal["target", "source"] = "source" if path.parent.name == "source" else "target"
    name = path.stem if asks == "target" else f"source/{path.stem}"
    text = path.read_text(encoding="utf-8")
    question: list[str] = []
    heads: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        told = line.removeprefix("--").strip()
        head, separator, value = told.partition(": ")
        if separator and head in _HEADS:
            heads[head] = value
        elif told and not heads:
            question.append(told)
    parameters = list(_PARAMETER.finditer(text))
    statement = _PARAMETER.sub("", text).strip().rstrip(";")
    thresholds = {found["name"]: found["default"] for found in parameters}
    placed = {found["name"] for found in (_PLACE if asks == "target" else _SOURCE_PLACE).finditer(statement)}
    lacking = [head for head in ("Severity", "Owner", "Do") if head not in heads]
    fault = ""
    if not question:
        fault = "its first comment line must be the question it asks"
    elif lacking:
        fault = f"its head has no line `-- {lacking[0]}: …`"
    elif heads["Severity"] not in SEVERITIES:
        fault = f"its severity is {heads['Severity']!r}; it must be one of {', '.join(SEVERITIES)}"
    elif placed - set(thresholds):
        fault = f"its parameter {min(placed - set(thresholds))!r} has no line that sets its default"
    severity: Severity = heads["Severity"] if heads.get("Severity") in SEVERITIES else "error"  # type: ignore[assignment]
    return Check(
        name,
        asks,
        " ".join(question),
        severity,
        heads.get("Owner", ""),
        heads.get("Do", ""),
        heads.get("Grain", ""),
        heads.get("Runs", "") == "nightly",
        thresholds,
        {found["name"]: found["meaning"] for found in parameters},
        statement,
        fault,
    )


def _files(settings: Settings) -> Iterator[Path]:
    for folder in (CHECKS, *([settings.checks_folder] if settings.checks_folder else [])):
        for path in (*sorted(folder.glob("*.sql")), *sorted((folder / "source").glob("*.sql"))):
            if _NAME.match(path.stem):
                yield path


def checks(settings: Settings) -> list[Check]:
    """Every check there is. Raises `BadInput` where a setting speaks of a check or a threshold there is not."""
    found = {check.name: check for check in map(read, _files(settings))}
    for name, given in settings.check_thresholds.items():
        if name not in found:
            raise BadInput(f"CHECK_THRESHOLDS speaks of {name!r}; the checks are {', '.join(found)}.")
        for threshold in given:
            if threshold not in found[name].thresholds:
                knows = ", ".join(found[name].thresholds) or "none"
                raise BadInput(f"The check {name} has no threshold {threshold!r}; it has {knows}.")
    return list(found.values())


def chosen(settings: Settings, names: Sequence[str]) -> list[Check]:
    """The checks of those names, all for none. Raises `BadInput` naming the ones there are."""
    found = {check.name: check for check in checks(settings)}
    for name in names:
        if name not in found:
            raise BadInput(f"There is no check {name!r}; the checks are {', '.join(found)}.")
    return [found[name] for name in dict.fromkeys(names)] if names else list(found.values())


def filled(check: Check, settings: Settings, supplied: Mapping[str, str]) -> str:
    """The statement with every parameter in place."""
    given = {name: str(value) for name, value in settings.check_thresholds.get(check.name, {}).items()}
    values = {**check.thresholds, **{k: v for k, v in supplied.items() if k in check.thresholds}, **given}
    if check.asks == "source":
        quoted = {name: "'" + value.replace("'", "''") + "'" for name, value in values.items()}
        return _SOURCE_PLACE.sub(lambda place: quoted[place["name"]], check.statement)
    return _PLACE.sub(
        lambda place: f"CAST({literal(values[place['name']])}, {literal(place['type'])})", check.statement
    )


def ranges(days: Sequence[date], limit: int = RANGES) -> tuple[tuple[date, date], ...]:
    """These days as at most `limit` runs that hold them all: nearby days together, then over the smallest gaps."""
    ordered = sorted(set(days))
    if not ordered:
        return ()
    gaps = [(later - earlier, later) for earlier, later in pairwise(ordered) if later - earlier > NEARBY]
    begins = {later for _, later in sorted(gaps, reverse=True)[: limit - 1]}
    result: list[tuple[date, date]] = []
    for day in ordered:
        if not result or day in begins:
            result.append((day, day))
        else:
            result[-1] = (result[-1][0], day)
    return tuple(result)


def changed(sink: Sink) -> list[date]:
    """Reporting days rebuilt since checks last followed a rebuild; every day before the first time."""
    count, last = sink.named("quality", "last_run", {"trigger": "rebuild"})[0]
    since = max(ORIGIN, instant(last) - PUBLISHING) if count else ORIGIN
    return sorted(day for (day,) in sink.named("quality", "changed_days", {"since": since}))


def supplied(settings: Settings, through: Mapping[str, datetime]) -> dict[str, str]:
    """What checks need to know of the pipeline. `through` says for each event stream how far it is complete."""
    lag = max(settings.promise(stream.name)[1] for stream in EVENT_STREAMS)
    return {
        "zone": settings.reporting_timezone,
        "max_lag_seconds": str(int(lag.total_seconds())),
        "complete_through": _stamp(min(through.values())),
        **{f"{name}_through": _stamp(at) for name, at in through.items()},
    }


def _stamp(value: datetime) -> str:
    return instant(value).strftime("%Y-%m-%d %H:%M:%S.%f")


def run(
    source: Source,
    sink: Sink,
    settings: Settings,
    selected: Sequence[Check],
    scope: Scope,
    through: Mapping[str, datetime],
    *,
    run_id: str,
) -> Iterator[Found]:
    """Carries the checks out one by one and yields what each found; at the end all of it is in `quality_results`.

    A check that cannot be carried out is `broken` and stops none of the others. Raises where the results cannot be
    written.
    """
    began = instant(sink.named("quality", "now")[0][0])
    known = supplied(settings, through)
    found = []
    for check in selected:
        result = _carry_out(source, sink, settings, check, scope, known)
        log.info("check.done", check=check.name, state=result.state, failing=result.failing)
        found.append(result)
        yield result
    _record(sink, scope, found, began, run_id)


def _carry_out(
    source: Source, sink: Sink, settings: Settings, check: Check, scope: Scope, known: Mapping[str, str]
) -> Found:
    began = time.monotonic()
    failing = 0
    samples: list[dict[str, Any]] = []
    statements: list[str] = []
    try:
        if check.fault:
            raise BadInput(f"The check {check.name} cannot be used: {check.fault}.")
        for lo, hi in scope.ranges if check.by_day else [scope.ends]:
            statement = filled(check, settings, {**known, "first_day": lo.isoformat(), "last_day": hi.isoformat()})
            statements.append(statement)
            limit = settings.check_samples - len(samples)
            count, rows = _failing(source, sink, check, statement, max(limit, 1))
            failing += count
            samples += rows[:limit]
    except RetailMediaError as error:
        seconds = time.monotonic() - began
        return Found(check, "broken", 0, [], str(error), seconds, (statements or [check.statement])[-1])
    seconds = time.monotonic() - began
    if not failing:
        return Found(check, "passed", seconds=seconds)
    return Found(check, "failed", failing, samples, "", seconds, "\n;\n".join(statements))


def _failing(source: Source, sink: Sink, check: Check, statement: str, limit: int) -> tuple[int, list[dict[str, Any]]]:
    doing = f"checking {check.name}"
    first = named("quality", "first_rows").format(statement=statement, limit=limit + 1)
    if check.asks == "source":
        columns, rows = source.described(doing, first)
    else:
        columns, _, rows = sink.described(doing, first)
    count = len(rows)
    if count > limit:
        counting = named("quality", "count").format(statement=statement)
        answer = source.described(doing, counting)[1] if check.asks == "source" else sink.query(doing, counting)
        count = int(answer[0][0])
    return count, [{column: plain(value) for column, value in zip(columns, row, strict=True)} for row in rows[:limit]]


def plain(value: Any) -> Any:
    """The JSON form of a value of a failing row."""
    match value:
        case datetime():
            return format_instant(value) if value.tzinfo else value.isoformat()
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [plain(item) for item in value]
        case Decimal():
            return f"{value:f}"
        case date():
            return str(value)
    return str(value)


def _record(sink: Sink, scope: Scope, found: Sequence[Found], began: datetime, run_id: str) -> None:
    lo, hi = scope.ends
    columns = (
        "check_name", "severity", "state", "trigger", "run_id", "checked_at", "first_day", "last_day", "failing",
        "samples", "message", "seconds", "statement",
    )  # fmt: skip
    rows = [
        (
            result.check.name, result.check.severity, result.state, scope.trigger, run_id, began,
            *((lo, hi) if result.check.by_day else (FIRST_DAY, LAST_DAY)),
            result.failing, [json.dumps(row, ensure_ascii=False) for row in result.samples], result.message,
            result.seconds, result.statement,
        )
        for result in found
    ]  # fmt: skip
    sink.insert_rows("quality_results", columns, rows, token=f"quality/{run_id}")
