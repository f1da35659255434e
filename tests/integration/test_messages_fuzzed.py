"""Messages made up at random, a good one behind each: a worker that ends, or leaves one good message, has lost.

Seconds by default; `FUZZ_SECONDS` says for how many each test goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.processes import until
from tests.wires import STEP, TURN, Wired, encoded, task, told, wired
from worker import messages, remote

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
BATCH = 40

NASTY = st.sampled_from(
    ["", "\x00", "\x1b[2J", "\u202e", "x" * 5000, "1e999", "NaN", "realtime", STEP, "2026-01-01T00:00:00Z", "base64",
     "application/json", "utf-8", "args", "9999-12-31T23:59:59Z", "../x", "retailmedia:gate", "celery.pidbox"]
)  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20) | NASTY
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | NASTY, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a message that can hold something else."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(message: Any, path: tuple[Any, ...], value: Any, *, dropped: bool) -> Any:
    """The message with something else at that place, or with nothing there."""
    if not path:
        return value
    parent = message
    for key in path[:-1]:
        parent = parent[key]
    if dropped and isinstance(parent, dict):
        parent.pop(path[-1], None)
    else:
        parent[path[-1]] = value
    return message


@st.composite
def mutated(draw: Any, make: Any, body: Any) -> bytes:
    """A well-formed message with one to three places changed, its body among them, or its text cut or mixed up."""
    message = make()
    message["body"] = body()
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(message))
        message = changed(message, draw(st.sampled_from(found)), draw(VALUES), dropped=draw(st.booleans()))
        if not isinstance(message, dict):
            break
    if isinstance(message, dict) and not isinstance(message.get("body"), str) and draw(st.integers(0, 9)):
        message["body"] = encoded(message.get("body"))
    raw = json.dumps(message).encode()
    if not draw(st.integers(0, 9)):
        cut = draw(st.integers(0, len(raw)))
        raw = raw[:cut] + draw(st.binary(max_size=5)) + raw[cut + draw(st.integers(0, 3)) :]
    return raw


def protocol_2() -> Any:
    chord = {"task": STEP, "args": [], "kwargs": {}, "options": {"queue": "realtime"}, "immutable": True}
    return [[], {"run_id": "x", "turn": "0" * 16}, {"callbacks": None, "errbacks": None, "chain": None, "chord": chord}]


def protocol_1() -> Any:
    return {
        "task": STEP,
        "id": "one",
        "args": [],
        "kwargs": {"run_id": "x", "turn": "0" * 16},
        "retries": 0,
        "eta": None,
    }


def without_headers() -> Any:
    return {**task(), "headers": {}}


TASKS = mutated(task, protocol_2) | mutated(without_headers, protocol_1) | mutated(task, protocol_1)
COMMANDS = mutated(
    lambda: told("celery.pidbox", {}, clock=1, expires=0),
    lambda: {"method": "time_limit", "arguments": {"task_name": STEP, "hard": 100, "soft": 90}, "destination": None},
) | mutated(
    lambda: told("celery.pidbox", {}, clock=1),
    lambda: {"method": "revoke", "arguments": {"task_id": ["x"]}, "pattern": "x*", "matcher": "glob"},
)
EVENTS = mutated(
    lambda: told("celeryev", {}, "worker.heartbeat", hostname="x"),
    lambda: {"type": "worker-heartbeat", "hostname": "x", "timestamp": 1.0, "utcoffset": 0, "pid": 1, "clock": 1,
             "freq": 2.0, "active": 0, "processed": 0, "loadavg": [0, 0, 0], "sw_ident": "x"},
)  # fmt: skip
NOW = messages.EARLIEST.replace(year=2026)
LIMITS = messages.Limits(65_536, 300, {STEP}, ("realtime",))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    with wired(tmp_path_factory.mktemp("wired")) as running:
        running.client.set("retailmedia:turn:step:x", "somebody else's")
        yield running


@hypothesis.settings(max_examples=1500 if not SECONDS else int(SECONDS * 300), deadline=None)
@hypothesis.given(st.one_of(TASKS, COMMANDS, EVENTS, st.binary(max_size=200)))
def test_a_check_refuses_or_passes_and_does_nothing_else(raw: bytes) -> None:
    checks: tuple[Callable[[Any], object], ...] = (
        lambda found: messages.require_task(
            messages.require_envelope(found, ("",), messages.one_of("realtime")), LIMITS, NOW
        ),
        lambda found: remote.require_control(found, LIMITS),
        remote.require_reply,
        remote.require_event,
    )
    for check in checks:
        told = ""
        try:
            check(messages.parsed(raw, 65_536))
        except messages.Refused as refused:
            told = str(refused)
        assert len(told) < 300
        assert told == "" or told.isprintable()


def batches(strategy: st.SearchStrategy[Any]) -> Iterator[list[bytes]]:
    """Lists of made-up messages, until the time is over; two of them where none is said."""
    found: list[list[bytes]] = []
    end, rounds = time.monotonic() + SECONDS, 0
    while rounds < 2 or time.monotonic() < end:

        @hypothesis.settings(max_examples=1, database=None, phases=[hypothesis.Phase.generate], deadline=None,
                             suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
        @hypothesis.seed(rounds)
        @hypothesis.given(st.lists(strategy, min_size=BATCH, max_size=BATCH))
        def draw(batch: list[bytes]) -> None:
            found.append(batch)

        draw()
        yield found[-1]
        rounds += 1


def served(worker: Wired, batch: list[bytes]) -> None:
    """Puts a good message behind each of the batch, and waits for all of them."""
    keys = []
    for raw in batch:
        good = task()
        keys.append(f"celery-task-meta-{good['headers']['id']}")
        worker.put(raw)
        worker.put(good)

    def all_served() -> bool:
        assert worker.worker.poll() is None, worker.log.read_text()[-3000:]
        return all(found is not None and b'"SUCCESS"' in found for found in worker.client.mget(keys))

    # A made-up one may be well-formed and take the turn away.
    worker.client.set(TURN, "somebody else's")
    until(all_served, f"every good message is served: {batch!r:.4000}", 120)


def test_behind_each_made_up_task_the_next_one_is_served(worker: Wired) -> None:
    for batch in batches(TASKS | st.binary(max_size=200)):
        served(worker, batch)


def test_whatever_is_told_to_everybody_a_worker_goes_on(worker: Wired) -> None:
    for batch in batches(COMMANDS | EVENTS | st.binary(max_size=200)):
        for number, raw in enumerate(batch):
            worker.publish(raw, ("celery.pidbox", "celeryev/worker.heartbeat")[number % 2])
        worker.serves(repr(batch)[:4000])


def test_whatever_the_dead_left_the_rest_is_delivered_again(worker: Wired) -> None:
    for batch in batches(TASKS | st.binary(max_size=200)):
        good = task()
        worker.client.hset("unacked", "good", json.dumps([good, "", "realtime"]))
        worker.client.zadd("unacked_index", {"good": time.time() - 5000})
        for number, raw in enumerate(batch):
            entry = raw if number % 2 else b'[%s, "", "realtime"]' % raw
            worker.client.hset("unacked", f"bad{number}", entry)
            worker.client.zadd("unacked_index", {f"bad{number}": time.time() - 3000})
        key = f"celery-task-meta-{good['headers']['id']}"
        until(lambda key=key: worker.client.exists(key) > 0, f"it is delivered again: {batch!r:.4000}", 60)  # type: ignore[misc]
