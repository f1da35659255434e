"""What people see: steps, tables, progress bars. On a terminal it moves; elsewhere each line stands for itself.

Results go to standard output, what happens meanwhile to standard error. Nothing here asks a server.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from worker import money
from worker.errors import BadInput
from worker.logs import visible
from worker.windows import ORIGIN, Window, format_instant

if TYPE_CHECKING:
    from worker import doctor, migrate, standing
    from worker.alerts import Incident
    from worker.calendar import Calendar
    from worker.config import PricingModel
    from worker.demo import Comparison
    from worker.local import FlowerAddress
    from worker.planner import Plan
    from worker.quality import Check, Found
    from worker.quarantine import Held
    from worker.queries import Answer, Query
    from worker.reconcile import Result
    from worker.replay import Replay
    from worker.runs import Progress as RunProgress
    from worker.seals import Verdict
    from worker.streams import Stream

PIPED_WIDTH = 160
PLAIN_EVERY_SECONDS = 5.0
NARROWEST = 8
NAMES_NEED = 100
HEADS = {"campaign_id": "id", "campaign_name": "campaign", "advertiser_name": "advertiser", "pricing_model": "model"}
"""Shorter column heads, for tables only; CSV and JSON carry the query's own."""

SHARES = frozenset({"utilisation", "elapsed_share"})
"""Columns that are parts of a whole; people read them in per cent."""

PRICES = frozenset(
    {
        "cpm", "cpc", "break_even_click_value", "spend_per_campaign", "spend_per_day", "daily_spend", "required_daily_spend",
        "projected_end_spend",
    }
)  # fmt: skip
"""Columns of money that were divided: rounded for people. Every other amount is told to its last digit."""

BILLING = {"cpc": "clicks × bid", "cpm": "impressions × bid / 1,000", "cpi": "impressions × bid"}

Align = Literal["left", "right"]


def console(*, stderr: bool = False) -> Console:
    """A console for one of the two outputs. Cells are taken as they are: no markup, no emoji codes, no highlighting."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def moves(chosen: Console) -> bool:
    """Whether progress can be drawn in place."""
    return chosen.is_terminal and not chosen.is_dumb_terminal


def clean(value: str) -> str:
    """Text of others without the control characters a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in value)


def tell(out: Console, text: Text) -> None:
    """A line of prose: broken between words on a terminal, whole elsewhere."""
    out.print(text, soft_wrap=not out.is_terminal)


def say(text: str, *, style: str = "") -> None:
    """One line of result."""
    tell(console(), Text(text, style=style))


def print_json(content: Any) -> None:
    """Result as JSON: times in ISO 8601 UTC, money and other exact decimals as digits in a string."""
    click.echo(visible(json.dumps(content, default=plain, ensure_ascii=False, allow_nan=False)))


def plain(value: object) -> Any:
    """The JSON form of a value. Raises `TypeError` for one without."""
    match value:
        case datetime():
            return format_instant(value) if value.tzinfo else value.isoformat()
        case date():
            return value.isoformat()
        case Decimal():
            return f"{value:f}"
        case UUID():
            return str(value)
        case timedelta():
            return round(value.total_seconds(), 3)
        case Window():
            return value.kwargs()
        case set() | frozenset():
            return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def seconds(value: float) -> str:
    """A length of time for people."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    if value < 172_800:
        return f"{value / 3600:.0f} h"
    return f"{value / 86_400:.0f} days"


def moment(value: datetime, now: datetime) -> str:
    """A time in UTC: of day today, with the date otherwise."""
    if value <= ORIGIN:
        return "none yet"
    if value.date() == now.date():
        return value.strftime("%H:%M:%S")
    return value.strftime("%Y-%m-%d %H:%M" if value.year != now.year else "%b %d %H:%M")


def cell(column: str, value: object) -> str:
    """A value of a query for people: money exact and prices rounded, ratios in per cent, ids without separators."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return str(value) if column.endswith("_id") or column in {"id", "year"} else f"{value:,}"
        case Decimal():
            return money.price(value) if column in PRICES else money.amount(value)
        case float():
            if column in {"ctr", "recent_ctr"}:
                return f"{value:.3%}"
            if column.endswith(("_change", "deviation")):
                return f"{value:+.1%}"
            return f"{value:.1%}" if column in SHARES or column.startswith("share_") else f"{value:,.4g}"
        case list() | tuple():
            return ", ".join(cell(column, item) for item in value)
        case str():
            return clean(value)
    return str(value)


def table(
    columns: Sequence[tuple[str, Align]],
    rows: Sequence[Sequence[str]],
    *,
    last_apart: bool = False,
    give: Collection[int] = (),
) -> Table:
    """A table as narrow as its cells. `give` are columns that may be shortened where the screen is too narrow."""
    widths = [max(cell_len(name), *(cell_len(row[n]) for row in rows), 1) for n, (name, _) in enumerate(columns)]
    excess = sum(widths) + 2 * (len(widths) - 1) - console().width
    while excess > 0 and any(widths[place] > NARROWEST for place in give):
        widest = max(give, key=lambda place: widths[place])
        widths[widest] -= 1
        excess -= 1
    # With a separator of one, columns stand two apart.
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for (name, align), width in zip(columns, widths, strict=True):
        made.add_column(name, justify=align, no_wrap=True, overflow="ellipsis", width=width)
    for number, row in enumerate(rows):
        if last_apart and number == len(rows) - 1:
            made.add_row(*("─" * width for width in widths), style="dim")
            made.add_row(*row, style="bold")
        else:
            made.add_row(*row)
    return made


