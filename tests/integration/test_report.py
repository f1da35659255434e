"""The report holds what there is to say, and reads in a browser: on a phone, by keyboard, on paper, without a network."""

from __future__ import annotations

import html
import os
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright
from psycopg2.extensions import connection as Connection

from seed import generate
from tests.agreement import rebuild, sync
from tests.e2e.test_cli import command, told
from tests.integration.test_checks import check
from tests.integration.test_pipeline import add, write
from worker import alerts, metrics, quality, quarantine, report, standing
from worker.alerts import Signal
from worker.celery import Servers
from worker.streams import STREAMS
from worker.tasks.reconcile import compare
from worker.tasks.seals import seal_due

NASTY = "<script>document.title='owned'</script> & \"quotes\""
PHONE = {"width": 375, "height": 720}


def built(servers: Servers) -> str:
    overview = standing.overview(servers.source, servers.sink, servers.ledger, servers.store, list(STREAMS.values()))
    now = servers.ledger.now()
    return report.build(servers.sink, servers.settings, overview, quality.checks(servers.settings), now=now)


@pytest.fixture
def eventful(servers: Servers, writer: Connection) -> Servers:
    """Forty days of two advertisers, failing checks, rows in quarantine, a restatement, incidents."""
    update = {"cleansing": {"no campaign": "quarantine"}, "finality_hours": 120}
    servers.settings = servers.settings.model_copy(update=update)
    generate.batch(
        writer,
        advertisers=2,
        campaigns=4,
        impressions=900,
        ctr=0.08,
        days=40,
        batch_rows=2000,
        rng=np.random.default_rng(11),
        now=servers.source.now(),
    )
    write(writer, "UPDATE campaign SET name = %s WHERE id = 1", NASTY)
    sync(servers)
    check(servers)
    write(writer, "UPDATE campaign SET bid = -1 WHERE id = 3")
    write(
        writer,
        "UPDATE impressions SET created_at = '1998-01-01' WHERE id IN (SELECT id FROM impressions ORDER BY id LIMIT 40)",
    )
    add(writer, "clicks", None, 6)
    sync(servers)
    metrics.note_finality(servers.sink, servers.settings, datetime.now(UTC))
    add(writer, "clicks", 2, 9, at=(datetime.now(UTC) - timedelta(days=20)).isoformat())
    sync(servers)
    rebuild(servers)
    check(servers)
    found = quarantine.rows(servers.sink, limit=2)
    quarantine.decide(servers.sink, found, "discard", "test traffic")
    late = Signal("freshness/clicks", "error", "pipeline late: clicks is complete through some time ago.")
    alerts.settle(servers.sink, servers.settings, [late, Signal("queue/realtime", "warn", "Deep.")], None)
    alerts.settle(servers.sink, servers.settings, [Signal("queue/realtime", "warn", "Deep.")], None)
    # A month of results, some of which were worse.
    servers.sink.command(
        "inventing a past",
        "INSERT INTO quality_results (check_name, severity, state, trigger, checked_at, first_day, last_day, failing) "
        "SELECT check_name, severity, if(cityHash64(check_name, d) % 11 = 0, 'failed', 'passed'), 'nightly', "
        "now64(6) - toIntervalDay(d + 1), '1900-01-02', '2299-12-30', if(cityHash64(check_name, d) % 11 = 0, 7, 0) "
        "FROM (SELECT DISTINCT check_name, severity FROM quality_results) AS names CROSS JOIN (SELECT number AS d FROM numbers(24)) AS days",
    )
    return servers


def test_it_says_what_there_is_to_say(eventful: Servers) -> None:
    page = built(eventful)
    assert "discarded" in page
    assert "test traffic" in page
    assert "bid_not_positive" in page
    assert "campaign_dimension" in page  # the SQL of a failing check
    assert "late rows" in page or "update" in page
    assert "freshness/clicks" in page
    assert "(clicks × bid)" in page
    assert NASTY not in page
    assert html.escape(NASTY) in page
    # A day that differs from the source is said at the top, and gone once it is mended.
    assert "differ from the source" not in page
    eventful.sink.command("losing a row", "DELETE FROM ad_events WHERE event_type = 'impression' AND event_id = 100")
    compare(eventful, STREAMS["impressions"], heal=False)
    page = built(eventful)
    assert "1 compared days differ from the source" in page
    compare(eventful, STREAMS["impressions"], heal=True)
    seal_due(eventful)
    page = built(eventful)
    assert "differ from the source" not in page
    assert ">mended</span>" in page
    assert 'data-head="metrics hash"' in page


def test_an_empty_database_has_a_report(servers: Servers) -> None:
    page = built(servers)
    for nothing in (
        "No day has metrics yet",
        "No row was ever set aside",
        "No check has run yet",
        "No incident so far",
        "Nothing was compared yet",
        "Nothing out of the ordinary",
        "No day is final yet",
    ):
        assert nothing in page


