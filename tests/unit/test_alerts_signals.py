"""What becomes a signal, and how it is put."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker import alerts, config
from worker.alerts import Incident
from worker.errors import BadInput
from worker.ledger import Failure
from worker.source import Holder, Horizon
from worker.standing import Overview, Standing
from worker.streams import STREAMS
from worker.windows import ORIGIN, Window

NOW = datetime(2026, 11, 20, 14, 10, tzinfo=UTC)
SETTINGS = config.load(freshness={"clicks": (60, 300)})
QUEUES = ("realtime", "backfill")


def standing(lag: float, *, failures: tuple[Failure, ...] = (), through: datetime | None = None) -> Standing:
    at = through or NOW - timedelta(seconds=lag)
    return Standing(STREAMS["clicks"], at, at, timedelta(seconds=lag), 0, 0, 0, failures, None)


@pytest.mark.parametrize(("lag", "severity"), [(0, None), (60, None), (60.001, "warn"), (300, "warn"), (301, "error")])
def test_a_stream_is_late_when_it_breaks_its_promise(lag: float, severity: str | None) -> None:
    found = alerts.freshness(standing(lag), SETTINGS)
    assert (found.severity if found else None) == severity


def test_lateness_says_through_when_the_stream_is_complete() -> None:
    found = alerts.freshness(standing(357), SETTINGS)
    assert found is not None
    assert found.message == (
        "pipeline late: clicks is complete through 2026-11-20 14:04:03 UTC, 5 min ago, and 5 min were promised."
    )
    never = alerts.freshness(standing(1e9, through=ORIGIN), SETTINGS)
    assert never is not None
    assert "never been loaded" in never.message


def holder(age: float, *, prepared: bool = False) -> Holder:
    return Holder("pid 7", "anna", "psql", NOW - timedelta(seconds=age), timedelta(seconds=age), prepared)


def overview(*streams: Standing, holders: tuple[Holder, ...] = ()) -> Overview:
    return Overview(Horizon(NOW, NOW, holders), streams)


def test_whoever_holds_the_horizon_is_named_past_the_limit() -> None:
    assert alerts.of_the_pipeline(overview(holders=(holder(299),)), SETTINGS) == []
    (found,) = alerts.of_the_pipeline(overview(holders=(holder(10), holder(4000, prepared=True))), SETTINGS)
    assert found.incident == "horizon"
    assert "prepared transaction of pid 7, user anna, has been open for 66 min" in found.message


def test_a_window_is_told_of_once_it_failed_often() -> None:
    def failing(count: int) -> tuple[Failure, ...]:
        return (Failure(Window(ORIGIN, NOW), count, NOW, "disk full", NOW),)

    assert alerts.of_the_pipeline(overview(standing(0, failures=failing(2))), SETTINGS) == []
    (found,) = alerts.of_the_pipeline(overview(standing(0, failures=failing(3))), SETTINGS)
    assert found.incident == "windows/clicks"
    assert "disk full" in found.message


def test_workers_and_queues() -> None:
    settings = SETTINGS.model_copy(update={"alert_queue_depth": 5})
    shallow = {"realtime": 5, "backfill": 0}
    both = {"a": {"realtime"}, "b": {"backfill"}}
    assert alerts.of_the_workers(both, QUEUES, shallow, settings) == []
    (found,) = alerts.of_the_workers({}, QUEUES, shallow, settings)
    assert found.message.startswith("No worker answers")
    (found,) = alerts.of_the_workers({"a": {"realtime"}}, QUEUES, shallow, settings)
    assert found.message == "No worker serves the queue backfill."
    (found,) = alerts.of_the_workers(both, QUEUES, {"realtime": 6}, settings)
    assert (found.incident, found.severity) == ("queue/realtime", "warn")


def test_a_message_says_how_long_it_lasted() -> None:
    begun = Incident("freshness/clicks", NOW, None, "error", "Late.")
    assert alerts.worded(begun) == ("Error: freshness/clicks", "Late.\nSince 2026-11-20 14:10:00 UTC.")
    over = Incident("freshness/clicks", NOW, NOW + timedelta(minutes=3), "error", "Late.")
    assert alerts.worded(over) == ("Over: freshness/clicks", "After 3 min it is over. It was: Late.")


def test_a_url_nobody_knows_is_refused_without_repeating_it() -> None:
    with pytest.raises(BadInput) as refused:
        alerts.sender(config.load(alert_urls="nonsense://user:secret@host"))
    assert "nonsense" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert alerts.sender(config.load(alert_urls=" ")) is None
