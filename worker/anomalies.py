"""Finds campaign-days that chance does not explain, says why, and keeps the result in `metric_anomalies`.

A campaign is measured against its own history: robust averages, so that one bad day does not hide the next; spreads
drawn towards what is usual in the network, so that a short history does not look certain; exact tail probabilities of
overdispersed counts, so that a small campaign's noise is known for noise; and a bound on the share of false
discoveries among all that a run reports. `docs/anomalies.md` gives formulas and sources. The functions that judge are
pure; `detect` reads, judges and writes one day.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from worker import calendars, money
from worker.config import Settings
from worker.errors import BadInput
from worker.sink import Sink
from worker.windows import ORIGIN, instant

log = structlog.get_logger()

Floats = NDArray[np.float64]

CTR_UP, CTR_DOWN = "ctr up", "ctr down"
VOLUME_UP, VOLUME_DOWN = "volume up", "volume down"
SPEND, SILENCE, BOTS = "spend over pace", "silence", "bot-like hours"
KINDS = (CTR_UP, CTR_DOWN, VOLUME_UP, VOLUME_DOWN, SPEND, SILENCE, BOTS)

LEVEL_DAYS = 14
"""Days the present level is the median of: short enough to follow a campaign that was made larger."""
CTR_DAYS = 28
SMALLEST_HISTORY = 7
"""Days of history below which a campaign is not judged."""

LEAST_IMPRESSIONS, LEAST_CLICKS = 20.0, 5.0
"""Expected by history, below which a fall cannot be told from chance and is not looked for."""
LEAST_SURPLUS_CLICKS = 8
"""Clicks below which nothing is too many."""
LEAST_CHANGE, LEAST_HOUR_CHANGE = 1.5, 3.0
"""Factors below which a deviation is not worth a person's time, however certain; of a day and of an hour."""

LEAST_SPREAD, LEAST_CTR_SPREAD, LEAST_HOUR_SPREAD = 0.02, 0.01, 0.05
"""Least relative variance from day to day (and of an hour) beyond counting noise: nobody's traffic is a dice roll."""
POOL_DAYS, POOL_CLICKS = 10.0, 300.0
"""How much history of its own outweighs what is usual in the network: days, and clicks where clicks are counted."""

WEEKDAY_POOL = 4.0
HOURS = 24
RUNS_OF_HOURS = HOURS * (HOURS + 1) // 2
PLAUSIBLE = 0.005
"""Tail left out at either end of an expected range: it holds 99 % of what chance does."""

SMALLEST_P = 1e-300


# Tail probabilities


def _outward(log_first: float, ratios: Callable[[Floats], Floats], count: int, bound: float) -> float:
    """exp(log_first) × (1 + r0 + r0·r1 + …), `ratios` giving the r's by number; stops when the rest cannot matter.

    No ratio beyond one already seen exceeds that one and `bound`.
    """
    total, log_term, done, size = 1.0, 0.0, 0, 64
    while done < count:
        size = min(size * 2, 1 << 16, count - done)
        numbers = np.arange(done, done + size, dtype=np.float64)
        with np.errstate(divide="ignore"):
            logs = log_term + np.cumsum(np.log(ratios(numbers)))
        terms = np.exp(logs)
        total += float(terms.sum())
        log_term, done = float(logs[-1]), done + size
        last = float(terms[-1])
        if last == 0.0:
            break
        shrinks = max(last / float(terms[-2]), bound) if size > 1 and terms[-2] > 0 else 1.0
        # What is left is below a geometric series.
        if shrinks < 1 and last * shrinks / (1 - shrinks) < 1e-13 * total:
            break
    return math.exp(log_first + math.log(total)) if log_first + math.log(total) > math.log(SMALLEST_P) else SMALLEST_P


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def gamma_poisson(count: int, mean: float, spread: float) -> tuple[float, float]:
    """P(X ≤ count) and P(X ≥ count) of a Poisson count whose mean is Gamma distributed: the negative binomial.

    `spread` is the relative variance of that mean, above 0; Var X = mean + spread · mean².
    """
    if count < 0:
        return 0.0, 1.0
    if mean <= 0:
        return 1.0, 1.0 if count == 0 else 0.0
    shape = 1.0 / spread
    log_success = math.log(mean) - math.log(shape + mean)
    success = math.exp(log_success)
    log_here = (
        math.lgamma(count + shape)
        - math.lgamma(shape)
        - math.lgamma(count + 1)
        - shape * math.log1p(mean / shape)
        + count * log_success
    )

    def up(n: Floats) -> Floats:
        return (count + n + shape) / (count + n + 1) * success

    def down(n: Floats) -> Floats:
        return (count - n) / ((count - n - 1 + shape) * success)

    if count < mean:
        lower = _outward(log_here, down, count, 0.0 if shape >= 1 else 1.0)
        return _and_rest(log_here, lower)
    upper = _outward(log_here, up, 1 << 40, success)
    return _and_rest(log_here, upper)[::-1]


