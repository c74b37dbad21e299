"""The manifests for Kubernetes: nothing is wrong with them, and a planted mistake is found."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.engines.ort_cuda import Options
from service.settings import PREFIX, Settings
from tests.deploy.manifests import (
    K8S,
    PATHS,
    PROBES,
    REDIS,
    ROOT,
    SECRETS,
    VERSIONS,
    Object,
    boxes,
    env_file,
    faults,
    kustomization,
    matches,
    objects,
    of_kind,
    port_faults,
    read,
    reference_faults,
    schema_faults,
    security_faults,
    selector_faults,
    template_labels,
)

OVERLAYS = sorted((K8S / "overlays").iterdir())
KUSTOMIZATIONS = sorted([*K8S.rglob("kustomization.yaml"), REDIS / "kustomization.yaml"])
NO_MANIFESTS = {"adapter-values.yaml"}
"""Files beside the manifests that other programs read."""


def service_objects() -> list[Object]:
    """The base with what the overlays add for CPUs and the operator."""
    more = [*read(K8S / "overlays/cpu/hpa.yaml"), *objects(K8S / "components/operator")]
    return objects(K8S / "base") + more


def test_the_versions_are_the_last_three() -> None:
    assert [".".join(each.split(".")[:2]) for each in VERSIONS] == ["1.35", "1.36", "1.37"]


def test_probes_ask_what_there_is() -> None:
    assert {*PROBES.values(), "/metrics"} <= PATHS


def test_nothing_is_wrong() -> None:
    assert faults(service_objects()) == []


def test_nothing_is_wrong_with_redis() -> None:
    found = objects(REDIS)
    wrong = [fault for each in found for fault in schema_faults(each)]
    wrong += [
        *selector_faults(found),
        *reference_faults(found),
        *security_faults(found),
        *port_faults(found),
    ]
    assert wrong == []


def _set(kind: str, *path: Any, value: Any = None) -> Callable[[list[Object]], None]:
    """Puts a value there; None removes what is there."""

    def change(found: list[Object]) -> None:
        each: Any = of_kind(found, kind)[0]
        *way, last = path
        for step in way:
            each = each[step]
        if value is None:
            del each[last]
        else:
            each[last] = value

    return change


def _rename(kind: str, *path: Any, to: str) -> Callable[[list[Object]], None]:
    def change(found: list[Object]) -> None:
        each: Any = of_kind(found, kind)[0]
        *way, last = path
        for step in way:
            each = each[step]
        each[to] = each.pop(last)

    return change


POD = ("spec", "template", "spec")
BOX = (*POD, "containers", 0)
NAME = "app.kubernetes.io/name"
MISTAKES = {
    "a probe's misspelt field": (
        _rename("Deployment", *BOX, "readinessProbe", to="readynessProbe"),
        "readynessProbe",
    ),
    "a misspelt path": (
        _set("Deployment", *BOX, "readinessProbe", "httpGet", "path", value="/ready"),
        "readinessProbe",
    ),
    "a port that is not there": (
        _set("Deployment", *BOX, "livenessProbe", "httpGet", "port", value="web"),
        "livenessProbe",
    ),
    "another port": (_set("Deployment", *BOX, "ports", 0, "containerPort", value=8081), "listens on 8080"),
    "a setting that is none": (
        _rename("ConfigMap", "data", "MDCTR_WORKERS", to="MDCTR_WORKER"),
        "MDCTR_WORKER",
    ),
    "a setting's bad value": (_set("ConfigMap", "data", "MDCTR_WORKERS", value="many"), "refused"),
    "a longer drain": (_set("ConfigMap", "data", "MDCTR_DRAIN_SECONDS", value="30"), "killed after 45 s"),
    "a shorter grace": (
        _set("Deployment", *POD, "terminationGracePeriodSeconds", value=30),
        "killed after 30 s",
    ),
    "a longer deadline": (_set("ConfigMap", "data", "MDCTR_DEADLINE_MS", value="20000"), "killed after"),
    "a bundle elsewhere": (_set("ConfigMap", "data", "MDCTR_BUNDLE", value="/bundles"), "no bundle"),
    "a larger shelf": (_set("ConfigMap", "data", "MDCTR_SHELF_BYTES", value="8000000000"), "outgrow"),
    "more packs": (_set("ConfigMap", "data", "MDCTR_RESIDENT_BYTES", value="4000000000"), "too little"),
    "more workers": (_set("ConfigMap", "data", "MDCTR_WORKERS", value="8"), "workers share cores"),
    "a quota": (_set("Deployment", *BOX, "resources", "limits", "cpu", value="4"), "throttled"),
    "a misspelt label": (
        _set("Deployment", "spec", "selector", "matchLabels", NAME, value="mdtcr"),
        "own pods",
    ),
    "a label of the template": (
        _set("Deployment", "spec", "template", "metadata", "labels", NAME, value="x"),
        "no pod",
    ),
    "a Service's selector": (
        _set("Service", "spec", "selector", NAME, value="mdctr-service"),
        "Service mdctr selects",
    ),
    "a budget's selector": (
        _set("PodDisruptionBudget", "spec", "selector", "matchLabels", NAME, value="x"),
        "PodDisruptionBudget mdctr selects",
    ),
    "a monitor's selector": (
        _set("PodMonitor", "spec", "selector", "matchLabels", NAME, value="x"),
        "PodMonitor mdctr",
    ),
    "a monitor's field": (
        _rename("PodMonitor", "spec", "podMetricsEndpoints", to="endpoints"),
        "PodMonitor has",
    ),
    "a monitor's path": (
        _set("PodMonitor", "spec", "podMetricsEndpoints", 0, "path", value="/metric"),
        "is measured",
    ),
    "an autoscaler's target": (
        _set("HorizontalPodAutoscaler", "spec", "scaleTargetRef", "name", value="x"),
        "scales x",
    ),
    "a Service's port": (
        _set("Service", "spec", "ports", 0, "targetPort", value="web"),
        "no port is called web",
    ),
    "latest": (_set("Deployment", *BOX, "image", value="mdctr-service:latest"), "has no version"),
    "no version": (
        _set("Deployment", *POD, "volumes", 0, "image", "reference", value="mdctr-bundle"),
        "no version",
    ),
    "a writable root": (
        _set("Deployment", *BOX, "securityContext", "readOnlyRootFilesystem", value=False),
        "may do",
    ),
    "a token": (_set("Deployment", *POD, "automountServiceAccountToken", value=True), "token"),
    "a volume that nobody mounts": (_set("Deployment", *BOX, "volumeMounts", 1), "mounts"),
    "a Secret's key": (
        _set("Deployment", *BOX, "env", 0, "valueFrom", "secretKeyRef", "key", value="url"),
        "with url",
    ),
    "fewer pods in an update": (
        _set("Deployment", "spec", "strategy", "rollingUpdate", "maxUnavailable", value=1),
        "takes capacity",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    change, says = MISTAKES[mistake]
    found = copy.deepcopy(service_objects())
    change(found)
    assert any(says in fault for fault in faults(found)), faults(found)


@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: str(path.parent.relative_to(ROOT)))
def test_kustomizations_name_files_that_exist_and_all_that_do(path: Path) -> None:
    folder, made = path.parent, kustomization(path.parent)
    parts = [*made.get("resources", []), *made.get("components", [])]
    parts += [patch["path"] for patch in made.get("patches", [])]
    generators = made.get("configMapGenerator", [])
    parts += [name for each in generators for name in (*each.get("envs", []), *each.get("files", []))]
    for part in parts:
        there = folder / part
        assert (there / "kustomization.yaml").is_file() if there.is_dir() else there.is_file(), part
    beside = {each.name for each in folder.glob("*.yaml")} - {"kustomization.yaml"} - NO_MANIFESTS
    assert beside <= set(parts)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_patches_change_what_is_there(overlay: Path) -> None:
    """A patch with a misspelt name adds a container instead, and nobody says so."""
    made = kustomization(overlay)
    found = objects(K8S / "base")
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in found}
    for patch in made.get("patches", []):
        for change in read(overlay / patch["path"]):
            whole = by_name[change["kind"], change["metadata"]["name"]]["spec"]["template"]["spec"]
            pod = change["spec"]["template"]["spec"]
            for list_of in ("containers", "volumes"):
                there = {each["name"] for each in whole[list_of]}
                assert {each["name"] for each in pod.get(list_of, [])} <= there
    names = {container["image"].partition(":")[0] for container in boxes(found)}
    assert {each["name"] for each in made.get("images", [])} <= names
    maps = {each["metadata"]["name"] for each in of_kind(found, "ConfigMap")}
    merged = [each for each in made.get("configMapGenerator", []) if each.get("behavior") == "merge"]
    assert {each["name"] for each in merged} <= maps


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to put overlays together")
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_nothing_is_wrong_with_what_kustomize_makes(overlay: Path) -> None:
    made = subprocess.run(["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True)
    found = [each for each in yaml.safe_load_all(made.stdout) if each]
    assert faults(found) == []
    assert {each["metadata"].get("namespace", "mdctr") for each in found} == {"mdctr"}


def test_the_settings_of_gpus_are_the_engines() -> None:
    given = env_file(K8S / "overlays/gpu/settings.env")
    assert {name.removeprefix(PREFIX).lower() for name in given} <= set(Settings.model_fields)
    assert Options.model_validate(json.loads(given["MDCTR_ENGINE_OPTIONS"])).dtype == "float16"
    assert f"MDCTR_ENGINE={given['MDCTR_ENGINE']}" in (ROOT / "docs/gpu.md").read_text()


def test_policies_let_the_service_to_redis_and_redis_lets_it_in() -> None:
    [policy] = [
        each for each in of_kind(objects(K8S / "base"), "NetworkPolicy") if each["spec"]["podSelector"]
    ]
    [redis] = of_kind(objects(REDIS), "StatefulSet")
    [service] = of_kind(objects(K8S / "base"), "Deployment")
    to_redis = [
        {port["port"] for port in rule["ports"]}
        for rule in policy["spec"]["egress"]
        for to in rule["to"]
        if "namespaceSelector" not in to and matches(to["podSelector"]["matchLabels"], template_labels(redis))
    ]
    assert to_redis == [{one["containerPort"] for box in boxes([redis]) for one in box["ports"]}]
    [let_in] = of_kind(objects(REDIS), "NetworkPolicy")
    [source] = let_in["spec"]["ingress"][0]["from"]
    assert matches(source["podSelector"]["matchLabels"], template_labels(service))
    assert matches(source["podSelector"]["matchLabels"], template_labels(redis))


def test_the_autoscalers_leave_room_for_a_zone() -> None:
    scaling = json.loads((ROOT / "docs/figures/loadtest-scaling.json").read_text())["scaling"]["4"]
    [cpu] = read(K8S / "overlays/cpu/hpa.yaml")
    target = cpu["spec"]["metrics"][0]["containerResource"]["target"]["averageUtilization"]
    assert target == math.floor(100 * scaling["share_of_saturated"] * 2 / 3)
    found = json.loads((ROOT / "docs/figures/bench-gpu.json").read_text())["http"]["mixed_4"]["500.100"]
    [gpu] = read(K8S / "overlays/gpu/hpa.yaml")
    text = " ".join((K8S / "overlays/gpu/hpa.yaml").read_text().replace("# ", "").split())
    under_way = found["open_rate"] * found["open_p50_ms"] / 1e3
    assert float(gpu["spec"]["metrics"][0]["pods"]["target"]["averageValue"]) == round(under_way * 2 / 3)
    assert f"{found['open_rate']:,.0f} requests/s for {found['open_p50_ms']:.1f} ms each" in text
    assert f"{under_way:.1f} of them" in text


def test_the_adapters_rule_is_the_autoscalers_metric() -> None:
    [values] = read(K8S / "overlays/gpu/adapter-values.yaml")
    [rule] = values["rules"]["custom"]
    [gpu] = read(K8S / "overlays/gpu/hpa.yaml")
    wanted = gpu["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert rule["name"]["as"] == wanted
    assert rule["seriesQuery"].startswith(f"{wanted}{{")
    assert f'"{wanted}"' in (ROOT / "service/telemetry.py").read_text()


def test_the_operators_rules_are_those_of_prometheus() -> None:
    script = K8S / "prometheus_rule.py"
    namespace: dict[str, Any] = {"__name__": "prometheus_rule"}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    made = K8S / "components/operator/prometheusrule.yaml"
    assert namespace["rule"](ROOT / "deploy/prometheus") == made.read_text()


def test_the_page_says_how_secrets_are_made() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    for name, keys in SECRETS.items():
        [command] = [part for part in page.split("kubectl ") if f"create secret generic {name} " in part]
        for key in keys:
            assert f"{key}=" in command or f"/{key}" in command, f"{name} {key}"
