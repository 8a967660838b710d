"""The Prometheus rules and the Grafana dashboard against the text of /metrics."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from deploy.facts import ROOT, exposition, label_values, sample_names

RULES = yaml.safe_load((ROOT / "deploy/prometheus/octavo.rules.yaml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana/octavo.json").read_text())
FUNCTIONS = {"histogram_quantile", "sum", "rate", "increase", "max", "by", "and", "le", "instance",
             "finished_reason", "up", "job"}  # fmt: skip
METRIC = re.compile(r"\boctavo[\w]*:[\w:]+")


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(DASHBOARD["panels"])


EXPRESSIONS = [rule["expr"] for rule in rules()] + [
    target["expr"] for panel in panels() for target in panel["targets"]
]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_is_one_of_ours(expression: str) -> None:
    found = METRIC.findall(expression)
    assert found or expression.startswith("up{")
    assert set(found) <= sample_names() | RECORDED


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_are_well_formed(expression: str) -> None:
    """Balanced, of functions that exist, rates over counters only, quantiles over buckets."""
    for pair in ("()", "{}", "[]"):
        assert expression.count(pair[0]) == expression.count(pair[1])
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|" + METRIC.pattern, "", expression)
    assert set(re.findall(r"[a-z_]+", bare)) <= FUNCTIONS
    for counter in re.findall(r"(?:rate|increase)\((octavo:\w+)", expression):
        assert re.search(r"_(total|bucket|sum|count)$", counter), counter
    if "histogram_quantile" in expression:
        assert "by (le" in expression
        assert "_bucket" in expression


def test_label_values_exist() -> None:
    for expression in EXPRESSIONS:
        for reason in re.findall(r'finished_reason="(\w+)"', expression):
            assert reason in label_values("finished_reason")


def test_the_exposition_is_sound() -> None:
    """Each name has one TYPE line before its samples; no sample comes twice."""
    typed: set[str] = set()
    seen: set[str] = set()
    for line in exposition().splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed
            typed.add(name)
        elif not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            float(value)
            assert series not in seen
            seen.add(series)
            base = re.sub(r"_(bucket|sum|count)$", "", series.partition("{")[0])
            assert base in typed or series.partition("{")[0] in typed


def test_alerts_say_what_is_wrong() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 5
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert "$labels.instance" in alert["annotations"]["summary"]
    assert len({alert["alert"] for alert in alerts}) == len(alerts)


def test_alerts_name_flags_that_exist() -> None:
    from deploy.facts import FLAGS  # noqa: PLC0415

    text = json.dumps(RULES)
    assert set(re.findall(r"--[a-z][a-z-]+", text)) <= FLAGS


def test_the_dashboard_is_laid_out() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["targets"]
    for a, b in combinations((panel["gridPos"] for panel in panels()), 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


def test_the_dashboard_uses_its_variables() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels())))
    assert used - {"__rate_interval"} == names
