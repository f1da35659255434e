"""Writes generated advertisers, campaigns, impressions and clicks into a source that has the schema.

Every function takes a psycopg2 connection with no transaction open, a numpy random generator and the instant `now`
(with a time zone) that the data leads up to: on a fresh database the same three give the same rows. None reads a
clock. Event ids and `inserted_at` are always the database's: a row written with an `inserted_at` of its own could lie
behind a watermark and never be synced. Days and flights are cut in UTC.

All raise `BadInput` for arguments that make no sense, and `SourceFailure` or `Unreachable` if PostgreSQL lets them
down; what was committed by then stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from seed import faults, flights, loader, model, names
from seed.connection import transaction
from seed.flights import Plan
from seed.model import Floats, Int64s, Rhythm
from seed.sql import statement
from worker.errors import BadInput

BATCH_ROWS = 20_000
"""Events per transaction. All rows of one transaction share one `inserted_at`, so this bounds how many do."""

BACKDATED_DAYS = 8
"""How far back impressions reach unless told otherwise, as in the original project."""

STREAM_TICK_SECONDS = 0.25

_MOST_CAMPAIGNS = 1_000_000
_MOST_EVENTS = 10**12
_MOST_DAYS = 3_650

Progress = Callable[[int, int], None]
"""Called after each commit with (rows done, rows expected)."""


@dataclass(frozen=True, slots=True)
class Added:
    """What a call wrote and committed."""

    advertiser_ids: tuple[int, ...] = ()
    campaign_ids: tuple[int, ...] = ()
    impressions: int = 0
    clicks: int = 0
    faults: tuple[faults.Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class _Events:
    """Events as columns of equal length, in microseconds since 1970 UTC; `arrives_at` is when their report came in."""

    is_click: NDArray[np.bool_]
    campaign_id: Int64s
    created_at: Int64s
    arrives_at: Int64s

    def __len__(self) -> int:
        return len(self.created_at)

    def take(self, which: NDArray[np.bool_] | Int64s | slice) -> _Events:
        return _Events(self.is_click[which], self.campaign_id[which], self.created_at[which], self.arrives_at[which])

    def join(self, other: _Events) -> _Events:
        return _Events(
            np.concatenate((self.is_click, other.is_click)),
            np.concatenate((self.campaign_id, other.campaign_id)),
            np.concatenate((self.created_at, other.created_at)),
            np.concatenate((self.arrives_at, other.arrives_at)),
        )


_NO_INSTANTS = np.empty(0, dtype=np.int64)
_NO_EVENTS = _Events(np.empty(0, dtype=np.bool_), _NO_INSTANTS, _NO_INSTANTS, _NO_INSTANTS)


def advertisers(conn: Connection, *, count: int, rng: Generator, now: datetime) -> Added:
    """Adds `count` advertisers."""
    _check_whole("count", count, most=_MOST_CAMPAIGNS)
    with transaction(conn) as cursor:
        owners = _add_advertisers(cursor, count, rng, now)
    return Added(advertiser_ids=tuple(owners))


def campaigns(conn: Connection, *, advertiser_id: int, count: int, rng: Generator, now: datetime) -> Added:
    """Adds `count` campaigns of one advertiser: running, over, to come and without an end.

    Raises `BadInput` if there is no such advertiser.
    """
    _check_whole("count", count, most=_MOST_CAMPAIGNS)
    today = now.astimezone(UTC).date()
    with transaction(conn) as cursor:
        cursor.execute(statement("known_advertiser"), {"advertiser_id": advertiser_id})
        row = cursor.fetchone()
        if row is None:
            raise BadInput(
                f"There is no advertiser {advertiser_id}: create one with `seed advertisers --count 1`, "
                "which prints its id."
            )
        ids = _reserve_ids(cursor, "campaign", count)
        calendar = flights.mixed_flights(rng, count, today - timedelta(days=60), today)
        daily_clicks = rng.lognormal(math.log(20), 1.0, count)
        planned = flights.plans(rng, calendar, [(advertiser_id, row[0])] * count, daily_clicks.tolist())
        _write_campaigns(cursor, ids, planned, now)
    return Added(campaign_ids=tuple(ids))


def impressions(
    conn: Connection,
    *,
    campaign_id: int,
    count: int,
    rng: Generator,
    now: datetime,
    days: int = BACKDATED_DAYS,
    batch_rows: int = BATCH_ROWS,
    on_progress: Progress | None = None,
) -> Added:
    """Adds exactly `count` impressions of one campaign, reported now and shown over the last `days` days.

    They keep to the campaign's flight; where it lies outside those days altogether, to the days alone. Raises
    `BadInput` if there is no such campaign.
    """
    _check_whole("count", count, most=_MOST_EVENTS)
    _check_whole("days", days, least=1, most=_MOST_DAYS)
    traffic = _traffic(now, days)
    with transaction(conn) as cursor:
        starts, ends = _flight_of(cursor, campaign_id)
    lowest, highest = traffic.before([starts, ends]).tolist()
    if highest <= lowest:
        lowest, highest = 0.0, 1.0
    added, _ = _deliver(
        conn,
        ids=np.array([campaign_id], dtype=np.int64),
        per_campaign=count,
        ratio=0.0,
        shares=(np.array([lowest]), np.array([highest])),
        traffic=traffic,
        rng=rng,
        now=now,
        batch_rows=batch_rows,
        on_progress=on_progress,
    )
    return Added(impressions=added)


def clicks(
    conn: Connection,
    *,
    campaign_id: int,
    ratio: float,
    rng: Generator,
    now: datetime,
    batch_rows: int = BATCH_ROWS,
    on_progress: Progress | None = None,
) -> Added:
    """Adds clicks on `ratio` (0 to 1, rounded to whole clicks) of a campaign's impressions up to `now`.

    Each follows an impression of its own by a second to half an hour and is never later than `now`. Raises `BadInput`
    if there is no such campaign.
    """
    _check_ratio("ratio", ratio)
    _check_whole("batch_rows", batch_rows, least=1)
    end = model.microseconds(now)
    with transaction(conn) as cursor:
        # The count and the copy must see the same rows.
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        _flight_of(cursor, campaign_id)
        which = {"campaign_id": campaign_id, "now": now}
        cursor.execute(statement("clickable_count"), which)
        row = cursor.fetchone()
        shown = int(row[0]) if row else 0
        chosen = np.sort(rng.choice(shown, size=math.floor(ratio * shown + 0.5), replace=False)).astype(np.int64)
        target = loader.TimesAt(chosen)
        cursor.copy_expert(cursor.mogrify(statement("clickable_times"), which), target)
    shown_at = target.instants()
    added = 0
    for first in range(0, len(shown_at), batch_rows):
        clicked_at = model.clicks_until(rng, shown_at[first : first + batch_rows], end)
        with transaction(conn) as cursor:
            written = loader.copy_events(cursor, "clicks", np.full(len(clicked_at), campaign_id), clicked_at)
        added += written
        if on_progress:
            on_progress(added, len(shown_at))
    return Added(clicks=added)


def batch(
    conn: Connection,
    *,
    advertisers: int = 2,
    campaigns: int = 3,
    impressions: int = 100,
    ctr: float = 0.1,
    rng: Generator,
    now: datetime,
    days: int = BACKDATED_DAYS,
    batch_rows: int = BATCH_ROWS,
    on_progress: Progress | None = None,
    fault_kinds: Sequence[str] = (),
    faults_each: int = 1,
    before_edits: Callable[[], object] | None = None,
) -> Added:
    """Adds advertisers, `campaigns` for each, `impressions` for each campaign, and clicks on `ctr` of those.

    The campaigns run throughout the last `days` days, over which their impressions are spread by the day and week
    rhythm. Counts are exact; clicks are rounded to whole ones per campaign. Of each of `fault_kinds`, `faults_each`
    faults are worked in, and told in the result; then counts are what the faults make of them. `before_edits` is called
    when everything but the faults' bid edits is committed: whoever reads the source now sees the bids of before.
    """
    _check_whole("advertisers", advertisers)
    _check_whole("campaigns", campaigns)
    _check_whole("advertisers × campaigns", max(advertisers, advertisers * campaigns), most=_MOST_CAMPAIGNS)
    _check_whole("impressions", impressions, most=_MOST_EVENTS)
    _check_whole("days", days, least=1, most=_MOST_DAYS)
    _check_ratio("ctr", ctr)
    _check_whole("batch_rows", batch_rows, least=1)
    traffic = _traffic(now, days)
    today = now.astimezone(UTC).date()
    count = advertisers * campaigns
    with transaction(conn) as cursor:
        owners = _add_advertisers(cursor, advertisers, rng, now)
        ids = _reserve_ids(cursor, "campaign", count)
        calendar = flights.running_flights(rng, count, today - timedelta(days=days), today)
        owned = [owner for owner in owners.items() for _ in range(campaigns)]
        planned = flights.plans(rng, calendar, owned, [impressions * ctr / days] * count)
        _write_campaigns(cursor, ids, planned, now)
        injected = faults.plan(rng, fault_kinds, faults_each, ids, traffic)
        edited = injected.edits()
        if edited:
            # A version without a time of its own would hold from when it is first read, and no edit before that.
            cursor.execute(statement("date_campaigns"), {"ids": [edit.campaign_id for edit in edited]})
    shown, clicked = _deliver(
        conn,
        ids=np.array(ids, dtype=np.int64),
        per_campaign=impressions,
        ratio=ctr,
        shares=(np.zeros(count), np.ones(count)),
        traffic=traffic,
        rng=rng,
        now=now,
        batch_rows=batch_rows,
        on_progress=on_progress,
        injected=injected,
    )
    for robots, clicked_at in injected.robots(rng):
        with transaction(conn) as cursor:
            clicked += loader.copy_events(cursor, "clicks", robots, clicked_at)
    if edited and before_edits:
        before_edits()
    for edit in edited:
        with transaction(conn) as cursor:
            values = {"campaign_id": edit.campaign_id, "factor": edit.factor, "at": edit.begins}
            cursor.execute(statement("edit_bid"), values)
    return Added(tuple(owners), tuple(ids), shown, clicked, injected.ledger())


def history(
    conn: Connection,
    *,
    advertisers: int = 12,
    campaigns: int = 60,
    events: int = 200_000,
    days: int = 60,
    rng: Generator,
    now: datetime,
    batch_rows: int = BATCH_ROWS,
    on_progress: Progress | None = None,
) -> Added:
    """Adds about `events` impressions and clicks of the last `days` days, by new advertisers and campaigns.

    `campaigns` is their number in all, shared unevenly between the advertisers. Rows are written in the order in
    which their reports would have arrived; reports that would arrive after `now` are left out, which is why fewer
    than `events` rows come about. Memory stays bounded by `batch_rows`, the number of campaigns times days, and the
    reports still under way (about 1 % of five days).
    """
    _check_whole("advertisers", advertisers, most=_MOST_CAMPAIGNS)
    _check_whole("campaigns", campaigns, most=_MOST_CAMPAIGNS)
    _check_whole("events", events, most=_MOST_EVENTS)
    _check_whole("days", days, least=1, most=_MOST_DAYS)
    _check_whole("batch_rows", batch_rows, least=1)
    if events and not campaigns:
        raise BadInput("Events need campaigns to belong to: ask for at least one campaign.")
    traffic = _traffic(now, days)
    calendar_days = _days(traffic)
    with transaction(conn) as cursor:
        owners = _add_advertisers(cursor, advertisers, rng, now)
        ids = _reserve_ids(cursor, "campaign", campaigns)
        calendar = flights.mixed_flights(rng, campaigns, calendar_days[0], calendar_days[-1])
        rates = model.click_through_rates(ids)
        shares = _shares_by_day(model.popularity(rng, campaigns), calendar, calendar_days)
        bounds = traffic.before([_midnight(day) for day in [*calendar_days, calendar_days[-1] + timedelta(days=1)]])
        weights = np.diff(bounds)
        rate = float(weights @ (shares @ rates)) if campaigns else 0.0
        counts = rng.multinomial(math.floor(events / (1 + rate) + 0.5), weights)
        earned = (counts @ shares) * rates
        days_run = np.maximum((shares > 0).sum(axis=0), 1)
        # Not yet started: planned for what a campaign of middling size earns.
        daily = np.where(earned > 0, earned / days_run, np.median(earned) / days if campaigns else 0.0)
        belongs = flights.house_or_advertiser(rng, list(owners), campaigns)
        owned = [(owner, owners[owner] if owner is not None else None) for owner in belongs]
        _write_campaigns(cursor, ids, flights.plans(rng, calendar, owned, daily.tolist()), now)

    arrivals = _arrivals(rng, np.array(ids, dtype=np.int64), rates, shares, counts, bounds, traffic, now, batch_rows)
    shown = clicked = 0
    for block in _in_batches(arrivals, batch_rows):
        with transaction(conn) as cursor:
            more_shown, more_clicked = _write(cursor, block)
        shown, clicked = shown + more_shown, clicked + more_clicked
        if on_progress:
            on_progress(min(shown + clicked, events), events)
    if on_progress:
        on_progress(events, events)
    return Added(tuple(owners), tuple(ids), shown, clicked)


def stream(
    conn: Connection,
    *,
    rate: float,
    duration: float,
    rng: Generator,
    clock: Callable[[], datetime],
    wait: Callable[[float], bool],
    batch_rows: int = BATCH_ROWS,
    on_progress: Progress | None = None,
) -> Added:
    """Writes `rate` impressions a second for `duration` seconds, and the clicks that follow from them as they fall due.

    Each impression happened an arrival delay before it is written; campaigns in flight at the start share the traffic
    as their budgets are planned. The pace is kept against `clock`, so a slow write is made up for. `wait` pauses for
    so many seconds and returns True to end early; clicks not due by then are never written. Raises `BadInput` if no
    campaign is in flight.
    """
    if not (math.isfinite(rate) and 0 < rate <= 1e6):
        raise BadInput(f"rate must be a number of impressions a second above 0, up to a million, not {rate:g}.")
    if not (math.isfinite(duration) and duration > 0):
        raise BadInput(f"duration must be a number of seconds above 0, not {duration:g}.")
    _check_whole("batch_rows", batch_rows, least=1)
    began = clock()
    with transaction(conn) as cursor:
        cursor.execute(statement("running_campaigns"), {"today": began.astimezone(UTC).date()})
        rows = cursor.fetchall()
    if not rows:
        raise BadInput(
            "No campaign is in flight today, so there is no traffic to write: create some with `seed batch`."
        )
    ids = np.array([row[0] for row in rows], dtype=np.int64)
    rates = model.click_through_rates(ids)
    # A budget or bid that is no plan (0, below 0, NaN) still gets a trickle.
    planned = np.nan_to_num(np.array([row[1] for row in rows], dtype=np.float64), nan=0.0, posinf=0.0)
    weights = np.maximum(planned / rates, 1e-6)
    weights /= weights.sum()
    starts = np.array([_instant(row[2], otherwise=0) for row in rows], dtype=np.int64)

    wanted = max(math.floor(rate * duration + 1e-9), 1)
    shown = clicked = 0
    pending = _NO_EVENTS
    while True:
        instant = clock()
        now = model.microseconds(instant)
        elapsed = min((instant - began).total_seconds(), duration)
        due = wanted if elapsed >= duration else min(math.floor(elapsed * rate + 1e-9), wanted)
        count = min(due - shown, batch_rows)
        which = rng.choice(len(ids), size=count, p=weights)
        shown_at = np.maximum(now - model.arrival_delays(rng, count), np.minimum(starts[which], now))
        hit = rng.random(count) < rates[which]
        clicked_at = shown_at[hit] + model.click_delays(rng, int(hit.sum()))
        reported_at = np.maximum(clicked_at + model.arrival_delays(rng, len(clicked_at)), now)
        pending = pending.join(_Events(np.ones(len(clicked_at), np.bool_), ids[which[hit]], clicked_at, reported_at))
        ripe = pending.arrives_at <= now
        ripe_clicks = pending.take(ripe)
        if count or len(ripe_clicks):
            with transaction(conn) as cursor:
                loader.copy_events(cursor, "impressions", ids[which], shown_at)
                loader.copy_events(cursor, "clicks", ripe_clicks.campaign_id, ripe_clicks.created_at)
            shown, clicked = shown + count, clicked + len(ripe_clicks)
            pending = pending.take(~ripe)
            if on_progress:
                on_progress(shown, wanted)
        if shown >= wanted and elapsed >= duration:
            break
        behind = shown < due
        if wait(0.0 if behind else min(STREAM_TICK_SECONDS, max(duration - elapsed, 0.0))):
            break
    return Added(impressions=shown, clicks=clicked)


def _check_whole(name: str, value: int, *, least: int = 0, most: int | None = None) -> None:
    if value < least:
        raise BadInput(f"{name} must be {least} or more, not {value}.")
    if most is not None and value > most:
        raise BadInput(f"{name} must be at most {most:,}, not {value:,}.")


def _check_ratio(name: str, value: float) -> None:
    if not 0 <= value <= 1:  # NaN is neither
        raise BadInput(f"{name} must lie between 0 and 1, not {value:g}: 0.004 is one click in 250 impressions.")


def _traffic(now: datetime, days: int) -> Rhythm:
    end = model.microseconds(now)
    return model.rhythm(end - days * model.DAY, end)


def _midnight(day: date) -> int:
    return model.microseconds(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _instant(seconds: float | None, *, otherwise: int) -> int:
    """Microseconds from seconds since 1970; `otherwise` for None, and the int64 range's ends for infinite dates."""
    if seconds is None:
        return otherwise
    return int(min(max(seconds * model.SECOND, -(2.0**62)), 2.0**62))


