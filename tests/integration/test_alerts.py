"""Alerts reach a webhook: once when something begins, once when it is over, whoever restarts in between."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg2
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2.extensions import connection as Connection

from tests.agreement import sync
from tests.e2e.test_cli import command, told
from tests.integration.test_checks import check
from tests.integration.test_pipeline import add, campaigns, write
from tests.processes import until
from worker import alerts
from worker.alerts import Severity, Signal
from worker.celery import Servers, create_app
from worker.config import Settings
from worker.sink import Sink
from worker.tasks import alerts as tasks


class Webhook:
    """A local receiver; `refuses` makes it answer with an error."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, str]] = []
        self.refuses = False
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not hook.refuses:
                    hook.received.append((body["title"].removeprefix("Retail media: "), body["message"], body["type"]))
                self.send_response(500 if hook.refuses else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/hook"

    def titles(self) -> list[str]:
        """Titles received since the last time, in order."""
        got, self.received = [title for title, _, _ in self.received], []
        return got


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    hook = Webhook()
    thread = threading.Thread(target=hook.server.serve_forever, daemon=True)
    thread.start()
    yield hook
    hook.server.shutdown()
    thread.join()
    hook.server.server_close()


LATE = Signal("freshness/clicks", "error", "pipeline late: clicks.")
GROWTH = Signal("quarantine/clicks", "error", "Many rows.")
SLOW = Signal("freshness/clicks", "warn", "pipeline late: clicks, a little.")


def settle(settings: Settings, *signals: Signal, unknown: tuple[str, ...] = ()) -> list[str]:
    """As a process that has just been started would."""
    with Sink(settings) as sink:
        return alerts.settle(sink, settings, signals, alerts.sender(settings), unknown=unknown)


@pytest.fixture
def told_settings(settings: Settings, webhook: Webhook) -> Settings:
    return settings.model_copy(update={"alert_urls": webhook.url})


def test_an_incident_is_told_once_and_its_end_once(told_settings: Settings, webhook: Webhook) -> None:
    settle(told_settings, LATE)
    ((title, message, kind),) = webhook.received
    assert (title, kind) == ("Error: freshness/clicks", "failure")
    assert message.startswith("pipeline late: clicks.\nSince ")
    webhook.titles()
    for _ in range(3):
        settle(told_settings, LATE)
    assert webhook.titles() == []
    settle(told_settings, LATE, GROWTH)
    assert webhook.titles() == ["Error: quarantine/clicks"]
    settle(told_settings, GROWTH)
    assert webhook.received[0][2] == "success"
    assert webhook.titles() == ["Over: freshness/clicks"]
    settle(told_settings, GROWTH)
    assert webhook.titles() == []
    # The same again is another incident.
    settle(told_settings, LATE, GROWTH)
    assert webhook.titles() == ["Error: freshness/clicks"]


def test_a_warning_that_becomes_an_error_is_told_again(told_settings: Settings, webhook: Webhook) -> None:
    settle(told_settings, SLOW)
    settle(told_settings, LATE)
    settle(told_settings, SLOW)
    settle(told_settings)
    assert webhook.titles() == ["Warning: freshness/clicks", "Error: freshness/clicks", "Over: freshness/clicks"]


def test_what_could_not_be_judged_is_not_over(told_settings: Settings, webhook: Webhook) -> None:
    settle(told_settings, LATE)
    settle(told_settings, unknown=("freshness/",))
    assert webhook.titles() == ["Error: freshness/clicks"]
    settle(told_settings, unknown=("workers",))
    assert webhook.titles() == ["Over: freshness/clicks"]


def test_what_was_not_taken_is_sent_again_and_what_was_never_told_is_never_over(
    told_settings: Settings, webhook: Webhook
) -> None:
    webhook.refuses = True
    assert settle(told_settings, LATE, GROWTH) == []
    assert settle(told_settings, GROWTH) == []
    webhook.refuses = False
    settle(told_settings, GROWTH)
    assert webhook.titles() == ["Error: quarantine/clicks"]


def test_no_more_than_the_limit_is_sent_in_an_hour_and_errors_go_first(
    told_settings: Settings, webhook: Webhook
) -> None:
    few = told_settings.model_copy(update={"alerts_per_hour": 3})
    warnings = [Signal(f"queue/{n}", "warn", "Deep.") for n in range(4)]
    settle(few, *warnings, LATE)
    settle(few, *warnings, LATE, GROWTH)
    titles = webhook.titles()
    assert len(titles) == 3
    assert titles[0] == "Error: freshness/clicks"
    # An hour later there is room again.
    with Sink(few) as sink:
        sink.command(
            "an hour passes", "ALTER TABLE alerts UPDATE told_at = told_at - 3601 WHERE 1 SETTINGS mutations_sync = 2"
        )
    settle(few, *warnings, LATE, GROWTH)
    assert len(webhook.titles()) == 3


def test_without_a_url_incidents_are_kept_and_nothing_is_sent(settings: Settings) -> None:
    assert settle(settings, LATE) == []
    with Sink(settings) as sink:
        (found,) = alerts.open_incidents(sink)
    assert (found.incident, found.told_at) == ("freshness/clicks", None)


looks = st.lists(
    st.tuples(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["warn", "error"])), st.booleans()), max_size=12
)


