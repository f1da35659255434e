"""What a well-formed message is: checked as the broker hands it over, before Celery or kombu use anything of it.

Celery trusts its broker: a header of the wrong type ends the worker, the message goes back to the queue, and every
worker that starts dies of it. So each field that Celery or kombu will touch is looked at here, by type and range, and
what is wrong with it is told in a few words without its content: that may be a secret, or text made for a terminal.
Pure: no broker, no clock.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.app.task import Context
from celery.utils.time import maybe_iso8601

JSON = "application/json"

DEEPEST = 24
"""Levels of lists and objects in a message. Celery's own need nine."""

FARTHEST = timedelta(days=1)
"""How long a message may ask to wait: longer than clocks are wrong by, and than anything here waits."""

EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)

_IDENTIFIER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:@-]{0,127}")
_FIELD = re.compile(r"[A-Za-z][0-9A-Za-z_.-]{0,63}")

Check = Callable[[Any], bool]


class Refused(Exception):
    """A message that nobody here reads. `reason` is one of few words, `told` says what is wrong in a short sentence."""

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(f"{reason}: {told}")
        self.reason = reason
        self.told = told


@dataclass(frozen=True, slots=True)
class Limits:
    """What a task message may ask for: its bytes as the broker has them, and seconds of work."""

    bytes: int
    seconds: float
    tasks: Collection[str]
    queues: Collection[str]


def parsed(raw: bytes | str, limit: int) -> Any:
    """The JSON of a text whose bytes are measured first. Raises `Refused`."""
    if len(raw) > limit:
        raise Refused("size", f"it has {len(raw)} bytes, more than {limit}")
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused("not JSON", "it cannot be read as JSON") from None
    _require_plain(value, DEEPEST)
    return value


def _no_number(_: str) -> Any:
    raise ValueError


def _require_plain(value: Any, deeper: int) -> None:
    """Refuses what JSON can write and the next that reads or writes it cannot."""
    match value:
        case None | bool():
            pass
        case int() if abs(value) < 2**63:
            pass
        case float() if math.isfinite(value):
            pass
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Refused("not JSON", "it holds half a character") from None
        case list() if deeper:
            for item in value:
                _require_plain(item, deeper - 1)
        case dict() if deeper and "__type__" not in value:
            for key, item in value.items():
                _require_plain(key, 0)
                _require_plain(item, deeper - 1)
        case _:
            raise Refused("not JSON", "it holds a number out of range, a type by name, or too many levels")