def _days(traffic: Rhythm) -> list[date]:
    """Every UTC day the period touches."""
    first, last = int(traffic.edges[0]) // model.DAY, (int(traffic.edges[-1]) - 1) // model.DAY
    return [date(1970, 1, 1) + timedelta(days=number) for number in range(first, last + 1)]


def _shares_by_day(popularity: Floats, calendar: Sequence[flights.Flight], days: Sequence[date]) -> Floats:
    """One row per day: the share of its impressions each campaign gets; 0 outside the flight."""
    runs = np.array([[flight.runs_on(day) for flight in calendar] for day in days], dtype=np.float64)
    shares = runs.reshape(len(days), len(calendar)) * popularity
    totals = shares.sum(axis=1, keepdims=True)
    divided: Floats = np.divide(shares, totals, out=np.zeros_like(shares), where=totals > 0)
    return divided


def _reserve_ids(cursor: Cursor, relation: str, count: int) -> list[int]:
    """Ids nobody else will get, from the table's own sequence, in rising order."""
    cursor.execute(statement("reserve_ids"), {"relation": relation, "count": count})
    return [int(row[0]) for row in cursor.fetchall()]


def _add_advertisers(cursor: Cursor, count: int, rng: Generator, now: datetime) -> dict[int, str]:
    """Writes advertisers; returns their names by id."""
    ids = _reserve_ids(cursor, "advertiser", count)
    added = dict(zip(ids, names.advertiser_names(rng, count), strict=True))
    joined = now - timedelta(days=365)
    loader.copy_text(cursor, "copy_advertiser", ((id_, name, joined.isoformat()) for id_, name in added.items()))
    return added


