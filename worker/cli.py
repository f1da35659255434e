"""The command line `retailmedia`: reads options and settings, hands over, shows what comes back. No decisions about data.

Results go to standard output, what happens meanwhile to standard error. Every error leaves as one sentence and an
exit code: 0 done, 1 failed, 2 usage, 3 data quality, 4 a server or every worker is out of reach, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click

from embedded import process
from embedded.process import StackError
from worker import (
    alerts,
    anomalies,
    calendars,
    config,
    doctor,
    failing,
    local,
    logs,
    migrate,
    planner,
    quality,
    quarantine,
    queries,
    report,
    screens,
    standing,
    streams,
)
from worker.calendar import Calendar
from worker.config import Settings
from worker.errors import (
    BadInput,
    QualityFailure,
    RetailMediaError,
    SinkFailure,
    SourceFailure,
    TransientSink,
    TransientSource,
    Unreachable,
)
from worker.sink import Sink
from worker.source import Source
from worker.watermarks import WatermarkStore
from worker.windows import Window, parse_instant

PROGRAM = "retailmedia"
INTERRUPTED = 130
_NO_COMMAND: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click raises, from 8.2 on, for a group without a command: its message is the group's help."""

UNREACHABLE_CODES = frozenset({None, 198, 209, 210, 279})
"""ClickHouse codes that speak of the connection, as does having none."""

SERVER_SETTINGS = {"POSTGRES_DSN": ("postgres_dsn", "pg_host"), "CLICKHOUSE_DSN": ("clickhouse_dsn", "ch_host")}
WATCH_SECONDS = 1.0
RESTART_SECONDS = 5.0

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
stream_names = click.option(
    "--stream", "names", multiple=True, metavar="NAME", help="Only this stream; may be given several times."
)


class Stopped(Exception):
    """SIGTERM or SIGHUP came: end what was begun, in order."""


# Settings and servers


def _settings(**overrides: object) -> Settings:
    settings = config.load(**overrides)
    debug = click.get_current_context().find_root().meta.get("debug", False)
    level = "DEBUG" if debug else "ERROR"
    logs.configure(settings.model_copy(update={"log_level": level}))
    return settings


@contextlib.contextmanager
def _servers(settings: Settings) -> Iterator[Any]:
    """The three servers, found to answer, with a current schema. Raises `Unreachable`, `SchemaMismatch`."""
    # Celery takes half a second to import, which `--help` need not wait for.
    from worker.celery import Servers

    with contextlib.closing(Servers.open(settings)) as here:
        here.store.ping()
        here.source.ping()
        _ping_sink(settings)
        migrate.require_current(here.sink, settings)
        yield here


def _ping_sink(settings: Settings) -> None:
    """Asks for the server, whether or not our database exists there yet."""
    with Sink(settings, database="default") as bare:
        bare.ping()


@contextlib.contextmanager
def _sink(settings: Settings) -> Iterator[Sink]:
    """ClickHouse alone, found to answer, with a current schema."""
    _ping_sink(settings)
    with Sink(settings) as sink:
        migrate.require_current(sink, settings)
        yield sink


def _app(settings: Settings) -> Any:
    from worker.celery import create_app

    return create_app(settings)


