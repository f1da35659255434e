"""One HTML file that says how the data is: self-contained, for a screen of any size, a keyboard, and paper.

Everything shown comes from ClickHouse, and how the streams stand from whoever calls. Text of others is escaped in one
place, `text`. The page's frame, style and script are the files in `report/`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal, NewType

from worker import calendars, money
from worker.config import Settings
from worker.failing import to_tell, told_day, told_failure
from worker.sink import Sink
from worker.sql import named
from worker.windows import ORIGIN, instant

if TYPE_CHECKING:
    from worker.quality import Check
    from worker.standing import Overview, Standing

FILES = Path(__file__).parent / "report"

CHECKED_DAYS = 30
"""Days of the heat map."""

CHARTED_DAYS = 60
CAMPAIGN_DAYS = 30
CAMPAIGNS = 15
RUNS = 20
ROWS = 40
"""Rows of other tables, at most."""

EVERY_DAY = {"first_day": "1900-01-02", "last_day": "2299-12-30"}
SPEND = {"cpc": "clicks × bid", "cpm": "impressions × bid / 1,000", "cpi": "impressions × bid"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

Html = NewType("Html", str)
Tone = Literal["ok", "info", "warn", "error", "broken", "none"]
SIGNS: dict[Tone, tuple[str, str]] = {
    "ok": ("✓", "passed"),
    "info": ("i", "worth knowing"),
    "warn": ("!", "warning"),
    "error": ("✕", "error"),
    "broken": ("?", "could not be carried out"),
    "none": ("·", "did not run"),
}
"""Each tone with a sign and a word, so that nothing is said by colour alone."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell that is more than plain text."""

    content: Html
    kind: str = ""


@dataclass(slots=True)
class _Page:
    """Sections as they are written, and what has to be said at the very top."""

    sections: list[tuple[str, str, Html]]
    wrong: list[tuple[Tone, str]]

    def add(self, name: str, title: str, intro: str, *content: Html) -> None:
        body = join(Html(f"<p>{text(intro)}</p>") if intro else Html(""), *content)
        self.sections.append((name, title, body))


def text(value: object) -> Html:
    """A value as people read it, safe to stand in HTML."""
    match value:
        case None:
            return Html("–")
        case bool():
            return Html("yes" if value else "no")
        case datetime():
            return Html(stamp(value))
        case int():
            return Html(f"{value:,}")
        case Decimal():
            return Html(money.amount(value))
        case float():
            return Html(f"{value:,.4g}")
        case list() | tuple():
            return Html(", ".join(text(item) for item in value) or "–")
    return Html(html.escape(str(value)))


def join(*parts: str) -> Html:
    """Parts one after the other."""
    return Html("\n".join(parts))


def stamp(value: datetime) -> str:
    """An instant in UTC, to the second; what is kept without a zone is UTC."""
    return value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def day_name(day: date) -> str:
    """A day, short."""
    return f"{day.day} {MONTHS[day.month - 1]}"


