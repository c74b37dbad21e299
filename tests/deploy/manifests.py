"""What may be wrong with manifests: against the schemas of three versions, each other, and the service.

`faults` says so of a set of objects, and not by an assertion, so that tests can plant mistakes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute
from kubernetes_validate import utils as schemas  # type: ignore[import-untyped]

from service.api.ops import router
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
K8S, REDIS = ROOT / "deploy" / "k8s", ROOT / "deploy" / "redis"
VERSIONS = list(dict.fromkeys(schemas.all_versions()))[-3:]
Object = dict[str, Any]

SECRETS = {
    "mdctr-service": {"store", "rank-keys"},
    "mdctr-redis": {"users.acl", "replica-password", "sentinel-password"},
}
"""What an operator makes by hand, as docs/kubernetes.md says."""
WORKLOADS = {"Deployment", "StatefulSet"}
SELECTORS = {"Service": "selector", "PodDisruptionBudget": "selector", "PodMonitor": "selector"}
SELECTORS |= {"NetworkPolicy": "podSelector"}
PROBES = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
PATHS = {route.path for route in router.routes if isinstance(route, APIRoute)}
"""Of the service, for operators."""
FINISH, SENDS, FLUSH = 5, 4, 10
"""Seconds beyond a deadline that the server waits (service/server.py), that a Redis which hangs may hold up
the end, and that the log of exposures may take to be written out."""
PRIVATE = 200_000_000
"""Bytes that a worker has for itself, at most (docs/sizing.md)."""
CUSTOM = {
    "PodMonitor": (
        {"selector", "podMetricsEndpoints"},
        {"selector", "podMetricsEndpoints", "jobLabel", "sampleLimit"},
    ),
    "PrometheusRule": ({"groups"}, {"groups"}),
}
"""Kinds without a schema here: what their spec must have, and may."""
ENDPOINT = {"port", "path", "interval", "scrapeTimeout", "relabelings", "metricRelabelings"}
UNITS = {"Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}


def read(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def kustomization(folder: Path) -> Object:
    [found] = read(folder / "kustomization.yaml")
    return found


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.partition("=")[::2] for line in lines]
    assert len(dict(pairs)) == len(pairs), f"{path}: a name stands twice"
    return dict(pairs)


def objects(folder: Path) -> list[Object]:
    """What a folder without patches makes, but for hashes in names."""
    made = kustomization(folder)
    found = [each for name in made["resources"] for each in read(folder / name)]
    for generated in made.get("configMapGenerator", []):
        data = {
            key: value for name in generated.get("envs", []) for key, value in env_file(folder / name).items()
        }
        data |= {name: (folder / name).read_text() for name in generated.get("files", [])}
        metadata = {"name": generated["name"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    return found


def of_kind(found: list[Object], *kinds: str) -> list[Object]:
    return [each for each in found if each["kind"] in kinds]


def amount(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def matches(selector: Object, labels: Object) -> bool:
    return selector.items() <= labels.items()


def boxes(found: list[Object]) -> list[Object]:
    """The containers of all pods."""
    return [
        box for each in of_kind(found, *WORKLOADS) for box in each["spec"]["template"]["spec"]["containers"]
    ]


def template_labels(workload: Object) -> Object:
    labels: Object = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def schema_faults(each: Object) -> Iterator[str]:
    kind = each["kind"]
    if kind in CUSTOM:
        must, may = CUSTOM[kind]
        if not must <= each["spec"].keys() <= may:
            yield f"{kind} has {sorted(each['spec'])}"
        for endpoint in each["spec"].get("podMetricsEndpoints", []):
            if not endpoint.keys() <= ENDPOINT:
                yield f"{kind} has {sorted(endpoint)}"
        return
    yield from _against_schemas(json.dumps(each))


@cache
def _against_schemas(text: str) -> list[str]:
    each, found = json.loads(text), []
    for version in VERSIONS:
        try:
            schemas.validate(each, version, strict=True)
        except schemas.ValidationError as error:
            found.append(f"{version}: {each['kind']} {'.'.join(map(str, error.path))}: {error.message}")
    return found


def selector_faults(found: list[Object]) -> Iterator[str]:
    pods = [template_labels(each) for each in of_kind(found, *WORKLOADS)]
    for each in of_kind(found, *WORKLOADS):
        spread = each["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        wanted = [each["spec"]["selector"], *(one["labelSelector"] for one in spread)]
        for one in wanted:
            if not matches(one["matchLabels"], template_labels(each)):
                yield f"{each['kind']} does not select its own pods: {one}"
    for each in of_kind(found, *SELECTORS):
        selector = each["spec"][SELECTORS[each["kind"]]]
        selector = selector if each["kind"] == "Service" else selector.get("matchLabels", {})
        if not any(matches(selector, labels) for labels in pods):
            yield f"{each['kind']} {each['metadata']['name']} selects no pod: {selector}"


def reference_faults(found: list[Object]) -> Iterator[str]:
    names = {(each["kind"], each["metadata"]["name"]) for each in found}
    for each in of_kind(found, "HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in names:
            yield f"the autoscaler scales {target['name']}, which is not there"
    for each in of_kind(found, *WORKLOADS):
        account = each["spec"]["template"]["spec"].get("serviceAccountName")
        if account and ("ServiceAccount", account) not in names:
            yield f"no service account {account}"
        yield from mount_faults(each)
        maps, keys = taken_from(each)
        yield from (f"no ConfigMap {name}" for name in maps if ("ConfigMap", name) not in names)
        yield from (f"no Secret {name} with {key}" for name, key in keys if key not in SECRETS.get(name, ()))


def mount_faults(workload: Object) -> Iterator[str]:
    volumes = {one["name"] for one in workload["spec"]["template"]["spec"]["volumes"]}
    volumes |= {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])}
    mounted = {one["name"] for container in boxes([workload]) for one in container["volumeMounts"]}
    if mounted != volumes:
        yield f"volumes {sorted(volumes)} and mounts {sorted(mounted)} differ"


def taken_from(workload: Object) -> tuple[list[str], list[tuple[str, str]]]:
    """The ConfigMaps that a pod needs, and the Secrets with their keys."""
    volumes = workload["spec"]["template"]["spec"]["volumes"]
    maps = [one["configMap"]["name"] for one in volumes if "configMap" in one]
    secrets = [one["secret"] for one in volumes if "secret" in one]
    keys = [(one["secretName"], item["key"]) for one in secrets for item in one["items"]]
    for container in boxes([workload]):
        maps += [one["configMapRef"]["name"] for one in container.get("envFrom", [])]
        given = [one["valueFrom"].get("secretKeyRef") for one in container["env"] if "valueFrom" in one]
        keys += [(one["name"], one["key"]) for one in given if one]
    return maps, keys


def security_faults(found: list[Object]) -> Iterator[str]:
    for each in of_kind(found, *WORKLOADS):
        pod = each["spec"]["template"]["spec"]
        context = pod["securityContext"]
        if pod.get("automountServiceAccountToken") is not False:
            yield "a pod has a token of the cluster's API"
        if context.get("runAsNonRoot") is not True or context.get("seccompProfile") != {
            "type": "RuntimeDefault"
        }:
            yield "a pod may be root, or call what it likes"
        for container in pod["containers"]:
            want: Object = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
            want |= {"capabilities": {"drop": ["ALL"]}}
            if container.get("securityContext") != want:
                yield f"{container['name']} may do more than it must"
            if "memory" not in container["resources"]["limits"]:
                yield f"{container['name']} may take all memory"
        images = [container["image"] for container in pod["containers"]]
        images += [one["image"]["reference"] for one in pod["volumes"] if "image" in one]
        for image in images:
            if not re.search(r"(:[\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})$", image) or ":latest" in image:
                yield f"{image} has no version"
    if "Secret" in {each["kind"] for each in found}:
        yield "a Secret is in the manifests"


def probe_faults(found: list[Object], port: str) -> Iterator[str]:
    for each in of_kind(found, "Deployment"):
        [container] = boxes([each])
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        if str(ports.get("http")) != port:
            yield f"the service listens on {port}, and the pod says {ports}"
        for probe, path in PROBES.items():
            asked = container.get(probe, {}).get("httpGet", {})
            if asked.get("path") != path or asked.get("port") not in ports:
                yield f"{probe} asks {asked}"


def port_faults(found: list[Object]) -> Iterator[str]:
    named = {one["name"] for container in boxes(found) for one in container["ports"]}
    measured = [
        one for each in of_kind(found, "PodMonitor") for one in each["spec"].get("podMetricsEndpoints", [])
    ]
    yield from (f"{one} is measured" for one in measured if one["path"] not in PATHS)
    used = [one["port"] for one in measured]
    used += [one["targetPort"] for each in of_kind(found, "Service") for one in each["spec"]["ports"]]
    for each in of_kind(found, "NetworkPolicy"):
        rules = each["spec"].get("ingress", [])
        used += [one["port"] for rule in rules for one in rule["ports"] if isinstance(one["port"], str)]
    yield from (f"no port is called {name}" for name in used if name not in named)


def settings_of(found: list[Object]) -> tuple[dict[str, str], Object]:
    """What the service's environment is, with stand-ins for secrets; and its pod."""
    [deployment] = of_kind(found, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(found, "ConfigMap")}
    given: dict[str, str] = {}
    for one in container["envFrom"]:
        given |= maps.get(one["configMapRef"]["name"], {})
    secrets = {"store": "redis://redis:6379/0", "rank-keys": '{"gateway": "0123456789abcdef"}'}
    for one in container["env"]:
        given[one["name"]] = one.get("value") or secrets.get(one["valueFrom"]["secretKeyRef"]["key"], "")
    return given, pod