def show(made: Table) -> None:
    """Prints a table with an empty line before it."""
    out = console()
    out.print()
    out.print(made)


# Steps


class Steps:
    """The story of `demo` and `up`: each step is told when it begins and how long it took."""

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return time.monotonic() - self._began

    def note(self, text: str) -> None:
        """A line beside the steps."""
        tell(self._out, Text(f"  {text}", style="dim"))

    @contextlib.contextmanager
    def timed(self, title: str) -> Iterator[Callable[[str], None]]:
        """A step that shows for itself what goes on. What it is called with replaces what is said at its end."""
        ending = [title]
        began = time.monotonic()
        yield lambda text: ending.__setitem__(0, text)
        took = time.monotonic() - began
        line = Text("✓ ", style="green") + Text(ending[0], style="default")
        tell(self._out, line + Text(f"  {took:.1f} s", style="dim"))

    @contextlib.contextmanager
    def step(self, doing: str, done: str) -> Iterator[Callable[[str], None]]:
        """A step with a sign of life while it goes on, and what is said at its end."""
        with self.timed(done) as ending:
            with self._out.status(Text(f"{doing} …")) if moves(self._out) else contextlib.nullcontext():
                yield ending

    @contextlib.contextmanager
    def bar(self, title: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
        """A step whose progress is counted, by a function that takes rows done and rows expected."""
        with self.timed(title) as ending:
            if not moves(self._out):
                yield lambda done, total: None, ending
                return
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
            )
            with Progress(*columns, console=self._out, transient=True) as progress:
                task = progress.add_task(title, total=0)
                yield lambda done, total: progress.update(task, completed=done, total=total), ending


# Runs


class _Rows(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, total = int(task.completed), task.fields["rows"]
        return Text(f"{done:,} rows" if total is None else f"{done:,} of {total:,} rows", justify="right")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        done, rows, took = int(task.completed), task.fields["rows"], task.fields["took"]
        if task.fields["done"]:
            return Text(f"done in {seconds(took)}" if done else "nothing new", style="green")
        if not done or not took:
            return Text("waiting", style="dim")
        rate = done / took
        left = f", {seconds((rows - done) / rate)} left" if rows else ""
        return Text(f"{rate:,.0f}/s{left}", style="cyan")


@contextlib.contextmanager
def following(streams: Sequence[Stream]) -> Iterator[Callable[[RunProgress], None]]:
    """Shows a run while it goes on: a bar per stream on a terminal, now and then a line elsewhere."""
    out = console(stderr=True)
    if not moves(out):
        yield _Lines(out).show
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        _Rows(),
        TextColumn("{task.fields[windows]}"),
        _Rate(),
    )
    with Progress(*columns, console=out, transient=True, refresh_per_second=8) as progress:
        bars = {
            stream.name: progress.add_task(stream.name, total=None, rows=None, windows="", took=0.0, done=False)
            for stream in streams
        }
        waiting_for = ""

        def show(seen: RunProgress) -> None:
            nonlocal waiting_for
            for entry in seen.streams:
                whole = entry.rows_done if entry.done else entry.rows
                progress.update(
                    bars[entry.stream.name],
                    completed=entry.rows_done,
                    total=max(whole, 1) if whole is not None else None,
                    rows=entry.rows,
                    windows=_windows(entry.windows_done),
                    took=entry.seconds if entry.done else seen.seconds,
                    done=entry.done,
                )
            if _who(seen.held_by) not in {"", waiting_for}:
                tell(progress.console, Text(f"Waiting for {seen.held_by}.", style="yellow"))
            waiting_for = _who(seen.held_by)

        yield show


def _windows(count: int) -> str:
    return "" if not count else "1 window" if count == 1 else f"{count:,} windows"


def _who(held_by: str) -> str:
    return held_by.partition(", open for")[0]


