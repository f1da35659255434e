"""The distributions: what the generated data promises to look like."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seed import flights, model, names

NOW = datetime(2026, 3, 11, 15, 42, 7, 123456, tzinfo=UTC)
NOW_US = model.microseconds(NOW)
seeds = st.integers(0, 2**32)


def test_an_instant_becomes_microseconds_exactly() -> None:
    assert NOW_US == 1_773_243_727_123_456
    assert model.microseconds(NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))) == NOW_US


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        model.microseconds(NOW.replace(tzinfo=None))


@settings(deadline=None)
@given(seeds)
def test_arrival_delays_fall_into_their_bands(seed: int) -> None:
    delays = model.arrival_delays(np.random.default_rng(seed), 20_000)
    assert delays.min() >= 0
    assert delays.max() <= 5 * model.DAY
    within_5_minutes = np.mean(delays < 5 * model.MINUTE)
    within_6_hours = np.mean(delays < 6 * model.HOUR)
    assert within_5_minutes == pytest.approx(0.95, abs=0.01)
    assert within_6_hours == pytest.approx(0.99, abs=0.005)
    assert within_6_hours < 1


def test_late_arrivals_reach_the_end_of_their_bands() -> None:
    delays = model.arrival_delays(np.random.default_rng(4), 200_000)
    assert delays.max() > 4 * model.DAY
    late = delays[(delays >= 5 * model.MINUTE) & (delays < 6 * model.HOUR)]
    assert late.min() < 6 * model.MINUTE
    assert late.max() > 5 * model.HOUR


@settings(deadline=None)
@given(st.lists(st.integers(1, 2**62), min_size=1, max_size=50))
def test_ctr_stays_within_its_bounds_and_belongs_to_the_id(ids: list[int]) -> None:
    rates = model.click_through_rates(ids)
    assert (rates >= 0.0003).all()
    assert (rates <= 0.02).all()
    assert [float(model.click_through_rates([id_])[0]) for id_ in ids] == rates.tolist()


def test_ctr_is_around_four_clicks_in_a_thousand_and_differs_between_campaigns() -> None:
    rates = model.click_through_rates(np.arange(1, 5_001))
    assert np.median(rates) == pytest.approx(0.004, rel=0.05)
    assert np.quantile(rates, 0.02) < 0.0015
    assert np.quantile(rates, 0.98) > 0.010
    assert np.corrcoef(rates[:-1], rates[1:])[0, 1] == pytest.approx(0, abs=0.05)


@settings(deadline=None)
@given(seeds, st.integers(50, 500))
def test_a_few_campaigns_get_most_of_the_traffic(seed: int, count: int) -> None:
    shares = np.sort(model.popularity(np.random.default_rng(seed), count))[::-1]
    assert shares.sum() == pytest.approx(1)
    assert shares[: count // 10].sum() > 0.4
    assert (shares[count // 2 :] > 0).all()
    assert shares[count // 2 :].sum() < 0.2


@settings(deadline=None)
@given(seeds)
def test_bids_are_cents_from_30_to_300(seed: int) -> None:
    bids = flights.bids(np.random.default_rng(seed), 2_000)
    assert min(bids) >= Decimal("0.30")
    assert max(bids) <= Decimal("3.00")
    assert all(bid.as_tuple().exponent == -2 for bid in bids)
    assert len(set(bids)) > 100


@settings(deadline=None)
@given(seeds)
def test_click_delays_are_a_second_to_half_an_hour(seed: int) -> None:
    delays = model.click_delays(np.random.default_rng(seed), 5_000)
    assert delays.min() >= model.SECOND
    assert delays.max() <= 30 * model.MINUTE
    assert 20 * model.SECOND < np.median(delays) < 80 * model.SECOND


@settings(deadline=None)
@given(seeds, st.lists(st.integers(0, 3 * model.HOUR), min_size=1, max_size=100))
def test_no_click_is_before_its_impression_or_after_now(seed: int, ages: list[int]) -> None:
    shown_at = NOW_US - np.array(ages, dtype=np.int64)
    clicked_at = model.clicks_until(np.random.default_rng(seed), shown_at, NOW_US)
    assert (clicked_at >= shown_at).all()
    assert (clicked_at <= NOW_US).all()
    assert (clicked_at - shown_at <= 30 * model.MINUTE).all()


@settings(deadline=None)
@given(st.integers(-(2**50), 2**51), st.integers(1, 40 * model.DAY), seeds)
def test_traffic_stays_within_its_period(start: int, length: int, seed: int) -> None:
    traffic = model.rhythm(start, start + length)
    assert (np.diff(traffic.edges) > 0).all()
    assert (np.diff(traffic.mass) > 0).all()
    assert (traffic.mass[0], traffic.mass[-1]) == (0, 1)
    instants = traffic.instants(np.random.default_rng(seed), 0.0, 1.0, 200)
    assert instants.min() >= start
    assert instants.max() < start + length


def test_an_empty_period_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        model.rhythm(5, 5)


def test_traffic_between_two_shares_lies_between_their_instants() -> None:
    traffic = model.rhythm(NOW_US - 8 * model.DAY, NOW_US)
    bounds = np.array([NOW_US - 3 * model.DAY, NOW_US - 2 * model.DAY])
    low, high = traffic.before(bounds)
    instants = traffic.instants(np.random.default_rng(1), low, high, 5_000)
    assert instants.min() >= bounds[0] - 1
    assert instants.max() <= bounds[1] + 1


def test_evenings_and_weekends_are_busiest() -> None:
    week = model.microseconds(datetime(2026, 3, 2, tzinfo=UTC))  # a Monday
    traffic = model.rhythm(week, week + 7 * model.DAY)
    instants = traffic.instants(np.random.default_rng(2), 0.0, 1.0, 200_000)
    by_hour = np.bincount((instants - week) // model.HOUR % 24, minlength=24)
    by_day = np.bincount((instants - week) // model.DAY, minlength=7)
    assert by_hour.argmax() == 20
    assert by_hour.argmin() == 3
    assert by_hour.max() > 5 * by_hour.min()
    assert set(by_day.argsort()[-2:].tolist()) == {5, 6}


def test_flights_are_of_every_kind() -> None:
    today = date(2026, 3, 11)
    calendar = flights.mixed_flights(np.random.default_rng(3), 400, today - timedelta(days=60), today)
    running = [flight for flight in calendar if flight.runs_on(today)]
    ended = [flight for flight in calendar if flight.end and flight.end < today]
    to_come = [flight for flight in calendar if flight.start and flight.start > today]
    assert len(running) + len(ended) + len(to_come) == 400
    assert len(running) > 200
    assert len(ended) > 80
    assert len(to_come) > 15
    assert sum(flight.end is None for flight in calendar) > 20
    assert any(flight.start is None for flight in calendar)
    assert all(flight.days() >= 1 for flight in calendar)


@settings(deadline=None)
@given(seeds, st.integers(1, 20), st.integers(1, 720))
def test_no_day_is_without_a_campaign(seed: int, count: int, days: int) -> None:
    today = date(2026, 3, 11)
    first = today - timedelta(days=days)
    calendar = flights.mixed_flights(np.random.default_rng(seed), count, first, today)
    for day in (first, today):
        assert any(flight.runs_on(day) for flight in calendar)


@settings(deadline=None)
@given(seeds, st.decimals("0.30", "3.00", places=2), st.floats(0, 1e12))
def test_a_budget_buys_about_the_clicks_planned(seed: int, bid: Decimal, clicks: float) -> None:
    budget = flights.budget(np.random.default_rng(seed), bid, clicks)
    assert budget.as_tuple().exponent == -2
    assert budget >= 10 * bid
    assert budget <= Decimal("99999999.99")
    if 20 < clicks < 1e6:
        assert 0.75 < float(budget / bid) / clicks < 1.7


@settings(deadline=None)
@given(seeds, st.integers(0, 12), st.integers(0, 60))
def test_every_advertiser_gets_a_campaign_where_there_are_enough(seed: int, advertisers: int, campaigns: int) -> None:
    ids = list(range(100, 100 + advertisers))
    owners = flights.house_or_advertiser(np.random.default_rng(seed), ids, campaigns)
    assert len(owners) == campaigns
    assert set(owners) <= {*ids, None}
    if campaigns >= advertisers:
        assert set(ids) <= set(owners)


def test_advertisers_have_names_of_their_own() -> None:
    drawn = list(names.advertiser_names(np.random.default_rng(5), 2_000))
    assert len(set(drawn)) == 2_000
    assert all(name.strip() == name and 3 < len(name) < 60 for name in drawn)


@settings(deadline=None)
@given(seeds, st.text(max_size=300))
def test_a_campaign_name_fits_its_column(seed: int, advertiser: str) -> None:
    name = names.campaign_name(np.random.default_rng(seed), advertiser)
    assert len(name) <= 255
    assert name.count(" | ") >= 3


def test_a_campaign_advertises_what_its_advertiser_sells() -> None:
    for seed in range(20):
        line = names.campaign_name(np.random.default_rng(seed), "Northfield Dairy 2").split(" | ")[1]
        assert line in {"Greek Yogurt", "Oat Milk", "Aged Cheddar", "Kefir"}
