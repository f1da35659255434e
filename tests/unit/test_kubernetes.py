"""The manifests are what Kubernetes takes, fit together, and give away no rights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from worker.celery import QUEUES
from worker.config import Settings

FOLDER = Path(__file__).parents[2] / "deploy/kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
VERSION = "1.31"

# What KEDA's documentation says of a ScaledObject, as far as it is used here.
TRIGGER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["type", "metadata"],
    "properties": {
        "type": {"const": "redis"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["addressFromEnv", "usernameFromEnv", "passwordFromEnv", "listName", "listLength"],
            "properties": {
                **{name: {"type": "string"} for name in ("addressFromEnv", "usernameFromEnv", "passwordFromEnv")},
                "listName": {"enum": list(QUEUES)},
                "listLength": {"type": "string", "pattern": "^[1-9][0-9]*$"},
            },
        },
    },
}
COUNT = {"type": "integer", "minimum": 0}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["scaleTargetRef", "triggers"],
    "properties": {
        "scaleTargetRef": {"type": "object", "required": ["name"]},
        "triggers": {"type": "array", "minItems": 1, "items": TRIGGER},
        "fallback": {"type": "object", "required": ["failureThreshold", "replicas"]},
        **dict.fromkeys(("pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount"), COUNT),
    },
}


def documents() -> list[dict[str, Any]]:
    return [
        document for name in KUSTOMIZATION["resources"] for document in yaml.safe_load_all((FOLDER / name).read_text())
    ]


def titled(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [(titled(one), one["spec"]["template"]["spec"]) for one in documents() if "template" in one.get("spec", {})]


def containers() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{title}-{one['name']}", one)
        for title, pod in pods()
        for one in (*pod["containers"], *pod.get("initContainers", []))
    ]


def test_every_file_is_listed() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == {*KUSTOMIZATION["resources"], "kustomization.yaml"}


@pytest.mark.parametrize("document", documents(), ids=titled)
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("keda.sh/"):
        jsonschema.validate(document["spec"], SCALED_OBJECT)
        return
    kubernetes_validate.validate(document, VERSION, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "sepc": {}}, VERSION, strict=True)


def test_settings_are_settings_and_secrets_are_references() -> None:
    fields = {name.upper() for name in Settings.model_fields} | {"REMAP_SIGTERM"}
    (config,) = KUSTOMIZATION["configMapGenerator"]
    assert {literal.split("=")[0] for literal in config["literals"]} <= fields
    Settings(**{key.lower(): value for key, value in (literal.split("=") for literal in config["literals"])})
    documented = set(re.findall(r"`([A-Z_]+)`", (FOLDER / "README.md").read_text()))
    for title, container in containers():
        assert container["envFrom"] == [{"configMapRef": {"name": config["name"]}}], title
        for entry in container["env"]:
            reference = entry["valueFrom"]["secretKeyRef"]
            assert reference["name"] == "retailmedia", title
            assert reference["key"] in documented, title


@pytest.mark.parametrize(("title", "container"), containers(), ids=[title for title, _ in containers()])
def test_no_container_has_rights(title: str, container: dict[str, Any]) -> None:
    rights = container["securityContext"]
    assert rights == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize(("title", "pod"), pods(), ids=[title for title, _ in pods()])
def test_no_pod_runs_as_root_or_talks_to_the_cluster(title: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    # `FLOWER_PORT=tcp://…` of a service called flower is no setting.
    assert pod["enableServiceLinks"] is False
    if title != "Job-migrate":
        assert {"livenessProbe", "readinessProbe"} <= set(pod["containers"][0])
    if title not in {"Job-migrate", "Deployment-flower"}:
        assert pod["initContainers"][0]["command"][-1].startswith("until retailmedia migrate --check")


NEEDED = {
    "Job-migrate-migrate": {"CLICKHOUSE_DSN"},
    "Deployment-beat-beat": {"REDIS_URL"},
    "Deployment-flower-flower": {"REDIS_URL", "FLOWER_BASIC_AUTH"},
    "Deployment-worker-worker": {
        "POSTGRES_DSN", "CLICKHOUSE_DSN", "REDIS_URL", "REDIS_ADDRESS", "REDIS_USER", "REDIS_PASSWORD",
    },
    # It shows all three servers, and how far one is behind another.
    "Deployment-metrics-metrics": {"POSTGRES_DSN", "CLICKHOUSE_DSN", "REDIS_URL"},
}  # fmt: skip


@pytest.mark.parametrize(("title", "container"), containers(), ids=[title for title, _ in containers()])
def test_a_container_is_given_the_secrets_it_needs_and_no_others(title: str, container: dict[str, Any]) -> None:
    assert {entry["name"] for entry in container["env"]} == NEEDED.get(title, {"CLICKHOUSE_DSN"})


def test_nobody_comes_in_but_to_flower_and_the_exporter() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in documents() if one["kind"] == "NetworkPolicy"}
    (labels,) = KUSTOMIZATION["labels"]
    everybody = policies.pop("nobody-comes-in")
    assert labels["includeTemplates"] is True
    assert everybody["podSelector"]["matchLabels"] == labels["pairs"]
    assert everybody["ingress"] == []
    assert all("ports" in rule for rule in everybody["egress"])
    ports = {
        title.rpartition("-")[2]: {one["containerPort"] for one in container["ports"]}
        for title, container in containers()
        if "ports" in container
    }
    assert set(policies) == set(ports) == {"flower", "metrics"}
    for name, policy in policies.items():
        assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        (rule,) = policy["ingress"]
        assert rule["from"]
        assert {one["port"] for one in rule["ports"]} == ports[name]


def test_selectors_find_their_pods() -> None:
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in documents()
        if "template" in one.get("spec", {})
    }
    for document in documents():
        name, spec = document["metadata"]["name"], document.get("spec", {})
        if document["kind"] == "Service":
            assert spec["selector"] == labels[name]
        if document["kind"] in {"Deployment", "PodDisruptionBudget"}:
            assert spec["selector"]["matchLabels"] == labels[name]
        if document["kind"] == "ScaledObject":
            assert spec["scaleTargetRef"]["name"] in labels


def test_workers_serve_every_queue_there_is_one_beat_and_stopping_is_given_time() -> None:
    by_name = dict(pods())
    (queues,) = (
        word for word in by_name["Deployment-worker"]["containers"][0]["command"] if word.startswith("--queues=")
    )
    assert set(queues.removeprefix("--queues=").split(",")) == set(QUEUES)
    assert by_name["Deployment-worker"]["terminationGracePeriodSeconds"] >= 30
    (beat,) = (one for one in documents() if titled(one) == "Deployment-beat")
    assert (beat["spec"]["replicas"], beat["spec"]["strategy"]["type"]) == (1, "Recreate")
