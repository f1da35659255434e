"""Structured logs: constant event names, values as fields, the task and run in the context, secrets struck out."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import Counter
from typing import Any

import structlog

from worker.config import Settings

_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+]*://[^\s:/@]*:)[^\s@]+@", re.IGNORECASE)
_NAMES = r"password|passwd|requirepass|secret|token|basic_auth"
_ASSIGNED = re.compile(
    rf"""(?P<head>\b\w*(?:{_NAMES})["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s,;&}}]+)""",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(_NAMES, re.IGNORECASE)

_CODE = re.compile(r"\((code \d+|SQLSTATE \w+)\)")
_RETRIES = {"sink.retry": "clickhouse", "source.retry": "postgres"}


class Tally:
    """Counts of this process by name and labels, until somebody takes them to where all processes are added up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a count. Labels must have few values."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def is_empty(self) -> bool:
        """Whether nothing was counted since the last time."""
        with self._lock:
            return not self._counts

    def take(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Everything counted since the last time."""
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)

    def put_back(self, taken: dict[tuple[str, tuple[tuple[str, str], ...]], float]) -> None:
        """Counts that could not be delivered are delivered next time."""
        with self._lock:
            for key, amount in taken.items():
                self._counts[key] += amount  # type: ignore[assignment]


tally = Tally()
"""Of this process. A fork inherits what was counted before it, so a new child begins with `take`."""


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with control characters, those of terminals and of writing direction, as `\\uXXXX`: what is read is what
    is there. Line ends and tabs stay; inside JSON the result means the same."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def redacted(text: str) -> str:
    """The text with passwords in DSNs and assignments struck out."""
    return _ASSIGNED.sub(r"\g<head>***", _PASSWORD.sub(r"\g<head>***@", text))


def _struck(key: object, value: Any) -> Any:
    """A field's value, secrets struck out at any depth."""
    if isinstance(key, str) and _SECRET_KEY.search(key) and isinstance(value, str) and value:
        return "***"
    match value:
        case str():
            return redacted(value)
        case dict():
            return {inner: _struck(inner, item) for inner, item in value.items()}
        case list() | tuple():
            return [_struck(None, item) for item in value]
        case BaseException():
            return redacted(str(value))
    return value


def _shown(_logger: Any, _name: str, line: Any) -> str:
    return visible(line)


def _fields_shown(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    # Before colours are put in, which are control characters too.
    return {key: visible(value) if isinstance(value, str) else value for key, value in event.items()}


def _redact(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: _struck(key, value) for key, value in event.items()}


def _positional(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Lines of the standard library: their arguments filled in before secrets are looked for."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event.setdefault("logger", record.name)
    return event


def _count_retries(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    server = _RETRIES.get(str(event.get("event")))
    if server:
        cause = str(event.get("cause", ""))
        found = _CODE.search(cause)
        told = found[1] if found else "unreachable" if "cannot be reached" in cause else "connection lost"
        tally.add("retries", server=server, cause=told)
    return event


def configure(settings: Settings) -> None:
    """Sends structlog and the standard library's logging to stderr, as JSON or for a terminal."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _positional,
        _count_retries,
        _redact,
    ]
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer(), _shown]
        if settings.log_format == "json"
        else [_fields_shown, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.beat", "clickhouse_driver"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