def beta_binomial(count: int, trials: int, mean: float, spread: float) -> tuple[float, float]:
    """P(X ≤ count) and P(X ≥ count) of successes in `trials`, the chance of one being Beta distributed.

    `mean` is that chance, strictly between 0 and 1, `spread` its relative variance, above 0 and below the
    (1 − mean) / mean that no chance can exceed.
    """
    if count < 0:
        return 0.0, 1.0
    if count > trials:
        return 1.0, 0.0
    # Beyond the bound there is no such distribution; close to it, all or nothing.
    concentration = max((1.0 - mean) / (mean * spread) - 1.0, 1e-3)
    a, b = mean * concentration, (1.0 - mean) * concentration
    log_here = (
        math.lgamma(trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(trials - count + 1)
        + _log_beta(count + a, trials - count + b)
        - _log_beta(a, b)
    )

    def up(n: Floats) -> Floats:
        k = count + n
        return (trials - k) / (k + 1) * (k + a) / (trials - k - 1 + b)

    def down(n: Floats) -> Floats:
        k = count - n
        return k / (trials - k + 1) * (trials - k + b) / (k - 1 + a)

    # Only where both shapes are 1 or more has the distribution no second summit at an end.
    bound = 0.0 if a >= 1 and b >= 1 else 1.0
    if count < mean * trials:
        return _and_rest(log_here, _outward(log_here, down, count, bound))
    return _and_rest(log_here, _outward(log_here, up, trials - count, bound))[::-1]


def _and_rest(log_here: float, tail: float) -> tuple[float, float]:
    """A tail and the one on the other side; both include the point."""
    here = math.exp(log_here) if log_here > math.log(SMALLEST_P) else 0.0
    tail = min(tail, 1.0)
    return tail, min(max(1.0 - tail + here, 0.0), 1.0)


def plausible(tails: Callable[[int], tuple[float, float]], most: int) -> tuple[int, int]:
    """The counts that leave out `PLAUSIBLE` at either end, from 0 to `most`."""

    def first(holds: Callable[[int], bool]) -> int:
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle + 1, high)
        return low

    return first(lambda k: tails(k)[0] > PLAUSIBLE), first(lambda k: tails(k + 1)[1] <= PLAUSIBLE)


def false_discovery(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg: for each p the smallest rate of false discoveries at which it would be reported."""
    count = len(p_values)
    order = sorted(range(count), key=lambda place: p_values[place], reverse=True)
    found = [1.0] * count
    least = 1.0
    for above, place in enumerate(order):
        least = min(least, p_values[place] * (count / (count - above)))
        found[place] = least
    return found


# What is looked at


@dataclass(frozen=True, slots=True)
class Shape:
    """How a day's events spread over its hours: mean and variance of each hour's count over so many days."""

    mean: Floats
    variance: Floats
    days: int


FLAT = Shape(np.zeros(HOURS), np.zeros(HOURS), 0)


@dataclass(frozen=True, slots=True)
class Subject:
    """A campaign on the day to be judged, and the days before it, oldest first, days without events as zeros.

    `spend` is in the currency of bids; `billed` is which count costs money. `by_hour` arrays have 24 entries, in the
    reporting time zone. `in_flight` says whether it should deliver on the day.
    """

    campaign_id: int
    impressions: Floats
    clicks: Floats
    spend: Floats
    day_impressions: int
    day_clicks: int
    day_spend: float
    impressions_by_hour: NDArray[np.int64]
    clicks_by_hour: NDArray[np.int64]
    impressions_shape: Shape = FLAT
    clicks_shape: Shape = FLAT
    in_flight: bool = True
    clicks_cost: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """An anomaly. CTR kinds give CTRs, spend gives money, the others counts of events."""

    campaign_id: int
    kind: str
    observed: float
    expected: float
    expected_low: float
    expected_high: float
    p_value: float
    q_value: float
    hours: tuple[int, ...]
    explanation: str
    known_causes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Test:
    """One question asked of one campaign: how likely, and, asked only of what is reported, what to say of it."""

    p_value: float
    tell: Callable[[], Finding] | None = None


@dataclass(frozen=True, slots=True)
class _Level:
    """What a count is expected to be: its mean and the relative variance around it."""

    mean: float
    spread: float


@dataclass(frozen=True, slots=True)
class _Network:
    """What is usual among all campaigns of a run."""

    impressions_by_weekday: Floats
    clicks_by_weekday: Floats
    impressions_spread: float
    clicks_spread: float
    ctr: float
    ctr_between: float
    ctr_spread: float
    impressions_by_hour: Floats
    clicks_by_hour: Floats
    hour_spread: dict[str, float]


# Robust averages


def _weekdays(count: int, weekday: int) -> NDArray[np.int64]:
    """Days of week (0 to 6) of `count` days that end the day before one of that weekday."""
    return (weekday - np.arange(count, 0, -1)) % 7


def _middle(values: Floats, default: float) -> float:
    # numpy's own costs ten times as much on a few dozen values.
    return float(median(values.tolist())) if len(values) else default


def _by_weekday(counts: Floats, weekday: int) -> list[Floats]:
    """Each day's count relative to the week around it, by day of week: a change of level leaves these alone."""
    padded = np.pad(counts, 3, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7), axis=1)
    days = _weekdays(len(counts), weekday)
    relative = np.divide(counts, around, out=np.ones_like(counts), where=around > 0)
    return [relative[(days == day) & (around > 0)] for day in range(7)]


def _weekday_factors(counts: Floats, weekday: int, usual: Floats) -> Floats:
    """Factor of each day of week, the campaign's own as far as it has the days and the counts to know it."""
    size = _middle(counts, 0.0)
    factors = usual.copy()
    if len(counts) < 14:
        return factors
    for day, own in enumerate(_by_weekday(counts, weekday)):
        weight = len(own) * size / (size + 30.0)
        factors[day] = (WEEKDAY_POOL * usual[day] + weight * _middle(own, 1.0)) / (WEEKDAY_POOL + weight)
    return np.maximum(factors, 0.05)


