"""What processes count while they work, added up in Redis for all of them: windows, rows, retries, failures, memory.

Workers fork, and their children come and go, so no process can tell what happened: each delivers what it counted with
the end of a task, and the exporter reads the sums. Losing Redis sets them back to zero, which Prometheus expects of a
counter; nothing is decided by them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from worker import careful
from worker.errors import Unreachable
from worker.logs import tally
from worker.watermarks import PREFIX, WatermarkStore

log = structlog.get_logger()

SUMS = f"{PREFIX}:metrics:sums"
PROCESSES = f"{PREFIX}:metrics:processes"
FORGET_SECONDS = 300
"""A process that has not delivered for so long is no longer shown."""

WINDOW_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets of window durations."""

_DELIVER = """
for i = 3, #ARGV, 2 do redis.call('HINCRBYFLOAT', KEYS[1], ARGV[i], ARGV[i + 1]) end
if ARGV[1] ~= '' then
    redis.call('HSET', KEYS[2], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
    redis.call('EXPIRE', KEYS[2], 3600)
end
return 1
"""

_DROP = "return redis.call('HDEL', KEYS[1], ARGV[1])"

_SUMS = "return redis.call('HGETALL', KEYS[1])"

_PROCESSES = """
local now = tonumber(redis.call('TIME')[1])
local found = redis.call('HGETALL', KEYS[1])
local alive = {}
for i = 1, #found, 2 do
    local at, bytes = string.match(found[i + 1], '^(%d+) (%d+)$')
    local known = at and #at <= 12 and #bytes <= 15
    if known and tonumber(at) <= now + 1 and now - tonumber(at) <= tonumber(ARGV[1]) then
        table.insert(alive, found[i])
        table.insert(alive, bytes)
    else
        redis.call('HDEL', KEYS[1], found[i])
    end
end
return alive
"""

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Sum:
    """A count over all processes."""

    name: str
    labels: Mapping[str, str]
    value: float


def note_window(stream: str, rows: int, quarantined: int, seconds: float, sent: int = 0) -> None:
    """Counts a window that was loaded; `sent` is the bytes of its columns."""
    tally.add("rows_loaded", rows, stream=stream)
    tally.add("bytes_loaded", sent, stream=stream)
    tally.add("rows_quarantined", quarantined, stream=stream)
    bound = next((str(bound) for bound in WINDOW_SECONDS if seconds <= bound), "+Inf")
    tally.add("window_seconds", stream=stream, le=bound)
    tally.add("window_seconds_sum", seconds, stream=stream)


def note_failed_window(stream: str, kind: str) -> None:
    """Counts a window that failed, by the class of its error."""
    tally.add("windows_failed", stream=stream, kind=kind)


def note_rebuild(days: int, seconds: float) -> None:
    """Counts a rebuild of metrics."""
    tally.add("rebuild_days", days)
    tally.add("rebuilds")
    tally.add("rebuild_seconds_sum", seconds)


def note_task(name: str, outcome: str, seconds: float) -> None:
    """Counts a task that ended; `outcome` is succeeded or failed."""
    tally.add("tasks", task=name, outcome=outcome)
    tally.add("task_seconds_sum", seconds, task=name)


def memory() -> int:
    """Bytes of memory this process holds now, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def deliver(store: WatermarkStore) -> None:
    """Adds what this process counted to the sums, and says how much memory it holds. Silent where Redis is away."""
    taken = tally.take()
    arguments: list[Any] = [f"{socket.gethostname()} {os.getpid()}", memory()]
    for (name, labels), amount in taken.items():
        arguments += [json.dumps([name, dict(labels)]), repr(float(amount))]
    try:
        store.script(_DELIVER, [SUMS, PROCESSES], arguments)
    except Unreachable:
        tally.put_back(taken)


def sums(store: WatermarkStore) -> list[Sum]:
    """Every count over all processes. Raises `Unreachable`."""
    flat = store.script(_SUMS, [SUMS], [])
    found = []
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        read = careful.count(key, value)
        if read is None:
            careful.discarded(SUMS, "a field that is no count")
            store.script(_DROP, [SUMS], [key])
        else:
            found.append(Sum(*read))
    return found


def processes(store: WatermarkStore) -> dict[tuple[str, str], int]:
    """Bytes of memory by host and process id, of those that were heard of lately. Raises `Unreachable`."""
    flat = store.script(_PROCESSES, [PROCESSES], [FORGET_SECONDS])
    found = {}
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        host, _, pid = str(key).rpartition(" ")
        if str(key).isprintable() and len(key) <= 300:
            found[host, pid] = int(value)
    return found
