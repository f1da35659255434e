"""The `seed` commands: reads settings, the clock and the terminal, then hands over to the functions beside it.

Errors leave as `RetailMediaError`; `main` shows them the way the product's own command line does.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
import numpy as np
from numpy.random import Generator
from psycopg2.extensions import connection as Connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from seed import faults, generate, schema, stats
from seed.connection import connect, server, server_time
from seed.generate import Added
from worker import config
from worker.errors import BadInput, RetailMediaError

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST_NAP_SECONDS = 0.25

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
seed_number = click.option(
    "--seed",
    "seed_number",
    type=click.IntRange(min=0),
    help="Number that makes the run repeatable, together with --now.",
)
anchor = click.option(
    "--now",
    "anchor",
    metavar="TIME",
    help="Instant the data leads up to, as 2026-03-01T12:00:00Z. Default: the server's clock.",
)
backdated_days = click.option(
    "--days",
    default=generate.BACKDATED_DAYS,
    show_default=True,
    help="Days the impressions are spread over, up to now.",
)
batch_rows = click.option(
    "--batch-rows", default=generate.BATCH_ROWS, show_default=True, help="Events per transaction."
)


@click.group(name="seed", help="Fill the source database with advertising data that looks like life.")
def seed_group() -> None:
    pass


def commands() -> list[click.Command]:
    """Every command of the group, for a command line that mounts them elsewhere."""
    return list(seed_group.commands.values())


def main(args: list[str] | None = None) -> None:
    """Runs the group as a program and exits: 0, or the error's exit code after one line on stderr."""
    try:
        seed_group(args=args, prog_name="seed")
    except RetailMediaError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


@seed_group.command(name="batch")
@click.option("--advertisers", default=2, show_default=True, help="Advertisers to add.")
@click.option("--campaigns", default=3, show_default=True, help="Campaigns per advertiser.")
@click.option("--impressions", default=100, show_default=True, help="Impressions per campaign.")
@click.option("--ctr", default=0.1, show_default=True, help="Clicks as a ratio of impressions, 0 to 1.")
@backdated_days
@batch_rows
@click.option("--faults", metavar="KINDS", help=f"Faults to work in, by comma: {', '.join(faults.KINDS)}.")
@click.option("--faults-each", type=click.IntRange(min=1), default=1, show_default=True, help="Faults of each kind.")
@click.option(
    "--truth",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the faults to this file, as JSON. Default: they are printed.",
)
@click.option(
    "--edits-after",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds until bids are edited: a pipeline that has not read the campaigns by then never sees the bids before.",
)
@seed_number
@anchor
@as_json
def batch_command(
    advertisers: int,
    campaigns: int,
    impressions: int,
    ctr: float,
    days: int,
    batch_rows: int,
    faults: str | None,
    faults_each: int,
    truth: Path | None,
    edits_after: float,
    seed_number: int | None,
    anchor: str | None,
    as_json: bool,
) -> None:
    """Add advertisers with campaigns, impressions and clicks, and faults for a detector to find."""
    kinds = [kind.strip() for kind in faults.split(",") if kind.strip()] if faults else []
    with _source() as conn, _bar("Impressions") as on_progress:
        added = generate.batch(
            conn,
            advertisers=advertisers,
            campaigns=campaigns,
            impressions=impressions,
            ctr=ctr,
            days=days,
            batch_rows=batch_rows,
            rng=_rng(seed_number),
            now=_now(conn, anchor),
            on_progress=on_progress,
            fault_kinds=kinds,
            faults_each=faults_each,
            before_edits=lambda: time.sleep(edits_after),
        )
    if truth is not None:
        _write_truth(truth, added)
    _show_added(added, as_json)
    if truth is None and not as_json:
        for fault in added.faults:
            hours = f"{fault.hours[0]}:00 to {fault.hours[-1]}:59"
            click.echo(
                f"Fault: {fault.kind}, campaign {fault.campaign_id}, {fault.day} {hours} UTC, {fault.effect:.1f} ×."
            )


