"""The distributions behind the generated data: pure functions of their arguments and a random generator.

Instants are int64 microseconds since 1970-01-01 UTC, delays are int64 microseconds. `README.md` gives the reasons for
each number.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0

CTR_MEDIAN, CTR_LOWEST, CTR_HIGHEST = 0.004, 0.0003, 0.02
_CTR_SIGMA = 0.55

BID_LOWEST, BID_HIGHEST = 0.30, 3.00

CLICK_DELAY_LONGEST = 30 * MINUTE
_CLICK_DELAY_MEDIAN_SECONDS, _CLICK_DELAY_SIGMA = 40.0, 1.1

ARRIVAL_BANDS = ((0.95, SECOND // 2, 5 * MINUTE), (0.04, 5 * MINUTE, 6 * HOUR), (0.01, 6 * HOUR, 5 * DAY))
"""(share of events, shortest, longest) delay between an event and the writing of its row."""

_HOURS = np.array(  # A day's traffic by hour, relative: a trough before dawn, a lunch shoulder, an evening peak.
    [
        *(0.45, 0.30, 0.22, 0.18, 0.20, 0.30, 0.50, 0.75, 0.95, 1.05, 1.12, 1.18),
        *(1.25, 1.22, 1.15, 1.15, 1.20, 1.30, 1.45, 1.65, 1.80, 1.70, 1.25, 0.80),
    ]
)
_WEEKDAYS = np.array([0.97, 0.93, 0.92, 0.95, 1.00, 1.12, 1.18])  # Monday to Sunday


def microseconds(instant: datetime) -> int:
    """An instant as microseconds since 1970 UTC, exactly. Raises `ValueError` if it has no time zone."""
    if instant.utcoffset() is None:
        raise ValueError(f"{instant!r} has no time zone.")
    return (instant - _EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How traffic spreads over a period: `mass[i]` of it, from 0 to 1, lies before `edges[i]`."""

    edges: Int64s
    mass: Floats

    def before(self, instants: ArrayLike) -> Floats:
        """The share of the period's traffic before each instant; 0 and 1 outside the period."""
        return np.interp(np.asarray(instants, dtype=np.float64), self.edges, self.mass)

    def instants(self, rng: Generator, lowest: ArrayLike, highest: ArrayLike, count: int) -> Int64s:
        """`count` instants distributed as the traffic between the shares `lowest` and `highest` (scalars or arrays).

        All lie within [edges[0], edges[-1]).
        """
        low = np.asarray(lowest, dtype=np.float64)
        shares = low + rng.random(count) * (np.asarray(highest, dtype=np.float64) - low)
        found = np.interp(shares, self.mass, self.edges).astype(np.int64)
        return np.clip(found, self.edges[0], self.edges[-1] - 1)


def rhythm(start: int, end: int) -> Rhythm:
    """Day and week rhythm over [start, end), with an edge at every full hour UTC. Raises `ValueError` if empty."""
    if end <= start:
        raise ValueError("The period is empty.")
    hours = np.arange(start // HOUR + 1, -(-end // HOUR), dtype=np.int64) * HOUR
    edges = np.concatenate(([start], hours, [end])).astype(np.int64)
    opening = edges[:-1]
    rate = _HOURS[opening // HOUR % 24] * _WEEKDAYS[(opening // DAY + _EPOCH_WEEKDAY) % 7]
    mass = np.concatenate(([0.0], np.cumsum(rate * np.diff(edges))))
    return Rhythm(edges, mass / mass[-1])


def popularity(rng: Generator, count: int) -> Floats:
    """Shares of traffic, summing to 1, in random order: a few big campaigns and a long tail.

    Zipf by rank with exponent 1.1, blurred by ±30 % so that it is not a ruler.
    """
    weights = np.arange(1, count + 1, dtype=np.float64) ** -1.1 * rng.lognormal(0.0, 0.3, count)
    rng.shuffle(weights)
    return weights / weights.sum() if count else weights


def click_through_rates(campaign_ids: ArrayLike) -> Floats:
    """Clicks per impression of each campaign, within [CTR_LOWEST, CTR_HIGHEST], around CTR_MEDIAN; lognormal.

    A function of the id alone. The source has no place to keep it, and a campaign whose rate jumped from one command
    to the next would look like an anomaly.
    """
    ids = np.atleast_1d(np.asarray(campaign_ids, dtype=np.int64))
    normal = NormalDist()
    scores = np.array([normal.inv_cdf(share) for share in _scattered(ids)], dtype=np.float64)
    return np.clip(CTR_MEDIAN * np.exp(_CTR_SIGMA * scores), CTR_LOWEST, CTR_HIGHEST)


def _scattered(ids: Int64s) -> Floats:
    """A number strictly between 0 and 1 for each id, the same every time (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return ((x >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def bids_in_cents(rng: Generator, count: int) -> Int64s:
    """Bids in cents, BID_LOWEST to BID_HIGHEST, most of them near 1.00."""
    span = BID_HIGHEST - BID_LOWEST
    return np.rint(100 * (BID_LOWEST + span * rng.beta(1.8, 4.0, count))).astype(np.int64)


def arrival_delays(rng: Generator, count: int) -> Int64s:
    """Time from an event to the writing of its row, by ARRIVAL_BANDS; within a band evenly on a logarithmic scale."""
    shares, shortest, longest = (np.array(column, dtype=np.float64) for column in zip(*ARRIVAL_BANDS, strict=True))
    band = np.searchsorted(np.cumsum(shares)[:-1], rng.random(count), side="right")
    low, high = np.log(shortest)[band], np.log(longest)[band]
    return np.exp(low + (high - low) * rng.random(count)).astype(np.int64)


def click_delays(rng: Generator, count: int) -> Int64s:
    """Time from an impression to its click: one second to half an hour, half of them under 40 s; lognormal."""
    seconds = _CLICK_DELAY_MEDIAN_SECONDS * rng.lognormal(0.0, _CLICK_DELAY_SIGMA, count)
    return np.clip(seconds * SECOND, SECOND, CLICK_DELAY_LONGEST).astype(np.int64)


def clicks_until(rng: Generator, shown_at: Int64s, now: int) -> Int64s:
    """An instant of a click for every impression, none after `now`.

    Where the drawn delay would end in the future, the click falls evenly between its impression and `now` instead.
    """
    left = np.maximum(now - shown_at, 0)
    delays = click_delays(rng, len(shown_at))
    squeezed = (left * rng.random(len(shown_at))).astype(np.int64)
    return shown_at + np.where(delays <= left, delays, squeezed)
