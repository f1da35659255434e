"""One server is away for minutes, or silent, or held up, and whoever needs it must come back by itself, in the process
it had.

Under other faults whatever ends is started again, as containers are, and that hides a worker that gave up. Here nothing
may end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from embedded.stack import SERVICES, Service
from tests.chaos.faults import PATIENCE, Params
from tests.chaos.lanes import play
from tests.chaos.run import Chapter, Report, Step, aloud
from tests.chaos.stage import open_stage

STOPPED_SECONDS = 20.0
"""How long Redis or ClickHouse does not answer: longer than whoever asks them waits on a stage, so timeouts must fire."""

HELD_SECONDS = 60.0
"""How long a transaction stays open, and with it the horizon."""


def troubles(service: Service, seconds: float) -> list[tuple[str, Params]]:
    """What this server goes through, each for as long as given: other runs play these for seconds only."""
    match service:
        case "postgres":
            held: Params = {"seconds": HELD_SECONDS, "writes_first": False}
            return [("postgres killed", {"seconds": seconds}), ("transaction held open", held)]
        case "redis":
            killed: Params = {"empty": False, "seconds": seconds}
            return [("redis killed", killed), ("redis stopped", {"seconds": STOPPED_SECONDS})]
        case "clickhouse":
            return [("clickhouse killed", {"seconds": seconds}), ("clickhouse stopped", {"seconds": STOPPED_SECONDS})]


def outage(service: Service, seconds: float, *, seed: int, tell: Callable[[str], None] = aloud) -> Report:
    """Keeps one server away for that long while writers and beat go on, compares everything, and so for what else there
    is of that server."""
    drawn = troubles(service, seconds)
    report = Report(seed, len(drawn))
    steps = [Step(number, (one,), 0.0, False) for number, one in enumerate(drawn, 1)]
    with open_stage() as stage:
        Chapter(stage, report, f"{seed}/{service}", 1, PATIENCE, PATIENCE, tell).play(steps)
        ended = {one.name: one.starts - 1 for one in stage.processes.values() if one.starts > 1}
    if ended:
        report.violations.append(f"processes ended, so many times: {ended}")
    return report


def outages(seconds: float, *, seed: int, lanes: int, tell: Callable[[str], None] = aloud) -> list[Report]:
    """Each server's outage on a stage of its own, in the order of `SERVICES`."""
    commands = [["--seed", str(seed), "--outage", f"{seconds:g}", "--server", service] for service in SERVICES]
    return play(commands, lanes, names=SERVICES, enough=lambda _: False, tell=tell)


def figures(seconds: float, reports: Sequence[Report]) -> list[dict[str, Any]]:
    """What each outage led to, as JSON takes it."""
    replay = {"replay": f"python -m tests.chaos --seed {reports[0].seed} --outage {seconds:g}"}
    return [
        {"server": service, **report.figures(), **replay} for service, report in zip(SERVICES, reports, strict=True)
    ]


def text(seconds: float, reports: Sequence[Report]) -> str:
    """What each outage led to, for people."""
    lines = []
    for service, report in zip(SERVICES, reports, strict=True):
        lines.append(
            f"{service}: {'no process ended, ' if report.good else 'VIOLATED, '}{report.rows_compared} rows compared"
        )
        for (name, params), took in zip(troubles(service, seconds), report.convergence, strict=False):
            lines.append(f"    {name}, {params['seconds']:g} s: new rows were counted {took:.1f} s after it")
        lines += [f"    {told}" for told in report.violations]
    return "\n".join(lines)