def _write_truth(path: Path, added: Added) -> None:
    try:
        path.write_text(json.dumps([fault.as_json() for fault in added.faults], indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RetailMediaError(
            f"The faults are in the source, but {path} cannot be written: {error.strerror}."
        ) from None


@seed_group.command(name="advertisers")
@click.option("--count", default=1, show_default=True, help="Advertisers to add.")
@seed_number
@anchor
@as_json
def advertisers_command(count: int, seed_number: int | None, anchor: str | None, as_json: bool) -> None:
    """Add advertisers."""
    with _source() as conn:
        added = generate.advertisers(conn, count=count, rng=_rng(seed_number), now=_now(conn, anchor))
    _show_added(added, as_json)


@seed_group.command(name="campaigns")
@click.option("--advertiser-id", type=int, required=True, help="Whose campaigns.")
@click.option("--count", default=1, show_default=True, help="Campaigns to add.")
@seed_number
@anchor
@as_json
def campaigns_command(
    advertiser_id: int, count: int, seed_number: int | None, anchor: str | None, as_json: bool
) -> None:
    """Add campaigns of one advertiser."""
    with _source() as conn:
        added = generate.campaigns(
            conn, advertiser_id=advertiser_id, count=count, rng=_rng(seed_number), now=_now(conn, anchor)
        )
    _show_added(added, as_json)


@seed_group.command(name="impressions")
@click.option("--campaign-id", type=int, required=True, help="Of which campaign.")
@click.option("--count", default=100, show_default=True, help="Impressions to add.")
@backdated_days
@batch_rows
@seed_number
@anchor
@as_json
def impressions_command(
    campaign_id: int,
    count: int,
    days: int,
    batch_rows: int,
    seed_number: int | None,
    anchor: str | None,
    as_json: bool,
) -> None:
    """Add impressions of one campaign, backdated by up to --days days."""
    with _source() as conn, _bar("Impressions") as on_progress:
        added = generate.impressions(
            conn,
            campaign_id=campaign_id,
            count=count,
            days=days,
            batch_rows=batch_rows,
            rng=_rng(seed_number),
            now=_now(conn, anchor),
            on_progress=on_progress,
        )
    _show_added(added, as_json)


@seed_group.command(name="clicks")
@click.option("--campaign-id", type=int, required=True, help="Of which campaign.")
@click.option("--ratio", default=0.1, show_default=True, help="Clicks as a ratio of its impressions, 0 to 1.")
@batch_rows
@seed_number
@anchor
@as_json
def clicks_command(
    campaign_id: int, ratio: float, batch_rows: int, seed_number: int | None, anchor: str | None, as_json: bool
) -> None:
    """Add clicks on one campaign's impressions."""
    with _source() as conn, _bar("Clicks") as on_progress:
        added = generate.clicks(
            conn,
            campaign_id=campaign_id,
            ratio=ratio,
            batch_rows=batch_rows,
            rng=_rng(seed_number),
            now=_now(conn, anchor),
            on_progress=on_progress,
        )
    _show_added(added, as_json)


@seed_group.command(name="history")
@click.option("--advertisers", default=12, show_default=True, help="Advertisers to add.")
@click.option("--campaigns", default=60, show_default=True, help="Campaigns to add, in all.")
@click.option("--events", default=200_000, show_default=True, help="Impressions and clicks to add, about.")
@click.option("--days", default=60, show_default=True, help="Days the events are spread over, up to now.")
@batch_rows
@seed_number
@anchor
@as_json
def history_command(
    advertisers: int,
    campaigns: int,
    events: int,
    days: int,
    batch_rows: int,
    seed_number: int | None,
    anchor: str | None,
    as_json: bool,
) -> None:
    """Add weeks of traffic in bulk, at true click-through rates."""
    with _source() as conn, _bar("Events") as on_progress:
        added = generate.history(
            conn,
            advertisers=advertisers,
            campaigns=campaigns,
            events=events,
            days=days,
            batch_rows=batch_rows,
            rng=_rng(seed_number),
            now=_now(conn, anchor),
            on_progress=on_progress,
        )
    _show_added(added, as_json)


@seed_group.command(name="stream")
@click.option("--rate", default=50.0, show_default=True, help="Impressions a second.")
@click.option("--duration", default=60.0, show_default=True, help="Seconds; Ctrl-C ends it sooner.")
@seed_number
@as_json
def stream_command(rate: float, duration: float, seed_number: int | None, as_json: bool) -> None:
    """Write live traffic at a steady pace, for the campaigns in flight."""
    with _source() as conn, _bar("Impressions") as on_progress, _interruptible() as wait:
        added = generate.stream(
            conn,
            rate=rate,
            duration=duration,
            rng=_rng(seed_number),
            clock=_clock(conn),
            wait=wait,
            on_progress=on_progress,
        )
    _show_added(added, as_json)


@seed_group.command(name="stats")
@as_json
def stats_command(as_json: bool) -> None:
    """Count what the source holds."""
    with _source() as conn:
        now = server_time(conn)
        found = stats.totals(conn, today=now.astimezone(UTC).date())
    if as_json:
        _print_json({**dataclasses.asdict(found), "ctr": found.ctr})
        return
    lines = [
        ("Advertisers", f"{found.advertisers:,}"),
        ("Campaigns", f"{found.campaigns:,} ({found.running_campaigns:,} running today)"),
        ("Budget", f"{found.budget:,}"),
        ("Impressions", f"{found.impressions:,}"),
        ("Clicks", f"{found.clicks:,}"),
        ("CTR", "none" if found.ctr is None else f"{found.ctr:.3%}"),
        ("First event", _shown_time(found.first_event_at)),
        ("Last event", _shown_time(found.last_event_at)),
        ("Last written", _shown_time(found.last_written_at)),
    ]
    for label, value in lines:
        click.echo(f"{label:<14}{value}")


@seed_group.command(name="reset")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
def reset_command(yes: bool, as_json: bool) -> None:
    """Delete every advertiser, campaign, impression and click."""
    with _source() as conn:
        where = server(config.load().source_dsn)
        if not yes:
            click.confirm(f"Delete all advertising data in {where}?", abort=True, err=True)
        schema.reset(conn)
    if as_json:
        _print_json({"reset": where})
        return
    click.echo(f"Emptied the source tables in {where}.")
    click.echo(
        "What was synced before stays in ClickHouse until `retailmedia pipeline --full-refresh --accept-shrink`."
    )


@contextmanager
def _source() -> Iterator[Connection]:
    """A connection to a source that has the schema, which is created where it is missing."""
    settings = config.load()
    with closing(connect(settings)) as conn:
        if schema.ensure(conn):
            click.echo(f"Created the source schema in {server(settings.source_dsn)}.", err=True)
        yield conn


def _rng(seed_number: int | None) -> Generator:
    return np.random.default_rng(seed_number)


def _now(conn: Connection, anchor: str | None) -> datetime:
    """The instant asked for, or the server's clock. Raises `BadInput` if it is unreadable or in the future."""
    present = server_time(conn)
    if anchor is None:
        return present
    try:
        asked = datetime.fromisoformat(anchor)
    except ValueError:
        asked = None
    if asked is None or asked.utcoffset() is None:
        raise BadInput(f"--now must be a time with its zone, such as 2026-03-01T12:00:00Z, not {anchor!r}.")
    if asked > present:
        raise BadInput(f"--now must not lie in the future; by the server's clock it is {present.isoformat()}.")
    return asked


def _clock(conn: Connection) -> Callable[[], datetime]:
    """The server's clock read once, going on by this machine's steady one."""
    began, ticks = server_time(conn), time.monotonic()
    return lambda: began + timedelta(seconds=time.monotonic() - ticks)


@contextmanager
def _interruptible() -> Iterator[Callable[[float], bool]]:
    """A pause that says whether Ctrl-C or SIGTERM has come. Neither interrupts a statement under way."""
    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    def wait(seconds: float) -> bool:
        if not stopped and seconds > 0:
            time.sleep(min(seconds, _LONGEST_NAP_SECONDS))
        return stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal's stderr; elsewhere None."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show_added(added: Added, as_json: bool) -> None:
    if as_json:
        content = dataclasses.asdict(added) | {"faults": [fault.as_json() for fault in added.faults]}
        if not added.faults:
            del content["faults"]
        _print_json(content)
        return
    parts = [
        _counted("advertiser", added.advertiser_ids),
        _counted("campaign", added.campaign_ids),
        _plural(added.impressions, "impression") if added.impressions else "",
        _plural(added.clicks, "click") if added.clicks else "",
    ]
    click.echo(f"Added {', '.join(part for part in parts if part) or 'nothing'}.")


def _counted(noun: str, ids: tuple[int, ...]) -> str:
    if not ids:
        return ""
    shown = f"id {ids[0]}" if len(ids) == 1 else f"ids {ids[0]} to {ids[-1]}"
    return f"{_plural(len(ids), noun)} ({shown})"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _shown_time(instant: datetime | None) -> str:
    return "none" if instant is None else f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content, default=_plain, ensure_ascii=False))


def _plain(value: object) -> str:
    """Times as ISO 8601 in UTC, money as digits in a string."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form.")
