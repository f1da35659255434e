"""One server is away for minutes, and whoever needs it must come back to it by itself, in the process it had.

Under other faults whatever ends is started again, as containers are, and that hides a worker that gave up. Here nothing
may end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from embedded.stack import SERVICES, Service
from tests.chaos.faults import PATIENCE, Params
from tests.chaos.lanes import play
from tests.chaos.run import REST_EVERY, Chapter, Report, Step, aloud
from tests.chaos.stage import open_stage

KILLS: dict[Service, tuple[str, Params]] = {
    "postgres": ("postgres killed", {}),
    "redis": ("redis killed", {"empty": False}),
    "clickhouse": ("clickhouse killed", {}),
}


def outage(service: Service, seconds: float, *, seed: int, tell: Callable[[str], None] = aloud) -> Report:
    """Keeps one server away for that long while writers and beat go on, then compares everything."""
    report = Report(seed, 1)
    name, params = KILLS[service]
    step = Step(1, ((name, {**params, "seconds": seconds}),), 0.0, False)
    with open_stage() as stage:
        Chapter(stage, report, f"{seed}/{service}", REST_EVERY, PATIENCE, PATIENCE, tell).play([step])
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
        outcome = (
            f"{report.rows_compared} rows agree, new ones were counted {max(report.convergence, default=0):.1f} s after "
            "its return, no process ended"
            if report.good
            else "VIOLATED"
        )
        lines.append(f"{service} away for {seconds:g} s: {outcome}")
        lines += [f"    {told}" for told in report.violations]
    return "\n".join(lines)