# Commands


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.option("--debug", is_flag=True, help="Show logs, and the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Sync a retail media network's PostgreSQL into ClickHouse, and ask it about campaigns.

    Servers are named by POSTGRES_DSN, CLICKHOUSE_DSN and REDIS_URL; where one is not set, an embedded server of this
    machine is used. `retailmedia demo` shows everything in under a minute.
    """
    _remember_debug(context, None, debug)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _remember_debug(context: click.Context, _parameter: click.Parameter | None, debug: bool) -> None:
    meta = context.find_root().meta
    meta["debug"] = meta.get("debug", False) or debug


debuggable = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show logs, and the traceback of an error.",
)


@cli.command("migrate")
@click.option("--status", "only_status", is_flag=True, help="Show how each migration stands and change nothing.")
@click.option("--check", "only_check", is_flag=True, help="Fail unless the schema is current; change nothing.")
@as_json
@debuggable
def migrate_command(only_status: bool, only_check: bool, as_json: bool) -> None:
    """Bring the ClickHouse schema up to date."""
    settings = _settings()
    _ping_sink(settings)
    if only_check:
        with Sink(settings) as sink:
            migrate.require_current(sink, settings)
        screens.say(f"The schema of {settings.server_label('clickhouse')} is current.")
        return
    with Sink(settings) as sink:
        done = [] if only_status else migrate.migrate(sink, settings)
        found = migrate.status(sink, settings)
    if as_json:
        standing_now = {entry.name: entry.state for entry in found}
        screens.print_json(
            {"database": settings.sink_address.database, "applied_now": done, "migrations": standing_now}
        )
    elif only_status:
        screens.console().print(screens.migrations(found))
    elif done:
        screens.say(f"Applied {_plural(len(done), 'migration')} to {settings.server_label('clickhouse')}.")
    else:
        screens.say(f"The schema of {settings.server_label('clickhouse')} is current; nothing to apply.")


@cli.command("plan")
@stream_names
@as_json
@debuggable
def plan_command(names: tuple[str, ...], as_json: bool) -> None:
    """Show the windows that would be synced now. Syncs nothing."""
    settings = _settings()
    chosen = streams.chosen(names)
    with _servers(settings) as here:
        # With the tables named, nothing is published or kept for screens.
        plans = planner.plan(here.source, here.ledger, here.store, settings, chosen, targets=here.ledger.live(chosen))
        rows = screens.plan_rows(plans, lambda s, w: here.source.count(s, w) if s.kind == "events" else None)
    horizon = plans[0].horizon
    if as_json:
        screens.print_json({"horizon": horizon.at, "windows": rows})
        return
    if rows:
        screens.console().print(screens.plan_table(rows))
        screens.say("")
    found = standing.Overview(horizon, ())
    screens.say(screens.horizon_line(found))
    if any(len(part) >= settings.window_limit for plan in plans for part in (plan.fresh, plan.backlog)):
        screens.say(f"These are the first {settings.window_limit} windows of a stream; more follow behind them.")
    events = sum(1 for row in rows if row["rows"] is not None)
    told = _plural(events, "window") + " of new events" if events else "No new events"
    screens.say(f"{told}; dimensions are read whole each time. Nothing was synced: `{PROGRAM} pipeline` does that.")


@cli.command("pipeline")
@click.option("--full-refresh", is_flag=True, help="Load everything anew beside the live table, then swap it in.")
@click.option("--no-metrics-update", is_flag=True, help="Leave daily_campaign_performance for a later run.")
@click.option("--accept-shrink", is_flag=True, help="Believe, this once, that advertisers and campaigns are gone.")
@stream_names
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Give up watching after so many seconds.")
@as_json
@debuggable
def pipeline_command(
    full_refresh: bool,
    no_metrics_update: bool,
    accept_shrink: bool,
    names: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask the workers to load everything committed before now, and wait until it is in ClickHouse."""
    settings = _settings()
    chosen = streams.chosen(names)
    if accept_shrink:
        _accept_shrink(settings, [stream for stream in chosen if stream.kind == "dimension"])
    last = _run(settings, chosen, full_refresh=full_refresh, metrics_update=not no_metrics_update, timeout=timeout)
    if as_json:
        screens.print_json(screens.run_json(last))
        return
    screens.console().print(screens.run_table(last))
    metrics = "" if no_metrics_update else ", metrics are up to date"
    what = "Full refresh" if full_refresh else "Pipeline run"
    screens.say("")
    screens.say(f"{what} {last.run_id} succeeded in {screens.seconds(last.seconds)}{metrics}.")


def _accept_shrink(settings: Settings, dimensions: list[streams.Stream]) -> None:
    """Reads these dimensions here and now, however few rows are left. Raises `BadInput` for none."""
    from worker.tasks.sync import read_dimension

    if not dimensions:
        told = " and ".join(stream.name for stream in streams.DIMENSION_STREAMS)
        raise BadInput(f"--accept-shrink is for {told}, which are read whole; name one of them with --stream, or none.")
    with _servers(settings) as here:
        here.source.require_safe()
        for stream in dimensions:
            given_up = time.monotonic() + settings.lease_seconds
            while "skipped" in read_dimension(here, stream, accept_shrink=True):
                if time.monotonic() > given_up:
                    raise RetailMediaError(f"Another worker has been reading {stream.name} all the time; try again.")
                time.sleep(WATCH_SECONDS / 5)


def _run(
    settings: Settings,
    chosen: list[streams.Stream],
    *,
    full_refresh: bool,
    metrics_update: bool,
    timeout: float | None = None,
) -> Any:
    """Asks for a run, shows it, and returns how it was last seen. Raises unless it succeeded."""
    from worker import pipeline, runs
    from worker.windows import to_micros

    task = runs.REFRESH if full_refresh else runs.PIPELINE
    with _servers(settings) as here, contextlib.closing(_app(settings)) as app:
        here.source.require_safe()
        runs.require_workers(app, here.store, task)
        run_id = pipeline.new_run_id(to_micros(here.source.now()))
        last = None
        try:
            with screens.following(chosen) as show:
                seen = runs.follow(here, app, task, run_id, chosen, metrics_update=metrics_update, timeout=timeout)
                for last in seen:
                    show(last)
        except KeyboardInterrupt:
            if last is not None:
                click.echo(f"Run {run_id} goes on without being watched; see `{PROGRAM} status`.", err=True)
            raise
    return runs.require_success(last)


@cli.command("status")
@stream_names
@as_json
@debuggable
def status_command(names: tuple[str, ...], as_json: bool) -> None:
    """Show how far each stream is, what is under way, and who holds the horizon back."""
    settings = _settings()
    with _servers(settings) as here:
        found = standing.overview(here.source, here.sink, here.ledger, here.store, streams.chosen(names))
    if as_json:
        screens.print_json(screens.status_json(found))
        return
    screens.console().print(screens.status_table(found))
    screens.say("")
    if found.setback:
        screens.say(found.setback, style="red")
    screens.say(screens.horizon_line(found))
    if found.unpriced.events:
        screens.say(screens.unpriced_line(found.unpriced), style="yellow")
    for entry in found.streams:
        for failure in entry.failures[:3]:
            screens.say(failing.told_failure(entry.stream, failure), style="red")
    for day in found.days[-3:]:
        screens.say(failing.told_day(day), style="red")
    if len(found.days) > 3:
        screens.say(f"{len(found.days) - 3:,} earlier days cannot be built either.", style="red")


FORMS = click.Choice(["table", "csv", "json", "parquet"])
form_of_answer = click.option("--format", "form", type=FORMS, default="table", show_default=True, help="How.")
row_limit = click.option("--limit", type=click.IntRange(min=0), default=1000, show_default=True, help="Rows at most.")


@cli.command("query")
@click.argument("name", required=False)
@click.option("--param", "given", multiple=True, metavar="NAME=VALUE", help="A parameter; may be given several times.")
@click.option("--as-of", metavar="TIME", help="What was said at that time, as 2026-11-17T09:00 (campaign_daily).")
@form_of_answer
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@as_json
@debuggable
def query_command(
    name: str | None, given: tuple[str, ...], as_of: str | None, form: str, output: Path | None, as_json: bool
) -> None:
    """Answer one of the queries in clickhouse/queries, or list them."""
    form = "json" if as_json else form
    if name is None:
        found = queries.queries()
        screens.print_json(screens.query_list_json(found)) if form == "json" else screens.query_list(found)
        return
    parameters = {}
    for pair in given:
        key, separator, value = pair.partition("=")
        if not separator:
            raise BadInput(f"--param takes NAME=VALUE, not {pair!r}.")
        parameters[key] = value
    query = queries.find(name)
    if as_of is not None:
        if "as_of" not in {parameter.name for parameter in query.parameters}:
            knowing = ", ".join(q.name for q in queries.queries() if "as_of" in {p.name for p in q.parameters})
            raise BadInput(f"The query {name} knows only what is so now; --as-of is for {knowing}.")
        parameters["as_of"] = as_of
    _answer(query, parameters, form, output)


def _answer(query: queries.Query, parameters: dict[str, str], form: str, output: Path | None = None) -> None:
    queries.filled(query, parameters)
    if form == "parquet":
        screens.require_parquet(output)
    settings = _settings()
    _ping_sink(settings)
    with Sink(settings) as sink:
        migrate.require_current(sink, settings)
        answer = queries.run(sink, query, parameters)
    screens.answer(answer, form, output)


@cli.command("restatements")
@click.option("--day", metavar="DAY", help="Only this day, as 2026-11-10.")
@click.option("--campaign", type=int, help="Only this campaign; 0 is events without one.")
@row_limit
@form_of_answer
@as_json
@debuggable
def restatements_command(day: str | None, campaign: int | None, limit: int, form: str, as_json: bool) -> None:
    """Show figures that changed after their day was final: from what, to what, when and why."""
    parameters = {"limit": str(limit)}
    if day is not None:
        parameters |= {"first_day": day, "last_day": day}
    if campaign is not None:
        parameters["campaign_id"] = str(campaign)
    _answer(queries.find("restatements"), parameters, "json" if as_json else form)


@cli.command("anomalies")
@click.option("--day", metavar="DAY", help="Only this day, as 2026-11-10.")
@click.option("--campaign", type=int, help="Only this campaign; 0 is events without one.")
@click.option("--detect", is_flag=True, help="Judge the day, or the last whole days, anew before showing.")
@row_limit
@as_json
@debuggable
def anomalies_command(day: str | None, campaign: int | None, detect: bool, limit: int, as_json: bool) -> None:
    """Show campaign-days out of the ordinary: what was expected, how unlikely, and what could explain it."""
    settings = _settings()
    parameters = {"limit": str(limit)}
    if day is not None:
        parameters |= {"first_day": day, "last_day": day}
    if campaign is not None:
        parameters["campaign_id"] = str(campaign)
    if detect:
        with _servers(settings) as here:
            now = here.ledger.now()
            days = anomalies.days_to_judge(here.sink, settings, now)
            if day is not None:
                days = [anomalies.whole_day(here.sink, settings, day, now)]
            complete = standing.complete_through(here.source, here.ledger, streams.EVENT_STREAMS)
            for one in days:
                anomalies.detect(here.sink, settings, one, complete)
    else:
        _ping_sink(settings)
    with Sink(settings) as sink:
        migrate.require_current(sink, settings)
        answer = queries.run(sink, queries.find("anomalies"), parameters)
    if as_json:
        screens.answer(answer, "json")
    else:
        screens.anomalies(answer)


def _day(value: str | None, option: str) -> date | None:
    try:
        return None if value is None else date.fromisoformat(value)
    except ValueError:
        raise BadInput(f"{option} takes a day such as 2026-11-17, not {value!r}.") from None


def _event_streams(names: tuple[str, ...]) -> list[streams.Stream]:
    """The event streams of those names, all of them for none. Raises `BadInput` for a dimension."""
    chosen = streams.chosen(names) if names else list(streams.EVENT_STREAMS)
    for stream in chosen:
        if stream.kind != "events":
            raise BadInput(f"{stream.name} is read whole each time, so there is nothing to compare or to replay.")
    return chosen


sealed_too = click.option(
    "--sealed",
    is_flag=True,
    help="Also take away what the source no longer has on days that are sealed; without this it is left and told.",
)


@cli.command("reconcile")
@click.option("--from", "first", metavar="DAY", help="First day, as 2026-11-10; the first there is if not given.")
@click.option("--to", "last", metavar="DAY", help="Last day, inclusive; the last there is if not given.")
@stream_names
@click.option("--heal/--no-heal", default=False, show_default=True, help="Mend what differs.")
@sealed_too
@as_json
@debuggable
def reconcile_command(
    first: str | None, last: str | None, names: tuple[str, ...], heal: bool, sealed: bool, as_json: bool
) -> None:
    """Compare events in PostgreSQL and ClickHouse day by day, down to the rows that differ."""
    from worker import reconcile
    from worker.tasks.reconcile import compare

    settings = _settings()
    first_day, last_day = _day(first, "--from"), _day(last, "--to")
    chosen = _event_streams(names)
    if sealed and not heal:
        raise BadInput("--sealed says what --heal may take away; give both.")
    with _servers(settings) as here:
        calendar = calendars.in_force(here.sink, settings)
        within = reconcile.days_within(first_day, last_day, calendar)
        found = [compare(here, stream, within, heal=heal, sealed=sealed) for stream in chosen]
    if as_json:
        screens.print_json(screens.reconciliation_json(found))
    else:
        screens.reconciliation(found, calendar, limit=settings.reconcile_heal_limit)
    if not all(result.agrees for result in found):
        advice = "it was not mended" if heal else f"`{PROGRAM} reconcile --heal` mends it"
        raise QualityFailure(f"ClickHouse does not hold what PostgreSQL holds; {advice}.")


def _moment(value: str, option: str, calendar: Calendar) -> datetime:
    """An instant, or the beginning of a day in the reporting time zone."""
    try:
        return calendar.bounds(date.fromisoformat(value)).lo
    except (ValueError, OverflowError):
        pass
    try:
        return parse_instant(value)
    except BadInput as error:
        raise BadInput(f"{option}: {error}") from None


@cli.command("replay")
@click.option("--from", "first", metavar="TIME", required=True, help="A day, or an instant such as 2026-11-17T09:00Z.")
@click.option("--to", "last", metavar="TIME", required=True, help="Where the window ends, itself not in it.")
@stream_names
@click.option("--dry-run", is_flag=True, help="Show what differs and change nothing.")
@sealed_too
@as_json
@debuggable
def replay_command(first: str, last: str, names: tuple[str, ...], dry_run: bool, sealed: bool, as_json: bool) -> None:
    """Read again what the source wrote in a window, show what differs, and bring it over.

    The window is on the time rows were written at the source. Loading goes on meanwhile.
    """
    from worker.tasks.reconcile import replay_window

    settings = _settings()
    chosen = _event_streams(names)
    with _servers(settings) as here:
        calendar = calendars.in_force(here.sink, settings)
        window = Window(_moment(first, "--from", calendar), _moment(last, "--to", calendar))
        found = [replay_window(here, stream, window, dry_run=dry_run, sealed=sealed) for stream in chosen]
    if as_json:
        screens.print_json(screens.replay_json(found))
    else:
        screens.replayed(found, settings.pricing_model, dry_run=dry_run)


@cli.command("verify")
@click.argument("day")
@as_json
@debuggable
def verify_command(day: str, as_json: bool) -> None:
    """Compute anew what the seal of DAY says, from both sides, and say whether it still holds."""
    from worker import seals

    settings = _settings()
    chosen = _day(day, "verify")
    if chosen is None:
        raise BadInput("verify takes a day such as 2026-11-17.")
    with _servers(settings) as here:
        found = seals.verify(here.source, here.sink, here.ledger, settings, chosen)
    if as_json:
        screens.print_json(screens.seal_json(found))
    else:
        screens.seal(found)
    if not found.holds:
        names = ", ".join(part.name for part in found.parts if not part.holds)
        raise QualityFailure(f"{day} is not what was sealed; these parts differ: {names}.")


@cli.command("doctor")
@as_json
@debuggable
def doctor_command(as_json: bool) -> None:
    """Check servers, versions, rights, schemas, settings and workers, and say how to mend what is wrong."""
    from worker.celery import QUEUES

    settings = _settings(retry_attempts=1)
    found = []

    def workers() -> dict[str, set[str]]:
        from worker import runs

        with contextlib.closing(_app(settings)) as app:
            return runs.answering(app, 1.5) or runs.answering(app, 3.0)

    for entry in doctor.examine(settings, now=lambda: datetime.now(UTC), workers=workers, queues=frozenset(QUEUES)):
        found.append(entry)
        if not as_json:
            screens.finding(entry)
    states = {entry.state for entry in found}
    if as_json:
        rows = [
            {"about": e.about, "what": e.what, "state": e.state, "found": e.found, "mend": e.mend or None}
            for e in found
        ]
        screens.print_json({"well": not {"wrong", "unreachable"} & states, "findings": rows})
    if "unreachable" in states:
        sys.exit(Unreachable.exit_code)
    if "wrong" in states:
        sys.exit(RetailMediaError.exit_code)
    if not as_json:
        screens.say("Everything is as it should be.")


@cli.command("metrics")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9808, show_default=True, help="0 takes a free one.")
@debuggable
def metrics_command(host: str, port: int) -> None:
    """Serve /metrics for Prometheus until stopped. One exporter serves an installation, however many workers."""
    from worker.prometheus import Exporter

    settings = _settings()
    try:
        exporter = Exporter(settings, host, port)
    except OSError as error:
        raise RetailMediaError(f"Port {port} of {host} cannot be listened on: {error.strerror}.") from None
    with _stoppable(), exporter:
        screens.say(f"Metrics are at http://{host}:{exporter.server_port}/metrics.")
        try:
            exporter.serve_forever()
        except (KeyboardInterrupt, Stopped):
            # The ordinary end.
            return