def _write_campaigns(cursor: Cursor, ids: Sequence[int], planned: Sequence[Plan], now: datetime) -> None:
    """Writes campaigns; one is booked three days before its flight starts, but not after `now`."""

    def booked(flight: flights.Flight) -> str:
        if flight.start is None:
            return (now - timedelta(days=365)).isoformat()
        start = datetime(flight.start.year, flight.start.month, flight.start.day, tzinfo=UTC)
        return min(start - timedelta(days=3), now).isoformat()

    loader.copy_text(
        cursor,
        "copy_campaign",
        (
            (
                id_,
                plan.name,
                plan.bid,
                plan.budget,
                plan.flight.start,
                plan.flight.end,
                plan.advertiser_id,
                booked(plan.flight),
            )
            for id_, plan in zip(ids, planned, strict=True)
        ),
    )


def _flight_of(cursor: Cursor, campaign_id: int) -> tuple[int, int]:
    """The flight as [first instant, first instant after). Raises `BadInput` if there is no such campaign."""
    cursor.execute(statement("campaign_flight"), {"campaign_id": campaign_id})
    row = cursor.fetchone()
    if row is None:
        raise BadInput(
            f"There is no campaign {campaign_id}: create one with `seed campaigns --advertiser-id ID --count 1`, "
            "which prints its id."
        )
    return _instant(row[0], otherwise=-(2**62)), _instant(row[1], otherwise=2**62)