class _Lines:
    """A run in lines: who it waits for, and every few seconds how far each stream is."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._told_at = 0.0
        self._held_by = ""

    def show(self, seen: RunProgress) -> None:
        """Prints what is worth a line by now."""
        if _who(seen.held_by) != self._held_by:
            self._held_by = _who(seen.held_by)
            if self._held_by:
                tell(self._out, Text(f"Waiting for {seen.held_by}."))
        if seen.ended or seen.seconds - self._told_at < PLAIN_EVERY_SECONDS:
            return
        self._told_at = seen.seconds
        parts = []
        for entry in seen.streams:
            of = f" of {entry.rows:,}" if entry.rows is not None else ""
            parts.append(f"{entry.stream.name} {entry.rows_done:,}{of} rows")
        tell(self._out, Text(f"After {seen.seconds:.0f} s: {', '.join(parts)}."))


def run_table(last: RunProgress) -> Table:
    """What a run loaded, per stream."""
    rows = [
        [
            entry.stream.name,
            f"{entry.rows_done:,}",
            seconds(entry.seconds) if entry.rows_done or entry.windows_done else "–",
        ]
        for entry in last.streams
    ]
    return table([("stream", "left"), ("rows loaded", "right"), ("time", "right")], rows)


def run_json(last: RunProgress) -> dict[str, Any]:
    """The same for programs."""
    return {
        "run_id": last.run_id,
        "state": last.run.state if last.run else "unknown",
        "kind": last.run.kind if last.run else None,
        "seconds": round(last.seconds, 3),
        "streams": {
            entry.stream.name: {
                "rows": entry.rows_done,
                "windows": entry.windows_done,
                "seconds": round(entry.seconds, 3),
            }
            for entry in last.streams
        },
    }


# Data quality

STATE_WORDS = {
    ("failed", "error"): ("error", "bold red"),
    ("failed", "warn"): ("warn", "yellow"),
    ("failed", "info"): ("info", "cyan"),
}
SAMPLES_SHOWN = 3


def check_result(result: Found) -> None:
    """One check on a line, with a few failing rows and what to do where it found some."""
    word, style = STATE_WORDS.get((result.state, result.check.severity), ("ok", "green"))
    if result.state == "broken":
        word, style = "broken", "bold red"
    out = console()
    rows = f"{result.failing:,} row{'' if result.failing == 1 else 's'}" if result.failing else ""
    tell(out, Text.assemble((f"{word:<7}", style), f"{result.check.name:<29}", clean(f"{rows}{result.message}")))
    if not result.failing:
        return
    tell(out, Text(f"       {clean(result.check.question)}", style="dim"))
    for row in result.samples[:SAMPLES_SHOWN]:
        told = ", ".join(f"{column} {'–' if value is None else value}" for column, value in row.items())
        tell(out, Text(f"       · {clean(told)}"))
    tell(out, Text(f"       → {clean(result.check.todo)} ({clean(result.check.owner)})"))


def checks_json(run_id: str, found: Sequence[Found]) -> dict[str, Any]:
    """The same for programs, with the statements."""
    return {
        "run_id": run_id,
        "checks": [
            {
                "name": result.check.name,
                "severity": result.check.severity,
                "state": result.state,
                "failing": result.failing,
                "question": result.check.question,
                "owner": result.check.owner,
                "do": result.check.todo,
                "samples": result.samples,
                "message": result.message or None,
                "seconds": round(result.seconds, 3),
                "statement": result.statement or None,
            }
            for result in found
        ],
    }


def check_list(found: Sequence[Check]) -> None:
    """Every check: how bad it is and what it asks."""
    rows = [[check.name, check.severity, clean(check.owner), clean(check.fault or check.question)] for check in found]
    console().print(
        table([("check", "left"), ("severity", "left"), ("owner", "left"), ("question", "left")], rows, give=(3,))
    )
    say("")
    for check in found:
        for name, default in check.thresholds.items():
            if name not in {"first_day", "last_day", "zone"} and not name.endswith("_through"):
                say(f"{check.name} {name} = {default}: {check.meanings[name]}", style="dim")


def check_list_json(found: Sequence[Check]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": check.name,
            "asks": check.asks,
            "severity": check.severity,
            "question": check.question,
            "owner": check.owner,
            "do": check.todo,
            "grain": check.grain,
            "nightly_only": check.nightly,
            "thresholds": dict(check.thresholds),
            "fault": check.fault or None,
        }
        for check in found
    ]


def quarantine_list(found: Sequence[Held], counts: Mapping[str, Mapping[str, int]]) -> None:
    """Rows in quarantine, then how many stand how."""
    if found:
        rows = [
            [
                held.stream,
                str(held.event_id),
                held.state,
                clean(str(held.row.get("created_at"))),
                clean(held.rule),
                clean(held.reason or ""),
            ]
            for held in found
        ]
        heads: list[tuple[str, Align]] = [
            ("stream", "left"), ("id", "right"), ("state", "left"), ("created_at", "left"), ("rule", "left"), ("reason", "left"),
        ]  # fmt: skip
        console().print(table(heads, rows, give=(4, 5)))
        say("")
    told = [
        f"{stream}: {', '.join(f'{n:,} {state}' for state, n in states.items())}" for stream, states in counts.items()
    ]
    say(f"{'; '.join(told)}." if told else "No row was ever set aside.")


def held_json(held: Held) -> dict[str, Any]:
    """A row in quarantine for programs."""
    return {
        "stream": held.stream,
        "event_id": held.event_id,
        "state": held.state,
        "rule": held.rule,
        "can_be_loaded": held.can_be_loaded,
        "reason": held.reason,
        "decided_at": held.decided_at,
        "row": held.row,
        "lo": held.window.lo,
        "hi": held.window.hi,
        "run_id": held.run_id,
        "quarantined_at": held.quarantined_at,
    }


def held_row(held: Held) -> None:
    """One row in quarantine, a line for each thing there is to say."""
    content = held_json(held)
    for name, value in (content | {"row": ""} | {f"row.{key}": item for key, item in held.row.items()}).items():
        if name != "row":
            told = "–" if value in (None, "") else plain(value) if isinstance(value, datetime) else value
            say(f"{name:<17} {clean(str(told))}")


def incidents(found: Sequence[Incident]) -> None:
    """Incidents, open ones first."""
    if not found:
        say("Nothing is wrong, and nothing was.")
        return
    rows = [
        [
            "open" if entry.ended_at is None else "over",
            entry.severity,
            entry.incident,
            entry.began_at.strftime("%b %d %H:%M:%S"),
            entry.ended_at.strftime("%b %d %H:%M:%S") if entry.ended_at else "",
            "yes" if entry.told_as else "no",
            clean(entry.message),
        ]
        for entry in found
    ]
    heads: list[tuple[str, Align]] = [
        ("", "left"), ("severity", "left"), ("incident", "left"), ("began", "left"), ("ended", "left"), ("told", "left"), ("what", "left"),
    ]  # fmt: skip
    console().print(table(heads, rows, give=(6,)))


def incident_json(entry: Incident) -> dict[str, Any]:
    """An incident for programs."""
    return asdict(entry)


# Status and plans


def status_table(found: standing.Overview) -> Table:
    """Streams as columns, so that it fits a narrow screen."""
    now = found.horizon.taken_at

    def failed(entry: standing.Standing) -> str:
        return f"{len(entry.failures):,}" if entry.failures else "none"

    def last_run(entry: standing.Standing) -> str:
        return entry.last_run.kind if entry.last_run else "none yet"

    def last_run_state(entry: standing.Standing) -> str:
        return entry.last_run.state if entry.last_run else ""

    def last_run_at(entry: standing.Standing) -> str:
        return moment(entry.last_run.started_at, now) if entry.last_run else ""

    lines: list[tuple[str, Callable[[standing.Standing], str]]] = [
        ("watermark", lambda entry: moment(entry.watermark, now)),
        ("complete through", lambda entry: moment(entry.complete_through, now)),
        ("lag", lambda entry: seconds(entry.lag.total_seconds()) if entry.complete_through > ORIGIN else "–"),
        ("rows loaded", lambda entry: f"{entry.rows:,}"),
        ("quarantined", lambda entry: f"{entry.quarantined:,}" if entry.quarantined else "none"),
        ("windows in flight", lambda entry: f"{entry.in_flight:,}" if entry.in_flight else "none"),
        ("windows failing", failed),
        ("last run", last_run),
        ("  begun", last_run_at),
        ("  state", last_run_state),
    ]
    heads: list[tuple[str, Align]] = [("", "left"), *((entry.stream.name, "right") for entry in found.streams)]
    return table(heads, [[title, *(value(entry) for entry in found.streams)] for title, value in lines])


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def unpriced_line(found: standing.Unpriced) -> str:
    """What spend leaves out; empty where that is nothing."""
    if not found.events:
        return ""
    campaigns = "1 campaign that is" if found.campaigns == 1 else f"{found.campaigns:,} campaigns that are"
    told = f"Unpriced: {_plural(found.events, 'event')} of {campaigns} not known, on {_plural(found.days, 'day')}"
    return f"{told}; what they cost is not in spend. See `{program()} check unpriced_events`."


def horizon_line(found: standing.Overview) -> str:
    """Where the safe horizon is, and who holds it there."""
    horizon = found.horizon
    if horizon.at is None:
        holder = horizon.holders[0]
        return (
            f"Nothing can be synced: the prepared transaction {holder.who.removeprefix('prepared ')} of user "
            f"{holder.user} has been open for {seconds(holder.age.total_seconds())}; commit it or roll it back."
        )
    behind = seconds((horizon.taken_at - horizon.at).total_seconds())
    told = f"The safe horizon is {moment(horizon.at, horizon.taken_at)} UTC, {behind} behind the source's clock"
    if not horizon.holders:
        return f"{told}; nobody holds it back."
    holder = horizon.holders[0]
    application = f" ({clean(holder.application)})" if holder.application else ""
    age = seconds(holder.age.total_seconds())
    return f"{told}, held back by {holder.who}, user {holder.user}{application}, whose transaction is {age} old."


def status_json(found: standing.Overview) -> dict[str, Any]:
    """The same for programs."""
    return {
        "horizon": found.horizon.at,
        "taken_at": found.horizon.taken_at,
        "setback": found.setback or None,
        "unpriced": asdict(found.unpriced),
        "held_by": [
            {
                "who": holder.who,
                "user": holder.user,
                "application": holder.application,
                "since": holder.since,
                "seconds": holder.age,
                "prepared": holder.prepared,
            }
            for holder in found.horizon.holders
        ],
        "days_failing": [
            {"day": day.day, "failures": day.count, "since": day.first, "last": day.last, "error": day.error}
            for day in found.days
        ],
        "streams": {
            entry.stream.name: {
                "watermark": entry.watermark if entry.watermark > ORIGIN else None,
                "complete_through": entry.complete_through if entry.complete_through > ORIGIN else None,
                "lag_seconds": entry.lag if entry.complete_through > ORIGIN else None,
                "rows_loaded": entry.rows,
                "quarantined": entry.quarantined,
                "windows_in_flight": entry.in_flight,
                "windows_failing": [
                    {
                        "window": failure.window,
                        "failures": failure.count,
                        "since": failure.first,
                        "error": failure.error,
                    }
                    for failure in entry.failures
                ],
                "last_run": {
                    "run_id": entry.last_run.run_id,
                    "kind": entry.last_run.kind,
                    "state": entry.last_run.state,
                    "started_at": entry.last_run.started_at,
                    "message": entry.last_run.message,
                }
                if entry.last_run
                else None,
            }
            for entry in found.streams
        },
    }


def plan_rows(plans: Sequence[Plan], count: Callable[[Stream, Window], int | None]) -> list[dict[str, Any]]:
    """Every planned window with its rows and its queue, in order."""
    return [
        {
            "stream": plan.stream.name,
            "lo": window.lo,
            "hi": window.hi,
            "rows": count(plan.stream, window),
            "queue": queue,
        }
        for plan in plans
        for windows, queue in ((plan.backlog, "backfill"), (plan.fresh, "realtime"))
        for window in windows
    ]


def plan_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The same as a table."""

    def at(value: datetime) -> str:
        return "the beginning" if value <= ORIGIN else value.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]

    return table(
        [("stream", "left"), ("inserted from", "right"), ("to", "right"), ("rows", "right"), ("queue", "left")],
        [
            [
                row["stream"],
                at(row["lo"]),
                at(row["hi"]),
                "all" if row["rows"] is None else f"{row['rows']:,}",
                row["queue"],
            ]
            for row in rows
        ],
    )


