"""Faults of dimensions: a row that cannot be loaded, and a table that is empty by mistake."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.chaos.faults import PATIENCE, Scene, fault
from tests.chaos.stage import Stage, Violation, eventually
from worker import standing
from worker.streams import STREAMS

POISONED = 4
"""A campaign that exists from the beginning; events of it are counted all the time."""


ASK_SECONDS = 5.0
"""Ticks of campaigns asked for closer together would wait in line, each with a look at all metrics behind it."""


class _Asking:
    """Asks for a tick of campaigns now and then."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._due = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + ASK_SECONDS
            _ask_for_campaigns(self._stage)


def _ask_for_campaigns(stage: Stage) -> None:
    stage.send("worker.tasks.sync.plan", {"streams": ["campaigns"]}, "realtime", expires=30)


def _known(stage: Stage, ask: _Asking) -> None:
    """Waits until every campaign that can be was loaded: of a table nothing is known of yet, no reading shows too little."""
    ids = {row_id for (row_id,) in stage.write("SELECT id FROM campaign WHERE id <> 0")}

    def loaded() -> bool:
        ask()
        with stage.servers() as servers:
            rows = servers.sink.query("looking", "SELECT campaign_id FROM campaign_dimension WHERE NOT is_deleted")
        return ids <= {row_id for (row_id,) in rows}

    eventually(loaded, "every campaign is loaded", PATIENCE, every=0.5)


def _held(stage: Stage) -> set[int]:
    """Campaigns in quarantine."""
    with stage.servers() as servers:
        rows = servers.sink.query(
            "looking", "SELECT event_id FROM quarantine WHERE stream = 'campaigns' AND state = 'held'"
        )
    return {row_id for (row_id,) in rows}


def _deleted(stage: Stage) -> set[int]:
    """Campaigns that were ever marked deleted."""
    with stage.servers() as servers:
        rows = servers.sink.query("looking", "SELECT DISTINCT campaign_id FROM campaign_history WHERE is_deleted")
    return {campaign for (campaign,) in rows}


@fault(
    "campaign poisoned", "data", lambda rng: {"bid": rng.choice(["Infinity", "-Infinity", "1e17"])}, 0.5, progress=True
)
def campaign_poisoned(scene: Scene, bid: str) -> Iterator[None]:
    """A campaign's bid becomes one that cannot be kept; campaigns beside it go on arriving, and it comes back mended."""
    stage = scene.stage
    ask = _Asking(stage)
    _known(stage, ask)
    stage.write("ALTER TABLE campaign ALTER bid TYPE numeric")
    ((before,),) = stage.write("SELECT bid FROM campaign WHERE id = %s", POISONED)
    stage.write("UPDATE campaign SET bid = %s WHERE id = %s", bid, POISONED)
    try:
        ((beside,),) = stage.write(
            "INSERT INTO campaign (name, bid, budget, advertiser_id) VALUES ('beside', 1, 1, 1) RETURNING id"
        )

        def isolated() -> bool:
            ask()
            with stage.servers() as servers:
                rows = servers.sink.query(
                    "looking",
                    "SELECT campaign_id FROM campaign_dimension WHERE campaign_id IN (%(one)s, %(other)s) AND NOT is_deleted",
                    {"one": POISONED, "other": beside},
                )
            return len(rows) == 2 and POISONED in _held(stage)

        eventually(isolated, "the campaign is set aside and the one beside it loaded", PATIENCE, every=0.5)
        yield
    finally:
        stage.write("UPDATE campaign SET bid = %s WHERE id = %s", before, POISONED)

    def back() -> None:
        def mended() -> bool:
            ask()
            return POISONED not in _held(stage)

        eventually(mended, "the mended campaign is out of quarantine", PATIENCE, every=0.5)
        if POISONED in _deleted(stage):
            raise Violation(f"campaign {POISONED} was marked deleted while it could not be loaded")

    scene.afterwards.append(back)


@fault("campaign emptied", "data", lambda rng: {"share": rng.choice([1.0, 0.8])}, 0.5, progress=True)
def campaign_emptied(scene: Scene, share: float) -> Iterator[None]:
    """Somebody deletes campaigns by mistake and puts them back; until a person says that it is meant, nobody believes it."""
    stage = scene.stage
    ask = _Asking(stage)
    _known(stage, ask)
    stage.write(
        "CREATE TABLE campaign_kept AS SELECT * FROM campaign ORDER BY id DESC "
        "LIMIT (SELECT ceil(%s * count(*)) FROM campaign)",
        share,
    )
    try:
        stage.write("DELETE FROM campaign WHERE id IN (SELECT id FROM campaign_kept)")

        def noticed() -> bool:
            ask()
            if _deleted(stage):
                raise Violation(f"campaigns were marked deleted: {sorted(_deleted(stage))[:5]}")
            with stage.servers() as servers:
                failing = standing.failing(servers.ledger, [STREAMS["campaigns"]])
            return any("DIMENSION_MAX_SHRINK_PERCENT" in failure.error for failure in failing["campaigns"])

        eventually(noticed, "the emptied dimension is noticed", PATIENCE, every=0.5)
        yield
    finally:
        stage.write("INSERT INTO campaign SELECT * FROM campaign_kept ON CONFLICT DO NOTHING")
        stage.write("DROP TABLE campaign_kept")

    def untouched() -> None:
        def over() -> bool:
            ask()
            with stage.servers() as servers:
                return not standing.failing(servers.ledger, [STREAMS["campaigns"]])["campaigns"]

        eventually(over, "campaigns are read again", PATIENCE, every=0.5)
        if _deleted(stage):
            raise Violation(f"campaigns were marked deleted: {sorted(_deleted(stage))[:5]}")

    scene.afterwards.append(untouched)
