"""Steps of the product at which a fault may strike, and the traps that strike there.

The product knows nothing of this: the wrapper `tests.chaos.process` replaces named functions of a process it starts
by ones that look for a trap first. A trap is a file in the run's folder that names a step; the process that gets
there first takes it away, leaves a note of where it was, and does to itself what the trap says.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

BEFORE: dict[str, str] = {
    "claimed": "worker.pipeline:load_window",
    "snapshot taken": "worker.ledger:Ledger.committed",
    "staging": "worker.dimensions:_stage",
    "verifying": "worker.pipeline:_verify",
    "marking": "worker.ledger:Ledger.mark_days",
    "unledgered": "worker.ledger:Ledger.commit",
    "publishing": "worker.watermarks:WatermarkStore.publish",
    "built": "worker.metrics:_publish",
    "unswapped": "worker.refresh:swap",
    "mending": "worker.reconcile:write",
    "calling back": "celery.backends.redis:RedisBackend.on_chord_part_return",
}
"""Reached before the function does anything."""

AFTER: dict[str, str] = {
    "committed": "worker.ledger:Ledger.commit",
    "chunk inserted": "worker.sink:Sink.insert_columns",
    "taken off": "worker.watermarks:WatermarkStore.take_off",
    "rebuilt": "worker.metrics:rebuild",
    "shadowed": "worker.refresh:begin",
    "swapped": "worker.refresh:swap",
}
"""Reached when the function has done its work."""

WITHIN: dict[str, str] = {"inserting": "worker.sink:Sink.insert_columns"}
"""The trap strikes `delay` seconds after the function began, while it runs."""

COMMANDS: dict[str, tuple[str, str]] = {
    "publishing a day": ("", "day published"),
    "swapping": ("swapping", ""),
    "creating the shadow table": ("", "shadow created"),
    "dropping the replaced table": ("", "replaced dropped"),
    "writing campaigns": ("campaigns staged", ""),
}
"""Statements on ClickHouse by what they say they do: the step within, and the step after."""

STEPS = (*BEFORE, *AFTER, *WITHIN, "copying", *(name for pair in COMMANDS.values() for name in pair if name))

LOSE_CALLBACKS = "lose callbacks"
STARVE_INSERTS = "starve inserts"
"""Conditions, on while their file is there: chord callbacks get lost; inserts of events run out of memory."""


class _Here:
    """What this process is doing: a pool's child does one task at a time, on several threads."""

    doing: ClassVar[dict[str, str]] = {}
    extracted: ClassVar[int | None] = None


def folder() -> Path:
    """Where traps are laid."""
    return Path(os.environ["CHAOS_FOLDER"])


def reach(step: str, *, during: bool = False) -> None:
    """Springs the trap laid for this step, if there is one and it is meant for what this process is doing."""
    trap = folder() / "traps" / step.replace(" ", "-")
    try:
        told = json.loads(trap.read_text())
    except (OSError, ValueError):
        return
    doing = _Here.doing
    if any(str(doing.get(name, "")).find(value) < 0 for name, value in told.get("only", {}).items()):
        return
    taken = folder() / "taken" / secrets.token_hex(6)
    try:
        os.rename(trap, taken)
    except OSError:
        return
    note = {"step": step, "pid": os.getpid(), "parent": os.getppid(), **doing, "trap": told["id"]}
    if during:
        threading.Thread(target=_strike, args=(told, note), daemon=True).start()
    else:
        _strike(told, note)


def _strike(told: dict[str, Any], note: dict[str, Any]) -> None:
    time.sleep(told.get("delay", 0))
    sprung = folder() / "sprung" / told["id"]
    building = sprung.with_suffix(f".{os.getpid()}")
    building.write_text(json.dumps(note))
    os.rename(building, sprung)
    match told["action"]:
        case "kill child":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill worker":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        case "kill parent":
            os.kill(os.getppid(), signal.SIGKILL)
        case "kill other":
            os.kill(told["victim"], signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "note":
            pass


def holds(condition: str) -> bool:
    """Whether a condition is on."""
    return (folder() / "traps" / condition.replace(" ", "-")).exists()


def report(what: str) -> None:
    """Tells the harness of something that must never be, or that it counts."""
    with (folder() / "reports").open("a") as file:
        file.write(f"{what}\n")


def replace(target: str, made: Callable[[Any], Any]) -> None:
    """Puts `made(original)` in the place of a function named `module:name` or `module:Class.name`."""
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    setattr(owner, name, made(getattr(owner, name)))


def install() -> None:
    """Lays the steps into this process. Call it once, before any worker starts."""
    for step, target in BEFORE.items():
        replace(target, functools.partial(_before, step))
    for step, target in AFTER.items():
        replace(target, functools.partial(_after, step))
    for step, target in WITHIN.items():
        replace(target, functools.partial(_within, step))
    replace("worker.sink:Sink.command", _command)
    replace("worker.source:Source.read_events", _copying)
    replace("worker.pipeline:load_window", _doing)
    replace("worker.ledger:Ledger.commit", _adding_up)
    replace("celery.backends.redis:RedisBackend.on_chord_part_return", _losing)
    replace("worker.sink:Sink._once", _starving)


def _before(step: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reach(step)
        return original(*args, **kwargs)

    return wrapped


def _after(step: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        reach(step)
        return result

    return wrapped


def _within(step: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reach(step, during=True)
        return original(*args, **kwargs)

    return wrapped


def _command(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(sink: Any, doing: str, *args: Any, **kwargs: Any) -> Any:
        within, after = COMMANDS.get(doing, ("", ""))
        if within:
            reach(within, during=True)
        result = original(sink, doing, *args, **kwargs)
        if after:
            reach(after)
        return result

    return wrapped


def _copying(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        _Here.extracted = 0
        chunks = original(*args, **kwargs)
        try:
            for chunk in chunks:
                _Here.extracted = (_Here.extracted or 0) + len(chunk)
                reach("copying")
                yield chunk
        finally:
            chunks.close()

    return wrapped


def _doing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        window = args[5]
        _Here.doing = {
            "stream": args[4].name,
            "table": kwargs["table"],
            "lo": window.lo.isoformat(),
            "hi": window.hi.isoformat(),
        }
        _Here.extracted = None
        try:
            return original(*args, **kwargs)
        finally:
            # What comes next in this process is something else, a dimension perhaps.
            _Here.doing, _Here.extracted = {}, None

    return wrapped


def _adding_up(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        extracted = _Here.extracted
        if extracted is not None and extracted != kwargs["rows"] + kwargs["quarantined"]:
            report(f"violation: extracted {extracted} rows, committed {kwargs['rows']} and {kwargs['quarantined']}")
        _Here.extracted = None
        return original(*args, **kwargs)

    return wrapped


def _losing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if holds(LOSE_CALLBACKS):
            report("callback lost")
            return None
        return original(*args, **kwargs)

    return wrapped


def _starving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(sink: Any, doing: str, *args: Any, **kwargs: Any) -> Any:
        if doing.startswith("loading into") and holds(STARVE_INSERTS):
            report("insert starved")
            kwargs["settings"] = {**(kwargs.get("settings") or {}), "max_memory_usage": 1000}
        return original(sink, doing, *args, **kwargs)

    return wrapped