def _robust_scale(values: Floats) -> float:
    """A standard deviation that a seventh of wild values does not move: the larger of two quantiles' estimates.

    Of fewer than 20 values, where two would be a seventh, the median's alone.
    """
    away = np.abs(values)
    scale = 1.4826 * _middle(away, 0.0)
    return max(scale, float(np.quantile(away, 0.85)) / 1.4395) if len(away) >= 20 else scale


def _own_spread(adjusted: Floats) -> float | None:
    """Relative variance of a day around the level of the days before it, less counting noise; None if unknown."""
    if len(adjusted) < SMALLEST_HISTORY + 5:
        return None
    window = min(LEVEL_DAYS, len(adjusted) - 5)
    levels = np.median(np.lib.stride_tricks.sliding_window_view(adjusted, window), axis=1)[:-1]
    known = levels >= 1
    if known.sum() < 5:
        return None
    away = (adjusted[window:][known] - levels[known]) / levels[known]
    return min(max(_robust_scale(away) ** 2 - float(np.mean(1.0 / levels[known])), 0.0), 2.0)


def _level(counts: Floats, weekday: int, usual: Floats, usual_spread: float) -> _Level:
    """What the day's count should be, by the level of late and the day of week."""
    factors = _weekday_factors(counts, weekday, usual)
    adjusted = counts / factors[_weekdays(len(counts), weekday)]
    recent = adjusted[-LEVEL_DAYS:]
    mean = _middle(recent, 0.0) * float(factors[weekday])
    own = _own_spread(adjusted)
    weight = len(adjusted) if own is not None else 0.0
    spread = max((weight * (own or 0.0) + POOL_DAYS * usual_spread) / (weight + POOL_DAYS), LEAST_SPREAD)
    # The median of so many days is itself uncertain.
    unsure = math.pi / 2 * (spread + 1 / max(mean, 1.0)) / len(recent)
    return _Level(mean, spread + unsure)


def _ctr_history(subject: Subject) -> tuple[float, float, float]:
    """Clicks, impressions and excess relative variance of the CTR, days far off the others' cut to what is usual."""
    shown, clicked = subject.impressions[-CTR_DAYS:], subject.clicks[-CTR_DAYS:]
    kept = shown > 0
    shown, clicked = shown[kept], np.minimum(clicked[kept], shown[kept])
    if not len(shown):
        return 0.0, 0.0, 0.0
    order = np.argsort(clicked / shown, kind="stable")
    cut = len(order) // 10
    middle = order[cut : len(order) - cut]
    usual = shown * clicked[middle].sum() / shown[middle].sum()
    held = np.clip(clicked, usual / 3 - 3, 2 * usual + 5)
    chance = held.sum() / shown.sum()
    expected = shown * chance
    if chance <= 0 or len(shown) < 5:
        return float(held.sum()), float(shown.sum()), 0.0
    scale = _robust_scale((held - expected) / np.sqrt(expected))
    return float(held.sum()), float(shown.sum()), float(min(max(scale**2 - 1.0, 0.0) / expected.mean(), 0.5))


def _shape_spread(shape: Shape) -> tuple[float, float]:
    """Excess relative variance of an hour's count, and the counts it is known from."""
    squares = float((shape.mean**2).sum())
    if squares <= 0:
        return 0.0, 0.0
    return min(max(float((shape.variance - shape.mean).sum()) / squares, 0.0), 2.0), float(
        shape.mean.sum()
    ) * shape.days


def _pooled(values: Sequence[tuple[float, float]], least: float) -> float:
    """The mean of (value, weight), not less than `least`."""
    weight = sum(one for _, one in values)
    return max(sum(value * one for value, one in values) / weight, least) if weight else least


def _network(subjects: Sequence[Subject], weekday: int) -> _Network:
    """What is usual, from the campaigns that have enough history to tell."""
    factors, spreads = [], []
    for counts in ([s.impressions for s in subjects], [s.clicks for s in subjects]):
        able = [one for one in counts if len(one) >= 14 and _middle(one, 0.0) >= LEAST_IMPRESSIONS]
        days = [_by_weekday(one, weekday) for one in able]
        own = [np.concatenate([np.empty(0), *(campaign[day] for campaign in days)]) for day in range(7)]
        usual = np.maximum(np.array([_middle(found, 1.0) for found in own]), 0.05)
        factors.append(usual)
        known = [_own_spread(one / usual[_weekdays(len(one), weekday)]) for one in able]
        spreads.append(max(_middle(np.array([one for one in known if one is not None]), 0.05), LEAST_SPREAD))
    ctrs = [_ctr_history(subject) for subject in subjects]
    shown = sum(one[1] for one in ctrs)
    ctr = (sum(one[0] for one in ctrs) + 0.5) / (shown + 100.0) if shown else 0.005
    # Between campaigns: the variance of their rates beyond what counting explains, each weighing the same.
    rates = [(clicks / size, ctr * (1 - ctr) / size) for clicks, size, _ in ctrs if size >= 1000]
    between = 1.0
    if len(rates) >= 5:
        middle = _middle(np.array([rate for rate, _ in rates]), ctr) or ctr
        between = float(np.mean([(rate - middle) ** 2 - noise for rate, noise in rates])) / middle**2
    hours, hour_spread = {}, {}
    for name, shapes in (
        ("impressions", [s.impressions_shape for s in subjects]),
        ("clicks", [s.clicks_shape for s in subjects]),
    ):
        total = np.sum([shape.mean for shape in shapes], axis=0) if shapes else np.zeros(HOURS)
        # A little of an even day, so that no hour is impossible.
        hours[name] = (total + total.sum() * 0.02 / HOURS + 1e-9) / (total.sum() * 1.02 + HOURS * 1e-9)
        hour_spread[name] = _pooled([_shape_spread(shape) for shape in shapes], LEAST_HOUR_SPREAD)
    return _Network(
        factors[0],
        factors[1],
        spreads[0],
        spreads[1],
        min(max(ctr, 1e-5), 0.5),
        min(max(between, 0.05), 4.0),
        _pooled([(spread, clicks) for clicks, _, spread in ctrs], LEAST_CTR_SPREAD),
        hours["impressions"],
        hours["clicks"],
        hour_spread,
    )