# Data quality


@cli.command("check")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="Look at reporting days from this one on only.")
@click.option("--list", "only_list", is_flag=True, help="List the checks and their thresholds; run none.")
@as_json
@debuggable
def check_command(names: tuple[str, ...], since: datetime | None, only_list: bool, as_json: bool) -> None:
    """Run the checks in clickhouse/checks, or those named. Exit code 3 if one of severity error finds rows."""
    settings = _settings()
    selected = quality.chosen(settings, names)
    if only_list:
        screens.print_json(screens.check_list_json(selected)) if as_json else screens.check_list(selected)
        return
    first = since.date() if since else quality.FIRST_DAY
    if not quality.FIRST_DAY <= first <= quality.LAST_DAY:
        raise BadInput(f"--since takes a day from {quality.FIRST_DAY} to {quality.LAST_DAY}, not {first}.")
    scope = quality.Scope("manual", ((first, quality.LAST_DAY),))
    found = []
    with _servers(settings) as here:
        from worker import pipeline
        from worker.tasks.quality import through
        from worker.windows import to_micros

        run_id = pipeline.new_run_id(to_micros(here.ledger.now()))
        known = through(here)
        for result in quality.run(here.source, here.sink, settings, selected, scope, known, run_id=run_id):
            found.append(result)
            if not as_json:
                screens.check_result(result)
    if as_json:
        screens.print_json(screens.checks_json(run_id, found))
    errors = [result.check.name for result in found if result.is_error]
    broken = [result.check.name for result in found if result.state == "broken"]
    if errors:
        raise QualityFailure(f"{_plural(len(errors), 'check')} of severity error found rows: {', '.join(errors)}.")
    if broken:
        raise RetailMediaError(f"{_plural(len(broken), 'check')} could not be carried out: {', '.join(broken)}.")
    if not as_json:
        warned = sum(result.state == "failed" for result in found)
        screens.say(
            f"{_plural(len(found), 'check')} carried out, no error{f', {warned} with something to say' if warned else ''}."
        )


