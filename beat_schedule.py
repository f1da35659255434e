"""What runs when: name -> task, schedule, queue, expires. Data only.

`SCHEDULE_PROFILE` chooses one of the profiles; every profile gets the housekeeping. Seconds are counted from the start
of beat; longer periods are clock times, so that a restart does not put them off. A message older than `EXPIRES` is
dropped unread: it bounds what piles up while no worker runs. Celery decides that by the worker's clock against beat's,
so it is more than clocks are ever wrong by; of ticks that come in a heap, the tasks themselves pass over all but one.
"""

from __future__ import annotations

from typing import Any

from celery.schedules import crontab

PLAN = "worker.tasks.sync.plan"
EXPIRES = 7200.0


def _plan(stream: str, schedule: Any, expires: float = EXPIRES) -> dict[str, Any]:
    return {
        "task": PLAN,
        "schedule": schedule,
        "kwargs": {"streams": [stream]},
        "options": {"queue": "realtime", "expires": expires},
    }


HOUSEKEEPING: dict[str, dict[str, Any]] = {
    "converge": {
        "task": "worker.tasks.maintenance.converge",
        "schedule": 10.0,
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "checks-of-what-changed": {
        "task": "worker.tasks.quality.changed",
        "schedule": 15.0,
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "checks-at-night": {
        "task": "worker.tasks.quality.nightly",
        "schedule": crontab(hour="3", minute="40"),
        "options": {"queue": "maintenance", "expires": 14_400.0},
    },
    "released-rows": {
        "task": "worker.tasks.quality.release",
        "schedule": 60.0,
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "sweep": {
        "task": "worker.tasks.maintenance.sweep",
        "schedule": 60.0,
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    # Four times a day: yesterday is judged within hours wherever the reporting day ends, and late rows are taken in.
    "anomalies": {
        "task": "worker.tasks.metrics.detect_anomalies",
        "schedule": crontab(hour="*/6", minute="40"),
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "reconcile-recent-days": {
        "task": "worker.tasks.reconcile.recent",
        "schedule": crontab(minute="35"),
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "reconcile-all-days-in-turn": {
        "task": "worker.tasks.reconcile.rotate",
        "schedule": crontab(minute="50", hour="*/4"),
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
    "seal-final-days": {
        "task": "worker.tasks.seals.seal",
        "schedule": 600.0,
        "options": {"queue": "maintenance", "expires": EXPIRES},
    },
}

PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "realtime": {
        "impressions-every-second": _plan("impressions", 1.0),
        "clicks-every-second": _plan("clicks", 1.0),
        "campaigns-every-minute": _plan("campaigns", 60.0),
        "advertisers-every-minute": _plan("advertisers", 60.0),
        **HOUSEKEEPING,
    },
    "hourly": {
        "impressions-hourly": _plan("impressions", crontab(minute="5")),
        "clicks-hourly": _plan("clicks", crontab(minute="6")),
        "campaigns-hourly": _plan("campaigns", crontab(minute="2")),
        "advertisers-hourly": _plan("advertisers", crontab(minute="1")),
        **HOUSEKEEPING,
    },
    "daily": {
        "impressions-daily": _plan("impressions", crontab(hour="2", minute="10"), 14_400.0),
        "clicks-daily": _plan("clicks", crontab(hour="2", minute="20"), 14_400.0),
        "campaigns-daily": _plan("campaigns", crontab(hour="2", minute="5"), 14_400.0),
        "advertisers-daily": _plan("advertisers", crontab(hour="2", minute="0"), 14_400.0),
        **HOUSEKEEPING,
    },
}