# Judging


def judge(subjects: Sequence[Subject], weekday: int, rate: float) -> list[Finding]:
    """Anomalies of one day among these campaigns, of which at most the share `rate` is expected to be chance's.

    `weekday` is the day's, 0 for Monday. The history of each is of the days that end the day before.
    """
    able = [subject for subject in subjects if len(subject.impressions) >= SMALLEST_HISTORY]
    network = _network(able, weekday)
    tests: list[_Test] = []
    for subject in able:
        tests += _examined(subject, weekday, network)
    found = []
    for test, q_value in zip(tests, false_discovery([test.p_value for test in tests]), strict=True):
        if q_value <= rate and test.tell is not None:
            found.append(replace(test.tell(), q_value=q_value))
    return sorted(found, key=lambda one: (one.q_value, one.campaign_id, one.kind))


def alike(subjects: Sequence[Subject], weekday: int) -> float | None:
    """How the middle campaign's impressions stand to what was expected of it; None with fewer than five to ask."""
    able = [subject for subject in subjects if len(subject.impressions) >= SMALLEST_HISTORY and subject.in_flight]
    network = _network(able, weekday)
    ratios = []
    for subject in able:
        level = _level(subject.impressions, weekday, network.impressions_by_weekday, network.impressions_spread)
        if level.mean >= LEAST_IMPRESSIONS:
            ratios.append(subject.day_impressions / level.mean)
    return float(np.median(ratios)) if len(ratios) >= 5 else None


def _examined(subject: Subject, weekday: int, network: _Network) -> list[_Test]:
    level = _level(subject.impressions, weekday, network.impressions_by_weekday, network.impressions_spread)
    share = _hour_shares(subject.impressions_shape, network.impressions_by_hour)
    silent = subject.day_impressions == 0 and subject.day_clicks == 0
    tests = []
    if subject.in_flight:
        tests.append(_silence(subject, level, share, network.hour_spread["impressions"]))
    if not silent:
        tests += _volume(subject, level, share, network.hour_spread["impressions"])
        tests += _ctr(subject, network)
        tests.append(_spend(subject, level, weekday, network))
        tests.append(_bots(subject, network))
    return [test for test in tests if test is not None]


def _hour_shares(shape: Shape, usual: Floats) -> Floats:
    """The share of a day each hour has, the campaign's own as far as it has the events to know it."""
    events = shape.mean * shape.days
    pool = 50.0
    shares: Floats = (events + pool * usual) / (events.sum() + pool)
    return shares


def _hour_spread(shape: Shape, usual: float) -> float:
    own, weight = _shape_spread(shape)
    return max((own * weight + POOL_CLICKS * usual) / (weight + POOL_CLICKS), LEAST_HOUR_SPREAD)


def _volume(subject: Subject, level: _Level, share: Floats, usual: float) -> list[_Test]:
    count, mean = subject.day_impressions, level.mean
    if mean < LEAST_IMPRESSIONS:
        return []
    lower = upper = 1.0
    if count * LEAST_CHANGE <= mean or count >= LEAST_CHANGE * mean:
        lower, upper = gamma_poisson(count, mean, level.spread)
    spread = _hour_spread(subject.impressions_shape, usual)

    def told(kind: str, p_value: float) -> Finding:
        low, high = _range_of_counts(level)
        by_hour = subject.impressions_by_hour
        hours = (
            _hours_above(by_hour, share * mean, spread) if kind == VOLUME_UP else _hours_below(by_hour, share * mean)
        )
        text = (
            f"{_count(count, 'impression')} where {low:,} to {high:,} are plausible and {mean:,.0f} are expected on this "
            f"day of the week; {_chance(p_value)}{_at(hours, 'stands out', 'stand out')}."
        )
        return Finding(subject.campaign_id, kind, count, mean, low, high, p_value, 1.0, hours, text)

    return [
        _Test(upper if count >= LEAST_CHANGE * mean else 1.0, lambda: told(VOLUME_UP, upper)),
        _Test(lower if count * LEAST_CHANGE <= mean else 1.0, lambda: told(VOLUME_DOWN, lower)),
    ]


