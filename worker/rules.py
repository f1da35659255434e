"""Cleansing rules: what may be wrong with a row that could be loaded as it is. Pure: arrays in, arrays out.

`CLEANSING` says for each rule what becomes of the rows it finds: `load` them (the default, and then the rule is not
even looked at), load and `flag` them, or `quarantine` them. Adding a rule is adding an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from worker.config import Settings
from worker.errors import BadInput
from worker.windows import to_micros

Action = Literal["load", "flag", "quarantine"]
Marks = list[tuple[str, NDArray[np.bool_]]]
"""Rules by name, each with the rows it found."""

MICROS = 1_000_000


class Events(Protocol):
    """What a rule sees of rows: columns of equal length, instants in microseconds since 1970 UTC."""

    @property
    def campaign_id(self) -> NDArray[np.int64]:
        """0 stands for NULL."""

    @property
    def created_at(self) -> NDArray[np.int64]:
        """When the event happened."""

    @property
    def inserted_at(self) -> NDArray[np.int64]:
        """When the row was written."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A name for settings and screens, the reason it gives, and which rows it finds."""

    name: str
    reason: str
    finds: Callable[[Settings, Events], NDArray[np.bool_]]


def _future(settings: Settings, rows: Events) -> NDArray[np.bool_]:
    # Infinities stand at the ends of the range, where a difference would overflow.
    latest: NDArray[np.int64] = rows.inserted_at + settings.cleansing_future_seconds * MICROS
    return np.greater(rows.created_at, latest)


def _too_old(settings: Settings, rows: Events) -> NDArray[np.bool_]:
    earliest = settings.cleansing_earliest
    return np.less(rows.created_at, to_micros(datetime(earliest.year, earliest.month, earliest.day, tzinfo=UTC)))


def _no_campaign(settings: Settings, rows: Events) -> NDArray[np.bool_]:
    return np.equal(rows.campaign_id, 0)


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("future", "the event happened after its row was written", _future),
        Rule("too old", "the event happened before CLEANSING_EARLIEST", _too_old),
        Rule("no campaign", "the event names no campaign", _no_campaign),
    )
}
"""Every rule by name."""


def actions(settings: Settings) -> dict[str, Action]:
    """What each rule that is not `load` does. Raises `BadInput` for a rule there is not."""
    for name, action in settings.cleansing.items():
        if name not in RULES:
            raise BadInput(f"CLEANSING names the rule {name!r}; the rules are {', '.join(RULES)}.")
        if action not in get_args(Action):
            raise BadInput(f"CLEANSING gives {name} the action {action!r}; it is load, flag or quarantine.")
    return {name: action for name, action in settings.cleansing.items() if action != "load"}


def judge(settings: Settings, rows: Events) -> tuple[Marks, Marks]:
    """Rows to quarantine and rows to flag, each with the reason. Costs nothing while every rule says `load`."""
    quarantined: Marks = []
    flagged: Marks = []
    for name, action in actions(settings).items() if settings.cleansing else ():
        found = RULES[name].finds(settings, rows)
        if found.any():
            (quarantined if action == "quarantine" else flagged).append((f"{name}: {RULES[name].reason}", found))
    return quarantined, flagged