def is_identifier(value: object) -> bool:
    """Whether it can be the id of a task, a group or a queue."""
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def is_whole(least: int, most: int) -> Check:
    """Whether it is a whole number within these bounds."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(above: float, most: float) -> Check:
    """Whether it is a number within these bounds."""
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and above < value <= most


def is_text(most: int) -> Check:
    """Whether it is a text of so many characters at most."""
    return lambda value: isinstance(value, str) and len(value) <= most


def is_flag(value: object) -> bool:
    """true or false."""
    return isinstance(value, bool)


def one_of(*allowed: object) -> Check:
    """Whether it is one of these."""
    return lambda value: isinstance(value, str | int | None) and value in allowed


def or_null(check: Check) -> Check:
    """The same, or null."""
    return lambda value: value is None or check(value)


def list_of(check: Check, most: int) -> Check:
    """Whether it is a list of so many such items at most."""
    return lambda value: isinstance(value, list) and len(value) <= most and all(check(item) for item in value)


def _is_instant(latest: datetime) -> Check:
    def check(value: Any) -> bool:
        try:
            # Celery's own reading: what it takes for an instant is one.
            read = maybe_iso8601(value) if isinstance(value, str) else None
            return read is not None and EARLIEST <= (read if read.tzinfo else read.replace(tzinfo=UTC)) <= latest
        except (AttributeError, TypeError, ValueError, OverflowError):
            return False

    return check


def _is_plain_value(value: object) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= 1000)


def require(
    where: str, found: Any, checks: Mapping[str, Check], *, reason: str = "", needed: Collection[str] = ()
) -> None:
    """Refuses an object that lacks what is needed, has fields nobody knows, or values that do not pass."""
    reason = reason or where
    if not isinstance(found, dict):
        raise Refused(reason, f"its {where} are no object")
    for name in needed:
        if name not in found:
            raise Refused(reason, f"its {where} lack {name}")
    for name, value in found.items():
        if name not in checks:
            raise Refused(reason, f"its {where} have a field that nobody knows")
        if not checks[name](value):
            raise Refused(reason, f"{name} in its {where} is not as it must be")


def require_envelope(found: Any, exchanges: Collection[str], routes: Check) -> dict[str, Any]:
    """Refuses what kombu could not unpack: the parts every message has, whatever it is about."""
    if not isinstance(found, dict):
        raise Refused("envelope", "it is no object")
    if found.keys() - {"body", "headers", "properties", "content-type", "content-encoding"}:
        raise Refused("envelope", "it has a part that nobody knows")
    if found.get("content-type") != JSON or found.get("content-encoding") != "utf-8":
        raise Refused("content type", f"it is not {JSON} in utf-8")
    properties = {
        "correlation_id": or_null(is_identifier),
        "reply_to": or_null(is_identifier),
        "delivery_mode": or_null(one_of(1, 2)),
        "delivery_info": lambda value: isinstance(value, dict),
        "priority": or_null(is_whole(0, 9)),
        "body_encoding": or_null(one_of("base64", "utf-8")),
        "delivery_tag": is_identifier,
        "expiration": or_null(is_text(32)),
    }
    unknown = {name: _is_plain_value for name in _texts(found.get("properties")) if _FIELD.fullmatch(name)}
    needed = ("delivery_tag", "delivery_info")
    require("properties", found.get("properties"), {**unknown, **properties}, needed=needed)
    delivery = {"exchange": one_of(*exchanges), "routing_key": routes, "redelivered": is_flag}
    info = found["properties"]["delivery_info"]
    require("delivery info", info, delivery, reason="route", needed=("exchange", "routing_key"))
    headers = found.get("headers")
    if headers is not None and not isinstance(headers, dict):
        raise Refused("headers", "its headers are no object")
    # It unpacks what nobody has measured.
    if headers and "compression" in headers:
        raise Refused("headers", "it is compressed")
    return found


def _texts(found: Any) -> list[str]:
    return list(found) if isinstance(found, dict) else []


def body_of(envelope: Mapping[str, Any], limit: int) -> Any:
    """The body of a message, decoded. Raises `Refused`."""
    body = envelope.get("body")
    if not isinstance(body, str) or not body:
        raise Refused("body", "it has no body")
    if envelope["properties"].get("body_encoding") != "base64":
        return parsed(body.encode(), limit)
    try:
        return parsed(base64.b64decode(body, validate=True), limit)
    except (binascii.Error, ValueError):
        raise Refused("body", "its body is not base64") from None


def _header_checks(limits: Limits, now: datetime) -> dict[str, Check]:
    """Every field of a task message that Celery reads, wherever the protocol has it."""
    seconds = or_null(is_number(0, limits.seconds))
    return {
        "lang": or_null(is_text(32)),
        "task": lambda value: isinstance(value, str) and value in limits.tasks,
        "id": is_identifier,
        "shadow": or_null(is_text(200)),
        "eta": or_null(_is_instant(now + FARTHEST)),
        "expires": or_null(_is_instant(LATEST)),
        "group": or_null(is_identifier),
        "group_index": or_null(is_whole(0, 1_000_000)),
        "retries": is_whole(0, 10_000),
        "timelimit": or_null(lambda value: list_of(seconds, 2)(value) and len(value) == 2),
        "root_id": or_null(is_identifier),
        "parent_id": or_null(is_identifier),
        "argsrepr": or_null(is_text(10_000)),
        "kwargsrepr": or_null(is_text(10_000)),
        "origin": or_null(is_text(255)),
        "ignore_result": or_null(is_flag),
        "replaced_task_nesting": is_whole(0, 1000),
        "stamped_headers": lambda value: value in (None, []),
        "stamps": lambda value: value in (None, {}),
        "meth": or_null(is_text(200)),
        "redelivered": is_flag,
    }


def _require_fields(fields: dict[str, Any], limits: Limits, now: datetime) -> None:
    """Fields of a task, Celery's and others': these may say what they like, in short, but not stand in for Celery's."""
    checks = _header_checks(limits, now)
    others = {name for name in fields if _FIELD.fullmatch(name) and not hasattr(Context, name)}
    if not checks["task"](fields.get("task")):
        raise Refused("task", "there is no such task")
    require("headers", fields, {**dict.fromkeys(others, _is_plain_value), **checks}, needed=("id", "task"))


