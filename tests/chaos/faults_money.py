"""Faults of prices: campaigns that come after their events, and one that has the id of no campaign."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos import writers
from tests.chaos.faults import PATIENCE, Scene, fault
from tests.chaos.stage import Violation, eventually

FIRST_LATE = 910_000_000
"""Ids of campaigns that come late, out of the way of the sequence and of campaigns nobody knows."""

CLICKS = 9


@fault(
    "campaign after its events", "data", lambda rng: {"bid": rng.choice(["0.0075", "0.1299", "1.005", "0.000001"])}, 0.5
)
def after_its_events(scene: Scene, bid: str) -> Iterator[None]:
    """Its events are published before it is known: without a price, and never at 0 as a fact."""
    taken = scene.stage.write(f"SELECT max(campaign_id) FROM clicks WHERE campaign_id >= {FIRST_LATE}")[0][0]
    campaign = (taken or FIRST_LATE) + 1
    scene.stage.write(
        "INSERT INTO clicks (campaign_id, created_at) SELECT %s, %s FROM generate_series(1, %s)",
        campaign, f"{writers.day(4)}T07:00:00Z", CLICKS,
    )  # fmt: skip
    statement = (
        "SELECT sum(clicks_count), sum(unpriced_count) FROM daily_campaign_performance WHERE campaign_id = %(campaign)s"
    )

    def unpriced() -> bool:
        clicks, without = servers.sink.query("looking for its events", statement, {"campaign": campaign})[0]
        if clicks and without != clicks:
            raise Violation(
                f"{clicks} clicks of campaign {campaign}, which is not known, were published as {without} unpriced"
            )
        return bool(clicks == CLICKS)

    with scene.stage.servers() as servers:
        eventually(unpriced, f"events of campaign {campaign} are published without a price", PATIENCE, every=0.2)
    scene.stage.write(
        "INSERT INTO campaign (id, name, bid, budget, advertiser_id) VALUES (%s, 'late', %s, 1, 1)", campaign, bid
    )
    yield


@fault("campaign of id 0", "data", weight=0.3)
def campaign_zero(scene: Scene) -> Iterator[None]:
    """It must price none of the events that have no campaign."""
    scene.stage.write(
        "INSERT INTO campaign (id, name, bid, budget, advertiser_id) VALUES (0, 'zero', 3, 1, 1) ON CONFLICT DO NOTHING"
    )
    scene.stage.write(
        "INSERT INTO clicks (campaign_id, created_at) SELECT nullif(n %% 2, 0) - 1, %s FROM generate_series(1, 6) AS n",
        f"{writers.day(4)}T08:00:00Z",
    )
    yield