def settings_faults(found: list[Object]) -> Iterator[str]:
    given, pod = settings_of(found)
    ours = {name: value for name, value in given.items() if name.startswith(PREFIX)}
    unknown = [name for name in ours if name.removeprefix(PREFIX).lower() not in Settings.model_fields]
    if unknown:
        yield f"no such setting: {unknown}"
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            patch.delenv(name)
        for name, value in ours.items():
            patch.setenv(name, value)
        try:
            settings = Settings()
        except ValueError as error:
            yield f"the settings are refused: {error}"
            return
    yield from end_faults(settings, pod)
    yield from place_faults(settings, pod)
    yield from room_faults(settings, pod)


def end_faults(settings: Settings, pod: Object) -> Iterator[str]:
    end = settings.drain_seconds + math.ceil(settings.deadline_ms / 1e3) + FINISH + SENDS + FLUSH
    if pod["terminationGracePeriodSeconds"] <= end:
        yield f"a pod is killed after {pod['terminationGracePeriodSeconds']} s, and may need {end:g}"


def volume_at(pod: Object, path: object) -> Object:
    """The volume that the first container has there."""
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    volumes: dict[str, Object] = {one["name"]: one for one in pod["volumes"]}
    return volumes.get(mounts.get(str(path), ""), {})


def place_faults(settings: Settings, pod: Object) -> Iterator[str]:
    if "image" not in volume_at(pod, settings.bundle):
        yield f"no bundle is in {settings.bundle}"
    shelf = amount(volume_at(pod, settings.shelf).get("emptyDir", {}).get("sizeLimit", "0"))
    if settings.shelf_bytes + 3 * settings.items_bytes > shelf:
        yield "the shelf may outgrow its volume, and the pod is evicted"
    if amount(pod["containers"][0]["resources"]["requests"]["ephemeral-storage"]) < shelf:
        yield "the shelf has more than was asked for"
    if settings.host != "0.0.0.0":
        yield "nobody reaches the service"