def _deliver(
    conn: Connection,
    *,
    ids: Int64s,
    per_campaign: int,
    ratio: float,
    shares: tuple[Floats, Floats],
    traffic: Rhythm,
    rng: Generator,
    now: datetime,
    batch_rows: int,
    on_progress: Progress | None,
    injected: faults.Injection | None = None,
) -> tuple[int, int]:
    """Writes `per_campaign` impressions of each campaign and clicks on `ratio` of them; returns both counts.

    `shares` are, per campaign, the bounds within `traffic` between which its impressions lie. What `injected` makes of
    the events is what is written.
    """
    _check_whole("batch_rows", batch_rows, least=1)
    end = model.microseconds(now)
    lowest, highest = shares
    total = len(ids) * per_campaign
    shown = clicked = 0
    for first in range(0, total, batch_rows):
        row = np.arange(first, min(first + batch_rows, total), dtype=np.int64)
        campaign, ordinal = np.divmod(row, per_campaign)
        shown_at = traffic.instants(rng, lowest[campaign], highest[campaign], len(row))
        # Steps of round(ordinal × ratio): exactly round(per_campaign × ratio) clicks, wherever a batch is cut. Instants
        # are drawn independently of the ordinal, so no hour is favoured.
        hit = np.floor((ordinal + 1) * ratio + 0.5) > np.floor(ordinal * ratio + 0.5)
        clicked_at = model.clicks_until(rng, shown_at[hit], end)
        showing, clicking = (ids[campaign], shown_at), (ids[campaign[hit]], clicked_at)
        if injected:
            showing = injected.bent("impressions", *showing)
            clicking = injected.bent("clicks", *clicking)
        with transaction(conn) as cursor:
            shown += loader.copy_events(cursor, "impressions", *showing)
            clicked += loader.copy_events(cursor, "clicks", *clicking)
        if on_progress:
            on_progress(first + len(row), total)
    return shown, clicked