def test_without_the_source_there_is_a_report_all_the_same(servers: Servers, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    nowhere = servers.settings.model_copy(update={"postgres_dsn": "postgresql://127.0.0.1:1/none"})
    done = command(nowhere, "report", "--out", str(out))
    assert done.returncode == 0, done.stderr
    page = out.read_text()
    assert "How the streams stand cannot be told" in page
    assert "No check has run yet" in page
    assert "cannot be written" in told(command(servers.settings, "report", "--out", str(tmp_path / "no" / "r.html")), 2)


def test_axes_end_at_round_numbers() -> None:
    assert [report.ceiling(value) for value in (0, 1, 1.2, 7, 9.5, 41, 100, 0.034)] == [1, 1, 2, 8, 10, 50, 100, 0.04]


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of this machine, or Playwright's own."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(executable_path=executable)
        except Error as error:
            pytest.skip(f"no Chromium here (apt-get install chromium): {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Browser, eventful: Servers, tmp_path: Path) -> Iterator[Page]:
    """The report from a file, in a browser without a network; whatever it complains about fails the test."""
    path = tmp_path / "report.html"
    path.write_text(built(eventful), encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    if folder := os.environ.get("KEEP_SCREENSHOTS"):
        page.screenshot(
            path=f"{folder}/{os.environ['PYTEST_CURRENT_TEST'].split('::')[1].split(' ')[0]}.png", full_page=True
        )
    assert complaints == []
    assert requests == [path.as_uri()]
    context.close()


def overflow(page: Page) -> int:
    width: Any = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return int(width)


def test_a_browser_shows_it_whole(opened: Page) -> None:
    opened.set_viewport_size({"width": 1280, "height": 900})
    assert opened.title().startswith("Data quality report")
    assert opened.locator("h1").inner_text() == "Data quality report"
    sections = opened.locator("main section")
    titles = sections.locator("> h2").all_inner_texts()
    assert titles == [
        "Freshness", "Incidents", "Checks", "Campaign performance", "Anomalies", "Runs", "Quarantine", "Reconciliation",
        "Sealed days", "Restatements",
    ]  # fmt: skip
    for name in opened.locator("nav a").all():
        assert opened.locator(str(name.get_attribute("href"))).count() == 1
    assert opened.locator("figure svg").count() == 4
    assert opened.locator("figure svg rect.bar").count() > 60
    assert all(box["height"] > 60 for box in (f.bounding_box() for f in opened.locator("figure svg").all()) if box)
    assert "2 errors" in opened.locator(".verdict").inner_text()
    assert overflow(opened) <= 0


def test_nothing_is_said_by_colour_alone(opened: Page) -> None:
    for cell in opened.locator(".heat tbody td").all()[:200]:
        sign = cell.inner_text().strip()
        assert sign in {"✓", "i", "!", "✕", "?", "·"}
        assert re.search(r"passed|worth knowing|warning|error|could not|did not run", cell.get_attribute("title") or "")
    for badge in opened.locator(".badge").all():
        assert re.search(r"[a-z]{4}", badge.text_content() or "")
    # Every picture has its words.
    for picture in opened.locator("svg").all():
        assert picture.get_attribute("aria-label")


def test_text_can_be_read_against_its_ground(opened: Page) -> None:
    """WCAG AA, by the page's own colours, in light and in dark."""
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        found: Any = opened.evaluate(CONTRAST)
        assert min(row[0] for row in found) >= 4.5, (scheme, sorted(found)[:5])


CONTRAST = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * x + .7152 * y + .0722 * z;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const result = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || element.closest("svg")) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
    result.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.className, element.textContent.slice(0, 40)]);
  }
  return result;
}"""


def test_a_phone_shows_it_without_scrolling_sideways(opened: Page) -> None:
    opened.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    assert overflow(opened) <= 0
    # A table's row stands as a card, each value with its head.
    cell = opened.locator("#incidents tbody td").first
    assert "state" in str(cell.evaluate("cell => getComputedStyle(cell, '::before').content"))
    assert float(opened.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 15


def test_a_keyboard_reaches_everything(opened: Page) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    assert opened.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    opened.keyboard.press("Enter")
    assert opened.evaluate("document.activeElement.id") == "main"
    folded = opened.locator("details.sheet:not([open]) > summary").first
    handle = folded.element_handle()
    assert handle is not None
    handle.focus()
    opened.keyboard.press("Enter")
    assert handle.evaluate("summary => summary.parentElement.open") is True
    # What scrolls can be scrolled without a mouse.
    for scrolled in opened.locator(".scroll, pre").all():
        assert scrolled.get_attribute("tabindex") == "0"
    opened.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
    heat = opened.locator(".heat").first
    heat.focus()
    opened.keyboard.press("ArrowRight")
    # Asked again and again from here: the page's own policy lets nothing be evaluated inside.
    deadline = time.monotonic() + 20
    while not opened.evaluate("document.querySelector('.heat').scrollLeft > 0"):
        assert time.monotonic() < deadline, "the heat map does not scroll"
        opened.wait_for_timeout(50)


def test_paper_folds_nothing_away(opened: Page) -> None:
    assert opened.locator("details:not([open])").count() > 0
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.emulate_media(media="print")
    assert opened.locator("details:not([open])").count() == 0
    assert opened.locator("nav").is_hidden()
    assert opened.pdf(format="A4").startswith(b"%PDF")
    opened.emulate_media(media="screen")
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details:not([open])").count() > 0