@cli.group("quarantine")
def quarantine_group() -> None:
    """Rows that were set aside instead of loaded: look at them, release them, discard them."""


chosen_stream = click.option("--stream", "stream_name", metavar="NAME", help="Only rows of this stream.")
chosen_rule = click.option("--rule", default="", metavar="RULE", help="Only rows that this rule set aside.")


@quarantine_group.command("list")
@chosen_stream
@chosen_rule
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(quarantine.STATES),
    default=("held", "released"),
    show_default=True,
    help="How they stand; may be given several times.",
)
@row_limit
@as_json
@debuggable
def quarantine_list_command(
    stream_name: str | None, rule: str, states: tuple[quarantine.State, ...], limit: int, as_json: bool
) -> None:
    """List rows in quarantine, newest first."""
    settings = _settings()
    chosen = streams.stream(stream_name) if stream_name else None
    with _sink(settings) as sink:
        found = quarantine.rows(sink, stream=chosen, rule=rule, states=states, limit=limit)
        counts = quarantine.counts(sink)
    if as_json:
        screens.print_json({"counts": counts, "rows": [screens.held_json(held) for held in found]})
        return
    screens.quarantine_list(found, counts)


@quarantine_group.command("show")
@click.argument("stream_name", metavar="STREAM")
@click.argument("event_id", type=int, metavar="ID")
@as_json
@debuggable
def quarantine_show_command(stream_name: str, event_id: int, as_json: bool) -> None:
    """Show one row: its content, the rule, the window, and what was decided."""
    settings = _settings()
    chosen = streams.stream(stream_name)
    with _sink(settings) as sink:
        found = quarantine.rows(sink, stream=chosen, ids=[event_id])
    if not found:
        raise BadInput(f"Row {event_id} of {chosen.name} is not and was not in quarantine.")
    screens.print_json(screens.held_json(found[0])) if as_json else screens.held_row(found[0])