def _ctr(subject: Subject, network: _Network) -> list[_Test]:
    shown = subject.day_impressions
    clicked = min(subject.day_clicks, shown)
    if not shown:
        return []
    clicks, impressions, own = _ctr_history(subject)
    # How many impressions the network's rates are worth, as evidence of this campaign's.
    prior = (1 - network.ctr) / (network.ctr * network.ctr_between)
    mean = (clicks + prior * network.ctr) / (impressions + prior)
    day_spread = max((own * clicks + network.ctr_spread * POOL_CLICKS) / (clicks + POOL_CLICKS), LEAST_CTR_SPREAD)
    days = max(min(len(subject.impressions), CTR_DAYS), 1)
    spread = day_spread * (1 + 1 / days) + (1 - mean) / (mean * (impressions + prior))
    expected = shown * mean
    rises = clicked >= max(LEAST_SURPLUS_CLICKS, LEAST_CHANGE * expected)
    falls = expected >= LEAST_CLICKS and clicked * LEAST_CHANGE <= expected
    lower, upper = beta_binomial(clicked, shown, mean, spread) if rises or falls else (1.0, 1.0)

    def told(kind: str, p_value: float) -> Finding:
        low, high = plausible(lambda k: beta_binomial(k, shown, mean, spread), shown)
        by_hour = subject.clicks_by_hour
        wanted: Floats = subject.impressions_by_hour.astype(np.float64) * mean
        hours = _hours_above(by_hour, wanted, max(spread, 0.1)) if kind == CTR_UP else _hours_below(by_hour, wanted)
        text = (
            f"CTR {clicked / shown:.3%} ({_count(clicked, 'click')} on {_count(shown, 'impression')}) where its own history "
            f"makes {low / shown:.3%} to {high / shown:.3%} plausible and {mean:.3%} expected; {_chance(p_value)}"
            f"{_at(hours, 'stands out', 'stand out')}."
        )
        return Finding(
            subject.campaign_id, kind, clicked / shown, mean, low / shown, high / shown, p_value, 1.0, hours, text
        )

    tests = [_Test(upper if rises else 1.0, lambda: told(CTR_UP, upper))]
    if expected >= LEAST_CLICKS:
        tests.append(_Test(lower if falls else 1.0, lambda: told(CTR_DOWN, lower)))
    return tests


def _spend(subject: Subject, impressions: _Level, weekday: int, network: _Network) -> _Test | None:
    """Spend as the count that would have cost as much at the price of late: its tail is the count's."""
    counts = subject.clicks if subject.clicks_cost else subject.impressions
    paid = np.flatnonzero((counts > 0) & (subject.spend > 0))
    if not len(paid):
        return None
    price = float(subject.spend[paid[-1]] / counts[paid[-1]])
    level = impressions
    if subject.clicks_cost:
        level = _level(counts, weekday, network.clicks_by_weekday, network.clicks_spread)
    if level.mean < LEAST_CLICKS:
        return None
    worth = math.floor(subject.day_spend / price + 1e-6)
    p_value = 1.0
    if worth >= max(LEAST_SURPLUS_CLICKS, LEAST_CHANGE * level.mean):
        p_value = gamma_poisson(worth, level.mean, level.spread)[1]

    def told() -> Finding:
        low, high = _range_of_counts(level)
        count = subject.day_clicks if subject.clicks_cost else subject.day_impressions
        what = "click" if subject.clicks_cost else "impression"
        now = subject.day_spend / count if count else 0.0
        by_hour = subject.clicks_by_hour if subject.clicks_cost else subject.impressions_by_hour
        shape = subject.clicks_shape if subject.clicks_cost else subject.impressions_shape
        usual = network.clicks_by_hour if subject.clicks_cost else network.impressions_by_hour
        hours = _hours_above(by_hour, _hour_shares(shape, usual) * level.mean, 0.2)
        dearer = f" A {what} cost {now:,.4g}, the day before {price:,.4g}." if abs(now / price - 1) > 0.01 else ""
        text = (
            f"Spent {_money(subject.day_spend)} where its pace makes {_money(low * price)} to {_money(high * price)} plausible "
            f"and {_money(level.mean * price)} expected on this day of the week; {_chance(p_value)}"
            f"{_at(hours, 'stands out', 'stand out')}.{dearer}"
        )
        return Finding(
            subject.campaign_id, SPEND, subject.day_spend, level.mean * price, low * price, high * price, p_value, 1.0, hours, text
        )  # fmt: skip

    return _Test(p_value, told)


def _silence(subject: Subject, level: _Level, share: Floats, usual: float) -> _Test | None:
    """No event all day, or none during a run of hours that the campaign's profile does not leave empty."""
    if level.mean < LEAST_IMPRESSIONS:
        return None
    shown = subject.day_impressions
    if shown == 0 and subject.day_clicks == 0:
        p_value = gamma_poisson(0, level.mean, level.spread)[0]

        def all_day() -> Finding:
            low, high = _range_of_counts(level)
            text = (
                f"No event all day, though the campaign is in flight; {low:,} to {high:,} impressions are plausible and "
                f"{level.mean:,.0f} expected; {_chance(p_value)}."
            )
            every = tuple(range(HOURS))
            return Finding(subject.campaign_id, SILENCE, 0, level.mean, low, high, p_value, 1.0, every, text)

        return _Test(p_value, all_day)
    if not subject.impressions_shape.days:
        return _Test(1.0)
    first, last, held = _longest(subject.impressions_by_hour == 0, share)
    spread = _hour_spread(subject.impressions_shape, usual)
    expected = shown * held / (1 - held) if held < 1 else 0.0
    if held < 0.05 or expected < LEAST_IMPRESSIONS:
        return _Test(1.0)
    # Whatever run is the longest, it is one of so many.
    p_value = min(beta_binomial(0, shown, held, spread)[0] * RUNS_OF_HOURS, 1.0)

    def some_hours() -> Finding:
        low, high = plausible(lambda k: gamma_poisson(k, expected, spread), math.ceil(20 * expected + 50))
        text = (
            f"No impression from {first}:00 to {last}:59, hours in which {expected:,.0f} are expected by the rest of the "
            f"day; {_chance(p_value)}."
        )
        return Finding(
            subject.campaign_id, SILENCE, 0, expected, low, high, p_value, 1.0, tuple(range(first, last + 1)), text
        )

    return _Test(p_value, some_hours)


