"""What Redis holds under our names is input: anybody with its password can write it. Each value is parsed and bounded
here, and what makes no sense is thrown away with one line in the log, which never repeats it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from worker.errors import BadInput
from worker.windows import ORIGIN, Window, parse_instant

log = structlog.get_logger()

AHEAD = timedelta(days=1)
"""How far another server's clock may be ahead of Redis's."""

LATEST = datetime(2200, 1, 1, tzinfo=UTC)

KINDS = {
    "watermark": "string",
    "observed": "hash",
    "lease": "string",
    "inflight": "zset",
    "waiting": "zset",
    "handed": "string",
    "clean_since": "string",
    "once": "string",
    "turn": "string",
    "gate": "string",
    "progress": "hash",
    "metrics": "hash",
}
"""The type of each key of ours, by the part of its name after the prefix."""

_NAME = re.compile(r"[a-z_]{1,40}")
_LABELS = {"stream", "le", "kind", "task", "outcome", "reason", "server", "cause"}


def discarded(key: str, told: str) -> None:
    """Says that something was thrown away; the name of a key is ours up to its last part."""
    log.warning("redis.discarded", key="".join(c if c.isprintable() else "?" for c in key[:120]), told=told)


def kind_of(key: object, prefix: str) -> str | None:
    """The part of a key's name that says what it is, None for keys that are not ours."""
    parts = key.split(":") if isinstance(key, str) else []
    return parts[1] if len(parts) > 1 and parts[0] == prefix and parts[1] in KINDS else None


def is_count(text: str) -> bool:
    """Whether a text is a number that can be added to."""
    try:
        return -(2.0**63) < float(text) < 2.0**63
    except ValueError:
        return False


def number(text: object) -> int | None:
    """A count as Redis keeps it: digits, and not many."""
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,18}", text) else None


def window(member: str, now: datetime) -> Window | None:
    """A window in flight, by Redis's clock, or None where nobody can have handed that out."""
    try:
        found = Window.parse(*member.split("/", 1))
    except (BadInput, TypeError, ValueError):
        return None
    return found if found.lo >= ORIGIN and found.hi <= now + AHEAD and str(found) == member else None


def instant(text: object) -> datetime | None:
    """An instant the product may have written, or None."""
    try:
        found = parse_instant(text) if isinstance(text, str) and len(text) <= 64 else None
    except BadInput:
        return None
    return found if found is not None and ORIGIN <= found < LATEST else None


def watermark(text: str) -> tuple[datetime, UUID, int] | None:
    """When, of which table, in which generation; None where somebody wrote something else there."""
    try:
        content: Any = json.loads(text) if len(text) <= 1000 else None
        at, generation = instant(content["at"]), content["generation"]
        uuid = UUID(content["target_uuid"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    plain = isinstance(generation, int) and not isinstance(generation, bool) and 0 <= generation < 2**31
    return (at, uuid, generation) if at is not None and plain else None


def count(key: str, value: str) -> tuple[str, Mapping[str, str], float] | None:
    """A count of the workers: its name, its labels and how much; None where it is no count of ours."""
    try:
        told: Any = json.loads(key) if len(key) <= 2000 else (None, None)
        name, labels = told
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or not _labels(labels) or not is_count(value):
        return None
    return (name, labels, float(value)) if float(value) >= 0 else None


def _labels(found: Any) -> bool:
    return isinstance(found, dict) and all(
        name in _LABELS and isinstance(value, str) and len(value) <= 200 and value.isprintable()
        for name, value in found.items()
    )
