"""The calendar in force in ClickHouse, by which every process cuts days, whatever zone data it carries itself.

Another REPORTING_TIMEZONE is adopted by `migrate`; a newer version of the same zone's data by whoever meets it first. A
calendar counts from the moment it is announced: from then on nobody cuts days by an older one. After that the days that
it cuts otherwise are marked to be built anew, and only then is it adopted. Who dies in between leaves a calendar that is
announced and not adopted, and whoever looks next does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import structlog

from worker import calendar
from worker.calendar import Calendar, Pieces
from worker.config import Settings
from worker.errors import SchemaMismatch
from worker.sql import named

if TYPE_CHECKING:
    from worker.ledger import Ledger
    from worker.sink import Sink

log = structlog.get_logger()

OTHER_ZONE = "but REPORTING_TIMEZONE is"
"""Stands in every error of a process that cuts days in another time zone than ClickHouse: no rows are to blame for it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A calendar in the record, and how it stands there."""

    number: int
    state: Literal["adopting", "adopted"]
    zone: str
    version: str
    fingerprint: int
    noted_at: datetime | None = None

    @property
    def name(self) -> tuple[int, str, str, int]:
        """What names the calendar, whatever became of it."""
        return (self.number, self.zone, self.version, self.fingerprint)


_known: dict[int, Calendar] = {}
"""Calendars read from ClickHouse, by fingerprint: days of equal fingerprints are equal."""


def history(sink: Sink) -> list[Entry]:
    """Every entry of the record, the one in force first. Raises `SchemaMismatch` where the schema is older than it."""
    return [Entry(*row) for row in sink.named("calendar", "history")]


def in_force(sink: Sink, settings: Settings) -> Calendar:
    """The calendar in force. Raises `SchemaMismatch` where there is none, or days are cut in another time zone."""
    found = sink.named("calendar", "in_force")
    if not found:
        raise SchemaMismatch(
            f"ClickHouse database {sink.database} does not say yet how days are cut; run `retailmedia migrate`."
        )
    zone, version, fingerprint = found[0]
    if zone != settings.reporting_timezone:
        raise SchemaMismatch(
            f"In ClickHouse database {sink.database} days are cut in {zone}, {OTHER_ZONE} "
            f"{settings.reporting_timezone} here; set it to {zone}, or run `retailmedia migrate` to cut every day anew."
        )
    return _calendar(sink, zone, version, int(fingerprint))


def cut(calendar: Calendar, days: Sequence[date]) -> dict[str, Any]:
    """The parameters by which a statement looks up the day and the hour of a moment of these days."""
    pieces = calendar.pieces(days)
    # ClickHouse takes no empty list; where no day has an instant, no event is looked at either.
    begins, numbers, midnights = pieces if pieces.begins else Pieces([0], [0], [0])
    return {"begins": begins, "day_numbers": numbers, "midnights": midnights, "whole": begins == midnights}


def recut(sink: Sink, since: Mapping[date, datetime]) -> set[date]:
    """Those of these days that a calendar announced at or after the instant beside them cuts otherwise."""
    announced = [entry for entry in history(sink) if entry.state == "adopting"]
    days: set[date] = set()
    for newer, older in pairwise(announced):
        new, old = (_calendar(sink, each.zone, each.version, each.fingerprint) for each in (newer, older))
        days |= {
            day for day, at in since.items() if newer.noted_at and newer.noted_at >= at and not new.alike(day, old)
        }
    return days


def keep_current(sink: Sink, ledger: Ledger, settings: Settings) -> Calendar:
    """Ends what somebody else's adoption left undone, and adopts newer data of the same zone; the calendar in force.

    Raises `SchemaMismatch` as `in_force` does.
    """
    entries = history(sink)
    if entries:
        entries = _finished(sink, ledger, entries)
        mine = calendar.own(settings.reporting_timezone)
        if entries[0].zone == mine.zone and entries[0].version < mine.version:
            _adopt(sink, ledger, mine, entries)
    return in_force(sink, settings)


def migrate(sink: Sink, ledger: Ledger, settings: Settings, *, recut: bool) -> None:
    """The same, and adopts another time zone too. Days cut before there was a record are all marked if `recut`."""
    entries = history(sink)
    mine = calendar.own(settings.reporting_timezone)
    if not entries:
        _adopt(sink, ledger, mine, [], recut=recut)
    elif entries[0].zone != mine.zone:
        _adopt(sink, ledger, mine, entries)
    else:
        keep_current(sink, ledger, settings)


def told(sink: Sink, settings: Settings) -> tuple[Literal["ok", "note", "wrong"], str, str]:
    """For people: how it stands, the calendar in force, and what is to be done; empty where nothing is."""
    entries = history(sink)
    if not entries:
        return "wrong", "none yet", "run `retailmedia migrate`"
    newest = entries[0]
    mine = calendar.own(settings.reporting_timezone)
    says = f"{newest.zone}, zone data {newest.version}"
    if newest.zone != mine.zone:
        return "wrong", says, f"REPORTING_TIMEZONE is {mine.zone} here; correct it, or run `retailmedia migrate`"
    if not _is_adopted(newest, entries):
        return (
            "wrong",
            f"{says}; days it cuts otherwise are not all marked",
            "run `retailmedia migrate`, or wait for a sweep",
        )
    if mine.version < newest.version:
        return "note", f"{says}; here it is {mine.version}, older, and not used", "update the package tzdata here"
    if mine.version > newest.version:
        return "note", f"{says}; here it is {mine.version}, newer", "run `retailmedia migrate`, or wait for a sweep"
    if mine.fingerprint != newest.fingerprint:
        return "note", f"{says}; here it has other days, and is not used", "install the package tzdata anew here"
    return "ok", says, ""


def _calendar(sink: Sink, zone: str, version: str, fingerprint: int) -> Calendar:
    mine = calendar.own(zone) if zone in calendar.zones() else None
    if mine is not None and mine.fingerprint == fingerprint:
        return mine
    if fingerprint not in _known:
        ((starts, offsets),) = sink.named("calendar", "calendar", {"fingerprint": fingerprint})
        _known[fingerprint] = Calendar(zone, version, tuple(starts), tuple(offsets))
    return _known[fingerprint]


def _is_adopted(entry: Entry, entries: Iterable[Entry]) -> bool:
    return any(other.name == entry.name and other.state == "adopted" for other in entries)


def _finished(sink: Sink, ledger: Ledger, entries: list[Entry]) -> list[Entry]:
    newest = entries[0]
    if not _is_adopted(newest, entries):
        log.warning("calendar.adoption_resumed", zone=newest.zone, version=newest.version)
        _mark_and_adopt(sink, ledger, newest, entries[1:], recut=True)
        entries = history(sink)
    return entries


def _adopt(sink: Sink, ledger: Ledger, new: Calendar, entries: Sequence[Entry], *, recut: bool = True) -> None:
    number = entries[0].number + 1 if entries else 1
    _announce(sink, number, new)
    entry = Entry(number, "adopting", new.zone, new.version, new.fingerprint)
    _mark_and_adopt(sink, ledger, entry, entries, recut=recut)
    log.info("calendar.adopted", zone=new.zone, version=new.version)


def _announce(sink: Sink, number: int, new: Calendar) -> None:
    columns = (
        "number", "state", "reporting_timezone", "iana_version", "fingerprint", "starts", "offsets", "begins",
    )  # fmt: skip
    row = (
        number, "adopting", new.zone, new.version, new.fingerprint, list(new.starts), list(new.offsets), new.begins(),
    )  # fmt: skip
    sink.insert_rows("reporting_calendars", columns, [row])


def _mark_and_adopt(sink: Sink, ledger: Ledger, entry: Entry, earlier: Sequence[Entry], *, recut: bool) -> None:
    """Marks the days that the calendar cuts otherwise than any that days may have been built by since the last adoption."""
    new = _calendar(sink, entry.zone, entry.version, entry.fingerprint)
    old: dict[int, Calendar] = {}
    for other in earlier:
        old.setdefault(other.fingerprint, _calendar(sink, other.zone, other.version, other.fingerprint))
        if other.state == "adopted":
            break
    if any(each.fingerprint != new.fingerprint for each in old.values()) or (recut and not old):
        days = ledger.days_held(new, *old.values())
        # Of days cut before there was a record nobody knows how they were cut.
        moved = {day for day in days if not old or not all(new.alike(day, each) for each in old.values())}
        ledger.mark_days(moved)
        log.info("calendar.days_marked", days=len(moved))
    adopted = {"number": entry.number, "zone": entry.zone, "version": entry.version, "fingerprint": entry.fingerprint}
    sink.command("recording the calendar", named("calendar", "adopted"), adopted)
