"""What somebody should be told about, and telling it: once when it begins and once when it is over.

Incidents are kept in ClickHouse, so that no restart tells anything twice. The only user of Apprise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import apprise
import structlog

from worker.config import Settings
from worker.errors import BadInput
from worker.failing import FAILURES_TO_TELL, to_tell, told_day, told_failure
from worker.sink import Sink
from worker.streams import DIMENSION_STREAMS
from worker.windows import ORIGIN, instant

if TYPE_CHECKING:
    from worker.standing import Overview, Standing

log = structlog.get_logger()

Severity = Literal["error", "warn"]

EVERY_DAY = {"first_day": "1900-01-02", "last_day": "2299-12-30"}
"""What a look at every day covers."""

LATE, SILENT = "pipeline late", "campaign silent"


@dataclass(frozen=True, slots=True)
class Signal:
    """Something that is wrong now: with what, how bad, and in words."""

    incident: str
    severity: Severity
    message: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that is or was wrong, from when to when, and what was told of it."""

    incident: str
    began_at: datetime
    ended_at: datetime | None
    severity: Severity
    message: str
    told_as: Severity | Literal[""] = ""
    told_at: datetime | None = None
    told_over_at: datetime | None = None


Send = Callable[[str, str, Severity | None], bool]
"""Sends a title and a text, of a severity or, with None, the news that something is over; False if nobody took it."""


def freshness(entry: Standing, settings: Settings) -> Signal | None:
    """Whether a stream keeps its promise: measured from the instant before which everything is loaded, not from the
    newest event, so that a source that writes nothing is not late."""
    warn_after, error_after = settings.promise(entry.stream.name)
    if entry.lag <= warn_after:
        return None
    late = entry.lag > error_after
    promise = error_after if late else warn_after
    if entry.complete_through <= ORIGIN:
        told = "has never been loaded"
    else:
        through = entry.complete_through.strftime("%Y-%m-%d %H:%M:%S")
        told = f"is complete through {through} UTC, {span(entry.lag)} ago, and {span(promise)} were promised"
    return Signal(f"freshness/{entry.stream.name}", "error" if late else "warn", f"{LATE}: {entry.stream.name} {told}.")


def of_the_pipeline(overview: Overview, settings: Settings) -> list[Signal]:
    """Freshness, what fails (windows, dimensions, days), who holds the horizon, and a source that went back in time."""
    found = [Signal("source/went_back", "error", overview.setback)] if overview.setback else []
    found += [signal for entry in overview.streams if (signal := freshness(entry, settings))]
    for entry in overview.streams:
        failures = to_tell(entry.stream, entry.failures)
        if failures:
            worst = max(failures, key=lambda failure: failure.count)
            found.append(Signal(f"windows/{entry.stream.name}", "error", told_failure(entry.stream, worst)))
    days = [failure for failure in overview.days if failure.count >= FAILURES_TO_TELL]
    if days:
        others = f" {len(days) - 1:,} more cannot be built either." if len(days) > 1 else ""
        found.append(Signal("days", "error", f"{told_day(max(days, key=lambda day: day.day))}{others}"))
    limit = timedelta(seconds=settings.horizon_alert_seconds)
    held = [holder for holder in overview.horizon.holders if holder.age >= limit]
    if held:
        oldest = max(held, key=lambda holder: holder.age)
        kind = "prepared transaction" if oldest.prepared else "transaction"
        told = f"the {kind} of {oldest.who}, user {oldest.user}, has been open for {span(oldest.age)}"
        found.append(Signal("horizon", "error", f"The safe horizon is held back, and nothing newer is loaded: {told}."))
    return found