# Queries


def answer(found: Answer, form: str, output: Path | None = None) -> None:
    """Prints a query's answer, or writes it to a file. CSV and JSON carry exact values, NULL as nothing and null."""
    if form == "parquet":
        content = parquet(found)
        if output is None:
            click.echo(content, nl=False)
        else:
            output.write_bytes(content)
        return
    if form == "json":
        rows = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
        text = visible(json.dumps(rows, default=plain, ensure_ascii=False, allow_nan=False)) + "\n"
    elif form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(found.columns)
        writer.writerows([["" if value is None else _csv(value) for value in row] for row in found.rows])
        text = out.getvalue()
    elif output is None:
        console().print(answer_table(found.columns, found.rows))
        return
    else:
        with output.open("w", encoding="utf-8") as file:
            Console(file=file, width=PIPED_WIDTH, markup=False, emoji=False, highlight=False).print(
                answer_table(found.columns, found.rows)
            )
        return
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")


def _csv(value: object) -> object:
    if isinstance(value, Decimal):
        # Without an exponent, however small it is.
        return plain(value)
    return json.dumps(value, default=plain, ensure_ascii=False) if isinstance(value, list | tuple) else value


def require_parquet(output: Path | None) -> None:
    """Raises `BadInput` where Parquet cannot be written, or would go to a screen."""
    if importlib.util.find_spec("pyarrow") is None:
        raise BadInput("Parquet needs pyarrow; install it, or use --format csv.")
    if output is None and sys.stdout.isatty():
        raise BadInput("Parquet is not for a screen; give --output FILE, or send it to one.")


