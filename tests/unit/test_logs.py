"""Log lines: JSON with the task, run, stream and window they belong to, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker import logs
from worker.celery import create_app
from worker.config import load
from worker.errors import BadInput
from worker.logs import redacted

SECRETS = [
    "postgresql://reader:s3cret@host:5432/db",
    "redis://:s3cret@host:6379/0",
    "clickhouse://u:s3cret@h/x?ca_certs=/a",
    "could not connect: password=s3cret host=h",
    'password="s3cret" user=x',
    "FLOWER_BASIC_AUTH=s3cret",
    "{'password': 's3cret', 'user': 'u'}",
    '{"token": "s3cret"}',
    "requirepass: s3cret",
]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is logged as JSON, line by line."""
    out = io.StringIO()
    monkeypatch.setattr("sys.stderr", out)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.configure(load(log_format="json", log_level="INFO"))
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_struck_out_of_text_fields_exceptions_and_other_libraries(text: str, lines: Any) -> None:
    log = structlog.get_logger()
    log.info("event", error=text, nested={"deep": [text]}, dsn=(text,))
    log.info(text)
    logging.getLogger("library").warning("it said %s", text)
    logging.getLogger("library").warning("it said %(what)s", {"what": text})
    try:
        raise ValueError(text)
    except ValueError as error:
        log.exception("failed", cause=error)
        logging.getLogger("library").exception("failed too")
    told = json.dumps(lines())
    assert len(lines()) == 6
    assert "s3cret" not in told
    assert "***" in told


@given(
    st.text(st.characters(codec="ascii", exclude_characters=" :/@\\\"'\n\r\t", categories=("L", "N", "P")), min_size=3)
)
def test_no_password_of_a_dsn_is_ever_left(password: str) -> None:
    told = redacted(f"cannot reach postgresql://user:{password}@host/db just now")
    assert told == "cannot reach postgresql://user:***@host/db just now"


@pytest.mark.parametrize("key", ["password", "redis_password", "secret", "api_token", "basic_auth"])
def test_a_field_named_like_a_secret_is_struck_out(key: str, lines: Any) -> None:
    structlog.get_logger().info("event", **{key: "s3cret", "rows": 5})
    assert lines()[0][key] == "***"
    assert lines()[0]["rows"] == 5


def test_what_is_not_secret_stays(lines: Any) -> None:
    told = "task worker.tasks.sync.plan of token bucket, see https://host/path?x=1"
    structlog.get_logger().info("event", told=told, rows=3)
    assert lines()[0]["told"] == told


def test_every_line_of_a_task_says_which_task_run_stream_and_window_it_is_about(lines: Any) -> None:
    app = create_app(load(redis_url="redis://127.0.0.1:1/0"))

    @app.task(name="told")
    def told(**_: Any) -> None:
        structlog.get_logger().info("window.loaded", rows=1)
        logging.getLogger("library").warning("beside it")
        raise BadInput("It went wrong.")

    window = {"lo": "2026-01-01T00:00:00Z", "hi": "2026-01-02T00:00:00Z"}
    result = told.apply(kwargs={"run_id": "r-1", "stream": "clicks", **window}, task_id="t-1")
    assert result.failed()
    found = [line for line in lines() if line["event"] in {"window.loaded", "beside it", "task.failed"}]
    assert [line["event"] for line in found] == ["window.loaded", "beside it", "task.failed"]
    for line in found:
        assert {key: line[key] for key in ("task_id", "task", "run_id", "stream", "lo", "hi")} == {
            "task_id": "t-1", "task": "told", "run_id": "r-1", "stream": "clicks", **window,
        }  # fmt: skip
        assert line["timestamp"].endswith("Z")
        assert line["level"] in {"info", "warning"}
    structlog.get_logger().info("after")
    assert "task_id" not in lines()[-1]


def test_on_a_terminal_lines_are_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load(log_format="console"))
    structlog.get_logger().info("window.loaded", rows=3)
    told = capsys.readouterr().err
    assert "window.loaded" in told
    assert "rows=3" in told
    assert not told.lstrip().startswith("{")
    structlog.reset_defaults()


UNSEEN = "a\x1b[31m\x9b31m\x85\x7f\r\u202eb\u2066c\u200f\u2028"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_control_characters_reach_no_terminal(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load(log_format=log_format))
    structlog.get_logger().warning("task.failed", error=UNSEEN, among=[UNSEEN])
    logging.getLogger("somebody.else").warning("told %s", UNSEEN)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 2
    assert not set(told) & set(UNSEEN) - set("abc[31m")
    assert "202e" in told
    if log_format == "json":
        assert json.loads(told.splitlines()[0])["error"] == UNSEEN


def test_json_for_programs_means_the_same_and_shows_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    from worker import screens

    screens.print_json({"name": UNSEEN, "plain": "Zoë\t\u2192"})
    told = capsys.readouterr().out
    assert json.loads(told) == {"name": UNSEEN, "plain": "Zoë\t\u2192"}
    assert not set(told) & set(UNSEEN) - set("abc[31m")
    assert "Zoë" in told