def of_the_data(sink: Sink, settings: Settings, now: datetime) -> list[Signal]:
    """Checks that found rows, checks that break, and rows that pile up in quarantine."""
    found: list[Signal] = []
    for name, severity, failing, at in sink.named("alert", "failing_checks", EVERY_DAY):
        rows = f"{failing:,} row{'' if failing == 1 else 's'}"
        if name == "campaign_silent":
            told = f"{SILENT}: {rows} of the check {name}. The pipeline is up to date; ask ad serving."
            found.append(Signal(f"quality/{name}", "warn", told))
        elif severity == "error":
            when = instant(at).strftime("%Y-%m-%d %H:%M")
            found.append(Signal(f"quality/{name}", "error", f"The check {name} found {rows} ({when} UTC)."))
    for name, message in sink.named("alert", "broken_checks"):
        found.append(Signal(f"quality/{name}/broken", "warn", f"The check {name} cannot be carried out: {message}"))
    dimensions = {stream.name for stream in DIMENSION_STREAMS}
    for stream, rows, event_id, rule in sink.named("alert", "held_dimension_rows"):
        more = f", and {rows - 1:,} more" if rows > 1 else ""
        told = f"Row {event_id} of {stream} stays as it was loaded last, if ever: {rule}{more}. Mend it at the source"
        decide = f"`retailmedia quarantine discard {stream} {event_id}` says that it is to stay so"
        found.append(Signal(f"quarantine/{stream}", "error", f"{told}; {decide}."))
    for stream, rows in sink.named("alert", "quarantine_growth", {"now": now}):
        if stream not in dimensions and rows > settings.alert_quarantine_rows:
            told = f"{rows:,} rows of {stream} were set aside within an hour; see `retailmedia quarantine list`."
            found.append(Signal(f"quarantine/{stream}", "error", told))
    return found


def of_the_workers(
    served: Mapping[str, Iterable[str]], queues: Sequence[str], depths: Mapping[str, int], settings: Settings
) -> list[Signal]:
    """Queues that nobody serves, and queues that grow. `served` has the queues of each worker that answers."""
    found = []
    lacking = sorted(set(queues) - {queue for each in served.values() for queue in each})
    if not served:
        found.append(Signal("workers", "error", "No worker answers; nothing is loaded."))
    elif lacking:
        found.append(Signal("workers", "error", f"No worker serves the queue {' and the queue '.join(lacking)}."))
    for queue, depth in sorted(depths.items()):
        if depth > settings.alert_queue_depth:
            found.append(Signal(f"queue/{queue}", "warn", f"{depth:,} messages wait in the queue {queue}."))
    return found


def unreachable(which: str, error: Exception) -> Signal:
    """A server that does not answer."""
    return Signal(f"server/{which}", "error", str(error))