def _require_signature(found: Any, limits: Limits, now: datetime) -> None:
    """A task that this one would send when it ends."""
    signatures = _are_signatures(limits, now)
    shape: dict[str, Check] = {
        "task": lambda value: isinstance(value, str) and value in limits.tasks,
        "args": lambda value: isinstance(value, list),
        "kwargs": lambda value: isinstance(value, dict),
        "options": lambda value: isinstance(value, dict),
        "subtask_type": lambda value: value is None,
        "immutable": is_flag,
        "chord_size": or_null(is_whole(0, 1_000_000)),
    }
    require("body", found, shape, needed=("task", "args", "kwargs", "options"))
    headers = _header_checks(limits, now)
    options = {
        "queue": lambda value: isinstance(value, str) and value in limits.queues,
        "task_id": or_null(is_identifier),
        "reply_to": or_null(is_identifier),
        "group_id": or_null(is_identifier),
        "countdown": or_null(is_number(-1, FARTHEST.total_seconds())),
        "priority": or_null(is_whole(0, 9)),
        "link": or_null(signatures),
        "link_error": or_null(signatures),
        "chord": or_null(lambda value: signatures([value])),
        **{name: headers[name] for name in ("root_id", "parent_id", "group_index", "eta", "expires", "ignore_result")},
    }
    require("options", found["options"], options, reason="body")


def _are_signatures(limits: Limits, now: datetime) -> Check:
    def check(value: Any) -> bool:
        for item in value if isinstance(value, list) else [value]:
            _require_signature(item, limits, now)
        return True

    return check


def require_task(envelope: dict[str, Any], limits: Limits, now: datetime) -> None:
    """Refuses a message that is not well-formed, by Celery's protocol 1, 2 or both, or whose task nobody knows."""
    headers = envelope.get("headers") or {}
    body = body_of(envelope, limits.bytes)
    if isinstance(body, dict):
        # Protocol 1 has its fields beside the arguments; headers count before them.
        embedded = {"args", "kwargs", "callbacks", "errbacks", "chord", "utc", "taskset"}
        within = {name: value for name, value in body.items() if name in embedded}
        if headers and "task" not in headers and headers.keys() - {"redelivered"}:
            raise Refused("headers", "it has headers without a task")
        fields = {**{name: value for name, value in body.items() if name not in embedded}, **headers}
        arguments = (within.get("args"), within.get("kwargs"))
        after = {name: within.get(name) for name in ("callbacks", "errbacks", "chord")}
        if not is_flag(within.get("utc", True)) or not or_null(is_identifier)(within.get("taskset")):
            raise Refused("body", "utc or taskset in its body is not as it must be")
    elif isinstance(body, list) and len(body) == 3:
        fields, arguments, after = headers, (body[0], body[1]), body[2]
    else:
        raise Refused("body", "its body is neither protocol 1 nor protocol 2")
    _require_fields(fields, limits, now)
    if not isinstance(arguments[0], list) or not isinstance(arguments[1], dict):
        raise Refused("body", "its arguments are not a list and an object")
    signatures = or_null(_are_signatures(limits, now))
    lists = dict.fromkeys(("callbacks", "errbacks", "chain"), or_null(list_of(signatures, 100)))
    require("body", after, {**lists, "chord": signatures})