def parquet(found: Answer) -> bytes:
    """A query's answer as a Parquet file; columns keep ClickHouse's types, as near as Parquet has them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field(name, _arrow(pa, kind)) for name, kind in zip(found.columns, found.types, strict=True)]
    columns = zip(*found.rows, strict=True) if found.rows else [()] * len(fields)
    arrays = [pa.array(list(values), type=field.type) for values, field in zip(columns, fields, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink)
    return sink.getvalue()


ARROW = {
    "Bool": "bool_", "Float32": "float32", "Float64": "float64", "String": "string", "Date": "date32",
    "Date32": "date32", **{f"{sign}Int{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip


def _arrow(pa: Any, kind: str) -> Any:
    """The Arrow type of a ClickHouse type. Raises `TypeError` for one without."""
    for wrapper in ("Nullable(", "LowCardinality("):
        if kind.startswith(wrapper):
            return _arrow(pa, kind[len(wrapper) : -1])
    if kind.startswith("Array("):
        return pa.list_(_arrow(pa, kind[len("Array(") : -1]))
    if kind.startswith("Decimal("):
        precision, scale = (int(part) for part in kind[len("Decimal(") : -1].split(","))
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    if kind.startswith("DateTime64("):
        return pa.timestamp("us", tz="UTC")
    if kind.startswith("DateTime"):
        return pa.timestamp("s", tz="UTC")
    if kind.startswith("Enum"):
        return pa.string()
    if kind in ARROW:
        return getattr(pa, ARROW[kind])()
    raise TypeError(f"{kind} has no Parquet form.")


def answer_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Rows of a query for people. Columns without any value are left out, as is `unpriced` where nothing is; numbers
    stand on the right."""
    nothing = [(None, 0) if column == "unpriced" else (None,) for column in columns]
    kept = [p for p in range(len(columns)) if not rows or any(row[p] not in nothing[p] for row in rows)]
    numeric = {
        place
        for place in kept
        if any(isinstance(row[place], int | float | Decimal) and not isinstance(row[place], bool) for row in rows)
    }
    heads: list[tuple[str, Align]] = [
        (HEADS.get(columns[place], columns[place]), "right" if place in numeric else "left") for place in kept
    ]
    names = [number for number, place in enumerate(kept) if columns[place].endswith("_name")]
    if len(names) > 1 and console().width < NAMES_NEED:
        # One name that can be read is worth more than two that cannot.
        kept = [place for number, place in enumerate(kept) if number not in names[1:]]
        return answer_table([columns[place] for place in kept], [[row[place] for place in kept] for row in rows])
    return table(heads, [[cell(columns[place], row[place]) for place in kept] for row in rows], give=names)


