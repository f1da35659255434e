"""Ticks that found nothing send no events, so that Flower's list shows what happened and not that nothing did.

A tick's events are held back until it ends. If it found nothing, they are never sent; if it did something, or failed,
they are sent then, each with the time at which it happened.
"""

from __future__ import annotations

import ast
import time
from typing import Any

from celery.worker.request import Request as CeleryRequest

_Request: Any = CeleryRequest


def found_nothing(result: str) -> bool:
    """Whether a tick's result, as Celery writes it for events, says that there was nothing to do."""
    try:
        found = ast.literal_eval(result)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
    return found is None or (isinstance(found, dict) and ("skipped" in found or not any(found.values())))


class Request(_Request):  # type: ignore[misc]
    """A task at a worker. One whose class sends no events of its own is a tick, and is told of once it did something."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received_at = time.time()
        self._started_at = 0.0

    def send_event(self, type: str, **fields: Any) -> None:
        """Sends an event, or holds it back."""
        if self.task.send_events or not (self._eventer and self._eventer.enabled):
            super().send_event(type, **fields)
        elif type == "task-started":
            self._started_at = time.time()
        elif type != "task-succeeded" or not found_nothing(str(fields.get("result"))):
            self._catch_up()
            self._eventer.send(type, uuid=self.id, **fields)

    def _catch_up(self) -> None:
        if self._received_at:
            self._eventer.send(
                "task-received",
                uuid=self.id,
                name=self.name,
                args=self.argsrepr,
                kwargs=self.kwargsrepr,
                root_id=self.root_id,
                parent_id=self.parent_id,
                retries=self.request_dict.get("retries", 0),
                eta=self.eta and self.eta.isoformat(),
                expires=self.expires and self.expires.isoformat(),
                timestamp=self._received_at,
            )
        if self._started_at:
            self._eventer.send("task-started", uuid=self.id, timestamp=self._started_at)
        self._received_at = self._started_at = 0.0