def room_faults(settings: Settings, pod: Object) -> Iterator[str]:
    requests, limits = (pod["containers"][0]["resources"][name] for name in ("requests", "limits"))
    tmp = amount(volume_at(pod, "/tmp")["emptyDir"]["sizeLimit"])
    needed = settings.resident_bytes + settings.items_bytes + settings.workers * PRIVATE + tmp
    if amount(limits["memory"]) < needed:
        yield f"memory of {limits['memory']} is too little"
    if requests["memory"] != limits["memory"]:
        yield "a node may promise memory that it does not have"
    if "cpu" in limits:
        yield "the cpu is throttled"
    if amount(requests["cpu"]) < settings.workers * settings.threads:
        yield "workers share cores"


def rollout_faults(found: list[Object]) -> Iterator[str]:
    for each in of_kind(found, "Deployment"):
        strategy = each["spec"]["strategy"]["rollingUpdate"]
        if strategy["maxUnavailable"] != 0:
            yield "an update takes capacity away"
        if "replicas" in each["spec"]:
            yield "an autoscaler and a number of replicas"
    if not any(each["spec"]["podSelector"] == {} for each in of_kind(found, "NetworkPolicy")):
        yield "no policy denies by default"


def faults(found: list[Object]) -> list[str]:
    """What is wrong with the service's objects."""
    given, _ = settings_of(found)
    whole = [fault for each in found for fault in schema_faults(each)]
    whole += [
        *selector_faults(found),
        *reference_faults(found),
        *security_faults(found),
        *rollout_faults(found),
    ]
    return [
        *whole,
        *probe_faults(found, given.get(f"{PREFIX}PORT", "")),
        *port_faults(found),
        *settings_faults(found),
    ]
