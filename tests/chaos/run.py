"""A run: faults by a seeded schedule while writers go on, rests in which everything is compared, and a report.

The schedule is a pure function of seed and length. A run is cut into chapters, each on a stage of its own, so that a
long one does not drag all its rows along, and so that several can be played at once (`tests.chaos.lanes`).
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.chaos import checker
from tests.chaos.faults import FAULTS, PATIENCE, REREAD_SECONDS, Fault, Params, Scene, back_up, canary
from tests.chaos.faults_calendar import zone_of
from tests.chaos.stage import Stage, Violation, open_stage
from tests.chaos.writers import Writers

CHAPTER = 84
"""Faults on one stage, at most: twelve chapters of a thousand, which two or three lanes share evenly. Each costs over a minute."""

SHORT_RUN, SHORT_CHAPTER = 100, 14
"""A run of no more faults than this is cut finer, so that its chapters fill all lanes."""

REST_EVERY = 42
"""Faults between two full comparisons: two in a chapter."""

PAIRED = 0.85
"""How often a fault comes with another one."""

DUPLICATES = 8
"""Physical rows there may be for each logical one before merges. Each reading of a row adds at most one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One fault, or two of different subjects at once, held for so many seconds before they are healed."""

    number: int
    faults: tuple[tuple[str, Params], ...]
    hold: float
    first_healed_first: bool

    def told(self) -> str:
        """The step in a line."""
        names = [f"{name}{f' {params}' if params else ''}" for name, params in self.faults]
        return f"#{self.number} {' + '.join(names)}"


def schedule(seed: int, count: int, *, only: Sequence[str] = ()) -> list[Step]:
    """Steps with `count` faults in all. Every kind comes once before any comes twice, where there is room for all."""
    rng = random.Random(seed)
    kinds = [FAULTS[name] for name in only] if only else list(FAULTS.values())
    deck: list[Fault] = []
    steps: list[Step] = []
    left = count

    def next_fault(besides: Fault | None = None) -> Fault | None:
        if not deck:
            deck.extend(rng.sample(kinds, len(kinds)) if only else _deck(rng, kinds, count))
        for position, one in enumerate(deck):
            if besides is None or one.pairs_with(besides):
                return deck.pop(position)
        return None

    while left:
        first = next_fault()
        assert first is not None
        chosen = [first]
        if left > 1 and rng.random() < PAIRED:
            second = next_fault(first)
            if second is not None:
                chosen.append(second)
        drawn = tuple((one.name, one.draw(rng)) for one in chosen)
        steps.append(Step(len(steps) + 1, drawn, round(rng.uniform(0.1, 1), 2), rng.random() < 0.5))
        left -= len(chosen)
    return steps


RARE = 0.1
FAMILIES = ("kill child at ", "kill worker at ")


def _deck(rng: random.Random, kinds: list[Fault], count: int) -> list[Fault]:
    """A shuffled round of kinds. In a short run, one kill of each family stands for the family, and the rarest go."""
    round_of = [one for one in kinds if count >= len(kinds) or one.weight > RARE]
    rng.shuffle(round_of)
    if count < len(kinds):
        seen: Counter[str] = Counter()
        result = []
        for one in round_of:
            family = next((family for family in FAMILIES if one.name.startswith(family)), one.name)
            seen[family] += 1
            if seen[family] == 1:
                result.append(one)
        return result
    # In a long one, kinds that take long come less often.
    return [one for one in round_of if rng.random() < one.weight] + [
        one for one in round_of if rng.random() < one.weight - 1
    ]


def cut(steps: Sequence[Step], count: int) -> list[list[Step]]:
    """The schedule of `count` faults in chapters."""
    room = SHORT_CHAPTER if count <= SHORT_RUN else CHAPTER
    chapters: list[list[Step]] = []
    taken = room
    for step in steps:
        if taken >= room:
            chapters.append([])
            taken = 0
        chapters[-1].append(step)
        taken += len(step.faults)
    return chapters


def longest_first(chapters: Sequence[Sequence[Step]]) -> list[int]:
    """Numbers (from 1) of the chapters, in the order to begin them: with the longest last, one lane works at it alone."""

    def length(number: int) -> tuple[bool, int]:
        steps = chapters[number - 1]
        return any(name == "huge transaction" for step in steps for name, _ in step.faults), len(steps)

    return sorted(range(1, len(chapters) + 1), key=length, reverse=True)


@dataclass
class Report:
    """What a run did and found. `convergence` holds seconds from healed to counted, one for each step."""

    seed: int
    asked: int
    chapter: int = 0
    only: list[str] = field(default_factory=list)
    mutant: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    rows_written: int = 0
    rows_updated: int = 0
    rows_compared: int = 0
    rows_quarantined: int = 0
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_stale: int = 0
    physical_duplicates: int = 0
    comparisons: int = 0
    restarts: int = 0
    convergence: list[float] = field(default_factory=list)
    wiped: list[float] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    unreached: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    caught_by: str = ""
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """Takes in what another chapter did and found."""
        for name in (
            "faults", "pairs", "rows_written", "rows_updated", "rows_compared", "rows_quarantined", "rows_lost",
            "rows_doubled", "rows_stale", "comparisons", "restarts", "convergence", "wiped", "settled", "unreached",
            "violations",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.physical_duplicates = max(self.physical_duplicates, other.physical_duplicates)
        self.caught_by = self.caught_by or other.caught_by

    def to_json(self) -> str:
        """Everything, for `from_json`."""
        return json.dumps(vars(self))

    @staticmethod
    def from_json(text: str) -> Report:
        """A report that another process wrote."""
        told = json.loads(text)
        return Report(**{**told, "faults": Counter(told["faults"]), "unreached": Counter(told["unreached"])})

    @property
    def good(self) -> bool:
        """Whether the promise held."""
        return not self.violations

    def figures(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        told = {**vars(self), "replay": self.replay()}
        told["faults"] = dict(sorted(self.faults.items()))
        told["fault_count"] = sum(self.faults.values())
        for name in ("convergence", "wiped", "settled"):
            values = getattr(self, name)
            told[name] = {"count": len(values), "p95": percentile(values, 0.95), "longest": max(values, default=0.0)}
        return told

    def text(self) -> str:
        """The report for people."""
        lines = [
            f"seed {self.seed}{f', mutant {self.mutant}' if self.mutant else ''}: {'the promise held' if self.good else 'VIOLATED'}"
        ]
        lines.append(f"faults {sum(self.faults.values())} ({self.pairs} pairs) in {self.seconds:.0f} s")
        lines += [f"  {count:4d}  {name}" for name, count in sorted(self.faults.items())]
        if self.unreached:
            lines.append("not reached in time:")
            lines += [f"  {count:4d}  {name}" for name, count in sorted(self.unreached.items())]
        lines += [
            f"rows written {self.rows_written}, updated {self.rows_updated}, quarantined {self.rows_quarantined}",
            f"rows lost {self.rows_lost}, doubled {self.rows_doubled}, stale {self.rows_stale}, in {self.comparisons} comparisons",
            f"physical duplicates before merges: {self.physical_duplicates}",
            f"processes restarted: {self.restarts}",
            f"time to converge: p95 {percentile(self.convergence, 0.95):.1f} s, longest {max(self.convergence, default=0):.1f} s",
            f"watermarks back after a wiped Redis: p95 {percentile(self.wiped, 0.95):.1f} s, longest {max(self.wiped, default=0):.1f} s",
            f"replay: {self.replay()}",
        ]
        lines += [f"VIOLATION {told}" for told in self.violations]
        return "\n".join(lines)

    def replay(self) -> str:
        """The command that plays the same again."""
        words = ["python -m tests.chaos", f"--seed {self.seed}"]
        if self.mutant:
            words.append(f"--mutant {self.mutant}")
        else:
            words.append(f"--faults {self.asked}")
            words += [f'--only "{name}"' for name in self.only]
            words += [f"--chapter {self.chapter}"] if self.chapter else []
        return " ".join(words)


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` of the values do not exceed; 0 for none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, -(-int(part * 1000) * len(values) // 1000) - 1)]


def quiet(_: str) -> None:
    """Tells nobody."""


def aloud(line: str) -> None:
    """Tells standard error."""
    print(line, file=sys.stderr, flush=True)


def run(
    seed: int,
    count: int,
    *,
    chapter: int = 0,
    mutant: str = "",
    only: Sequence[str] = (),
    rest_every: int = REST_EVERY,
    patience: float = PATIENCE,
    converged: float = REREAD_SECONDS,
    tell: Callable[[str], None] = aloud,
    keep: bool = False,
) -> Report:
    """Plays `count` faults and returns the report. Stops at the first violation: what comes after it proves nothing.
    The folder of a chapter that fails stays; those of mutants, which are meant to fail, go.

    `chapter` (from 1; 0 for all) plays that one alone; `only` restricts the kinds; `patience` is how long a comparison
    waits for agreement, `converged` how long new rows may take after a fault was healed.
    """
    report = Report(seed, count, chapter, list(only), mutant)
    began = time.monotonic()
    for number, steps in enumerate(cut(schedule(seed, count, only=only), count), 1):
        if chapter not in (0, number) or not report.good:
            continue
        opening = time.monotonic()
        names = {name for step in steps for name, _ in step.faults}
        zone = zone_of(seed, number, names, always=bool(only))
        with open_stage(mutant=mutant, keep=keep, reporting_timezone=zone) as stage:
            tell(f"chapter {number}: {stage.home}, open after {time.monotonic() - opening:.1f} s")
            played = Chapter(stage, report, f"{seed}/{number}", rest_every, patience, converged, tell)
            played.play(steps)
            if report.violations and not mutant:
                stage.keep = True
                tell(f"chapter {number} failed: data and logs stay in {stage.home}")
    report.seconds = time.monotonic() - began
    return report


class Chapter:
    """Steps on one stage."""

    def __init__(
        self,
        stage: Stage,
        report: Report,
        seed: str,
        rest_every: int,
        patience: float,
        converged: float,
        tell: Callable[[str], None],
    ) -> None:
        self._stage, self._report, self._tell = stage, report, tell
        self._rest_every, self._patience, self._converged = rest_every, patience, converged
        self._writers = Writers(stage, random.Random(seed).getrandbits(32))
        self._scene = Scene(stage, self._writers)
        self._recent: list[str] = []

    def play(self, steps: Sequence[Step]) -> None:
        """Plays them all, or up to the first violation, which goes into the report."""
        report = self._report
        self._writers.start()
        try:
            canary(self._stage, what="at the start", seconds=60)
            back_up(self._scene)
            since_rest = 0
            waiting = deque(steps)
            while waiting:
                step = waiting.popleft()
                waiting.extendleft(self._play_step(step))
                since_rest += len(step.faults)
                if since_rest >= self._rest_every and waiting:
                    self._rest()
                    since_rest = 0
            self._rest(final=True)
        except Violation as violation:
            report.violations.append(str(violation))
            if self._recent:
                report.caught_by = self._recent[-1]
            report.violations += [f"  after {told}" for told in self._recent[-6:]]
        finally:
            report.rows_written += self._writers.counts["rows inserted"]
            report.rows_updated += self._writers.counts["rows updated"]
            report.unreached.update(self._scene.unreached)
            report.wiped += self._scene.wiped
            report.restarts += sum(process.starts - 1 for process in self._stage.processes.values())
            self._writers.close()

    def _play_step(self, step: Step) -> list[Step]:
        """Plays it, and returns what is still owed: faults that the other one of their pair forbade, each by itself."""
        report, scene = self._report, self._scene
        owed: list[Step] = []
        began = time.monotonic()
        self._recent.append(step.told())
        scene.repairs.clear()
        scene.afterwards.clear()
        healing: list[ExitStack] = []
        try:
            for name, params in step.faults:
                one = ExitStack()
                healing.append(one)
                try:
                    one.enter_context(FAULTS[name].inject(scene, **params))
                    report.faults[name] += 1
                except Violation:
                    raise
                except Exception as error:
                    if len(step.faults) == 1:
                        raise
                    self._tell(f"#{step.number} {name} comes by itself later ({type(error).__name__})")
                    owed.append(Step(step.number, ((name, params),), step.hold, step.first_healed_first))
            time.sleep(step.hold)
        finally:
            order = healing if step.first_healed_first else healing[::-1]
            with ExitStack() as all_healed:
                for one in order[::-1]:
                    all_healed.push(one)
        report.pairs += len(step.faults) - len(owed) > 1
        for repair in scene.repairs:
            repair()
        healed = time.monotonic()
        for due in scene.afterwards:
            due()
        took = canary(self._stage, seconds=self._converged)
        # A pending check counts towards the time it took to get there, not the new rows' own time.
        report.convergence.append(time.monotonic() - healed if not scene.afterwards else took)
        self._tell(f"{step.told()}: {time.monotonic() - began:.1f} s, of which {took:.1f} s to converge")
        return owed

    def _rest(self, *, final: bool = False) -> None:
        report = self._report
        began = time.monotonic()
        self._writers.pause()
        self._scene.refreshes_ended()
        findings, took = checker.check(self._stage, seconds=self._patience)
        report.comparisons += 1
        report.settled.append(took)
        report.rows_lost += len(findings.lost)
        report.rows_doubled += len(findings.doubled)
        report.rows_stale += len(findings.stale)
        report.physical_duplicates = max(report.physical_duplicates, findings.physical - findings.rows)
        if final:
            report.rows_compared += findings.rows
            report.rows_quarantined += findings.quarantined
        self._tell(f"  compared {findings.rows} rows after {took:.1f} s: {findings.told() or 'all agree'}")
        if not findings.good:
            raise Violation(findings.told())
        if findings.physical > DUPLICATES * max(findings.rows, 1000):
            raise Violation(f"{findings.physical} physical rows for {findings.rows}")
        if not final:
            back_up(self._scene)
            self._writers.resume()
        self._tell(f"  rested {time.monotonic() - began:.1f} s")
