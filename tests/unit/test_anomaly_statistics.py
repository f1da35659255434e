"""The detector's mathematics: tails against brute force sums, the false-discovery bound, and clean and faulty networks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator

from worker import anomalies
from worker.anomalies import Shape, Subject

RATE = 0.05
HISTORY = 42
BY_HOUR = np.array([4, 3, 2, 2, 2, 3, 5, 7, 9, 10, 11, 12, 12, 12, 11, 11, 12, 13, 14, 16, 18, 17, 12, 8]) / 226
BY_WEEKDAY = np.array([0.97, 0.93, 0.92, 0.95, 1.00, 1.12, 1.18])

spreads = st.floats(0.001, 3.0)


# Tails


def exact_gamma_poisson(mean: float, spread: float, up_to: int) -> list[float]:
    shape = 1 / spread
    return [
        math.exp(
            math.lgamma(k + shape) - math.lgamma(shape) - math.lgamma(k + 1)
            + shape * math.log(shape / (shape + mean)) + k * math.log(mean / (shape + mean))
        )
        for k in range(up_to + 1)
    ]  # fmt: skip


def exact_beta_binomial(trials: int, mean: float, spread: float) -> list[float]:
    concentration = (1 - mean) / (mean * spread) - 1
    a, b = mean * concentration, (1 - mean) * concentration

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return [
        math.comb(trials, k) * math.exp(log_beta(k + a, trials - k + b) - log_beta(a, b)) for k in range(trials + 1)
    ]


@given(count=st.integers(0, 120), mean=st.floats(0.05, 150.0), spread=spreads)
def test_gamma_poisson_tails_are_brute_force_sums(count: int, mean: float, spread: float) -> None:
    lower, upper = anomalies.gamma_poisson(count, mean, spread)
    terms = exact_gamma_poisson(mean, spread, count)
    assert lower == pytest.approx(math.fsum(terms), rel=1e-8, abs=1e-12)
    assert upper == pytest.approx(1 - math.fsum(terms[:-1]), rel=1e-6, abs=1e-10)


@given(count=st.integers(150, 400), mean=st.floats(0.05, 50.0), spread=st.floats(0.001, 0.5))
def test_a_far_tail_keeps_its_digits(count: int, mean: float, spread: float) -> None:
    """Where 1 − F would be rounding noise; the sum goes on until a term no longer counts."""
    upper = anomalies.gamma_poisson(count, mean, spread)[1]
    terms = exact_gamma_poisson(mean, spread, count + 3000)[count:]
    assert upper == pytest.approx(max(math.fsum(terms), anomalies.SMALLEST_P), rel=1e-7)


@st.composite
def trials_and_rates(draw: st.DrawFn) -> tuple[int, int, float, float]:
    trials = draw(st.integers(1, 300))
    mean = draw(st.floats(0.001, 0.9))
    share = draw(st.floats(0.001, 0.95))
    return draw(st.integers(0, trials)), trials, mean, share * (1 - mean) / mean


@given(trials_and_rates())
def test_beta_binomial_tails_are_brute_force_sums(drawn: tuple[int, int, float, float]) -> None:
    count, trials, mean, spread = drawn
    lower, upper = anomalies.beta_binomial(count, trials, mean, spread)
    terms = exact_beta_binomial(trials, mean, spread)
    assert math.fsum(terms) == pytest.approx(1.0, rel=1e-8)
    assert lower == pytest.approx(math.fsum(terms[: count + 1]), rel=1e-7, abs=1e-12)
    assert upper == pytest.approx(math.fsum(terms[count:]), rel=1e-7, abs=1e-12)


@given(count=st.integers(0, 50), mean=st.floats(0.5, 40.0), spread=spreads)
def test_many_rare_trials_are_gamma_poisson(count: int, mean: float, spread: float) -> None:
    trials = 20_000_000
    for ours, limit in zip(
        anomalies.beta_binomial(count, trials, mean / trials, spread),
        anomalies.gamma_poisson(count, mean, spread),
        strict=True,
    ):
        assert ours == pytest.approx(limit, rel=1e-3, abs=1e-9)


@given(mean=st.floats(0.5, 5000.0), spread=st.floats(0.01, 1.0))
def test_the_plausible_range_leaves_out_what_it_says(mean: float, spread: float) -> None:
    most = math.ceil(mean + 40 * math.sqrt(mean + spread * mean**2) + 100)
    low, high = anomalies.plausible(lambda k: anomalies.gamma_poisson(k, mean, spread), most)
    outside = anomalies.PLAUSIBLE
    assert anomalies.gamma_poisson(low - 1, mean, spread)[0] <= outside < anomalies.gamma_poisson(low, mean, spread)[0]
    assert (
        anomalies.gamma_poisson(high + 1, mean, spread)[1] <= outside < anomalies.gamma_poisson(high, mean, spread)[1]
    )


# False discoveries


@given(st.lists(st.floats(0.0, 1.0), max_size=40), st.floats(0.001, 0.5))
def test_benjamini_hochberg_by_its_definition(p_values: list[float], rate: float) -> None:
    """Reported are the k smallest, k the largest with p(k) ≤ rate · k / m."""
    found = anomalies.false_discovery(p_values)
    ordered = sorted(p_values)
    most = max((k for k, p in enumerate(ordered, 1) if p <= rate * k / len(ordered) * (1 + 1e-12)), default=0)
    assert sum(q <= rate * (1 + 1e-12) for q in found) == most
    assert all(q >= p for p, q in zip(p_values, found, strict=True))
    # In the order of the p-values.
    pairs = sorted(zip(p_values, found, strict=True))
    assert all(one[1] <= later[1] for one, later in pairwise(pairs))


def test_pure_chance_is_rarely_reported() -> None:
    rng = np.random.default_rng(1)
    runs = sum(any(q <= RATE for q in anomalies.false_discovery(list(rng.random(200)))) for _ in range(1000))
    # One run in twenty; six standard deviations of slack.
    assert runs <= 50 + 6 * math.sqrt(1000 * RATE * (1 - RATE))


# Networks


def network(rng: Generator, campaigns: int) -> list[tuple[Subject, list[np.ndarray], list[np.ndarray]]]:
    """Campaigns of all sizes with a history: rhythm of week and day, and days that differ beyond counting noise.

    With each come its days by hour, impressions and clicks; the last day is the one to be judged, a Wednesday.
    """
    made = []
    for number in range(campaigns):
        size = 60 * 1.4 ** (number % 18) * rng.lognormal(0, 0.2)
        rate = min(max(0.004 * rng.lognormal(0, 0.55), 0.0005), 0.03)
        shown, clicked = [], []
        for back in range(HISTORY, -1, -1):
            weekday = (2 - back) % 7
            mean = size * BY_WEEKDAY[weekday] * rng.lognormal(0, 0.15)
            shape = BY_HOUR * rng.lognormal(0, 0.15, 24)
            hours = rng.poisson(mean * shape / shape.sum())
            shown.append(hours)
            clicked.append(rng.binomial(hours, rate * rng.lognormal(0, 0.08)))
        made.append((subject(number + 1, shown, clicked), shown, clicked))
    return made


def shape(days: list[np.ndarray]) -> Shape:
    counts = np.array(days, dtype=np.float64)
    middle = np.sort(counts, axis=0)[len(days) // 10 : len(days) - len(days) // 10].mean(axis=0)
    held = np.minimum(counts, 2 * middle + 5)
    return Shape(held.mean(axis=0), held.var(axis=0, ddof=1), len(days))


def subject(campaign_id: int, shown: list[np.ndarray], clicked: list[np.ndarray], bid: float = 0.5) -> Subject:
    return Subject(
        campaign_id,
        np.array([day.sum() for day in shown[:-1]], dtype=np.float64),
        np.array([day.sum() for day in clicked[:-1]], dtype=np.float64),
        np.array([day.sum() * 0.5 for day in clicked[:-1]], dtype=np.float64),
        int(shown[-1].sum()),
        int(clicked[-1].sum()),
        float(clicked[-1].sum() * bid),
        shown[-1],
        clicked[-1],
        shape(shown[:-1]),
        shape(clicked[:-1]),
    )


def judged(subjects: list[Subject]) -> list[anomalies.Finding]:
    return anomalies.judge(subjects, 2, RATE)


@pytest.mark.parametrize("seed", range(8))
def test_a_clean_network_is_left_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = judged([made for made, _, _ in network(rng, 250)])
    assert len({one.campaign_id for one in found}) <= 2.5, found


def broken(rng: Generator, kind: str, made: tuple[Subject, list[np.ndarray], list[np.ndarray]]) -> Subject:
    """The same campaign with a fault of at least three times on the last day."""
    whole, shown, clicked = made
    shown, clicked = [*shown], [*clicked]
    last, clicks = shown[-1].copy(), clicked[-1].copy()
    bid = 0.5
    match kind:
        case "bots":
            hour = int(rng.integers(0, 24))
            clicks[hour] += 4 * max(int(clicks.sum()), 8)
            last[hour] = max(last[hour], clicks[hour])
        case "tracking break":
            clicks[3:] = 0
        case "outage":
            last[4:], clicks[4:] = 0, 0
        case "silence":
            last[:], clicks[:] = 0, 0
        case "duplicates":
            last, clicks = last * 4, clicks * 4
        case "bid edit":
            bid = 2.0
    return subject(whole.campaign_id, [*shown[:-1], last], [*clicked[:-1], clicks], bid)


EXPECTED = {
    "bots": {"ctr up", "bot-like hours", "spend over pace"},
    "tracking break": {"ctr down"},
    "outage": {"volume down", "silence"},
    "silence": {"silence"},
    "duplicates": {"volume up", "spend over pace"},
    "bid edit": {"spend over pace"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_faults_are_found_where_there_is_evidence(kind: str) -> None:
    rng = np.random.default_rng(7)
    networks = [network(rng, 120) for _ in range(3)]
    faulty = found = reported = right = 0
    for made in networks:
        # Campaigns with at least 15 clicks a day, of whom one in eight breaks.
        able = [place for place, (one, _, _) in enumerate(made) if one.clicks.mean() >= 15]
        chosen = set(able[::8])
        subjects = [broken(rng, kind, one) if place in chosen else one[0] for place, one in enumerate(made)]
        names = {subjects[place].campaign_id for place in chosen}
        result = judged(subjects)
        flagged = {one.campaign_id for one in result}
        faulty, found = faulty + len(names), found + len(names & flagged)
        reported, right = reported + len(flagged), right + len(flagged & names)
        assert {one.kind for one in result if one.campaign_id in names} & EXPECTED[kind]
    assert faulty >= 10
    assert found >= 0.8 * faulty
    assert right >= 0.9 * reported


def test_events_without_a_price_are_no_anomaly_of_spend() -> None:
    """Of a campaign that is not known yet nothing is spent, on the day or on days before it."""
    subjects = [made for made, _, _ in network(np.random.default_rng(17), 120)]
    on_the_day = [replace(one, day_spend=0.0) for one in subjects]
    before = [replace(one, spend=np.where(np.arange(len(one.spend)) % 2 == 0, 0.0, one.spend)) for one in subjects]
    always = [replace(one, spend=np.zeros_like(one.spend)) for one in subjects]
    for changed in (on_the_day, before, always):
        assert [one for one in judged(changed) if one.kind == anomalies.SPEND] == []


def test_earlier_bot_days_do_not_hide_the_next() -> None:
    rng = np.random.default_rng(11)
    (made, shown, clicked) = next(one for one in network(rng, 40) if 30 <= one[0].clicks.mean() <= 80)
    for back in (2, 5, 9):
        clicked[-1 - back] = clicked[-1 - back] * 20
    poisoned = subject(1, shown, clicked)
    others = [replace(one, campaign_id=one.campaign_id + 100) for one, _, _ in network(rng, 40)]
    assert not [one for one in judged([poisoned, *others]) if one.campaign_id == 1]
    bots = broken(rng, "bots", (made, shown, clicked))
    kinds = {one.kind for one in judged([replace(bots, campaign_id=1), *others]) if one.campaign_id == 1}
    assert {"ctr up", "bot-like hours"} <= kinds


def test_a_campaign_made_larger_is_news_for_a_week_at_most() -> None:
    rng = np.random.default_rng(3)
    (_, shown, clicked) = next(one for one in network(rng, 40) if one[0].clicks.mean() >= 30)
    others = [replace(one, campaign_id=one.campaign_id + 100) for one, _, _ in network(rng, 40)]
    for back in range(9):
        shown[-1 - back], clicked[-1 - back] = shown[-1 - back] * 4, clicked[-1 - back] * 4
    assert not [one for one in judged([subject(1, shown, clicked), *others]) if one.campaign_id == 1]


def test_a_small_campaign_is_not_blamed_for_its_noise() -> None:
    """0.4 % of 250 impressions is one click; five are four standard deviations, and nothing to speak of."""
    shown = [np.full(24, 11) for _ in range(HISTORY + 1)]
    clicked = [np.eye(24, dtype=np.int64)[day % 24] for day in range(HISTORY)]
    five = np.zeros(24, dtype=np.int64)
    five[[1, 5, 9, 14, 20]] = 1
    assert not judged([subject(1, shown, [*clicked, five])])


def test_hours_and_words_say_what_happened() -> None:
    rng = np.random.default_rng(5)
    made = network(rng, 40)
    place = next(place for place, one in enumerate(made) if 30 <= one[0].clicks.mean() <= 80)
    whole, shown, clicked = made[place]
    last, clicks = shown[-1].copy(), clicked[-1].copy()
    clicks[[3, 4]] += 150
    last = np.maximum(last, clicks)
    subjects = [one for one, _, _ in made]
    subjects[place] = subject(whole.campaign_id, [*shown[:-1], last], [*clicked[:-1], clicks])
    found = {one.kind: one for one in judged(subjects) if one.campaign_id == whole.campaign_id}
    assert found["bot-like hours"].hours == (3, 4)
    assert set(found["ctr up"].hours) >= {3, 4}
    assert "3:00 to 4:59" in found["ctr up"].explanation
    assert "chance alone" in found["ctr up"].explanation
    for one in found.values():
        assert not one.expected_low <= one.observed <= one.expected_high
        assert one.expected_low <= one.expected <= one.expected_high
        assert one.p_value <= one.q_value <= RATE
