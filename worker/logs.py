"""Structured logs: constant event names, values as fields, the task and run in the context, secrets struck out."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog

from worker.config import Settings

_PASSWORD = re.compile(r"(?P<head>[a-z][a-z0-9+]*://[^\s:/@]*:)[^\s@]+@", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?P<head>\b(?:password|passwd|secret|token)\s*=\s*)\S+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text with passwords in DSNs and assignments struck out."""
    return _ASSIGNED.sub(r"\g<head>***", _PASSWORD.sub(r"\g<head>***@", text))


def _redact(_logger: Any, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {key: redacted(value) if isinstance(value, str) else value for key, value in event.items()}


def configure(settings: Settings) -> None:
    """Sends structlog and the standard library's logging to stderr, as JSON or for a terminal."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.beat", "clickhouse_driver"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
