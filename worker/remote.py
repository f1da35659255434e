"""What workers and those who watch them tell each other: commands, answers and events, checked before any is used.

They come by the same broker as tasks, and are as dangerous to whoever trusts them: a time limit that is no number ends
the worker at its next task, and a clock of infinity is handed on from worker to worker. Only commands that make sense
here are taken; a broker's password is enough to send them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from worker.messages import (
    Check,
    Limits,
    Refused,
    body_of,
    is_flag,
    is_identifier,
    is_number,
    is_text,
    is_whole,
    list_of,
    one_of,
    or_null,
    require,
    require_envelope,
)

BYTES = 4 * 2**20
"""The most a command, an answer or a bundle of events may have: a worker's answer tells its whole configuration."""

CONTROL, EVENTS = "celery.pidbox", "celeryev"
REPLIES = f"reply.{CONTROL}"

_CLOCK = is_whole(0, 2**53)
_TIME = is_number(0, 2.0**33)
_IDENTIFIERS = list_of(is_identifier, 100_000)
_SIGNALS = [prefix + name for prefix in ("", "SIG") for name in ("TERM", "INT", "QUIT", "KILL", "USR1")]
_RATE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?(/[smh])?")
_PROCESSES = is_whole(0, 64)
_EVENT = re.compile(
    r"task-(sent|received|started|succeeded|failed|rejected|revoked|retried|progress)|worker-(online|heartbeat|offline)"
)


def _is_rate(value: Any) -> bool:
    return is_number(-1, 1e6)(value) or (isinstance(value, str) and _RATE.fullmatch(value) is not None)


def _one_or_more(value: Any) -> bool:
    return is_identifier(value) or _IDENTIFIERS(value)


def commands(limits: Limits) -> dict[str, dict[str, Check]]:
    """The commands a worker takes, each with its arguments."""
    seconds = or_null(is_number(0, limits.seconds))
    task = one_of(*limits.tasks)
    queue = {"queue": one_of(*limits.queues)}
    route = or_null(is_identifier)
    plain = ("ping", "stats", "active_queues", "clock", "report", "heartbeat", "enable_events", "disable_events")
    revoking = {"task_id": _one_or_more, "terminate": or_null(is_flag), "signal": or_null(one_of(*_SIGNALS))}
    return {
        **{name: {} for name in (*plain, "memsample")},
        **{name: {"safe": or_null(is_flag)} for name in ("active", "scheduled", "reserved", "revoked")},
        "registered": {"taskinfoitems": or_null(list_of(is_identifier, 50)), "builtins": or_null(is_flag)},
        "conf": {"with_defaults": or_null(is_flag)},
        "query_task": {"ids": _one_or_more},
        "memdump": {"samples": is_whole(1, 1000)},
        "hello": {"from_node": is_text(255), "revoked": or_null(_IDENTIFIERS)},
        "revoke": revoking,
        "terminate": {"task_id": _one_or_more, "signal": one_of(*_SIGNALS)},
        "rate_limit": {"task_name": task, "rate_limit": _is_rate},
        "time_limit": {"task_name": task, "hard": seconds, "soft": seconds},
        "pool_grow": {"n": _PROCESSES},
        "pool_shrink": {"n": _PROCESSES},
        "autoscale": {"max": or_null(_PROCESSES), "min": or_null(_PROCESSES)},
        "add_consumer": {**queue, "exchange": route, "exchange_type": or_null(one_of("direct")), "routing_key": route},
        "cancel_consumer": queue,
        "shutdown": {"msg": is_text(255)},
    }


_NEEDED = {
    "query_task": ("ids",),
    "hello": ("from_node",),
    "revoke": ("task_id",),
    "terminate": ("task_id", "signal"),
    "rate_limit": ("task_name", "rate_limit"),
    "time_limit": ("task_name",),
    "add_consumer": ("queue",),
    "cancel_consumer": ("queue",),
}


