"""Money: how much of it is kept, what does not fit, and how it is written for people. Pure.

Bids and budgets are kept as ClickHouse's Decimal(18, 6), spend as Decimal(38, 9): docs/decisions/money.md says why.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation

DIGITS, DECIMALS = 18, 6
"""Of a bid and a budget: digits in all, and after the point."""

LARGEST = Decimal(10 ** (DIGITS - DECIMALS)) - Decimal(1).scaleb(-DECIMALS)
"""The largest amount that is kept, 999,999,999,999.999999."""

LIMITS = f"an amount has at most {DIGITS - DECIMALS} digits before the point and {DECIMALS} after it"

NO_CAMPAIGN = 0
"""The id under which events without a campaign are counted; none of the source's campaigns can have it."""

_EXACT = Context(prec=200)


def fits(value: Decimal | float | str | None) -> str | None:
    """Why this bid or budget cannot be kept as it is, as the end of a sentence, or None where it can.

    Takes a number, or PostgreSQL's text of one (`12.50`, `NaN`, `Infinity`, `1e-7`); a float by the shortest text that
    names it. Nothing is ever rounded to
    fit: zeros at the end of the decimals are no decimals. None, no amount at all, takes no room.
    """
    if value is None:
        return None
    try:
        amount = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except InvalidOperation:
        return f"is {value!r:.60}, which is no plain decimal number"
    if amount.is_nan():
        return "is NaN, which is no amount"
    if amount.is_infinite():
        return f"is {'-' if amount < 0 else ''}Infinity, which is no amount"
    if abs(amount) > LARGEST and abs(amount) >= 10 ** (DIGITS - DECIMALS):
        return f"is {_short(amount)}, which has more than the {DIGITS - DECIMALS} digits before the point that are kept"
    if decimals(amount) > DECIMALS:
        return f"is {_short(amount)}, which has more than the {DECIMALS} decimals that are kept"
    return None


def decimals(amount: Decimal) -> int:
    """Decimals of a finite number without zeros at their end."""
    _, digits, exponent = amount.as_tuple()
    places = -int(exponent)
    for digit in reversed(digits):
        if digit or places <= 0:
            break
        places -= 1
    return max(places, 0) if any(digits) else 0


def refusal(campaign_id: int, bid: Decimal | float | str | None, budget: Decimal | float | str | None) -> str | None:
    """Why a campaign of the source cannot be kept, as one sentence that names it, or None where it can."""
    if campaign_id == NO_CAMPAIGN:
        return (
            "Campaign 0 cannot be told from no campaign: its events stand under 0 without a price; give it another id."
        )
    for name, value in (("bid", bid), ("budget", budget)):
        reason = fits(value)
        if reason is not None:
            return f"The {name} of campaign {campaign_id} {reason}; correct it at the source."
    return None


def _short(amount: Decimal) -> str:
    told = f"{amount:f}" if -30 < amount.adjusted() < 30 else f"{amount:e}"
    return told if len(told) <= 60 else f"{told[:57]}..."


def amount(value: Decimal | int) -> str:
    """An amount for people, exact: at least two decimals, as many as it has, thousands apart."""
    exact = Decimal(value)
    return f"{exact:,.{max(2, decimals(exact))}f}"


def price(value: Decimal) -> str:
    """A quotient of money (CPM, CPC, money per day) for people: cents, and below 1 three digits that say something."""
    if not value:
        return "0.00"
    places = max(2, 2 - value.adjusted()) if abs(value) < 1 else 2
    rounded = value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP, _EXACT)
    return amount(rounded)