def span(value: timedelta) -> str:
    """A length of time for people."""
    seconds = value.total_seconds()
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def badge(tone: Tone, word: str = "") -> Html:
    """A sign and a word in the tone's colours."""
    sign, usual = SIGNS[tone]
    kind = "error" if tone == "broken" else tone
    return Html(f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span>{text(word or usual)}</span>')


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls by itself and stands as cards on a narrow screen. `numbers` are columns set to the right."""
    lines = []
    for row in rows:
        cells = []
        for place, value in enumerate(row):
            tag = "th scope=row" if place == 0 else "td"
            kind = value.kind if isinstance(value, Cell) else "number" if place in numbers else ""
            content = value.content if isinstance(value, Cell) else text(value)
            cells.append(
                f'<{tag}{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} data-head="{text(heads[place])}">'
                f"{content}</{tag[:2]}>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        f'<th scope="col"{" class=number" if place in numbers else ""}>{text(name)}</th>'
        for place, name in enumerate(heads)
    )
    return Html(
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0"><table class="stack">'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def empty(told: str) -> Html:
    """What stands where there is nothing to show."""
    return Html(f'<p class="empty">{text(told)}</p>')


def build(sink: Sink, settings: Settings, standing: Overview | str, checks: Sequence[Check], *, now: datetime) -> str:
    """The whole page. `standing` is how the streams stand, or why that cannot be told; `now` is an instant."""
    page = _Page([], [])
    _freshness(page, settings, standing)
    _incidents(page, sink)
    _checks(page, sink, settings, checks, now)
    _campaigns(page, sink, settings, now)
    _anomalies(page, sink, now)
    _runs(page, sink)
    _quarantine(page, sink)
    _reconciliation(page, sink, now)
    _seals(page, sink)
    _restatements(page, sink)

    facts = [
        ("Made", f"{stamp(now)} UTC"),
        ("Days are cut in", settings.reporting_timezone),
        ("Pricing model", f"{settings.pricing_model} ({SPEND[settings.pricing_model]})"),
    ]
    return Template((FILES / "page.html").read_text(encoding="utf-8")).substitute(
        title=text(f"Data quality report, {now.strftime('%Y-%m-%d %H:%M')} UTC"),
        style=(FILES / "style.css").read_text(encoding="utf-8"),
        script=(FILES / "script.js").read_text(encoding="utf-8"),
        lead=text("How fresh the data is, what the checks found, what was set aside or changed, and how campaigns do."),
        facts="".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts),
        navigation="".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title, _ in page.sections),
        verdict=_verdict(page),
        sections="".join(
            f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{text(title)}</h2>{body}</section>'
            for name, title, body in page.sections
        ),
        footer=text("Times are UTC unless a day is named. Made by `retailmedia report`; the file needs no network."),
    )


def _verdict(page: _Page) -> Html:
    errors = [told for tone, told in page.wrong if tone in {"error", "broken"}]
    warnings = [told for tone, told in page.wrong if tone == "warn"]
    tone: Tone = "error" if errors else "warn" if warnings else "ok"
    if tone == "ok":
        head = "Everything is as it should be"
    else:
        parts = [
            f"{len(found)} {noun}{'' if len(found) == 1 else 's'}"
            for found, noun in ((errors, "error"), (warnings, "warning"))
            if found
        ]
        head = " and ".join(parts)
    items = "".join(f"<li>{text(told)}</li>" for told in [*errors, *warnings])
    return Html(
        f'<div class="sheet verdict {tone}" role="status"><span class="sign" aria-hidden="true">{SIGNS[tone][0]}</span>'
        f"<div><strong>{text(head)}</strong>{f'<ul>{items}</ul>' if items else ''}</div></div>"
    )


# Freshness and incidents


def _freshness(page: _Page, settings: Settings, standing: Overview | str) -> None:
    title, intro = "Freshness", "Everything written at the source before “complete through” is loaded."
    if isinstance(standing, str):
        page.wrong.append(("error", f"How the streams stand cannot be told: {standing}"))
        page.add("freshness", title, intro, empty(standing))
        return
    cards = "".join(_card(page, settings, entry) for entry in standing.streams)
    if standing.setback:
        page.wrong.append(("error", standing.setback))
    for entry in standing.streams:
        page.wrong += [("error", told_failure(entry.stream, one)) for one in to_tell(entry.stream, entry.failures)[:3]]
    page.wrong += [("error", told_day(day)) for day in standing.days[-3:]]
    if len(standing.days) > 3:
        page.wrong.append(("error", f"{len(standing.days) - 3:,} earlier days cannot be built either."))
    horizon = standing.horizon
    if horizon.holders:
        holder = horizon.holders[0]
        held = f"The safe horizon is held back by {holder.who}, user {holder.user}, for {span(holder.age)}."
    else:
        held = "Nobody holds the safe horizon back."
    page.add("freshness", title, intro, Html(f'<div class="cards">{cards}</div>'), Html(f"<p>{text(held)}</p>"))


def _card(page: _Page, settings: Settings, entry: Standing) -> Html:
    warn_after, error_after = settings.promise(entry.stream.name)
    tone: Tone = "error" if entry.lag > error_after else "warn" if entry.lag > warn_after else "ok"
    loaded = entry.complete_through > ORIGIN
    if tone != "ok":
        late = f"{span(entry.lag)} behind" if loaded else "never loaded"
        page.wrong.append((tone, f"{entry.stream.name.capitalize()}: {late}, {span(warn_after)} promised."))
    word = {"ok": "on time", "warn": "late", "error": "too late"}[tone]
    rows = [
        ("behind", span(entry.lag) if loaded else "–"),
        ("promise", f"{span(warn_after)}, at most {span(error_after)}"),
        ("rows loaded", f"{entry.rows:,}"),
        ("in quarantine", f"{entry.quarantined:,}"),
        ("windows failing", f"{len(entry.failures):,}"),
    ]
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    at = entry.complete_through
    return Html(
        f'<div class="sheet card"><h3>{text(entry.stream.name.capitalize())}{badge(tone, word)}</h3>'
        f'<p class="big">{at.strftime("%H:%M:%S") if loaded else "–"}</p>'
        f'<p class="under">complete through, {text(str(at.date())) if loaded else "no day yet"}</p><dl>{listed}</dl></div>'
    )


def _incidents(page: _Page, sink: Sink) -> None:
    rows = []
    for incident, began, ended, severity, message, _, told, _ in sink.named("alert", "latest", {"limit": ROWS}):
        tone: Tone = "error" if severity == "error" else "warn"
        state = badge(tone, "open") if ended is None else badge("none", "over")
        lasted = span(instant(ended) - instant(began)) if ended else None
        rows.append((incident, Cell(state), began, lasted, "told" if told else "not told", message))
    heads = ("incident", "state", "began", "lasted", "alert", "what")
    content = table("Incidents, open ones first", heads, rows) if rows else empty("No incident so far.")
    page.add("incidents", "Incidents", "What alerts were about, or would have been.", content)


# Checks


def _tone(state: str, severity: str) -> Tone:
    if state == "broken":
        return "broken"
    if state == "passed":
        return "ok"
    return "error" if severity == "error" else "warn" if severity == "warn" else "info"


def _checks(page: _Page, sink: Sink, settings: Settings, checks: Sequence[Check], now: datetime) -> None:
    calendar = calendars.in_force(sink, settings)
    today = calendar.day_of(now)
    days = [today - timedelta(days=ago) for ago in reversed(range(CHECKED_DAYS))]
    since = {"since": calendar.bounds(days[0]).lo, **calendars.cut(calendar, days)}
    by_check: dict[str, dict[date, tuple[int, str, int]]] = {}
    for name, day, count, state, failing in sink.named("report", "checked_days", since):
        by_check.setdefault(name, {})[day] = (count, state, failing)
    failing_now = {row[0] for row in sink.named("alert", "failing_checks", EVERY_DAY)}
    words = {row[0]: row[1:] for row in sink.named("report", "last_words", since)}

    lines = []
    for check in checks:
        cells = []
        for day in days:
            count, state, failing = by_check.get(check.name, {}).get(day, (0, "", 0))
            tone: Tone = _tone(state, check.severity) if count else "none"
            sign, word = SIGNS[tone]
            told = f"{check.name}, {day_name(day)}: {word}"
            if count:
                runs = f"{count:,} run{'' if count == 1 else 's'}"
                told += f", {failing:,} failing rows at most, {runs}" if failing else f", {runs}"
            cells.append(
                f'<td class="{tone}" title="{text(told)}"><span aria-label="{text(told)}" role="img">{sign}</span></td>'
            )
        lines.append(f'<tr><th scope="row">{text(check.name)}</th>{"".join(cells)}</tr>')
    heads = "".join(
        f'<th scope="col"><span aria-label="{text(day_name(day))}" role="img">'
        f"{day.day}{f'<br>{MONTHS[day.month - 1]}' if day.day == 1 or day == days[0] else ''}</span></th>"
        for day in days
    )
    legend = "".join(
        f'<li><b class="{tone}" aria-hidden="true">{sign}</b>{text(word)}</li>' for tone, (sign, word) in SIGNS.items()
    )
    heat = Html(
        '<div class="scroll heat" role="region" aria-label="Checks by day" tabindex="0"><table>'
        f"<caption>Each check at its worst on each day it ran, last {CHECKED_DAYS} days</caption>"
        f'<thead><tr><td aria-hidden="true"></td>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        f'<ul class="legend" aria-label="Signs">{legend}</ul>'
    )
    details = []
    order = {"error": 0, "warn": 1, "info": 2}
    for check in sorted(checks, key=lambda check: (check.name not in failing_now, order[check.severity])):
        state, _, ever, *last = words.get(check.name, ("", None, False, *[None] * 6))
        is_open = check.name in failing_now or state == "broken"
        if ever:
            details.append(_finding(check, is_open, *last))
        if is_open:
            tone = _tone(state if state == "broken" else "failed", check.severity)
            page.wrong.append((tone, f"Check {check.name}: {check.question}"))
    never = "No check has found anything in these days." if words else "No check has run yet: `retailmedia check`."
    found = join("<h3>What they found</h3>", *details) if details else empty(never)
    page.add(
        "checks", "Checks", "They run after each rebuild on the days it touched, and at night on all days.", heat, found
    )


def _finding(
    check: Check, is_open: bool, at: datetime, state: str, failing: int, samples: list[str], message: str, sql: str
) -> Html:
    tone = _tone(state, check.severity)
    rows = [json.loads(sample) for sample in samples]
    parts = [f"<p>{text(check.question)}</p>", f"<p><b>To do ({text(check.owner)}):</b> {text(check.todo)}</p>"]
    if message:
        parts.append(f"<p>{text(message)}</p>")
    if rows:
        heads = list(rows[0])
        numbers = [
            place for place, head in enumerate(heads) if all(isinstance(row.get(head), int | float) for row in rows)
        ]
        shown = [[_raw(head, row.get(head)) for head in heads] for row in rows]
        caption = f"{len(rows):,} of {failing:,} failing rows" if failing > len(rows) else "Failing rows"
        parts.append(table(caption, heads, shown, numbers=numbers))
    parts.append(
        f'<details class="plain"><summary>SQL</summary><pre tabindex="0"><code>{text(sql)}</code></pre></details>'
    )
    word = SIGNS[tone][1] if is_open else "passes again"
    sign = badge(tone if is_open else "none", word)
    told = f"{failing:,} rows, " if failing else ""
    return Html(
        f'<details class="sheet"{" open" if is_open and tone == "error" else ""}><summary>{sign}'
        f'<span class="grow"><b>{text(check.name)}</b></span><span class="quiet">{told}{stamp(at)}</span></summary>'
        f'<div class="body">{join(*parts)}</div></details>'
    )


def _raw(head: str, value: object) -> object:
    """A value of a failing row: ids without separators."""
    return str(value) if isinstance(value, int) and (head.endswith("id") or head == "hour") else value


# Campaigns


def _campaigns(page: _Page, sink: Sink, settings: Settings, now: datetime) -> None:
    title = "Campaign performance"
    today = calendars.in_force(sink, settings).day_of(now)
    count, last_day = sink.named("report", "last_day", {"today": today})[0]
    if not count:
        page.add("campaigns", title, "", empty("No day has metrics yet."))
        return
    first = last_day - timedelta(days=CHARTED_DAYS - 1)
    rows = {
        day: (impressions, clicks, spend, model, unpriced)
        for day, impressions, clicks, spend, model, unpriced in sink.named(
            "report", "days", {"first_day": first, "last_day": last_day}
        )
    }
    begin = min(rows)
    days = [begin + timedelta(days=n) for n in range((last_day - begin).days + 1)]
    models = " + ".join(sorted({row[3] for row in rows.values()}))
    has_final, through = sink.named("report", "final_through")[0]
    final = {day for day in days if has_final and day <= through}
    nothing = (0, 0, Decimal(0), "", 0)
    impressions, clicks, spend = ([float(rows.get(day, nothing)[n]) for day in days] for n in range(3))
    paid = [rows.get(day, nothing)[2] for day in days]
    unpriced = {day: row[4] for day, row in rows.items() if row[4]}
    ctr = [c / i if i else None for i, c in zip(impressions, clicks, strict=True)]
    charts = Html(
        '<div class="charts">'
        + bars("Impressions", days, impressions, final, "{:,.0f}")
        + bars("Clicks", days, clicks, final, "{:,.0f}")
        + bars(
            f"Spend ({models})", days, spend, final, "{:,.2f}", told=[*map(money.amount, paid), money.amount(sum(paid))]
        )
        + line("CTR", days, ctr, "{:.2%}")
        + "</div>"
    )
    daily = table(
        "The same, day by day",
        ("day", "state", "impressions", "clicks", "CTR", f"spend ({models})", *(["unpriced"] if unpriced else [])),
        [
            (str(day), "final" if day in final else "provisional", int(i), int(c), f"{r:.2%}" if r is not None else None, s,
             *([unpriced.get(day, 0)] if unpriced else []))
            for day, i, c, r, s in reversed(list(zip(days, impressions, clicks, ctr, paid, strict=True)))
        ],
        numbers=(2, 3, 4, 5, 6),
    )  # fmt: skip
    folded = Html(f'<details class="plain"><summary>The figures as a table</summary>{daily}</details>')
    intro = (
        f"Up to {last_day}. Hatched days are provisional: late rows may still change them. "
        f"Spend is by the pricing model {models}."
    )
    if unpriced:
        told = f"{sum(unpriced.values()):,} events on {len(unpriced):,} of these days are unpriced: their campaign is not known"
        intro += f" {told}, and what they cost is not in spend."
        page.wrong.append(("warn", f"{told}: `retailmedia check unpriced_events`."))
    page.add("campaigns", title, intro, charts, folded, _top_campaigns(sink, last_day))


def _top_campaigns(sink: Sink, last_day: date) -> Html:
    first = last_day - timedelta(days=CAMPAIGN_DAYS - 1)
    days = [first + timedelta(days=n) for n in range(CAMPAIGN_DAYS)]
    found = sink.named("report", "campaigns", {"first_day": first, "last_day": last_day, "limit": CAMPAIGNS})
    ids = tuple(row[0] for row in found)
    ever = dict(sink.named("report", "spent", {"ids": ids})) if ids else {}
    rows = []
    for campaign, name, advertiser, impressions, clicks, spend, budget, model, by_day, unpriced in found:
        spent = dict(by_day)
        who = Html(f'{text(name)}<br><span class="quiet">{text(advertiser or "no advertiser")}</span>')
        rows.append(
            (
                Cell(who),
                Cell(spark(f"Spend of {name} by day", [float(spent.get(day, 0)) for day in days])),
                impressions,
                clicks,
                f"{clicks / impressions:.2%}" if impressions else None,
                f"{unpriced:,} unpriced" if unpriced else spend,
                money.price(1000 * spend / impressions) if impressions and not unpriced else None,
                money.price(spend / clicks) if clicks and not unpriced else None,
                Cell(_meter(ever.get(campaign, Decimal(0)), budget), "number"),
                model,
            )
        )
    heads = ("campaign", "spend by day", "impressions", "clicks", "CTR", "spend", "CPM", "CPC", "budget used", "model")
    caption = f"The campaigns that spent most in the {CAMPAIGN_DAYS} days up to {last_day}"
    return table(caption, heads, rows, numbers=(2, 3, 4, 5, 6, 7))


def _meter(spent: Decimal, budget: Decimal | None) -> Html:
    if not budget or budget <= 0:
        return Html("–")
    share = float(spent / budget)
    over = " over" if share > 1 else ""
    return Html(
        f"{share:.0%}{' over budget' if over else ''}"
        f'<span class="meter{over}" aria-hidden="true"><i style="width:{min(share, 1):.1%}"></i></span>'
    )


WIDE, HIGH, LEFT, LOW, TOP = 460, 170, 46, 22, 8
"""Size of a chart and its margins, in its own units."""

HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="5" height="5" fill="var(--sheet)"/><rect width="2.2" height="5" fill="var(--bar)"/></pattern></defs>'
)


def ceiling(value: float) -> float:
    """The least round number that is not below `value`."""
    if value <= 0:
        return 1.0
    step = Decimal(10) ** Decimal(value).adjusted()
    return float(next(step * n for n in (1, 2, 3, 4, 5, 6, 8, 10) if step * n >= Decimal(value)))


def short(value: float, form: str) -> str:
    """A number for an axis."""
    if form.endswith("%}"):
        return f"{value:.3g}" if value == 0 else f"{value * 100:.3g} %"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _frame(name: str, days: Sequence[date], top: float, form: str, total: str, marks: str) -> str:
    height = HIGH - LOW - TOP
    lines = ""
    for share in (0.0, 0.5, 1.0):
        y = TOP + height * (1 - share)
        lines += f'<line class="{"axis" if share == 0 else "grid"}" x1="{LEFT}" x2="{WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
        lines += f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text(short(top * share, form))}</text>'
    labels = f'<text x="{LEFT}" y="{HIGH - 5}">{text(day_name(days[0]))}</text>'
    if len(days) > 2:
        labels += f'<text x="{(LEFT + WIDE) / 2}" y="{HIGH - 5}" text-anchor="middle">{text(day_name(days[len(days) // 2]))}</text>'
    if len(days) > 1:
        labels += f'<text x="{WIDE}" y="{HIGH - 5}" text-anchor="end">{text(day_name(days[-1]))}</text>'
    told = f"{name} by day from {day_name(days[0])} to {day_name(days[-1])}, {total}"
    return (
        f'<figure class="sheet"><figcaption><b>{text(name)}</b><span>{text(total)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{text(told)}">{HATCH}{lines}{marks}{labels}</svg></figure>'
    )


def bars(
    name: str, days: Sequence[date], values: Sequence[float], final: set[date], form: str, told: Sequence[str] = ()
) -> str:
    """A chart with one bar a day; bars of days that are not final are hatched.

    `told` are the values and their sum as text, where `form` would not say them exactly.
    """
    words = told or [form.format(value) for value in (*values, sum(values))]
    top = ceiling(max(values))
    height, step = HIGH - LOW - TOP, (WIDE - LEFT) / len(days)
    marks = ""
    for place, (day, value) in enumerate(zip(days, values, strict=True)):
        tall = height * value / top
        state = "final" if day in final else "provisional"
        marks += (
            f'<rect class="bar{" provisional" if day not in final else ""}" x="{LEFT + place * step + step * 0.12:.2f}" '
            f'y="{TOP + height - tall:.2f}" width="{min(step * 0.76, 26):.2f}" height="{tall:.2f}"><title>{text(f"{day}: {words[place]}, {state}")}</title></rect>'
        )
    return _frame(name, days, top, form, f"{words[-1]} in all", marks)


def line(name: str, days: Sequence[date], values: Sequence[float | None], form: str) -> str:
    """A chart with a line that breaks where there is no value."""
    known = [value for value in values if value is not None]
    top = ceiling(max(known, default=0.0))
    height, step = HIGH - LOW - TOP, (WIDE - LEFT) / len(days)
    pieces: list[list[str]] = [[]]
    dots = ""
    for place, (day, value) in enumerate(zip(days, values, strict=True)):
        if value is None:
            pieces.append([])
            continue
        x, y = LEFT + (place + 0.5) * step, TOP + height * (1 - value / top)
        pieces[-1].append(f"{x:.1f},{y:.1f}")
        dots += f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{text(f"{day}: {form.format(value)}")}</title></circle>'
    drawn = "".join(f'<polyline class="line" points="{" ".join(piece)}"/>' for piece in pieces if len(piece) > 1)
    mean = f"{form.format(min(known))} to {form.format(max(known))}" if known else "no impression"
    return _frame(name, days, top, form, mean, drawn + dots)


def spark(name: str, values: Sequence[float]) -> Html:
    """A small line without axes."""
    top = max(values) or 1.0
    step = 120 / max(len(values) - 1, 1)
    points = " ".join(f"{place * step:.1f},{26 - 22 * value / top:.1f}" for place, value in enumerate(values))
    told = f"{name}: at most {max(values):,.2f}"
    return Html(
        f'<svg class="spark" viewBox="0 0 120 28" role="img" aria-label="{text(told)}">'
        f'<polyline class="line" points="{points}"/></svg>'
    )


# Anomalies, runs, quarantine, reconciliation, seals, restatements


def _runs(page: _Page, sink: Sink) -> None:
    rows = []
    tones: dict[str, Tone] = {"succeeded": "ok", "failed": "error", "running": "info"}
    for run_id, kind, state, streams, _, until, _, _, message, started, updated, _ in sink.named(
        "ledger", "last_runs", {"limit": RUNS}
    ):
        took = None if state == "running" else span(instant(updated) - instant(started))
        sign = badge(tones.get(state, "none"), state)
        rows.append((Cell(text(run_id), "mono"), kind, Cell(sign), started, took, until, streams, message or None))
    heads = ("run", "kind", "state", "began", "took", "everything until", "streams", "message")
    content = (
        table("The newest runs", heads, rows)
        if rows
        else empty("Nobody asked for a run; ticks of the schedule load all the same.")
    )
    page.add("runs", "Runs", "Runs that a person or a schedule asked for.", content)


def _quarantine(page: _Page, sink: Sink) -> None:
    rules = [
        (Cell(text(rule)), stream, Cell(badge("warn" if state == "held" else "none", state)), count, first, last)
        for stream, rule, state, count, first, last in sink.named("quarantine", "by_rule")
    ]
    if not rules:
        content = [empty("No row was ever set aside.")]
    else:
        states = ("held", "released", "discarded", "loaded")
        newest = sink.query(
            "looking into quarantine",
            named("quarantine", "rows").format(condition=""),
            {"states": states, "limit": ROWS},
        )
        rows = [
            (str(event_id), stream, Cell(badge("warn" if state == "held" else "none", state)), rule, at, reason, Cell(text(row), "mono"))
            for stream, event_id, rule, state, reason, _, row, _, _, _, at in newest
        ]  # fmt: skip
        content = [
            table("By rule", ("rule", "stream", "state", "rows", "first", "last"), rules, numbers=(3,)),
            Html(f'<details class="plain"><summary>The newest rows</summary>{table("Newest first", ("id", "stream", "state", "rule", "set aside", "reason", "row"), rows)}</details>'),
        ]  # fmt: skip
    intro = "Rows that were set aside instead of loaded, and what became of them. Every row read is loaded or here."
    page.add("quarantine", "Quarantine", intro, *content)


def _anomalies(page: _Page, sink: Sink, now: datetime) -> None:
    since = (now - timedelta(days=CHECKED_DAYS)).date()
    rows = [
        (str(day), f"{name} ({campaign})", kind, observed, f"{low:,.4g} to {high:,.4g}", f"{q:.2g}", told, causes)
        for day, campaign, name, kind, observed, low, high, q, told, causes in sink.named(
            "report", "anomalies", {"since": since, "limit": ROWS}
        )
    ]
    heads = ("day", "campaign", "what", "observed", "expected", "q value", "explanation", "known causes")
    content = (
        table("The newest", heads, rows, numbers=(3,)) if rows else empty("Nothing out of the ordinary was found.")
    )
    intro = (
        "Campaign days unlike the campaign's own history. The q value bounds the share of false reports among these."
    )
    page.add("anomalies", "Anomalies", intro, content)


def _reconciliation(page: _Page, sink: Sink, now: datetime) -> None:
    intro = "The newest comparison of each day, source against target, and what became of the rows that differed."
    since = (now - timedelta(days=CHECKED_DAYS)).date()
    compared, differing, oldest = sink.named("report", "reconciled", {"since": since})[0]
    if not compared:
        page.add("reconciliation", "Reconciliation", intro, empty("Nothing was compared yet: `retailmedia reconcile`."))
        return
    tones: dict[str, Tone] = {"equal": "ok", "mended": "ok", "mending": "info", "mismatch": "error"}
    rows = []
    for stream, day, at, state, ours, theirs, missing, extra, stale, duplicate, mended in sink.named(
        "report", "reconciliations", {"limit": ROWS}
    ):
        counts = (ours, theirs, missing, extra, stale, duplicate, mended)
        rows.append((str(day), stream, Cell(badge(tones[state], state)), at, *counts))
    if differing:
        page.wrong.append(
            ("error", f"{differing:,} compared days differ from the source: `retailmedia reconcile --heal`.")
        )
    told = f"{compared:,} days of streams were compared in these {CHECKED_DAYS} days, the longest ago at {stamp(oldest)}; {differing:,} of them differ."
    heads = (
        "day", "stream", "state", "compared at", "source rows", "target rows", "missing", "extra", "stale", "duplicate",
        "mended",
    )  # fmt: skip
    content = table("Days that differ first, then the newest", heads, rows, numbers=tuple(range(4, 11)))
    page.add("reconciliation", "Reconciliation", intro, Html(f"<p>{text(told)}</p>"), content)


def _seals(page: _Page, sink: Sink) -> None:
    rows = [
        (str(day), number, ", ".join(f"{count:,} {stream}" for stream, count in zip(streams, counts, strict=True)),
         spend, model, zone, Cell(text(f"{digest:016x}"), "mono"), at, replaces or None)
        for day, number, replaces, streams, counts, spend, model, zone, digest, at in sink.named(
            "report", "seals", {"limit": ROWS}
        )
    ]  # fmt: skip
    heads = ("day", "seal", "events", "spend", "pricing model", "time zone", "metrics hash", "sealed at", "replaces")
    content = table("The newest days", heads, rows, numbers=(1, 3)) if rows else empty("No day is final yet.")
    intro = (
        "What was written down of each day when it became final; `retailmedia verify DAY` says whether it still holds."
    )
    page.add("seals", "Sealed days", intro, content)


def _restatements(page: _Page, sink: Sink) -> None:
    rows = [
        (str(day), f"{name} ({campaign})", what, _figure(what, before), _figure(what, after), model, at, why)
        for day, campaign, name, what, before, after, model, at, why in sink.named(
            "report", "restatements", {"limit": ROWS}
        )
    ]
    heads = ("day", "campaign", "figure", "before", "after", "pricing model", "when", "why")
    content = table("The newest", heads, rows, numbers=(3, 4)) if rows else empty("No day changed after it was final.")
    page.add("restatements", "Restatements", "Changes to days that had been declared final.", content)


def _figure(what: str, value: Decimal) -> str:
    return money.amount(value) if what == "spend_amount" else f"{value:,.0f}"