def require_control(found: Any, limits: Limits) -> None:
    """Refuses a command that no worker takes, or that is told in another way than Celery does."""
    envelope = require_envelope(found, (CONTROL,), or_null(is_text(255)))
    headers = {"clock": _CLOCK, "expires": or_null(is_number(-1, 2.0**33)), "ticket": or_null(is_identifier)}
    require("headers", envelope.get("headers") or {}, headers, reason="control")
    body = body_of(envelope, BYTES)
    shape: dict[str, Check] = {
        "method": is_text(64),
        "arguments": lambda value: value is None or isinstance(value, dict),
        "destination": or_null(list_of(is_text(255), 10_000)),
        "pattern": or_null(is_text(255)),
        # The other kind of pattern can take for ever.
        "matcher": or_null(one_of("glob")),
        "ticket": or_null(is_identifier),
        "reply_to": lambda value: value is None or isinstance(value, dict),
    }
    require("command", body, shape, reason="control", needed=("method",))
    if body.get("reply_to") is not None:
        places = {"exchange": one_of(REPLIES), "routing_key": is_identifier}
        require("place to answer to", body["reply_to"], places, reason="control", needed=("exchange", "routing_key"))
    takes = commands(limits).get(body["method"])
    if takes is None:
        raise Refused("control", "there is no such command here")
    require("arguments", body.get("arguments") or {}, takes, reason="control", needed=_NEEDED.get(body["method"], ()))


def require_reply(found: Any) -> None:
    """Refuses an answer that is not one node's, or that would set our clock to something that is no clock."""
    envelope = require_envelope(found, ("", REPLIES), is_identifier)
    headers = {"clock": _CLOCK, "expires": or_null(is_number(-1, 2.0**33)), "ticket": or_null(is_identifier)}
    require("headers", envelope.get("headers") or {}, headers, reason="reply")
    body = body_of(envelope, BYTES)
    if not isinstance(body, dict) or not all(is_text(255)(node) for node in body):
        raise Refused("reply", "its body does not say which node answers")
    for answer in body.values():
        if isinstance(answer, dict) and not (_is_told_clock(answer) and or_null(_IDENTIFIERS)(answer.get("revoked"))):
            raise Refused("reply", "its clock or its revoked tasks are not as they must be")


def _is_told_clock(answer: dict[str, Any]) -> bool:
    """Whether the clock in an answer is one. Statistics show it as text; who greets, and is heard, gives a number."""
    clock = answer.get("clock")
    if isinstance(clock, str) and "revoked" not in answer:
        return clock.isdecimal() and len(clock) <= 20
    return or_null(_CLOCK)(clock)


def require_event(found: Any) -> None:
    """Refuses an event that those who listen, workers among them, could not take in."""
    envelope = require_envelope(found, (EVENTS,), is_text(255))
    require("headers", envelope.get("headers") or {}, {"hostname": or_null(is_text(255))}, reason="event")
    body = body_of(envelope, BYTES)
    several = envelope["properties"]["delivery_info"]["routing_key"] == "task.multi"
    for event in body if several and isinstance(body, list) else [body]:
        _require_event(event)


def _require_event(event: Any) -> None:
    kind = event.get("type") if isinstance(event, dict) else None
    if not isinstance(kind, str) or not _EVENT.fullmatch(kind):
        raise Refused("event", "there is no such event")
    known = {
        "type": is_text(64),
        "hostname": is_text(255),
        "timestamp": _TIME,
        "utcoffset": is_number(-25, 25),
        "pid": is_whole(0, 2**32),
        # Whoever sends a task has no clock worth telling.
        "clock": or_null(_CLOCK) if kind == "task-sent" else _CLOCK,
        "uuid": is_identifier,
        "freq": is_number(0, 3600),
        "active": or_null(is_whole(0, 2**53)),
        "processed": or_null(is_whole(0, 2**53)),
        "loadavg": or_null(list_of(is_number(-1, 1e9), 3)),
        "retries": or_null(is_whole(0, 10_000)),
        "runtime": or_null(is_number(-1, 1e9)),
        **dict.fromkeys(("root_id", "parent_id"), or_null(is_identifier)),
        **dict.fromkeys(("name", "eta", "expires", "queue", "exchange", "routing_key"), or_null(is_text(512))),
        **dict.fromkeys(("sw_ident", "sw_ver", "sw_sys"), or_null(is_text(255))),
    }
    others = {name: _anything for name in event if re.fullmatch(r"[a-z_]{1,64}", name)}
    needed: Collection[str] = ("hostname", "timestamp", "clock", *(("uuid",) if kind.startswith("task-") else ()))
    require("event", event, {**others, **known}, needed=needed)


def _anything(_: object) -> bool:
    return True