def _deciding(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        debuggable,
        as_json,
        click.option("--all", "everything", is_flag=True, help="Every row that is held."),
        click.option("--reason", default="", help="Why, for whoever looks later."),
        chosen_rule,
        click.argument("ids", nargs=-1, type=int, metavar="[ID]..."),
        click.argument("stream_name", metavar="[STREAM]", required=False),
    ):
        command = option(command)
    return command


def _decide(
    decision: quarantine.Decision,
    stream_name: str | None,
    ids: tuple[int, ...],
    rule: str,
    reason: str,
    everything: bool,
    as_json: bool,
) -> None:
    if not (ids or rule or everything):
        raise BadInput(f"Name a stream and ids, or a --rule, or --all, to say which rows to {decision}.")
    if ids and not stream_name:
        raise BadInput("Ids are those of a stream; name it before them.")
    settings = _settings()
    chosen = streams.stream(stream_name) if stream_name else None
    states: tuple[quarantine.State, ...] = (
        (("held", "discarded") if decision == "release" else ("held", "released")) if ids else ("held",)
    )
    with _servers(settings) as here:
        from worker.tasks.quality import load_released

        found = quarantine.rows(here.sink, stream=chosen, ids=ids, rule=rule, states=states, limit=1_000_000)
        lacking = sorted(set(ids) - {held.event_id for held in found})
        if lacking:
            raise BadInput(f"Row {lacking[0]} of {stream_name} is not in quarantine; see `{PROGRAM} quarantine list`.")
        if decision == "release" and not ids:
            found = [held for held in found if held.can_be_loaded]
        count = quarantine.decide(here.sink, found, decision, reason)
        loaded = load_released(here) if decision == "release" else None
    if as_json:
        screens.print_json({"decision": decision, "rows": count, **({"loading": loaded} if loaded else {})})
    elif loaded is None:
        screens.say(f"{_plural(count, 'row')} discarded.")
    else:
        screens.say(f"{_plural(count, 'row')} released and loaded; the metrics of their days follow.")