def anomalies(found: Answer) -> None:
    """Anomalies for people: what and where in one line, then what was expected and what could explain it."""
    out = console()
    if not found.rows:
        say("No anomaly stands for these days and campaigns.")
        return
    for row in found.rows:
        one = dict(zip(found.columns, row, strict=True))
        who = clean(one["campaign_name"]) + (f" ({one['campaign_id']})" if one["campaign_id"] else "")
        out.print()
        tell(out, Text(f"{one['date_id']}  {one['kind']}  {who}", style="bold"))
        tell(out, Text(f"  {clean(one['explanation'])}"))
        for cause in one["known_causes"]:
            tell(out, Text(f"  Could explain it: {clean(cause)}.", style="yellow"))


def query_list(found: Sequence[Query]) -> None:
    """The queries there are, with what they take."""
    out = console()
    for query in found:
        out.print(Text(query.name, style="bold"))
        out.print(Text(f"  {query.title}"))
        out.print(Text(f"  One row is {query.grain}", style="dim"))
        for parameter in query.parameters:
            out.print(Text(f"  --param {parameter.name}={parameter.default}  {parameter.meaning}"))
        out.print()


def query_list_json(found: Sequence[Query]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": query.name,
            "title": query.title,
            "grain": query.grain,
            "example": query.example,
            "parameters": {p.name: {"default": p.default, "meaning": p.meaning} for p in query.parameters},
        }
        for query in found
    ]


# Doctor and migrations

MARKS = {"ok": ("✓", "green"), "wrong": ("✗", "red"), "unreachable": ("✗", "red"), "note": ("·", "dim")}


def finding(entry: doctor.Finding) -> None:
    """One finding, and under it how to mend it."""
    out = console()
    mark, style = MARKS[entry.state]
    head = Text(f"{mark} ", style=style) + Text(f"{entry.about:<11}{entry.what:<23} ", style="default")
    out.print(head + Text(entry.found), soft_wrap=True)
    if entry.mend:
        out.print(Text(f"  {'':<35}→ {entry.mend}", style="bold"), soft_wrap=True)


def migrations(found: Sequence[migrate.Status]) -> Table:
    """How each migration stands."""
    rows = [[e.name, e.state, f"{e.applied_at:%Y-%m-%d %H:%M:%S}" if e.applied_at else ""] for e in found]
    return table([("migration", "left"), ("state", "left"), ("applied at (UTC)", "left")], rows)


# Addresses


def addresses(servers: Mapping[str, str], flower: FlowerAddress | None, logs: str, *, secrets_in: str) -> None:
    """Where everything is. Passwords only on a terminal: elsewhere the output is a log, and `secrets_in` says where."""
    out = console()
    lines = dict(servers)
    if flower is not None:
        login = f"user {flower.user}, password {flower.password}" if out.is_terminal else f"user {flower.user}"
        lines["Flower"] = f"{flower.url}  {login}"
    lines["Logs"] = logs
    if not out.is_terminal:
        lines["Passwords"] = secrets_in
    for name, value in lines.items():
        out.print(Text(f"  {name:<12}", style="bold") + Text(value, style="default"), soft_wrap=True)


def relative(path: str) -> str:
    """A path as short as it can be said from here."""
    short = os.path.relpath(path)
    return path if short.startswith("..") else short


# The demonstration


def demo_campaigns(found: Answer, pricing_model: PricingModel) -> None:
    """The ten campaigns that spent most, and all of them together."""
    place = {name: number for number, name in enumerate(found.columns)}

    def line(name: str, impressions: int, clicks: int, spend: Decimal) -> list[str]:
        return [
            clean(name),
            f"{impressions:,}",
            f"{clicks:,}",
            money.amount(spend),
            f"{clicks / impressions:.3%}" if impressions else "–",
            money.price(1000 * spend / impressions) if impressions else "–",
            money.price(spend / clicks) if clicks else "–",
        ]

    def figures(row: Sequence[Any]) -> tuple[int, int, Decimal]:
        return row[place["impressions"]], row[place["clicks"]], row[place["spend"]]

    rows = [line(row[place["campaign_name"]], *figures(row)) for row in found.rows[:10]]
    sums = [figures(row) for row in found.rows]
    total = line(
        f"all {len(found.rows):,} campaigns",
        sum(impressions for impressions, _, _ in sums),
        sum(clicks for _, clicks, _ in sums),
        sum((spend for _, _, spend in sums), Decimal(0)),
    )
    out = console()
    out.print()
    out.print(Text(f"Campaigns that spent most, priced by {pricing_model} ({BILLING[pricing_model]})", style="bold"))
    names = ("impressions", "clicks", "spend", "CTR", "CPM", "CPC")
    columns: list[tuple[str, Align]] = [("campaign", "left"), *((name, "right") for name in names)]
    show(table(columns, [*rows, total], last_apart=True, give=(0,)))


