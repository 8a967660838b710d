"""The Kubernetes manifest and the Helm chart against the program and against each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy.facts import PROBE_PATHS, ROOT, ROUTES, VARIABLES, load_environment
from deploy.go_template import Renderer

if TYPE_CHECKING:
    from octavo.config import ServeConfig

CHART = ROOT / "deploy/helm/octavo"
MANIFEST = ROOT / "deploy/kubernetes/octavo.yaml"
MARGIN_S = 10  # a pod must outlive the drain by the workers' own margin


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merged(base.get(key), value) for key, value in over.items()}
    return over


def render(over: dict[str, Any] | None = None, release: str = "octavo") -> list[dict[str, Any]]:
    """What `helm template` prints, as documents."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = merged(yaml.safe_load((CHART / "values.yaml").read_text()), over or {})
    dot = {
        "Values": values,
        "Release": {"Name": release},
        "Chart": {"AppVersion": chart["appVersion"], "Name": chart["name"]},
    }
    renderer = Renderer()
    renderer.render((CHART / "templates/_names.tpl").read_text(), dot)
    documents = []
    for template in sorted((CHART / "templates").glob("*.yaml")):
        documents += yaml.safe_load_all(renderer.render(template.read_text(), dot))
    return [document for document in documents if document]


def test_the_network_policy_is_for_the_pods_and_their_port() -> None:
    policy = yaml.safe_load((MANIFEST.parent / "networkpolicy.yaml").read_text())["spec"]
    pod = kind(list(yaml.safe_load_all(MANIFEST.read_text())), "Deployment")["spec"]["template"]
    wanted = policy["podSelector"]["matchLabels"]
    assert wanted.items() <= pod["metadata"]["labels"].items()
    ports = {p["name"] for p in pod["spec"]["containers"][0]["ports"]}
    assert {p["port"] for rule in policy["ingress"] for p in rule["ports"]} <= ports
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}


def kind(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [d for d in documents if d["kind"] == name]
    return found


ALL_SET: dict[str, Any] = {
    "model": "org/some-model",
    "config": {"MAX_MODEL_LEN": 8192, "ENABLE_PREFIX_CACHING": False},
    "apiKeySecret": "keys",
    "hubTokenSecret": "hub",
    "image": {"tag": "9.9.9"},
    "cache": {"existingClaim": "models"},
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "serviceMonitor": {"enabled": True},
    "shutdownTimeout": 120,
}
VARIANTS = {
    "manifest": lambda: list(yaml.safe_load_all(MANIFEST.read_text())),
    "chart": render,
    "chart with everything set": lambda: render(ALL_SET, "prod"),
}


@pytest.fixture(params=VARIANTS, ids=str)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return VARIANTS[request.param]()


def pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return kind(documents, "Deployment")["spec"]["template"]


def container_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = pod_of(documents)["spec"]["containers"]
    return container


def configuration(container: dict[str, Any]) -> ServeConfig:
    """What the program makes of the container's variables and arguments."""
    plain = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    assert all(isinstance(value, str) for value in plain.values())  # as the API demands
    own = {name for name in plain if name.startswith("OCTAVO_")}
    assert own <= VARIABLES
    return load_environment(plain, container["args"])


def test_the_program_accepts_the_settings(documents: list[dict[str, Any]]) -> None:
    container = container_of(documents)
    config = configuration(container)
    assert (config.host, config.log_format) == ("0.0.0.0", "json")
    assert config.port == container["ports"][0]["containerPort"]


def test_the_probes_are_routes(documents: list[dict[str, Any]]) -> None:
    container = container_of(documents)
    paths = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    assert paths == {"startupProbe": "/startupz", "readinessProbe": "/readyz",
                     "livenessProbe": "/livez"}  # fmt: skip
    assert set(paths.values()) <= PROBE_PATHS
    for name in paths:
        assert container[name]["httpGet"]["port"] == container["ports"][0]["name"]
        assert "initialDelaySeconds" not in container[name]


def test_the_start_has_at_least_the_time_that_the_server_allows(
    documents: list[dict[str, Any]],
) -> None:
    container = container_of(documents)
    probe = container["startupProbe"]
    allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed_s >= configuration(container).startup_timeout


def test_a_pod_may_drain(documents: list[dict[str, Any]]) -> None:
    spec = pod_of(documents)["spec"]
    container = container_of(documents)
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    needed_s = configuration(container).shutdown_timeout + before_s + MARGIN_S
    assert spec["terminationGracePeriodSeconds"] >= needed_s


def test_pods_are_found_and_may_write_where_they_must(documents: list[dict[str, Any]]) -> None:
    deployment, service = kind(documents, "Deployment"), kind(documents, "Service")
    labels = pod_of(documents)["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    container = container_of(documents)
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod_of(documents)["spec"]["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert {"/cache", "/tmp"} <= set(mounts)
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    made = {d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"}
    assert made in ({claim}, set())


def test_pods_have_no_more_rights_than_they_need(documents: list[dict[str, Any]]) -> None:
    spec, own = pod_of(documents)["spec"], container_of(documents)["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert str(spec["securityContext"]["runAsUser"]) in (ROOT / "Dockerfile").read_text()
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert spec["enableServiceLinks"] is False


def test_the_chart_by_default_is_the_manifest() -> None:
    ours, plain = render(), VARIANTS["manifest"]()
    same = ("env", "args", "ports", "startupProbe", "readinessProbe", "livenessProbe", "image",
            "resources", "securityContext", "lifecycle", "volumeMounts")  # fmt: skip
    chart, manifest = container_of(ours), container_of(plain)
    for name in same:
        if name == "env":
            extra = {"OCTAVO_SHUTDOWN_TIMEOUT", "OCTAVO_STARTUP_TIMEOUT"}
            assert [e for e in chart["env"] if e["name"] not in extra] == manifest["env"]
        else:
            assert chart[name] == manifest[name], name


def test_every_value_of_the_chart_arrives() -> None:
    documents = render(ALL_SET, "prod")
    container = container_of(documents)
    config = configuration(container)
    assert config.model == "org/some-model"
    assert (config.max_model_len, config.enable_prefix_caching) == (8192, False)
    assert config.api_key_file == "/etc/octavo/keys"
    assert config.shutdown_timeout == 120
    assert container["image"] == "octavo:9.9.9"
    assert any(e["name"] == "HF_TOKEN" for e in container["env"])
    spec = pod_of(documents)["spec"]
    assert spec["nodeSelector"] == {"gpu": "h200"}
    assert spec["tolerations"] == ALL_SET["tolerations"]
    assert pod_of(documents)["metadata"]["annotations"] == {"a": "b"}
    assert not [d for d in documents if d["kind"] == "PersistentVolumeClaim"]
    monitor = kind(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert monitor["path"] in ROUTES
    assert monitor["port"] == kind(documents, "Service")["spec"]["ports"][0]["name"]


def test_the_schema_knows_every_value() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) | {"global"} == set(schema["properties"])
    used = set(re.findall(r"\.Values\.(\w+)", "".join(_templates())))
    assert used == set(values)


def _templates() -> list[str]:
    return [Path(file).read_text() for file in (CHART / "templates").iterdir()]


def test_an_unknown_part_of_a_template_is_not_passed_over() -> None:
    with pytest.raises(AssertionError, match="unknown word"):
        Renderer().render("{{ lookup .Values.x }}", {"Values": {"x": 1}})
    with pytest.raises(KeyError):
        Renderer().render("{{ .Values.absent }}", {"Values": {}})
    with pytest.raises(AssertionError, match="without end"):
        Renderer().render("{{ if .Values }}", {"Values": {}})