def span(value: timedelta) -> str:
    """A length of time for people."""
    seconds = int(value.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    if seconds < 172_800:
        return f"{seconds // 3600} h"
    return f"{seconds // 86_400} days"


def settle(
    sink: Sink, settings: Settings, signals: Sequence[Signal], send: Send | None, *, unknown: Sequence[str] = ()
) -> list[str]:
    """Brings the incidents in line with what is wrong now, and tells what is new or over; returns the titles sent.

    `unknown` are the beginnings of incidents that could not be judged this time: they stay as they are. What the hourly
    limit, or a service that does not answer, kept from being told is told the next time, if it is still so.
    """
    now = instant(sink.named("alert", "now")[0][0])
    known = open_incidents(sink)
    signals_by_name = {signal.incident: signal for signal in signals}
    changed: dict[tuple[str, datetime], Incident] = {}
    standing = {entry.incident: entry for entry in known if entry.ended_at is None}

    def put(entry: Incident) -> None:
        changed[entry.incident, entry.began_at] = entry

    for name, signal in signals_by_name.items():
        entry = standing.get(name)
        if entry is None:
            put(Incident(name, now, None, signal.severity, signal.message))
        elif entry.severity == "warn" and signal.severity == "error":
            # Worse than what was told: told again, and what was told already is not forgotten.
            put(replace(entry, severity="error", message=signal.message))
        elif entry.message != signal.message and entry.told_as != entry.severity:
            put(replace(entry, message=signal.message))
    for name, entry in standing.items():
        if name not in signals_by_name and not name.startswith(tuple(unknown)):
            put(replace(entry, ended_at=now))
    _write(sink, changed.values())
    if send is None:
        return []

    current = {(entry.incident, entry.began_at): entry for entry in known} | changed
    room = settings.alerts_per_hour - sent_since(sink, now - timedelta(hours=1))
    # Errors first; but of one thing that was over and began anew, the end before the beginning, or who reads along
    # would take the end for that of the new incident.
    worst: dict[str, Severity] = {}
    for entry in current.values():
        worst[entry.incident] = min(worst.get(entry.incident, "warn"), entry.severity)
    sent: list[str] = []
    refused: set[str] = set()
    for entry in sorted(current.values(), key=lambda entry: (worst[entry.incident], entry.began_at)):
        over = entry.ended_at is not None
        due = entry.told_over_at is None and entry.told_as != "" if over else entry.told_as != entry.severity
        if not due or entry.incident in refused:
            continue
        if room <= 0:
            log.warning("alerts.limit_reached", per_hour=settings.alerts_per_hour, waiting=entry.incident)
            break
        title, text = worded(entry)
        if not send(title, text, None if over else entry.severity):
            log.error("alerts.not_delivered", incident=entry.incident)
            refused.add(entry.incident)
            continue
        room -= 1
        sent.append(title)
        # One by one: of what was told, as little as possible is forgotten if this process ends now.
        told = replace(entry, told_over_at=now) if over else replace(entry, told_as=entry.severity, told_at=now)
        _write(sink, [told])
    return sent


def worded(entry: Incident) -> tuple[str, str]:
    """Title and text of the message about an incident as it stands."""
    if entry.ended_at is not None:
        lasted = span(entry.ended_at - entry.began_at)
        return f"Over: {entry.incident}", f"After {lasted} it is over. It was: {entry.message}"
    title = "Error" if entry.severity == "error" else "Warning"
    return f"{title}: {entry.incident}", f"{entry.message}\nSince {entry.began_at.strftime('%Y-%m-%d %H:%M:%S')} UTC."


def open_incidents(sink: Sink) -> list[Incident]:
    """What is wrong, and what was and nobody was told yet that it is over."""
    return [_incident(row) for row in sink.named("alert", "open")]


def latest(sink: Sink, limit: int) -> list[Incident]:
    """Incidents that are open, then the newest of those that are over."""
    return [_incident(row) for row in sink.named("alert", "latest", {"limit": limit})]


def sent_since(sink: Sink, since: datetime) -> int:
    """Messages sent since then."""
    return int(sink.named("alert", "sent_since", {"since": since})[0][0])


def _incident(row: tuple[object, ...]) -> Incident:
    name, began, ended, severity, message, told_as, told, told_over = row
    return Incident(
        str(name),
        _instant(began) or ORIGIN,
        _instant(ended),
        _severity(severity) or "warn",
        str(message),
        _severity(told_as),
        _instant(told),
        _instant(told_over),
    )


def _severity(value: object) -> Severity | Literal[""]:
    if value == "error":
        return "error"
    return "warn" if value == "warn" else ""


def _instant(value: object) -> datetime | None:
    return instant(value) if isinstance(value, datetime) else None


def _write(sink: Sink, entries: Iterable[Incident]) -> None:
    columns = tuple(field.name for field in fields(Incident))
    sink.insert_rows("alerts", columns, [astuple(entry) for entry in entries])


def sender(settings: Settings) -> Send | None:
    """Delivers to every URL of `ALERT_URLS`; None where there is none. Raises `BadInput` for one it cannot use."""
    urls = settings.alert_urls.split()
    if not urls:
        return None
    services = apprise.Apprise()
    for position, url in enumerate(urls, 1):
        # A URL holds passwords, so it is not repeated.
        if not services.add(url):
            raise BadInput(f"URL {position} of ALERT_URLS ({url.partition(':')[0]}:…) is not one that Apprise knows.")
    kinds = {
        "error": apprise.NotifyType.FAILURE,
        "warn": apprise.NotifyType.WARNING,
        None: apprise.NotifyType.SUCCESS,
    }

    def send(title: str, text: str, severity: Severity | None) -> bool:
        return bool(services.notify(title=f"Retail media: {title}", body=text, notify_type=kinds[severity]))

    return send