def demo_comparison(found: Comparison) -> None:
    """Both sides' totals, and the verdict."""
    columns: list[tuple[str, Align]] = [("", "left"), ("PostgreSQL", "right"), ("ClickHouse", "right"), ("", "left")]
    rows = []
    for name in ("advertisers", "campaigns", "impressions", "clicks", "spend"):
        ours, theirs = getattr(found.source, name), getattr(found.target, name)
        sides = [money.amount(side) if name == "spend" else f"{side:,}" for side in (ours, theirs)]
        rows.append([name, *sides, "equal" if ours == theirs else "differs"])
    show(table(columns, rows))
    out = console()
    out.print()
    if not found.equal:
        verdict, style = "The two sides differ.", "bold red"
    elif found.moving:
        verdict, style = "PostgreSQL is being written to; ClickHouse keeps up with it.", "bold green"
    elif found.edited:
        told = f"{found.edited:,} campaigns had their bid edited: ClickHouse prices each event at the bid of its time."
        verdict, style = f"Both hold the same events. {told}", "bold green"
    else:
        verdict, style = "PostgreSQL and ClickHouse hold the same, to the row and to the cent.", "bold green"
    tell(out, Text(verdict, style=style))


def demo_end(took: float) -> None:
    """The time it took, and what to try next."""
    out = console()
    tell(out, Text(f"The demo took {took:.0f} s.\n"))
    typed = program()
    commands = {
        "make up": "keep all of it running, with Flower",
        f"{typed} seed stream": "write live traffic meanwhile",
        f"{typed} status": "see how far each stream is",
        f"{typed} query campaign_summary": "ask ClickHouse",
        f"{typed} pipeline --full-refresh": "load all of it anew",
    }
    width = max(map(len, commands)) + 2
    out.print(Text("What to try next", style="bold"))
    for command, what in commands.items():
        out.print(Text(f"  {command:<{width}}", style="cyan") + Text(what, style="default"), soft_wrap=True)


def program() -> str:
    """How this command line can be typed here."""
    if shutil.which("retailmedia"):
        return "retailmedia"
    beside = Path(sys.executable).with_name("retailmedia")
    return relative(str(beside)) if beside.exists() else "python -m worker.cli"


def demo_json(campaigns: Answer, found: Comparison, took: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "seconds": round(took, 1),
        "equal": found.equal,
        "postgresql": asdict(found.source),
        "clickhouse": asdict(found.target),
        "campaigns": [dict(zip(campaigns.columns, row, strict=True)) for row in campaigns.rows],
    }


# Reconciliation, replays and seals

DEFECTS_SHOWN = 20


def _hash(value: int) -> str:
    return f"{value:016x}"


def reconciliation(found: Sequence[Result], calendar: Calendar, *, limit: int) -> None:
    """Each day that is not equal, some of the rows that differ, and a line for each stream."""
    days = [(result.stream.name, day) for result in found for day in result.days if day.state != "equal"]
    if days:
        columns: list[tuple[str, Align]] = [("stream", "left"), ("day", "left"), ("PostgreSQL", "right")]
        columns += [("ClickHouse", "right"), ("found", "left"), ("state", "left")]
        rows = []
        for name, day in days:
            told = ", ".join(f"{count:,} {cause}" for cause, count in day.causes.items()) or "not looked for"
            rows.append([name, str(day.day), f"{day.source_rows:,}", f"{day.target_rows:,}", told, day.state])
        show(table(columns, rows))
    defects = [(result.stream.name, defect) for result in found for defect in result.defects]
    if defects:
        columns = [("stream", "left"), ("id", "right"), ("cause", "left"), ("campaign", "left"), ("day", "left")]
        columns += [("state", "left")]
        rows = []
        for name, defect in defects[:DEFECTS_SHOWN]:
            sides = [event for event in (defect.target, defect.source) if event is not None]
            campaigns = " → ".join(dict.fromkeys(str(event.campaign_id) for event in sides))
            happened = " → ".join(str(day) for day in sorted(defect.days(calendar)))
            state = "mended" if defect.mended else "differs"
            rows.append([name, str(defect.event_id), defect.cause, campaigns, happened, state])
        show(table(columns, rows))
        if len(defects) > DEFECTS_SHOWN:
            say(f"{len(defects) - DEFECTS_SHOWN:,} more.")
    if days or defects:
        say("")
    for result in found:
        _reconciled(result, limit)


def _reconciled(result: Result, limit: int) -> None:
    name = result.stream.name
    if result.horizon is None:
        say(f"{name}: nothing is loaded yet.")
        return
    events = sum(day.source_rows for day in result.days)
    told = f"{name}: {events:,} events of {len(result.days):,} days, written before {format_instant(result.horizon)}"
    mended = sum(defect.mended for defect in result.defects)
    if not result.agrees:
        left = len(result.defects) - mended
        more = "" if result.complete else "at least "
        say(f"{told}; {more}{left:,} differ.", style="red")
        if result.too_many:
            say(f"More than RECONCILE_HEAL_LIMIT ({limit:,}) differ, so none was mended; a replay mends them.")
        _left_alone(name, result.withheld, result.ahead, "reconcile --heal --sealed")
    elif mended:
        say(f"{told}; {mended:,} differed and were mended.", style="green")
    else:
        say(f"{told}; both sides hold the same.", style="green")
    _no_longer_kept(name, result.no_longer_kept)


