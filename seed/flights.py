"""Plans of campaigns before they have an id: flight, bid, budget, name. Pure: the day it is asked about is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

import numpy as np
from numpy.random import Generator

from seed import model, names

OPEN_ENDED_DAYS = 365
"""Days a budget is planned for where the flight has no end."""

_HOUSE_SHARE = 0.02
_LARGEST_BUDGET = Decimal("99999999.99")  # numeric(10,2)
_FLIGHT_DAYS = np.array([7, 14, 21, 28, 30, 42, 60, 90])


@dataclass(frozen=True, slots=True)
class Flight:
    """First and last day, both inclusive, in UTC; None is open."""

    start: date | None
    end: date | None

    def days(self) -> int:
        """Length in days; OPEN_ENDED_DAYS where either side is open."""
        if self.start is None or self.end is None:
            return OPEN_ENDED_DAYS
        return (self.end - self.start).days + 1

    def runs_on(self, day: date) -> bool:
        """Whether the campaign may show on that day."""
        return (self.start is None or self.start <= day) and (self.end is None or day <= self.end)


@dataclass(frozen=True, slots=True)
class Plan:
    """A campaign to be. `advertiser_id` None is a campaign of the network itself."""

    name: str
    bid: Decimal
    budget: Decimal
    flight: Flight
    advertiser_id: int | None


def mixed_flights(rng: Generator, count: int, first_day: date, today: date) -> list[Flight]:
    """Flights as a planner's calendar holds them: running, over, to come, and without an end.

    About 50 % run today with an end ahead, 30 % ended since `first_day`, 8 % have not started, 12 % have no end (some
    of them no start either). The first is always without an end and began before `first_day`, so that no day is without a campaign.
    """
    flights: list[Flight] = []
    span = max((today - first_day).days, 1)
    for position in range(count):
        kind = rng.random()
        length = int(rng.choice(_FLIGHT_DAYS))
        if position and kind < 0.02:
            flights.append(Flight(None, None))
        elif position == 0 or kind < 0.12:
            flights.append(Flight(first_day - timedelta(days=int(rng.integers(1, 90))), None))
        elif kind < 0.62:
            start = today - timedelta(days=int(rng.integers(0, length)))
            flights.append(Flight(start, start + timedelta(days=length - 1)))
        elif kind < 0.92:
            end = first_day + timedelta(days=int(rng.integers(0, span)))
            flights.append(Flight(end - timedelta(days=length - 1), end))
        else:
            start = today + timedelta(days=int(rng.integers(1, 30)))
            flights.append(Flight(start, start + timedelta(days=length - 1)))
    return flights


def running_flights(rng: Generator, count: int, first_day: date, today: date) -> list[Flight]:
    """Flights that run on every day from `first_day` to `today`; one in four has no end."""
    flights = []
    for _ in range(count):
        start = first_day - timedelta(days=int(rng.integers(0, 30)))
        end = today + timedelta(days=int(rng.integers(1, 45)))
        flights.append(Flight(start, None if rng.random() < 0.25 else end))
    return flights


def bids(rng: Generator, count: int) -> list[Decimal]:
    """Bids as money."""
    return [Decimal(int(cents)).scaleb(-2) for cents in model.bids_in_cents(rng, count)]


def budget(rng: Generator, bid: Decimal, clicks: float) -> Decimal:
    """Money for about `clicks` clicks at `bid`: planned 20 % short to 60 % over, in two significant figures.

    Never less than ten clicks' worth, never more than the column holds.
    """
    wanted = max(float(bid) * clicks * rng.uniform(0.8, 1.6), 10 * float(bid))
    rounded = Decimal(f"{wanted:.1e}").quantize(Decimal("0.01"))
    return min(max(rounded, 10 * bid), _LARGEST_BUDGET)


def house_or_advertiser(rng: Generator, advertiser_ids: Sequence[int], count: int) -> list[int | None]:
    """Whom each of `count` campaigns belongs to: every advertiser at least one where there are enough, bigger
    advertisers more, and one in fifty none."""
    if not advertiser_ids:
        return [None] * count
    shares = model.popularity(rng, len(advertiser_ids))
    drawn = rng.choice(len(advertiser_ids), size=count, p=shares)
    drawn[: len(advertiser_ids)] = np.arange(len(advertiser_ids))[:count]
    house = rng.random(count) < _HOUSE_SHARE
    house[: len(advertiser_ids)] = False
    return [None if own else int(advertiser_ids[index]) for index, own in zip(drawn, house, strict=True)]


def plans(
    rng: Generator,
    flights: Sequence[Flight],
    owners: Sequence[tuple[int | None, str | None]],
    daily_clicks: Sequence[float],
) -> list[Plan]:
    """Complete plans. `owners` are (advertiser id, advertiser name); `daily_clicks` is what each is expected to earn."""
    money = bids(rng, len(flights))
    return [
        Plan(names.campaign_name(rng, owner), bid, budget(rng, bid, clicks * flight.days()), flight, advertiser_id)
        for flight, (advertiser_id, owner), clicks, bid in zip(flights, owners, daily_clicks, money, strict=True)
    ]