@hypothesis_settings(max_examples=25)
@given(story=looks)
@example(story=[({"a": "warn"}, True), ({}, False), ({"a": "error"}, True)])
@example(story=[({"a": "warn"}, True), ({"a": "error"}, False), ({}, True)])
@example(story=[({"a": "warn"}, True), ({"a": "error"}, False), ({}, False), ({"a": "warn"}, True)])
def test_whatever_happens_nothing_is_told_twice(
    settings: Settings, story: list[tuple[dict[str, Severity], bool]]
) -> None:
    generous = settings.model_copy(update={"alerts_per_hour": 10_000})
    # What somebody who hears everything knows: the incidents that are open, and how bad they were said to be.
    heard: dict[str, str] = {}
    with Sink(settings) as sink:
        sink.command("forgetting", "TRUNCATE TABLE alerts")
        for signals, reachable in story:

            def send(title: str, text: str, severity: Severity | None, reachable: bool = reachable) -> bool:
                if not reachable:
                    return False
                what, _, incident = title.partition(": ")
                if what == "Over":
                    assert heard.pop(incident)
                else:
                    assert heard.get(incident) in ({"Warning"} if what == "Error" else {None}) | {None}
                    heard[incident] = what
                return True

            now = [Signal(name, severity, f"{name} is wrong.") for name, severity in signals.items()]
            alerts.settle(sink, generous, now, send)
            if reachable:
                assert set(heard) == set(signals)
                assert all(heard[name] == "Error" for name, severity in signals.items() if severity == "error")


# The whole look, at real servers


def look(here: Servers, hook: Webhook, **update: object) -> list[str]:
    settings = here.settings.model_copy(update={"alert_urls": hook.url, **update})
    app = create_app(settings)
    with contextlib.closing(app), contextlib.closing(Servers.open(settings)) as other:
        tasks.look(other, app)
    return sorted(title for title in hook.titles() if title != "Error: workers")


def test_a_late_pipeline_is_told_apart_from_a_silent_campaign(
    servers: Servers, writer: Connection, webhook: Webhook
) -> None:
    (campaign, *_) = campaigns(writer)
    write(
        writer,
        "UPDATE campaign SET start_date = current_date - 20, end_date = current_date + 20 WHERE id = %s",
        campaign,
    )
    add(writer, "impressions", campaign, 3, at="2026-11-01T00:00:00Z")
    sync(servers)
    check(servers)
    # Everything is loaded and the campaign has no new event: silence, and at the promise of no lag at all.
    strict = {"clicks": (0, 0), "impressions": (0, 0)}
    assert look(servers, webhook, freshness=strict) == ["Warning: quality/campaign_silent"]
    # Its events are written, and nobody loads them: the pipeline is late, and the campaign no more silent than before.
    write(writer, "INSERT INTO impressions (campaign_id) SELECT %s FROM generate_series(1, 5)", campaign)
    assert look(servers, webhook, freshness=strict) == ["Error: freshness/impressions"]
    sync(servers)
    check(servers)
    assert look(servers, webhook, freshness=strict) == ["Over: freshness/impressions", "Over: quality/campaign_silent"]


