"""Rows that were set aside: what is there, and what people decide about it.

A decision speaks of a row as it is: a released row is loaded by the next reading of its window, through the same path
as every other, and so is any later reading of the same row; one whose content changes at the source is judged anew.
How a row stands is not written anywhere but follows from what is loaded and what was decided (the view `quarantine`).
So every row that was extracted is loaded or in quarantine, whatever is done in which order.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from worker.errors import BadInput
from worker.rules import RULES
from worker.sink import Sink
from worker.sql import chunks, named
from worker.streams import Stream
from worker.streams import stream as stream_of
from worker.windows import MICROSECOND, Window, instant, parse_instant

State = Literal["held", "released", "discarded", "loaded"]
STATES: tuple[State, ...] = ("held", "released", "discarded", "loaded")
Decision = Literal["release", "discard"]

INSTANTS = 20
"""Released rows of one window that are read again by the instant; of more, the whole window is."""

WINDOWS_AT_ONCE = 200
IDS_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Held:
    """A row that was set aside. `row` is the source row; `reason` and `decided_at` are the decision's, if there is one."""

    stream: str
    event_id: int
    rule: str
    state: State
    reason: str | None
    decided_at: datetime | None
    row: dict[str, Any]
    window: Window
    run_id: str
    quarantined_at: datetime

    @property
    def can_be_loaded(self) -> bool:
        """Whether a cleansing rule set it aside; else ClickHouse cannot hold it and only a correction helps."""
        return self.rule.partition(":")[0] in RULES


def rows(
    sink: Sink,
    *,
    stream: Stream | None = None,
    ids: Sequence[int] = (),
    rule: str = "",
    states: Sequence[State] = STATES,
    limit: int = 1000,
) -> list[Held]:
    """Rows that were set aside, newest first. `rule` is the beginning of the rule's name."""
    conditions = [
        named("quarantine", name)
        for name, given in (("of_stream", stream is not None), ("of_rule", bool(rule)), ("of_ids", bool(ids)))
        if given
    ]
    statement = named("quarantine", "rows").format(condition="".join(f"\n    {text}" for text in conditions))
    parameters = {
        "states": tuple(states),
        "stream": stream.name if stream else "",
        "rule": rule,
        "ids": tuple(ids) or (0,),
        "limit": limit,
    }
    result = []
    for name, event_id, why, state, reason, decided_at, row, lo, hi, run_id, at in sink.query(
        "looking into quarantine", statement, parameters
    ):
        result.append(
            Held(
                name,
                event_id,
                why,
                state,
                reason,
                instant(decided_at) if decided_at else None,
                json.loads(row),
                Window(lo, hi),
                run_id,
                instant(at),
            )
        )
    return result


def counts(sink: Sink) -> dict[str, dict[str, int]]:
    """By stream, how many rows stand how."""
    result: dict[str, dict[str, int]] = {}
    for stream, state, count in sink.named("quarantine", "counts"):
        result.setdefault(stream, {})[state] = count
    return result


def decide(sink: Sink, chosen: Sequence[Held], decision: Decision, reason: str) -> int:
    """Writes the decision about these rows, and returns how many they are. Again changes nothing.

    Raises `BadInput`, deciding nothing, where a row to be released can only be loaded once it is corrected.
    """
    if decision == "release":
        hopeless = [held for held in chosen if not held.can_be_loaded]
        if hopeless:
            held = hopeless[0]
            raise BadInput(
                f"Row {held.event_id} of {held.stream} cannot be loaded as it is ({held.rule}); correct it at the "
                "source, and it is loaded by itself."
            )
    by_stream: dict[str, list[int]] = {}
    for held in chosen:
        by_stream.setdefault(held.stream, []).append(held.event_id)
    for stream, ids in by_stream.items():
        for some in chunks(ids, IDS_AT_ONCE):
            parameters = {"stream": stream, "ids": tuple(some), "decision": decision, "reason": reason}
            name = "decide_dimension" if stream_of(stream).kind == "dimension" else "decide"
            sink.command("writing a decision", named("quarantine", name), parameters)
    return len(chosen)


def pending(sink: Sink) -> Iterator[tuple[Stream, Window, str]]:
    """What is to be read again for released rows to be loaded, each reading with a name of its own."""
    occasion = f"release-{secrets.token_hex(4)}"
    for name, lo, hi, instants in sink.named("quarantine", "pending", {"limit": WINDOWS_AT_ONCE}):
        stream = stream_of(name)
        moments = sorted({parse_instant(text) for text in instants})
        if len(moments) > INSTANTS:
            yield stream, Window(lo, hi), occasion
        else:
            for at in moments:
                yield stream, Window(at, at + MICROSECOND), occasion
