"""Which types of columns at the source are kept whole, and what is said of the others."""

from __future__ import annotations

import pytest

from worker import sourcetypes

GOOD = {
    "id": "bigint", "name": "text", "advertiser_id": "integer", "bid": "numeric(10,2)", "budget": "numeric(18,6)",
    "start_date": "date", "end_date": "date", "created_at": "timestamp with time zone",
    "updated_at": "timestamp(3) with time zone",
}  # fmt: skip


def test_what_is_kept_whole_is_passed_over() -> None:
    assert sourcetypes.judge("campaign", GOOD) == []
    assert (
        sourcetypes.judge("campaign", GOOD | {"name": "character varying(80)", "bid": "smallint", "unread": "xml"})
        == []
    )
    for table in ("impressions", "clicks"):
        types = dict.fromkeys(("created_at", "inserted_at"), "timestamp with time zone")
        assert sourcetypes.judge(table, types | {"id": "numeric(18,0)", "campaign_id": "bigint"}) == []


@pytest.mark.parametrize(
    ("column", "kind", "state", "told"),
    [
        ("bid", "numeric(20,8)", "wrong", "more than 6 decimals"),
        ("bid", "numeric(12,4)", None, ""),
        ("budget", "numeric(19,6)", "wrong", "12 digits before the point"),
        ("budget", "numeric(12,-1)", "wrong", "12 digits before the point"),
        ("budget", "numeric", "note", "can hold more"),
        ("budget", "bigint", "note", "can hold more"),
        ("bid", "double precision", "wrong", "no exact number"),
        ("bid", "money", "wrong", "lc_monetary"),
        ("bid", "text", "wrong", "cannot be read as an amount"),
        ("id", "numeric(20,0)", "wrong", "2^63"),
        ("id", "numeric(10,2)", "wrong", "fractions are rounded"),
        ("advertiser_id", "uuid", "wrong", "no whole number"),
        ("start_date", "timestamp without time zone", "note", "time of day is dropped"),
        ("end_date", "integer", "wrong", "cannot be read as a day"),
        ("created_at", "timestamp without time zone", "note", "taken to be UTC"),
        ("created_at", "timestamp(3) without time zone", "note", "taken to be UTC"),
        ("updated_at", "date", "note", "midnight UTC"),
        ("updated_at", "bigint", "wrong", "cannot be read as an instant"),
        ("name", "bytea", "wrong", "cannot be read as text"),
    ],
)
def test_what_can_be_lost_is_named(column: str, kind: str, state: str | None, told: str) -> None:
    found = sourcetypes.judge("campaign", GOOD | {column: kind})
    assert [(one.column, one.state) for one in found] == ([(column, state)] if state else [])
    assert all(told in one.found for one in found)
    assert all(one.mend for one in found if one.state == "wrong")


def test_a_renamed_column_is_missing() -> None:
    types = {("price" if name == "bid" else name): kind for name, kind in GOOD.items()}
    (found,) = sourcetypes.judge("campaign", types)
    assert (found.column, found.state) == ("bid", "wrong")
    assert "missing" in found.found