def _bots(subject: Subject, network: _Network) -> _Test | None:
    """An hour that holds far more of the day's events than its share."""
    worst: tuple[float, str, list[tuple[int, float]]] = (1.0, "", [])
    asked = False
    for what, by_hour, shape, usual, least in (
        ("click", subject.clicks_by_hour, subject.clicks_shape, network.clicks_by_hour, 10),
        ("impression", subject.impressions_by_hour, subject.impressions_shape, network.impressions_by_hour, 50),
    ):
        total = int(by_hour.sum())
        if not shape.days or total < least:
            continue
        asked = True
        shares = _hour_shares(shape, usual)
        spread = _hour_spread(shape, network.hour_spread[f"{what}s"])
        # A day with few events more than history has may well stand in one hour; the level of the other hours counts.
        found = []
        for hour in range(HOURS):
            count, held = int(by_hour[hour]), float(shares[hour])
            wanted = max(shape.mean[hour], (total - count) * held / (1 - held))
            if count < least or count < LEAST_HOUR_CHANGE * wanted:
                continue
            p_value = min(beta_binomial(count, total, held, spread)[1] * 2 * HOURS, 1.0)
            found.append((hour, p_value))
        best = min((p_value for _, p_value in found), default=1.0)
        if best < worst[0]:
            worst = (best, what, [one for one in found if one[1] < 0.01])
    if not asked:
        return None
    p_value, what, hours_found = worst

    def told() -> Finding:
        clicks = what == "click"
        by_hour = subject.clicks_by_hour if clicks else subject.impressions_by_hour
        shape = subject.clicks_shape if clicks else subject.impressions_shape
        shares = _hour_shares(shape, network.clicks_by_hour if clicks else network.impressions_by_hour)
        spread = _hour_spread(shape, network.hour_spread[f"{what}s"])
        hours = tuple(hour for hour, _ in hours_found)
        held = float(shares[list(hours)].sum())
        count = int(by_hour[list(hours)].sum())
        wanted = (int(by_hour.sum()) - count) * held / (1 - held)
        low, high = plausible(lambda k: gamma_poisson(k, max(wanted, 0.1), spread), math.ceil(20 * wanted + 50))
        text = (
            f"{_count(count, what)} at {_clock(hours)}, where the campaign's own profile and the rest of the day expect "
            f"{wanted:,.1f} and make {low:,} to {high:,} plausible; {_chance(p_value)}."
        )
        return Finding(subject.campaign_id, BOTS, count, wanted, low, high, p_value, 1.0, hours, text)

    return _Test(p_value, told if hours_found else None)


# Words


def _range_of_counts(level: _Level) -> tuple[int, int]:
    deviation = math.sqrt(level.mean + level.spread * level.mean**2)
    most = math.ceil(level.mean + 20 * deviation + 50)
    return plausible(lambda k: gamma_poisson(k, level.mean, level.spread), most)


def _hours_above(by_hour: NDArray[np.int64], expected: Floats, spread: float) -> tuple[int, ...]:
    """Hours with more than one time in a thousand would have."""
    return tuple(
        hour
        for hour in range(len(by_hour))
        if by_hour[hour] >= 3
        and by_hour[hour] > expected[hour]
        and gamma_poisson(int(by_hour[hour]), max(float(expected[hour]), 0.1), max(spread, 0.05))[1] < 0.001
    )


def _hours_below(by_hour: NDArray[np.int64], expected: Floats) -> tuple[int, ...]:
    """The run of hours with under a third of what is expected that misses most, if that is anything to speak of."""
    first, last, held = _longest(by_hour * 3 <= expected, np.asarray(expected, dtype=np.float64))
    return tuple(range(first, last + 1)) if held >= LEAST_CLICKS else ()


def _longest(wanted: NDArray[np.bool_], weight: Floats) -> tuple[int, int, float]:
    """The run of true entries with the largest sum of weights: its first and last place, and that sum."""
    best, begun, held = (0, -1, 0.0), 0, 0.0
    for place in range(len(wanted)):
        if not wanted[place]:
            begun, held = place + 1, 0.0
            continue
        held += float(weight[place])
        if held > best[2]:
            best = (begun, place, held)
    return best


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _money(value: float) -> str:
    return money.price(Decimal(repr(float(value))))


def _chance(p_value: float) -> str:
    if p_value < 1e-12:
        return "chance alone would do this less than once in 10¹² such days"
    return f"chance alone would do this about once in {float(f'{1 / p_value:.1g}'):,.0f} such days"


