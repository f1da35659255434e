"""Checks what a message says: types, ranges, names. Raises `BadInput` with one clear sentence."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

from worker.errors import BadInput
from worker.refresh import SHADOW
from worker.streams import EVENTS_TABLE, Stream, chosen, stream
from worker.windows import Window


def no_others(task: str, takes: str, unknown: dict[str, Any]) -> None:
    """Refuses keywords the task does not take."""
    if unknown:
        raise BadInput(f"{task} takes {takes}, not {', '.join(sorted(map(str, unknown)))}.")


def stream_list(names: object) -> list[Stream]:
    """Streams by a list of names; all for null or an empty list."""
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise BadInput(f'streams takes a list of names, for example ["impressions"], not {names!r:.80}.')
    return chosen(names)


def event_stream(name: object) -> Stream:
    """One event stream by name."""
    found = stream(str(name))
    if found.kind != "events":
        raise BadInput(f"{found.name} is a dimension and has no windows.")
    return found


def dimension_stream(name: object) -> Stream:
    """One dimension by name."""
    found = stream(str(name))
    if found.kind != "dimension":
        raise BadInput(f"{found.name} is an event stream and is read by windows.")
    return found


def window(lo: object, hi: object) -> Window:
    """A window from two ISO 8601 instants."""
    return Window.parse(str(lo), str(hi))


def turn(value: object) -> str | None:
    """Whose turn it is to look at a run again, as the message that was sent for it says; null for any other."""
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value)):
        raise BadInput(f"turn holds 16 hexadecimal digits, not {value!r:.80}.")
    return value


def flag(name: str, value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BadInput(f"{name} is true or false, not {value!r:.80}.")
    return value


def uuid(value: object) -> UUID:
    """A table's uuid."""
    try:
        return UUID(str(value))
    except ValueError:
        raise BadInput(f"target names a table by its uuid, not {value!r:.80}.") from None


def target_table(value: object) -> str:
    """`ad_events` or one of its shadows."""
    if value != EVENTS_TABLE and not re.fullmatch(rf"{SHADOW}[0-9A-Za-z_]{{1,40}}", str(value)):
        raise BadInput(f"table is {EVENTS_TABLE} or a shadow of it, not {value!r:.80}.")
    return str(value)


def run_id(value: object) -> str:
    """A run's id, or empty."""
    if value is None:
        return ""
    if not re.fullmatch(r"[0-9A-Za-z-]{0,40}", str(value)):
        raise BadInput(f"run_id holds up to 40 letters, digits and dashes, not {value!r:.80}.")
    return str(value)
