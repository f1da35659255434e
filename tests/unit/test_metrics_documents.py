"""Alert rules and dashboards ask for metrics there are, under labels they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/retailmedia.json").read_text())


def documented() -> dict[str, set[str]]:
    """Each metric's labels, by docs/metrics.md."""
    rows = re.findall(r"^\| `(retailmedia_[a-z_]+)` *\|([^|]*)\|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    return {name: {label.strip() for label in labels.split(",") if label.strip()} for name, labels in rows}


def asked() -> dict[str, str]:
    """Every expression by where it stands."""
    rules = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
    panels = {f"{panel['title']} {t['refId']}": t["expr"] for panel in BOARD["panels"] for t in panel["targets"]}
    return {**rules, **panels}


def test_every_expression_asks_for_metrics_that_are_documented() -> None:
    known = documented()
    assert len(known) > 30
    for where, expression in asked().items():
        names = set(re.findall(r"retailmedia_[a-z_]+", expression))
        assert names or "up{" in expression, where
        for name in names:
            plain = name.removesuffix("_bucket")
            assert plain in known, f"{where} asks for {name}"
            for labels in re.findall(name + r"\{([^}]*)\}", expression):
                assert set(re.findall(r"(\w+)[=!~]", labels)) <= known[plain], where
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            allowed = {"le"}.union(*(known[name.removesuffix("_bucket")] for name in names))
            assert {label.strip() for label in labels.split(",")} <= allowed, where


def test_expressions_are_balanced_and_legends_name_labels_there_are() -> None:
    known = documented()
    for expression in asked().values():
        for left, right in ("()", "{}", "[]"):
            assert expression.count(left) == expression.count(right), expression
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            names = re.findall(r"retailmedia_[a-z_]+", target["expr"])
            assert labels <= set().union(*(known[name.removesuffix("_bucket")] for name in names)), panel["title"]


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule["labels"]["severity"] in {"error", "warn"}, rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]


def test_panels_do_not_overlap_and_the_source_of_data_is_provisioned() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in BOARD["panels"]]
    assert len(set(places)) == len(places)
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {source["uid"]}
    (provider,) = yaml.safe_load((folder / "dashboards/retailmedia.yml").read_text())["providers"]
    assert f":{provider['options']['path']}:ro" in (ROOT / "docker-compose.yml").read_text()


def test_every_alert_is_played_once_raised_and_once_not() -> None:
    played: dict[str, set[bool]] = {}
    for test in yaml.safe_load((ROOT / "deploy/prometheus/alerts.test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            played.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    rules = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
    assert {name: played.get(name) for name in rules} == {name: {True, False} for name in rules}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian's package prometheus)")
def test_prometheus_itself_raises_each_alert_when_it_should() -> None:
    told = subprocess.run(
        ["promtool", "test", "rules", "alerts.test.yml"],
        cwd=ROOT / "deploy/prometheus", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
