"""Which amounts of money can be kept. Pure."""

from __future__ import annotations

from decimal import Decimal

PRECISION = 10
"""Digits that are kept of an amount of a dimension, in all: those of the columns of `campaign_history`."""

SCALE = 2
"""Digits of them that are kept after the point."""

LIMITS = f"an amount has at most {PRECISION - SCALE} digits before the point and {SCALE} after it"


def fits(value: Decimal) -> bool:
    """Whether this amount can be kept exactly."""
    if not value.is_finite():
        return False
    if not value:
        return True
    # By hand: Decimal's own arithmetic rounds to its context.
    _, digits, exponent = value.as_tuple()
    shown = "".join(map(str, digits))
    lowest = int(exponent) + len(shown) - len(shown.rstrip("0"))
    return lowest >= -SCALE and value.adjusted() < PRECISION - SCALE
