"""The reporting calendar: every instant lies in exactly the bounds of its day, whatever a zone's clocks do."""

from __future__ import annotations

import ast
import io
import random
import re
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import calendar
from worker.calendar import DAY, HOUR, Calendar, own
from worker.errors import BadInput
from worker.sql import CLICKHOUSE, statements
from worker.windows import from_micros, to_micros

ZONES = sorted(calendar.zones())
EARLIEST, LATEST = (to_micros(datetime(year, 1, 1, tzinfo=UTC)) for year in (1900, 2300))
DAYS = st.dates(calendar.FIRST_DAY, calendar.LAST_DAY)


def zone_of(name: str) -> ZoneInfo:
    data = resources.files("tzdata.zoneinfo").joinpath(*name.split("/")).read_bytes()
    return ZoneInfo.from_file(io.BytesIO(data))


def assert_consistent(found: Calendar, micros: int) -> None:
    day = found.day_of_micros(micros)
    lo, hi = found.bounds(day)
    assert lo <= from_micros(micros) < hi, (found.zone, micros, day)
    assert day in found.days_of_hours([micros // HOUR])
    pieces = found.pieces([day])
    place = max(i for i, begin in enumerate(pieces.begins) if begin <= micros)
    assert pieces.days[place] == (day - date(1970, 1, 1)).days
    assert (micros - pieces.midnights[place]) // HOUR % 24 == found.hour_of_micros(micros)


@given(st.sampled_from(ZONES), st.integers(EARLIEST, LATEST - 1))
def test_every_instant_is_in_the_bounds_of_its_day(zone: str, micros: int) -> None:
    assert_consistent(own(zone), micros)


@given(st.sampled_from(ZONES), DAYS)
def test_days_meet(zone: str, day: date) -> None:
    found = own(zone)
    before, these, after = (found.bounds(day + timedelta(days=n)) for n in (-1, 0, 1))
    assert before.hi == these.lo <= these.hi == after.lo
    if these.lo < these.hi:
        assert found.day_of(these.lo) == found.day_of(these.hi - timedelta(microseconds=1)) == day
    assert found.begin(day) == to_micros(these.lo)


@pytest.mark.parametrize("part", range(4))
def test_around_every_change_of_every_zone_clocks_show_what_the_zone_says(part: int) -> None:
    draw = random.Random(part)
    for name in ZONES[part::4]:
        found, zone = own(name), zone_of(name)
        moments = [start + delta for start in found.starts[1:] for delta in (-1, 0, DAY // 2)]
        moments += [draw.randrange(EARLIEST, LATEST) for _ in range(100)]
        for micros in moments:
            if EARLIEST <= micros < LATEST:
                shown = from_micros(micros).astimezone(zone)
                assert found.hour_of_micros(micros) == shown.hour, (name, micros)
                assert_consistent(found, micros)
        # Clocks never show more than the day they are in, and less only where they were set back.
        for start, following in pairwise(found.starts):
            for micros in (start, following - 1):
                assert from_micros(micros).astimezone(zone).date() <= found.day_of_micros(micros)


@given(st.sampled_from(ZONES), DAYS)
def test_a_day_begins_when_clocks_first_show_its_midnight(zone: str, day: date) -> None:
    found, data = own(zone), zone_of(zone)
    lo, hi = found.bounds(day)
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - what a clock on the wall shows
    at, before = (
        moment.astimezone(data).replace(tzinfo=None, fold=0) for moment in (lo, lo - timedelta(microseconds=1))
    )
    assert before < midnight
    assert lo == hi or at >= midnight


@pytest.mark.parametrize(
    ("zone", "day", "lo", "hi"),
    [
        ("UTC", date(2026, 11, 20), "2026-11-20T00:00Z", "2026-11-21T00:00Z"),
        ("America/Vancouver", date(2026, 11, 20), "2026-11-20T07:00Z", "2026-11-21T07:00Z"),
        ("Europe/Berlin", date(2026, 10, 25), "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        ("Pacific/Apia", date(2011, 12, 30), "2011-12-30T10:00Z", "2011-12-30T10:00Z"),
        ("America/St_Johns", date(2010, 11, 6), "2010-11-06T02:30Z", "2010-11-07T02:30Z"),
        ("America/St_Johns", date(2010, 11, 7), "2010-11-07T02:30Z", "2010-11-08T03:30Z"),
        # Half past eleven in the evening became half past midnight.
        ("America/Toronto", date(1919, 3, 31), "1919-03-31T04:30Z", "1919-04-01T04:00Z"),
        # Back over the date line: 23 hours of the 29th came again while the 30th went on.
        ("Pacific/Kwajalein", date(1969, 9, 30), "1969-09-29T13:00Z", "1969-10-01T12:00Z"),
    ],
)
def test_unusual_days(zone: str, day: date, lo: str, hi: str) -> None:
    assert own(zone).bounds(day) == (datetime.fromisoformat(lo), datetime.fromisoformat(hi))


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        (date(2026, 3, 29), "Europe/Paris", 23),
        (date(2026, 10, 25), "Europe/Paris", 25),
        (date(2026, 11, 1), "America/New_York", 25),
        (date(2026, 6, 1), "UTC", 24),
        (date(2026, 9, 6), "America/Santiago", 23),  # the clocks change at midnight, so the day begins at one
    ],
)
def test_days_have_as_many_hours_as_the_zone_gives_them(day: date, zone: str, hours: int) -> None:
    lo, hi = own(zone).bounds(day)
    assert hi - lo == timedelta(hours=hours)


def test_days_that_a_zone_leaves_out_have_no_pieces() -> None:
    assert own("Pacific/Apia").pieces([date(2011, 12, 30)]).begins == []


def test_days_whose_bounds_are_no_quarters_of_an_hour_are_known() -> None:
    monrovia = own("Africa/Monrovia")
    assert not monrovia.in_quarters(date(1971, 6, 1))
    assert monrovia.in_quarters(date(1972, 6, 1))


def test_what_two_versions_of_the_data_say_differently_is_seen() -> None:
    new = own("America/Vancouver")
    cut = sum(start < to_micros(datetime(2026, 11, 1, tzinfo=UTC)) for start in new.starts)
    november = to_micros(datetime(2026, 11, 1, 9, tzinfo=UTC))
    old = Calendar(new.zone, "2025b", (*new.starts[:cut], november), (*new.offsets[:cut], -8 * 3600))
    assert old.fingerprint != new.fingerprint
    assert new.alike(date(2026, 10, 31), old)
    assert not new.alike(date(2026, 11, 20), old)
    assert own("Canada/Pacific").fingerprint == new.fingerprint


@pytest.mark.parametrize("name", ["Paris", "", "../../etc/passwd", "/etc/localtime", "localtime"])
def test_a_zone_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="is not an IANA time zone"):
        own(name)


# Nobody else cuts days

PRODUCT = CLICKHOUSE.parent
CALL = re.compile(
    r"\b(toDate|toDate32|toDateTime|toDateTime64|toHour|toStartOf\w+|toYYYYMM\w*|toMonday|toTimeZone|toTimezone|"
    r"date_trunc|today|timezone\w*|formatDateTime\w*|parseDateTime\w*)\s*\(",
    re.IGNORECASE,
)
POSTGRES = re.compile(r"AT\s+TIME\s+ZONE\s+('[^']*'|[^\s)]+)", re.IGNORECASE)
NO_ZONE = re.compile(r"\{zone\b|%\(zone\)s|\{reporting_timezone\}|'[A-Z][A-Za-z_]+/[A-Za-z_/]+'")
SUPERSEDED = {"0004_campaign_dimension.sql", "0019_reporting_day.sql"}
"""Applied long ago, and replaced by later files."""


def product_statements() -> list[tuple[str, str]]:
    folder = PRODUCT / "worker" / "sql"
    found = [
        (f"{path.stem}.{name}", text) for path in folder.glob("*.sql") for name, text in statements(path.stem).items()
    ]
    files = (path for path in CLICKHOUSE.rglob("*.sql") if path.name not in SUPERSEDED)
    return [*found, *((path.name, path.read_text()) for path in files)]


def asking(text: str) -> list[str]:
    """The calls in a statement that hand a server a zone whose data it would need."""
    found = [zone for zone in POSTGRES.findall(text) if zone != "'UTC'"]
    for call in CALL.finditer(text):
        depth, end = 1, call.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if NO_ZONE.search(text[call.end() : end]):
            found.append(text[call.start() : end])
    return found


@pytest.mark.parametrize(("name", "text"), product_statements(), ids=lambda value: value if len(value) < 50 else "")
def test_no_statement_asks_a_server_for_a_zone(name: str, text: str) -> None:
    assert asking(text) == [], name


@pytest.mark.parametrize(
    "text",
    [
        "SELECT toDate32(created_at, %(zone)s)",
        "toHour(created_at, {zone:String})",
        "toDate32(now(), '{reporting_timezone}')",
        "toDateTime64(date_id, 6, 'Europe/Paris')",
        "toDate32(least(now64(6, 'UTC'), {complete_through:DateTime64(6, 'UTC')}), {zone:String}) - 1",
        "(created_at AT TIME ZONE 'Europe/Paris')::date",
    ],
)
def test_the_scan_sees_what_it_looks_for(text: str) -> None:
    assert asking(text)
    assert not asking(re.sub(r"%\(zone\)s|\{zone:String\}|'\{reporting_timezone\}'|'Europe/Paris'", "'UTC'", text))


@pytest.mark.parametrize("path", sorted((PRODUCT / "worker").rglob("*.py")), ids=lambda path: path.name)
def test_nobody_else_asks_python_for_a_zone(path: Path) -> None:
    if path.name == "calendar.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        assert "ZoneInfo" not in named, f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astimezone":
            assert [ast.unparse(argument) for argument in node.args] == ["UTC"], f"{path.name}:{node.lineno}"
