"""Seals days that became final, and those that were restated since."""

from __future__ import annotations

from typing import Any

from worker import metrics, seals
from worker.celery import Servers, app, servers
from worker.tasks import arguments

LEASE_SECONDS = 60


def seal_due(here: Servers) -> dict[str, Any]:
    """Seals every final day that waits for it, and whose metrics are up to date."""
    through = metrics.final_through(here.sink)
    if through is None:
        return {"sealed": 0}
    dirty = set(metrics.dirty_days(here.sink))
    days = [day for day in seals.due(here.sink, through) if day not in dirty]
    made, apart = seals.seal(here.source, here.sink, here.ledger, here.settings, days)
    found: dict[str, Any] = {"sealed": len(made), "renewed": sum(each.replaces > 0 for each in made)}
    return {**found, "sides_differ": [str(day) for day in apart]} if apart else found


@app.task(send_events=False)
def seal(**unknown: Any) -> dict[str, Any]:
    """Seals days that became final or were restated."""
    arguments.no_others("seal", "nothing", unknown)
    here = servers()
    with here.store.lease("seal", LEASE_SECONDS) as held:
        if held is None:
            return {"skipped": "another worker is sealing"}
        return seal_due(here)
