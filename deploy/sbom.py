"""The packages that a service's image carries, as a CycloneDX document: `python deploy/sbom.py [--out FILE]`.

What is installed here is described by cyclonedx-py, with licences and who needs whom, and all is left out
that `mdctr[service]` does not need. The document is validated, and the same for the same packages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OUT = ROOT / "runs" / "sbom.json"
OURS = "mdctr"


def main() -> int:
    """The exit code."""
    options = argparse.ArgumentParser(description="The packages that a service's image carries.")
    options.add_argument("--out", type=Path, default=OUT)
    options.add_argument("--extra", action="append", default=[], help="beside `service`: exposures, tracing")
    given = options.parse_args()
    document = narrowed(described(), needed(frozenset({"service", *given.extra})))
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.stderr.write(f"not a document of CycloneDX: {fault}\n")
        return 1
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text)
    sys.stdout.write(f"{given.out}: {len(document['components'])} packages\n")
    return 0


def needed(extras: frozenset[str]) -> set[str]:
    """Names of the packages that ours needs with some extras, ours not among them."""
    found: dict[str, frozenset[str]] = {}
    waiting = [(OURS, extras)]
    while waiting:
        name, wanted = waiting.pop()
        if name in found and wanted <= found[name]:
            continue
        found[name] = found.get(name, frozenset()) | wanted
        for line in metadata.requires(name) or ():
            need = Requirement(line)
            if need.marker is None or any(
                need.marker.evaluate({"extra": extra}) for extra in {"", *found[name]}
            ):
                waiting.append((canonicalize_name(need.name), frozenset(need.extras)))
    return found.keys() - {OURS}


def described() -> dict[str, Any]:
    """Everything that is installed here."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", "pyproject.toml"]
    command += ["--output-reproducible", "--spec-version", "1.6", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def narrowed(document: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The document of these packages alone."""
    kept = [each for each in document["components"] if canonicalize_name(each["name"]) in names]
    refs = {each["bom-ref"] for each in kept} | {document["metadata"]["component"]["bom-ref"]}
    links = [
        {**each, "dependsOn": sorted(refs & set(each.get("dependsOn", ())))}
        for each in document["dependencies"]
        if each["ref"] in refs
    ]
    return {**document, "components": kept, "dependencies": links}


if __name__ == "__main__":
    sys.exit(main())