def _arrivals(
    rng: Generator,
    ids: Int64s,
    rates: Floats,
    shares: Floats,
    counts: Int64s,
    bounds: Floats,
    traffic: Rhythm,
    now: datetime,
    block_rows: int,
) -> Iterator[_Events]:
    """Impressions and their clicks, day by day, as blocks in the order of arrival, up to `now`.

    `shares` and `counts` are per day; `bounds` are the shares of `traffic` before each day's start, and before the end.
    """
    end = model.microseconds(now)
    under_way = _NO_EVENTS
    for day, count in enumerate(counts.tolist()):
        parts = max(-(-count // block_rows), 1)
        for part in range(parts):
            size = count * (part + 1) // parts - count * part // parts
            if not size:
                continue
            width = (bounds[day + 1] - bounds[day]) / parts
            low = bounds[day] + part * width
            shown_at = traffic.instants(rng, low, low + width, size)
            which = rng.choice(len(ids), size=size, p=shares[day])
            hit = rng.random(size) < rates[which]
            clicked_at = shown_at[hit] + model.click_delays(rng, int(hit.sum()))
            created_at = np.concatenate((shown_at, clicked_at))
            is_click = np.arange(len(created_at)) >= size
            reported_at = created_at + model.arrival_delays(rng, len(created_at))
            made = _Events(is_click, np.concatenate((ids[which], ids[which[hit]])), created_at, reported_at)
            under_way = under_way.join(made)
            # Everything drawn later happens, and so arrives, after this part's end.
            settled = int(np.interp(low + width, traffic.mass, traffic.edges)) - 1
            arrived = under_way.arrives_at < min(settled, end)
            ready = under_way.take(arrived)
            under_way = under_way.take(~arrived)
            yield ready.take(np.argsort(ready.arrives_at, kind="stable"))
    last = under_way.take(under_way.arrives_at <= end)
    yield last.take(np.argsort(last.arrives_at, kind="stable"))


def _in_batches(blocks: Iterator[_Events], rows: int) -> Iterator[_Events]:
    """The same events in the same order, `rows` at a time."""
    held = _NO_EVENTS
    for block in blocks:
        held = held.join(block)
        while len(held) >= rows:
            yield held.take(slice(0, rows))
            held = held.take(slice(rows, None))
    if len(held):
        yield held


def _write(cursor: Cursor, events: _Events) -> tuple[int, int]:
    """Writes one batch; returns (impressions, clicks)."""
    clicked = events.take(events.is_click)
    shown = events.take(~events.is_click)
    return (
        loader.copy_events(cursor, "impressions", shown.campaign_id, shown.created_at),
        loader.copy_events(cursor, "clicks", clicked.campaign_id, clicked.created_at),
    )