def test_errors_in_the_data_held_horizons_and_growing_quarantine_are_told(
    servers: Servers, writer: Connection, webhook: Webhook
) -> None:
    (campaign, *_) = campaigns(writer)
    sync(servers)
    assert look(servers, webhook) == []
    write(writer, "UPDATE campaign SET bid = 0 WHERE id = %s", campaign)
    write(
        writer,
        "INSERT INTO clicks (campaign_id, created_at) SELECT %s, 'infinity' FROM generate_series(1, 3)",
        campaign,
    )
    sync(servers)
    check(servers, "bid_not_positive")
    blocker = psycopg2.connect(servers.settings.source_dsn)
    blocker.cursor().execute("SELECT 1")
    # However short the limit: `age` is counted in whole seconds of the server's clock.
    try:
        until(lambda: servers.source.horizon().holders[0].age.total_seconds() > 1, "the transaction is old enough")
        found = look(servers, webhook, horizon_alert_seconds=1, alert_quarantine_rows=2)
    finally:
        blocker.close()
    assert found == ["Error: horizon", "Error: quality/bid_not_positive", "Error: quarantine/clicks"]
    write(writer, "UPDATE campaign SET bid = 1 WHERE id = %s", campaign)
    sync(servers)
    check(servers, "bid_not_positive")
    assert look(servers, webhook, horizon_alert_seconds=1, alert_quarantine_rows=3) == [
        "Over: horizon",
        "Over: quality/bid_not_positive",
        "Over: quarantine/clicks",
    ]


def test_a_check_of_other_days_does_not_end_an_error_of_these(servers: Servers) -> None:
    def record(state: str, trigger: str, first: str, last: str) -> None:
        servers.sink.command(
            "recording",
            "INSERT INTO quality_results (check_name, severity, state, trigger, checked_at, first_day, last_day, failing) "
            f"SELECT 'mine', 'error', '{state}', '{trigger}', now64(6), '{first}', '{last}', 1",
        )

    def failing() -> list[str]:
        return [row[0] for row in servers.sink.named("alert", "failing_checks", alerts.EVERY_DAY)]

    record("passed", "nightly", "1900-01-02", "2299-12-30")
    assert failing() == []
    record("failed", "rebuild", "2026-11-02", "2026-11-04")
    record("passed", "rebuild", "2026-11-05", "2026-11-06")
    record("passed", "rebuild", "2026-11-03", "2026-11-06")
    record("broken", "nightly", "1900-01-02", "2299-12-30")
    assert failing() == ["mine"]
    record("passed", "rebuild", "2026-11-01", "2026-11-04")
    assert failing() == []
    record("failed", "nightly", "1900-01-02", "2299-12-30")
    record("passed", "rebuild", "2026-11-01", "2026-11-04")
    assert failing() == ["mine"]
    record("passed", "manual", "1900-01-02", "2299-12-30")
    assert failing() == []


def test_the_watch_tells_that_no_worker_runs(
    told_settings: Settings, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "FIRST_AFTER_SECONDS", 0.01)
    monkeypatch.setattr(tasks, "load", lambda: told_settings)
    ended = threading.Event()
    app = create_app(told_settings)
    thread = threading.Thread(target=tasks.watch, args=(app, ended))
    thread.start()
    try:
        until(lambda: bool(webhook.received), "a message")
    finally:
        ended.set()
        thread.join()
        app.close()
    assert "Error: workers" in webhook.titles()


def test_the_command_line(servers: Servers, webhook: Webhook) -> None:
    settings = servers.settings
    assert "Nothing is wrong" in command(settings, "alerts").stdout
    assert "ALERT_URLS" in told(command(settings, "alerts", "--test"), 2)
    urls = {"ALERT_URLS": webhook.url}
    assert "taken" in command(settings, "alerts", "--test", **urls).stdout
    assert webhook.titles() == ["Test"]
    done = command(settings, "alerts", "--tell", "--json", **urls)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "Error: workers" in found["sent"]
    assert "workers" in {entry["incident"] for entry in found["incidents"]}
    assert "No worker answers" in command(settings, "alerts", **urls).stdout
    webhook.refuses = True
    assert "did not take" in told(command(settings, "alerts", "--test", **urls), 1)
