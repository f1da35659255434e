"""A process whose clock is wrong: `time.time` and `datetime.now` as Celery, Kombu and the product call them, shifted.

Compiled modules keep the real `datetime`, whose layout they rely on: only names in those packages' modules change.
"""

from __future__ import annotations

import datetime as datetimes
import importlib
import pkgutil
import sys
import time
from contextlib import suppress
from typing import Any

PACKAGES = ("worker", "celery", "kombu", "billiard", "vine")
IMPORTED = ("celery.app", "celery.worker", "celery.utils", "celery.backends.redis", "celery.beat", "kombu", "worker")


def shift(seconds: float) -> None:
    """From now on this process believes it is `seconds` later (negative: earlier) than it is."""
    real: Any = datetimes.datetime
    real_time, real_time_ns = time.time, time.time_ns
    offset = datetimes.timedelta(seconds=seconds)

    class AnyDatetime(type):
        """Values made elsewhere are of the real class and must pass for this one."""

        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, real)

    class Shifted(real, metaclass=AnyDatetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
            return real.now(tz) + offset

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(datetimes.UTC).replace(tzinfo=None) + offset

    # A module imported later would find the real one.
    for name in IMPORTED:
        for found in _modules(name):
            with suppress(Exception):
                importlib.import_module(found)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in PACKAGES:
            if getattr(module, "datetime", None) is real:
                module.datetime = Shifted  # type: ignore[attr-defined]
            if getattr(module, "time", None) is real_time:
                module.time = lambda: real_time() + seconds  # type: ignore[attr-defined]
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + int(seconds * 1e9)


def _modules(name: str) -> list[str]:
    package = importlib.import_module(name)
    paths = getattr(package, "__path__", None)
    if paths is None:
        return [name]
    return [name, *(found.name for found in pkgutil.walk_packages(paths, f"{name}.") if "__main__" not in found.name)]
