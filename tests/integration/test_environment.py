"""Variables that others set: what a process makes of them, as it is started from a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_flower import fetched
from tests.processes import ROOT, celery, end, environment, until
from worker import local
from worker.config import Settings, load


def python(code: str, settings: Settings, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(settings, **extra), cwd=ROOT, capture_output=True, text=True
    )


ASK = "from worker.celery import app; print(app.conf.broker_url, app.conf.broker_read_url, app.conf.result_backend)"
ELSEWHERE = "redis://elsewhere:1/0"


@pytest.mark.parametrize(
    "name", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND"]
)
def test_no_variable_of_celerys_names_another_broker(settings: Settings, name: str) -> None:
    done = python(ASK, settings, **{name: ELSEWHERE})
    assert (done.returncode, ELSEWHERE in done.stdout) == (0, False), done.stdout
    assert done.stdout.split() == [settings.redis_url] * 3
    assert done.stderr == f"Warning: {name} is ignored; the broker is the one REDIS_URL names.\n"
    # Whoever says the same twice is not told of it.
    assert python(ASK, settings, **{name: settings.redis_url}).stderr == ""


@pytest.mark.parametrize(("given", "meant"), [("info", "INFO"), ("Warning", "WARNING"), (" debug ", "DEBUG")])
def test_a_log_level_is_understood_however_it_is_written(given: str, meant: str) -> None:
    assert load(log_level=given).log_level == meant


def test_what_kubernetes_says_of_a_service_called_flower_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_PORT", "tcp://10.96.0.7:5555")
    assert load().flower_port == 5555
    monkeypatch.setenv("FLOWER_PORT", "7001")
    assert load().flower_port == 7001


def test_beat_begins_where_there_was_no_folder(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "beat.log"
    beat = celery(settings, ["beat"], log)
    try:
        schedule = settings.retailmedia_home / "beat"
        until(lambda: any(schedule.glob("schedule*")) or beat.poll() is not None, "beat keeps its schedule", 120)
        assert beat.poll() is None, log.read_text()
    finally:
        end(beat)


def test_up_names_flower_with_its_prefix(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_URL_PREFIX", "/watch/")
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    home = settings.retailmedia_home
    home.mkdir(parents=True, exist_ok=True)
    found = local.launch_flower(home, settings.model_copy(update={"flower_port": 0}), dict(os.environ))
    try:
        assert found.url.endswith("/watch")
        assert local.flower(home) == found
        assert fetched(f"{found.url}/tasks", f"{found.user}:{found.password}")[0] == 200
        assert fetched(f"{found.url}/metrics")[0] == 401
    finally:
        local.stop(home, lambda _: None)