def _no_longer_kept(name: str, count: int) -> None:
    if count:
        say(f"{name}: {count:,} older events are no longer kept at the source (SOURCE_KEEPS_DAYS); they stay here.")


def _left_alone(name: str, withheld: int, ahead: int, command: str) -> None:
    """What was not mended although it differs, and what to do about it."""
    if withheld:
        say(
            f"{name}: {withheld:,} events that the source no longer has lie on sealed days and were left; "
            f"`retailmedia {command}` takes them away."
        )
    if ahead:
        say(
            f"{name}: {ahead:,} events are stored in a version that the source has not reached, so nothing was written over "
            "them: the source went back in time, or somebody wrote them by hand. "
            "`retailmedia pipeline --full-refresh` reads everything anew.",
            style="red",
        )


def reconciliation_json(found: Sequence[Result]) -> dict[str, Any]:
    """The same for programs; every defect."""
    from worker.reconcile import shown

    return {
        "agrees": all(result.agrees for result in found),
        "streams": {
            result.stream.name: {
                "agrees": result.agrees,
                "complete": result.complete,
                "too_many_to_mend": result.too_many,
                "left_on_sealed_days": result.withheld,
                "ahead_of_the_source": result.ahead,
                "no_longer_kept_at_the_source": result.no_longer_kept,
                "horizon": result.horizon,
                "days": [
                    {
                        "day": day.day,
                        "state": day.state,
                        "source_rows": day.source_rows,
                        "target_rows": day.target_rows,
                        "source_hash": _hash(day.source_hash),
                        "target_hash": _hash(day.target_hash),
                        "found": day.causes,
                        "mended": day.mended,
                        "no_longer_kept": day.no_longer_kept,
                    }
                    for day in result.days
                ],
                "defects": [shown(defect) for defect in result.defects],
            }
            for result in found
        },
    }


def replayed(found: Sequence[Replay], pricing_model: PricingModel, *, dry_run: bool) -> None:
    """What a replay changes, by stream and day, and a line for each stream."""
    effects = [(entry.stream.name, effect) for entry in found for effect in entry.effect]
    if effects:
        columns: list[tuple[str, Align]] = [("stream", "left"), ("day", "left"), ("events", "right")]
        columns += [(f"spend ({pricing_model})", "right")]
        show(
            table(
                columns,
                [
                    [name, str(e.day), f"{e.events:+,}", f"{'+' if e.spend >= 0 else ''}{money.amount(e.spend)}"]
                    for name, e in effects
                ],
            )
        )
        say("")
    for entry in found:
        told = f"{entry.stream.name}: {entry.read:,} rows read again"
        _left_alone(entry.stream.name, entry.withheld, entry.ahead, "replay --sealed")
        _no_longer_kept(entry.stream.name, entry.no_longer_kept)
        if not entry.differs:
            holds = "" if entry.withheld or entry.ahead else "; ClickHouse holds the same"
            say(f"{told}{holds}.", style="green")
            continue
        parts = (("missing", entry.missing), ("extra", entry.extra), ("stale", entry.stale))
        what = ", ".join(f"{count:,} {name}" for name, count in parts if count)
        say(f"{told}; {what}; {'nothing was changed' if dry_run else 'brought over'}.", style="yellow")


def replay_json(found: Sequence[Replay]) -> dict[str, Any]:
    """The same for programs."""
    return {
        entry.stream.name: {
            "window": entry.window,
            "rows_read": entry.read,
            "missing": entry.missing,
            "extra": entry.extra,
            "stale": entry.stale,
            "applied": entry.applied,
            "left_on_sealed_days": entry.withheld,
            "ahead_of_the_source": entry.ahead,
            "no_longer_kept_at_the_source": entry.no_longer_kept,
            "days": [{"day": e.day, "events": e.events, "spend": e.spend} for e in entry.effect],
        }
        for entry in found
    }


def seal(found: Verdict) -> None:
    """What the seal says part by part, and the verdict."""

    def told(value: object) -> str:
        if isinstance(value, Decimal):
            return money.amount(value)
        return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    columns: list[tuple[str, Align]] = [("part", "left"), ("sealed", "right"), ("PostgreSQL", "right")]
    columns += [("ClickHouse", "right"), ("", "left")]
    rows = [
        [part.name, told(part.sealed), told(part.source), told(part.target), "holds" if part.holds else "differs"]
        for part in found.parts
    ]
    show(table(columns, rows))
    say("")
    given = found.seal
    before = f", in place of number {given.replaces}" if given.replaces else ""
    say(f"Seal {given.number} of {given.date_id}{before}, made {format_instant(given.sealed_at)}.")
    say(f"Source snapshot {given.source_snapshot} of server {given.source_system_id}, code {given.code_version}.")
    for note in found.notes:
        say(note)
    if found.holds:
        say("The day is as it was sealed.", style="green")


def seal_json(found: Verdict) -> dict[str, Any]:
    """The same for programs."""
    return {
        "sealed": found.holds,
        "seal": asdict(found.seal),
        "parts": [
            {"name": p.name, "holds": p.holds, "sealed": p.sealed, "source": p.source, "target": p.target}
            for p in found.parts
        ],
        "notes": found.notes,
    }
