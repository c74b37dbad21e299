"""What our protocols say that TensorRT and CUDA have, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "service/engines/_tensorrt_api.py"
BUILDER = ROOT / "export/_tensorrt_api.py"
CUDA = ROOT / "service/engines/_cuda.py"
MODULES = {"TensorRt": "", "BuildingTensorRt": "", "CudaRuntime": ""}
"""Protocols that describe a module."""
CALLED = {
    "MakesRuntimes": "Runtime",
    "MakesBuilders": "Builder",
    "MakesParsers": "OnnxParser",
    "Flag": "NetworkDefinitionCreationFlag",
    "Stream": "cudaStream_t",
    "CudaError": "cudaError_t",
    "CudaMemcpyKind": "cudaMemcpyKind",
    "CudaDeviceAttr": "cudaDeviceAttr",
    "CudaStreamCaptureMode": "cudaStreamCaptureMode",
    "Severity": "ILogger",
}
"""Protocols whose class has another name there, or a name that Python's classes do not have."""

Members = Mapping[str, list[str] | None]
"""By name: a method's arguments, without self; None of what is no method."""


def described() -> dict[Path, dict[str, Members]]:
    """By file and class, the members that a protocol has; a module's under ""."""
    return {path: _classes(path) for path in (RUNTIME, BUILDER, CUDA)}


def _classes(path: Path) -> dict[str, Members]:
    found: dict[str, Members] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases):
            name = {**MODULES, **CALLED}.get(node.name, node.name)
            found[name] = {**found.get(name, {}), **dict(map(_member, filter(_named, node.body)))}
    return found


def _named(node: ast.stmt) -> bool:
    name = _member(node)[0]
    return bool(name) and not name.startswith("_")


def _member(node: ast.stmt) -> tuple[str, list[str] | None]:
    if isinstance(node, ast.FunctionDef):
        return node.name, [argument.arg for argument in node.args.args if argument.arg != "self"]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, None
    return "", None
