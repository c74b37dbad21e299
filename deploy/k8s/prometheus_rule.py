"""The rules and alerts of deploy/prometheus as the Prometheus operator takes them.

kustomize cannot put one file into another, so the result is kept beside it:

    python deploy/k8s/prometheus_rule.py > deploy/k8s/components/operator/prometheusrule.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

_MADE = "# Made by deploy/k8s/prometheus_rule.py of deploy/prometheus/rules.yml and alerts.yml.\n"
_SOURCES = ("rules.yml", "alerts.yml")
_LABELS = {"app.kubernetes.io/name": "mdctr", "app.kubernetes.io/part-of": "mdctr"}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def rule(folder: Path) -> str:
    """The manifest, from a folder that has both files."""
    groups: list[Any] = []
    for name in _SOURCES:
        groups += yaml.safe_load((folder / name).read_text())["groups"]
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mdctr", "labels": _LABELS},
        "spec": {"groups": groups},
    }
    return _MADE + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(rule(Path(__file__).parents[1] / "prometheus"))
