"""What fits into the money that is kept, and how money is written for people."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import money

KEPT = st.integers(-(10**18) + 1, 10**18 - 1).map(lambda n: Decimal((n < 0, tuple(map(int, str(abs(n)))), -6)))
ANY = st.decimals(allow_nan=True, allow_infinity=True)


@given(KEPT, st.integers(0, 20))
def test_what_is_a_whole_number_of_millionths_fits_whatever_zeros_follow(value: Decimal, zeros: int) -> None:
    assert money.fits(value) is None
    assert money.fits(f"{value:f}{'0' * zeros}") is None


@given(KEPT, st.integers(1, 10**12 - 1).filter(lambda n: n % 10), st.integers(7, 30))
def test_one_decimal_more_than_is_kept_is_refused(value: Decimal, digits: int, place: int) -> None:
    with localcontext() as exact:
        exact.prec = 100
        finer = value + Decimal(digits).scaleb(-place) if digits < 10 ** (place - 6) else Decimal(digits).scaleb(-place)
        fitting = abs(finer) < 10**12 and finer == finer.quantize(Decimal("0.000001"))
    assert (money.fits(finer) is None) == fitting


@given(ANY)
def test_what_fits_comes_back_as_it_was_and_nothing_else_fits(value: Decimal) -> None:
    reason = money.fits(value)
    assert money.fits(str(value)) == reason or value.is_snan()
    if not value.is_finite():
        assert reason is not None
        assert "no amount" in reason
        return
    with localcontext() as exact:
        exact.prec = 5000
        scaled = value.scaleb(6) if abs(value.as_tuple().exponent) < 2000 else None  # type: ignore[arg-type]
        if scaled is None:
            return
        assert (reason is None) == (scaled == scaled.to_integral_value() and abs(scaled) < 10**18)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("0.0075", None),
        ("100000000000", None),
        ("999999999999.999999", None),
        ("1e11", None),
        ("-1.50", None),
        ("0e-30", None),
        ("1000000000000", "digits before the point"),
        ("1e17", "digits before the point"),
        ("0.0000001", "decimals"),
        ("1e-1000", "decimals"),
        (f"1.{'0' * 300}1", "decimals"),
        ("1e100000", "digits before the point"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("$12.50", "no plain decimal number"),
        ("", "no plain decimal number"),
    ],
)
def test_texts_of_postgresql(value: str, told: str | None) -> None:
    reason = money.fits(value)
    assert (reason is None) if told is None else (reason is not None and told in reason)
    assert len(reason or "") < 160


def test_a_campaign_is_refused_by_name() -> None:
    assert money.refusal(7, Decimal("0.5"), "1000.00") is None
    assert money.refusal(7, None, None) is None
    assert money.refusal(7, 3, 0.0075) is None
    assert "more than the 6 decimals" in str(money.refusal(7, 0.1 + 0.2, 1))
    assert "NaN" in str(money.refusal(7, float("nan"), 1))
    assert money.refusal(7, "0.12345678", "1") == (
        "The bid of campaign 7 is 0.12345678, which has more than the 6 decimals that are kept; correct it at the source."
    )
    assert "The budget of campaign 8 is 100000000000000000," in str(money.refusal(8, "1", Decimal("1e17")))
    assert "Campaign 0 cannot be told from no campaign" in str(money.refusal(0, "1", "1"))


@pytest.mark.parametrize(
    ("value", "told"),
    [("0", "0.00"), ("0.0075", "0.0075"), ("1005.5", "1,005.50"), ("129.900000", "129.90"), ("-0.000000001", "-0.000000001"),
     ("1e6", "1,000,000.00"), ("12345678901234567890.123456789", "12,345,678,901,234,567,890.123456789")],
)  # fmt: skip
def test_an_amount_is_told_to_its_last_digit(value: str, told: str) -> None:
    assert money.amount(Decimal(value)) == told


@given(st.decimals(min_value=-(10**28), max_value=10**28, places=9))
def test_an_amount_for_people_is_the_amount(value: Decimal) -> None:
    assert Decimal(money.amount(value).replace(",", "")) == value


@pytest.mark.parametrize(
    ("value", "told"),
    [("6.748", "6.75"), ("0", "0.00"), ("0.5", "0.50"), ("0.0075", "0.0075"), ("0.0123456", "0.0123"), ("0.999999", "1.00"),
     ("0.457323", "0.457"), ("-0.005", "-0.005"), ("1234.5", "1,234.50"), ("0.000008", "0.000008")],
)  # fmt: skip
def test_a_price_is_told_in_cents_or_three_digits(value: str, told: str) -> None:
    assert money.price(Decimal(value)) == told
