"""The harness tested: each mutant against the faults that provoke it. One that gets away is a hole in the harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.chaos.mutants import MUTANTS
from tests.chaos.run import aloud, run

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


def hunt(names: Sequence[str], *, seed: int, tell: Callable[[str], None] = aloud) -> list[Hunted]:
    """Plays the schedule of each mutant until it is caught or gets away."""
    result = []
    for name in names:
        mutant = MUTANTS[name]
        tell(f"mutant {name}: {mutant.says}")
        report = run(
            seed,
            FAULTS,
            mutant=name,
            only=mutant.faults,
            rest_every=1,
            patience=PATIENCE,
            converged=2 * PATIENCE,
            tell=tell,
        )
        seen = report.violations[0] if report.violations else ""
        one = Hunted(name, mutant.says, not report.good, report.caught_by, seen, round(report.seconds, 1))
        tell(f"mutant {name}: {f'caught by {one.by}: {one.seen}' if one.caught else 'GOT AWAY'}")
        result.append(one)
    return result


def text(hunted: Sequence[Hunted]) -> str:
    """Which fault caught which mutant, for people."""
    lines = []
    for one in hunted:
        outcome = f"caught by {one.by}, {one.seconds:.0f} s\n    {one.seen}" if one.caught else "GOT AWAY"
        lines.append(f"{one.name} ({one.says}): {outcome}")
    caught = sum(one.caught for one in hunted)
    return "\n".join([*lines, f"{caught} of {len(hunted)} mutants caught"])