@quarantine_group.command("release")
@_deciding
def quarantine_release_command(**options: Any) -> None:
    """Load rows as they are after all, through the usual path."""
    _decide("release", **options)


@quarantine_group.command("discard")
@_deciding
def quarantine_discard_command(**options: Any) -> None:
    """Decide that rows are never to be loaded. A row that changes at the source is judged anew."""
    _decide("discard", **options)


@cli.command("alerts")
@click.option("--tell", is_flag=True, help="Also look at everything now, and send what is due to ALERT_URLS.")
@click.option("--test", "only_test", is_flag=True, help="Send a test message to ALERT_URLS, and do nothing else.")
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Incidents at most.")
@as_json
@debuggable
def alerts_command(tell: bool, only_test: bool, limit: int, as_json: bool) -> None:
    """Show what is wrong, since when, and what was lately. Beat looks every 20 seconds and tells by itself."""
    settings = _settings()
    if tell or only_test:
        send = alerts.sender(settings)
        if send is None:
            raise BadInput("ALERT_URLS names nobody to tell; set it to Apprise URLs such as mailto://… or json://….")
        if only_test:
            if not send("Test", "Alerts of the retail media sync arrive here.", "warn"):
                raise RetailMediaError("At least one service of ALERT_URLS did not take the message.")
            screens.say("The test message was taken.")
            return
    sent: list[str] = []
    if tell:
        from worker.tasks.alerts import look

        with _servers(settings) as here, contextlib.closing(_app(settings)) as app:
            sent = look(here, app)
    with _sink(settings) as sink:
        found = alerts.latest(sink, limit)
    if as_json:
        screens.print_json({"sent": sent, "incidents": [screens.incident_json(entry) for entry in found]})
        return
    for title in sent:
        screens.say(f"Told: {title}")
    screens.incidents(found)


@cli.command("report")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Write to this file.",
)
@debuggable
def report_command(out: Path) -> None:
    """Write how the data is into one HTML file that needs no network."""
    settings = _settings()
    overview: standing.Overview | str
    with _sink(settings) as sink:
        try:
            with _servers(settings) as here:
                overview = standing.overview(
                    here.source, here.sink, here.ledger, here.store, list(streams.STREAMS.values())
                )
        except RetailMediaError as error:
            # What ClickHouse has to say is worth reading all the more.
            overview = str(error)
        page = report.build(sink, settings, overview, quality.checks(settings), now=datetime.now(UTC))
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}.") from None
    screens.say(f"Wrote {out} ({len(page.encode()) / 1024:.0f} KiB).")


# Bringing up and down


@cli.command("up")
@click.option("--detach", is_flag=True, help="Leave everything running in the background; `down` stops it.")
@debuggable
def up_command(detach: bool) -> None:
    """Start servers that are not named by a setting, workers, beat and Flower. Ctrl-C stops them all."""
    settings = _settings()
    home = settings.retailmedia_home.resolve()
    named = _named(settings)
    with _stoppable(), local.owning(home, "up", named, detached=detach) as running:
        if running is not None:
            _require_up(home, running)
            screens.say(f"Already up in {screens.relative(str(home))}; `{PROGRAM} down` stops it.")
            _show_addresses(settings, home)
            return
        steps = screens.Steps()
        complete = False
        try:
            settings = _servers_up(settings, home, named, steps)
            env = local.environment(home, {}, {})
            _prepare(settings, named, steps)
            _programs_up(settings, home, env, steps)
            with steps.step("Starting Flower", "Flower is up"):
                local.launch_flower(home, settings, env)
            _show_addresses(settings, home)
            complete = True
            if detach:
                screens.say(f"Everything runs in the background; `{PROGRAM} down` stops it.")
                return
            screens.say("Ctrl-C stops everything.")
            _watch(home, env, stack=len(named) < 3)
        except (KeyboardInterrupt, Stopped):
            # The ordinary end of `up`; before it was complete, an interruption.
            if not complete:
                raise
        finally:
            if not (detach and complete):
                _all_down(home, stack=len(named) < 3)


def _require_up(home: Path, running: local.Owner) -> None:
    if running.command != "up":
        raise RetailMediaError(
            f"A {running.command} (process {running.who.pid}) is at work in {home}; wait for it, or end it with "
            f"`{PROGRAM} down`."
        )


def _named(settings: Settings) -> tuple[str, ...]:
    """The servers that settings name; the others are embedded ones."""
    found = [name for name, fields in SERVER_SETTINGS.items() if any(getattr(settings, field) for field in fields)]
    return (*found, *(["REDIS_URL"] if settings.redis_url else []))


def _servers_up(settings: Settings, home: Path, named: tuple[str, ...], steps: screens.Steps) -> Settings:
    """Starts the embedded servers unless every server is named; returns the settings to go on with."""
    leftovers = [who for name, who in local.recorded(home).items() if process.alive(who)] or local.strays(home)
    if leftovers:
        with steps.step("Stopping what an earlier start left", "Stopped what an earlier start had left running"):
            local.stop(home, lambda _: None)
    if len(named) == 3:
        return settings
    from embedded import stack

    with steps.step("Starting PostgreSQL, ClickHouse and Redis", "PostgreSQL, ClickHouse and Redis are up") as ending:
        if stack.addresses(home) is not None:
            ending("PostgreSQL, ClickHouse and Redis were up already")
        stack.start(home)
    return settings