def _clock(hours: Sequence[int]) -> str:
    """Hours as ranges: 3:00 to 5:59, 17:00 to 17:59."""
    parts: list[list[int]] = []
    for hour in hours:
        if parts and hour == parts[-1][-1] + 1:
            parts[-1].append(hour)
        else:
            parts.append([hour])
    return ", ".join(f"{part[0]}:00 to {part[-1]}:59" for part in parts)


def _at(hours: Sequence[int], one: str, many: str) -> str:
    if not hours or len(hours) == HOURS:
        return ""
    return f"; {_clock(hours)} {one if len(hours) == 1 else many}"


# One day, from the tables to the result


@dataclass(frozen=True, slots=True)
class Detected:
    """A run over a day: campaigns looked at, anomalies that stand, and earlier ones it no longer finds."""

    day: date
    campaigns: int
    found: tuple[Finding, ...]
    withdrawn: int


def days_to_judge(sink: Sink, settings: Settings, now: datetime) -> list[date]:
    """The last `ANOMALY_DAYS` whole days in the reporting time zone after the first with metrics, oldest first."""
    today = calendars.in_force(sink, settings).day_of(instant(now))
    first = sink.named("anomalies", "first_day")[0][0]
    days = [today - timedelta(days=back) for back in range(settings.anomaly_days, 0, -1)]
    # Before the first day there is no history, and it is most often not whole itself.
    return [day for day in days if first is not None and day > first]


