"""The harness tested: each mutant against the faults that provoke it. One that gets away is a hole in the harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.lanes import play
from tests.chaos.mutants import MUTANTS
from tests.chaos.run import Report, aloud, run

CONTROL = "none"

FAULTS = 6
"""Faults a mutant has to survive to get away."""

PATIENCE = 20.0
"""Seconds a comparison waits for agreement; the product itself needs two or three here."""


@dataclass(frozen=True, slots=True)
class Hunted:
    """A mutant, whether it was caught, by which fault and what was seen."""

    name: str
    says: str
    caught: bool
    by: str
    seen: str
    seconds: float

    def figures(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def chase(name: str, seed: int, tell: Callable[[str], None] = aloud) -> Report:
    """Plays the schedule of one mutant until it is caught or gets away; with no name, everybody's on the real thing."""
    faults = MUTANTS[name].faults if name else sorted({fault for mutant in MUTANTS.values() for fault in mutant.faults})
    return run(
        seed,
        FAULTS if name else len(faults),
        mutant=name,
        only=faults,
        rest_every=1,
        patience=PATIENCE,
        converged=2 * PATIENCE,
        tell=tell,
    )


def hunt(names: Sequence[str], *, seed: int, lanes: int, tell: Callable[[str], None] = aloud) -> list[Hunted]:
    """Chases these mutants, and plays their faults on the real thing, which must hold, or being caught means nothing."""
    everybody = (CONTROL, *names)
    commands = [["--seed", str(seed), "--mutant", name] for name in everybody]
    result = []
    reports = play(commands, lanes, names=everybody, enough=lambda _: False, tell=tell)
    for name, report in zip(everybody, reports, strict=True):
        seen = report.violations[0] if report.violations else ""
        says = "the real thing" if name == CONTROL else MUTANTS[name].says
        result.append(Hunted(name, says, not report.good, report.caught_by, seen, round(report.seconds, 1)))
    return result


def good(hunted: Sequence[Hunted]) -> bool:
    """Whether every mutant was caught and the real thing was not."""
    return all(one.caught != (one.name == CONTROL) for one in hunted)


def text(hunted: Sequence[Hunted]) -> str:
    """Which fault caught which mutant, for people."""
    lines = []
    for one in hunted:
        if one.name == CONTROL:
            outcome = f"VIOLATED in {one.by}\n    {one.seen}" if one.caught else "the promise held"
        else:
            outcome = f"caught by {one.by}, {one.seconds:.0f} s\n    {one.seen}" if one.caught else "GOT AWAY"
        lines.append(f"{one.name} ({one.says}): {outcome}")
    mutants = [one for one in hunted if one.name != CONTROL]
    return "\n".join([*lines, f"{sum(one.caught for one in mutants)} of {len(mutants)} mutants caught"])