def _prepare(settings: Settings, named: tuple[str, ...], steps: screens.Steps) -> None:
    """Both schemas; the source's only in an embedded server: somebody else's is not ours to change."""
    with steps.step("Applying migrations", "The ClickHouse schema is current") as ending, Sink(settings) as sink:
        done = migrate.migrate(sink, settings)
        if done:
            ending(f"ClickHouse schema created: {_plural(len(done), 'migration')}")
    if "POSTGRES_DSN" not in named:
        import seed.connection
        import seed.schema

        with steps.step("Looking at the source schema", "The source schema is in place") as ending:
            with contextlib.closing(seed.connection.connect(settings)) as conn:
                if seed.schema.ensure(conn):
                    ending("Source schema created: advertiser, campaign, impressions, clicks")


def _programs_up(settings: Settings, home: Path, env: dict[str, str], steps: screens.Steps) -> None:
    """Workers, then beat."""
    from worker import runs

    with steps.step("Starting two Celery workers and beat", "Two Celery workers and beat are up"):
        if "REDIS_URL" not in _named(settings):
            # No worker of this home is left, and the embedded Redis serves no other.
            store = WatermarkStore(settings)
            store.release_all()
            store.close()
        for name in local.WORKERS:
            local.launch(home, name, env)
        with contextlib.closing(_app(settings)) as app:
            local.await_workers(home, lambda: runs.answering(app, 0.3))
        local.launch(home, local.BEAT, env)


def _watch(home: Path, env: dict[str, str], *, stack: bool) -> None:
    """Starts again whatever ends by itself, until interrupted."""
    from embedded import stack as embedded_stack

    started: dict[str, float] = {}
    while True:
        time.sleep(WATCH_SECONDS)
        if stack and any(not one.running for one in embedded_stack.status(home).values()):
            click.echo("A server ended by itself; starting it again.", err=True)
            embedded_stack.start(home)
        for name, who in local.recorded(home).items():
            if process.alive(who) or time.monotonic() - started.get(name, -RESTART_SECONDS) < RESTART_SECONDS:
                continue
            started[name] = time.monotonic()
            where = screens.relative(str(local.log_of(home, name)))
            click.echo(
                f"{local.TITLES[name].capitalize()} ended by itself; starting it again (log: {where}).", err=True
            )
            local.relaunch(home, name, env)


def _show_addresses(settings: Settings, home: Path) -> None:
    named = _named(settings)
    terminal = screens.console().is_terminal
    servers = {}
    for title, name, which, dsn in (
        ("PostgreSQL", "POSTGRES_DSN", "postgres", settings.source_dsn),
        ("ClickHouse", "CLICKHOUSE_DSN", "clickhouse", settings.sink_dsn),
        ("Redis", "REDIS_URL", "redis", settings.broker_url),
    ):
        # Somebody else's password is never shown; an embedded server's only to a person.
        label = settings.server_label(which)  # type: ignore[arg-type]
        servers[title] = dsn if terminal and name not in named else f"{urlsplit(dsn).scheme or 'postgresql'}://{label}"
    folder = screens.relative(str(home))
    secrets_in = f"{folder}/stack.json, {folder}/run/flower.json"
    screens.addresses(servers, local.flower(home), f"{folder}/logs/", secrets_in=secrets_in)


def _all_down(home: Path, *, stack: bool) -> list[str]:
    """Stops programs, then servers; says what ran. Cannot be interrupted: half a stop would help nobody."""
    stopped = []
    with _uninterrupted():
        stopped += [local.TITLES[name] for name in local.stop(home, lambda text: click.echo(f"{text} …", err=True))]
        if stack:
            from embedded import stack as embedded_stack

            titles = {"postgres": "PostgreSQL", "redis": "Redis", "clickhouse": "ClickHouse"}
            stopped += [titles[name] for name in embedded_stack.stop(home)]
        local.disown(home)
    return stopped


@cli.command("down")
@debuggable
def down_command() -> None:
    """Stop everything that runs in this home, however it was left."""
    home = _settings().retailmedia_home.resolve()
    if not home.is_dir():
        screens.say(f"Nothing runs in {screens.relative(str(home))}.")
        return
    ended = local.end_owner(home)
    stopped = _all_down(home, stack=True)
    if ended:
        stopped.insert(0, f"`{PROGRAM} {ended}` with all it had started")
    if stopped:
        screens.say(f"Stopped {', '.join(stopped)}.")
    else:
        screens.say(f"Nothing was running in {screens.relative(str(home))}.")


# The demonstration


@cli.command("demo")
@as_json
@debuggable
def demo_command(as_json: bool) -> None:
    """Show everything at work: servers of its own, 200,000 events, the pipeline, campaign metrics. Ends by itself."""
    settings = _settings()
    home = settings.retailmedia_home.resolve()
    steps = screens.Steps()
    named = _named(settings)
    if named:
        left_alone = " and ".join(named)
        steps.note(f"{left_alone} {'is' if len(named) == 1 else 'are'} left alone: the demo uses servers of its own.")
    with _stoppable(), local.owning(home, "demo", ()) as running:
        if running is None:
            _demo_alone(settings, home, steps, as_json)
            return
        _require_up(home, running)
        if running.named:
            raise RetailMediaError(
                f"`{PROGRAM} up` runs in {home} on servers that are not its own, and the demo writes made-up data; "
                "choose another folder for the demo by RETAILMEDIA_HOME."
            )
        steps.note(f"`{PROGRAM} up` is running here and is left running.")
        _demo(_own_servers(home), steps, as_json, lambda: None)