def whole_day(sink: Sink, settings: Settings, text: str, now: datetime) -> date:
    """The day named, as 2026-11-10. Raises `BadInput` for what is no day, or has not ended in the reporting time zone."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"A day is written as 2026-11-10, not {text!r:.40}.") from None
    if not date(1900, 1, 1) < day < calendars.in_force(sink, settings).day_of(instant(now)):
        raise BadInput(f"{day} is not over in {settings.reporting_timezone}; only whole days can be judged.")
    return day


def detect(sink: Sink, settings: Settings, day: date, complete_through: datetime | None = None) -> Detected:
    """Judges one whole day and replaces what was said of it before. Idempotent.

    `complete_through` is the instant before which everything the source wrote is loaded, where it is known; a day that
    ends later is told to be incomplete.
    """
    subjects, campaigns = _subjects(sink, settings, day)
    found = judge(subjects, day.weekday(), settings.anomaly_false_discovery_rate)
    if found:
        found = _with_causes(sink, settings, day, subjects, campaigns, found, complete_through)
    withdrawn = _write(sink, day, found)
    log.info("anomalies.detected", day=str(day), campaigns=len(subjects), found=len(found), withdrawn=withdrawn)
    return Detected(day, len(subjects), tuple(found), withdrawn)


@dataclass(frozen=True, slots=True)
class _Campaign:
    """A campaign as of the day, and what it had spent before it and with it."""

    start: date | None
    end: date | None
    is_deleted: bool
    budget: float
    spent: float


def _subjects(sink: Sink, settings: Settings, day: date) -> tuple[list[Subject], dict[int, _Campaign]]:
    first = day - timedelta(days=settings.anomaly_history_days)
    parameters = {"first_day": first, "day": day, "day_end": calendars.in_force(sink, settings).bounds(day).hi}
    campaigns = {
        int(row[0]): _Campaign(row[1], row[2], bool(row[3]), float(row[4]), float(row[5]))
        for row in sink.named("anomalies", "campaigns", parameters)
    }
    shapes: dict[tuple[int, str], Shape] = {}
    for campaign_id, kind, days, mean, variance in sink.named("anomalies", "shapes", parameters):
        shapes[campaign_id, kind] = Shape(np.array(mean), np.array(variance), int(days))
    rows: dict[int, list[Any]] = {}
    for row in sink.named("anomalies", "history", parameters):
        rows.setdefault(int(row[0]), []).append(row)
    subjects = []
    for campaign_id, held in rows.items():
        campaign = campaigns.get(campaign_id, _Campaign(None, None, campaign_id == 0, 0.0, 0.0))
        begun = min(row[1] for row in held)
        # A trial before the flight is no history of it; a campaign that delivers outside its flight has no other.
        if campaign.start is not None and begun < campaign.start <= day:
            begun = campaign.start
        size = (day - begun).days
        columns = np.zeros((3, max(size, 0)))
        today: Any = (0, 0, 0.0, [], [])
        for row in held:
            place = (row[1] - begun).days
            if row[1] == day:
                today = row[2:]
            elif 0 <= place < size:
                columns[:, place] = row[2:5]
        in_flight = (
            not campaign.is_deleted
            and (campaign.start is None or campaign.start <= day)
            and (campaign.end is None or day <= campaign.end)
        )
        subjects.append(
            Subject(
                campaign_id,
                columns[0],
                columns[1],
                columns[2],
                int(today[0]),
                int(today[1]),
                float(today[2]),
                _hourly(today[3]),
                _hourly(today[4]),
                shapes.get((campaign_id, "impressions"), FLAT),
                shapes.get((campaign_id, "clicks"), FLAT),
                in_flight,
                settings.pricing_model == "cpc",
            )
        )
    # A campaign whose flight is over has nothing to be judged by unless it delivers all the same.
    return [one for one in subjects if one.in_flight or one.day_impressions or one.day_clicks], campaigns


def _hourly(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.array(counts, dtype=np.int64) if len(counts) == HOURS else np.zeros(HOURS, dtype=np.int64)


def _with_causes(
    sink: Sink,
    settings: Settings,
    day: date,
    subjects: Sequence[Subject],
    campaigns: dict[int, _Campaign],
    found: Sequence[Finding],
    complete_through: datetime | None,
) -> list[Finding]:
    """The same anomalies with what the pipeline knows of that campaign and day."""
    bounds = calendars.in_force(sink, settings).bounds(day)
    causes: dict[int, list[str]] = {one.campaign_id: [] for one in found}
    common: list[str] = []
    if complete_through is not None and complete_through < bounds.hi:
        common.append(f"late data: the source is loaded only up to {_moment(complete_through)}, before the day's end")
    for stream, lo, hi, error in sink.named("anomalies", "failures", {"lo": bounds.lo, "hi": bounds.hi}):
        common.append(
            f"outage: the window {_moment(lo)} to {_moment(hi)} of {stream} failed to load and is not loaded yet ({error})"
        )
    silent = {one.campaign_id for one in found if one.kind in {SILENCE, VOLUME_DOWN}}
    judged = [one for one in subjects if len(one.impressions) >= SMALLEST_HISTORY and one.in_flight]
    if len(judged) >= 5 and len(silent) * 2 >= len(judged):
        common.append(f"outage: {len(silent)} of {len(judged)} campaigns in flight fell silent or low on this day")
    together = alike(subjects, day.weekday())
    if together is not None and not 1 / LEAST_CHANGE < together < LEAST_CHANGE:
        common.append(f"the whole network: the middle campaign stands at {together:.2f} times its usual volume")
    parameters = {
        "ids": tuple(sorted(causes)),
        "day": day,
        "lo": bounds.lo,
        "hi": bounds.hi,
        "before": bounds.lo - timedelta(days=7),
        "first_utc_day": (bounds.lo - timedelta(days=7)).date(),
        "last_utc_day": bounds.hi.date(),
    }
    for campaign_id, valid_from, was_bid, bid, was_budget, budget in sink.named("anomalies", "edits", parameters):
        if bid != was_bid:
            causes[campaign_id].append(
                f"bid edit: {money.amount(was_bid)} became {money.amount(bid)} at {_moment(valid_from)}"
            )
        if budget != was_budget:
            causes[campaign_id].append(
                f"budget edit: {money.amount(was_budget)} became {money.amount(budget)} at {_moment(valid_from)}"
            )
    for campaign_id, stream, rule, count in sink.named("anomalies", "quarantined", parameters):
        told = f"quarantine: {count:,} of its {stream} of this day could not be loaded ({rule})"
        causes[campaign_id].append(told)
    for campaign_id, late, total, late_before, total_before in sink.named("anomalies", "late", parameters):
        share, usual = late / total, late_before / total_before if total_before else 0.0
        if share >= 0.1 and share >= 2 * usual:
            causes[campaign_id].append(
                f"late data: {late:,} of {total:,} events came more than a day after they happened; in the week before "
                f"{usual:.0%} did"
            )
    for campaign_id, cause, at in sink.named("anomalies", "restated", parameters):
        causes[campaign_id].append(f"restated: the day was final and changed at {_moment(at)} ({cause})")
    result = []
    for one in found:
        own = list(causes[one.campaign_id])
        campaign = campaigns.get(one.campaign_id)
        if campaign is not None and campaign.budget > 0 and one.kind in {SILENCE, VOLUME_DOWN, SPEND}:
            if campaign.spent >= campaign.budget:
                own.append(
                    f"budget: {_money(campaign.spent)} of {_money(campaign.budget)} is spent by the end of the day"
                )
            elif one.kind == SPEND and one.observed > 0:
                left = (campaign.budget - campaign.spent) / one.observed
                ends = f", its flight {(campaign.end - day).days}" if campaign.end is not None else ""
                own.append(f"pace: at this rate the budget lasts another {left:,.1f} days{ends}")
        result.append(replace(one, known_causes=(*own, *common)))
    return result


def _moment(value: datetime) -> str:
    return f"{instant(value):%Y-%m-%d %H:%M} UTC"


def _write(sink: Sink, day: date, found: Sequence[Finding]) -> int:
    """Stores the day's anomalies and withdraws the others it had; returns how many were withdrawn."""
    standing = {(int(c), str(kind)) for c, kind in sink.named("anomalies", "standing", {"day": day})}
    gone = sorted(standing - {(one.campaign_id, one.kind) for one in found})
    if not found and not gone:
        return 0
    # Later than whatever was said before, though a clock be set back.
    (at,) = sink.named("anomalies", "next_moment", {"day": day})[0]
    at = max(instant(at), ORIGIN)
    columns = (
        "date_id", "campaign_id", "kind", "observed", "expected", "expected_low", "expected_high", "p_value", "q_value",
        "hours", "explanation", "known_causes", "detected_at", "is_withdrawn",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = [
        (
            day, one.campaign_id, one.kind, float(one.observed), float(one.expected), float(one.expected_low),
            float(one.expected_high), one.p_value, one.q_value, list(one.hours), one.explanation,
            list(one.known_causes), at, False,
        )
        for one in found
    ]  # fmt: skip
    rows += [(day, c, kind, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, [], "", [], at, True) for c, kind in gone]
    sink.insert_rows("metric_anomalies", columns, rows)
    return len(gone)