def _own_servers(home: Path) -> Settings:
    """Settings that name the embedded servers of this home, whatever the environment says."""
    from embedded import stack

    found = stack.addresses(home)
    if found is None:
        raise Unreachable(f"The servers in {home} are not all up; `{PROGRAM} down` and a new start mends that.")
    return _settings(postgres_dsn=found.postgres_dsn, clickhouse_dsn=found.clickhouse_dsn, redis_url=found.redis_url)


def _demo_alone(settings: Settings, home: Path, steps: screens.Steps, as_json: bool) -> None:
    """The demo with everything it needs started before and stopped after it."""
    from embedded import stack
    from worker import demo

    found_running = stack.addresses(home) is not None
    try:
        _servers_up(settings, home, (), steps)
        own = _own_servers(home)
        servers = {"POSTGRES_DSN": own.postgres_dsn, "CLICKHOUSE_DSN": own.clickhouse_dsn, "REDIS_URL": own.redis_url}
        rows = settings.window_rows if "window_rows" in settings.model_fields_set else demo.WINDOW_ROWS
        env = local.environment(home, servers, {"WINDOW_ROWS": str(rows)})
        _prepare(own, (), steps)
        _demo(own, steps, as_json, lambda: _programs_up(own, home, env, steps))
    finally:
        _all_down(home, stack=not found_running)


def _demo(settings: Settings, steps: screens.Steps, as_json: bool, programs_up: Callable[[], None]) -> None:
    from worker import demo

    with steps.bar("Filling PostgreSQL") as (progress, ending):
        ending(demo.fill(settings, progress))
    with Source(settings) as source, Sink(settings) as sink:
        loaded = -demo.events_held(sink)
        programs_up()
        with steps.timed("The pipeline has run") as ending:
            _run(settings, streams.chosen(None), full_refresh=False, metrics_update=True)
            loaded += demo.events_held(sink)
            ending(f"The pipeline loaded {loaded:,} events and computed their metrics")
        with steps.step("Writing live traffic", "Live traffic was written") as ending:
            written = demo.trickle(settings)
            arrived = demo.await_arrival(settings)
            if arrived is not None:
                ending(f"{written:,} live impressions counted in ClickHouse {arrived:.1f} s after commit")
        campaigns = queries.run(sink, queries.find("campaign_summary"), {"limit": "1000000"})
        found = demo.compare(settings, source, sink)
    if as_json:
        screens.print_json(screens.demo_json(campaigns, found, steps.seconds))
    else:
        screens.demo_campaigns(campaigns, settings.pricing_model)
        screens.demo_comparison(found)
        screens.demo_end(steps.seconds)
    if not found.equal:
        raise QualityFailure("ClickHouse does not hold what PostgreSQL holds; see the totals above.")


# Running it as a program


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Stopped` in the block, so that what was begun is ended in order."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Neither Ctrl-C nor SIGTERM has an effect in the block."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def exit_code(error: BaseException) -> int:
    """The exit code of an error: its own, or 4 where a server could not be reached."""
    match error:
        case TransientSource():
            return Unreachable.exit_code if not error.sqlstate or error.sqlstate[:2] in {"08", "57"} else 1
        case SourceFailure():
            # A refused password, an unknown database.
            return Unreachable.exit_code if (error.sqlstate or "")[:2] in {"28", "3D"} else 1
        case TransientSink():
            return Unreachable.exit_code if error.code in UNREACHABLE_CODES else 1
        case SinkFailure():
            return 1
        case RetailMediaError():
            return error.exit_code
        case click.ClickException():
            return 2 if isinstance(error, click.UsageError) else 1
    return 1


def sentence(error: BaseException) -> str:
    """What went wrong and what to do, on one line, without passwords."""
    match error:
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else PROGRAM
            told = f"{error.format_message().rstrip('.')}; see `{command} --help`."
        case click.ClickException():
            told = error.format_message()
        case RetailMediaError() | StackError():
            told = str(error)
        case _:
            told = f"Something unforeseen happened ({type(error).__name__}: {error}); --debug shows where."
    return logs.redacted(" ".join(told.split()))


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with its code. `args` defaults to the program's own."""
    context = None
    try:
        with cli.make_context(PROGRAM, sys.argv[1:] if args is None else list(args)) as context:
            cli.invoke(context)
        code = 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        code = INTERRUPTED
    except Stopped:
        code = 128 + signal.SIGTERM
    except BrokenPipeError:
        # Whoever read our output has gone; nothing can be told any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except _NO_COMMAND as error:
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except Exception as error:
        if context is not None and context.meta.get("debug"):
            traceback.print_exc()
        click.echo(f"Error: {sentence(error)}", err=True)
        code = exit_code(error)
    sys.exit(code)


def _mount_seed() -> None:
    from seed.cli import seed_group

    cli.add_command(seed_group)


_mount_seed()

if __name__ == "__main__":
    main()
