"""Write `tensorrt-names.json`: the names that TensorRT's Python bindings and NVIDIA's CUDA bindings have.

    pip download --no-deps --only-binary=:all: --python-version 3.11 -d wheels NAME==VERSION ...
    python -m tests.golden.tensorrt_names wheels/*.whl > tests/golden/tensorrt-names.json

with tensorrt-cu13-bindings 11.4.0.106 and 10.16.1.11, tensorrt-lean-cu13-bindings 11.4.0.106, cuda-bindings
13.5.0, and cuda-pathfinder, which the last one imports; on x86-64 Linux with Python 3.11 and a C compiler.

The wheels of bindings come without TensorRT itself. So this compiles libraries of the names that they are
linked to, in which the functions that they call are empty: enough to import them and to ask what they have.
Nothing of TensorRT runs. Kept are names alone: the modules', and, of the classes that the protocols of
`service.engines._tensorrt_api`, `export._tensorrt_api` and `service.engines._cuda` describe, the members'
and those of their arguments.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tests.golden.protocols import described

LIBRARIES = ("nvinfer", "nvinfer_lean", "nvinfer_plugin", "nvonnxparser")
MODULES = {
    "tensorrt_cu13_bindings": "tensorrt_bindings",
    "tensorrt_lean_cu13_bindings": "tensorrt_lean_bindings",
    "cuda_bindings": "cuda.bindings.runtime",
}
Names = dict[str, list[str]]
"""By name, the arguments of each form of a method. What is no method, or does not say, has no form."""
_ASK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
members = {}
for name in json.loads(sys.argv[2]):
    of = getattr(module, name, None)
    if isinstance(of, type):
        members[name] = {each: getattr(of, each).__doc__ for each in dir(of)}
members[""] = {name: getattr(module, name).__doc__ for name in dir(module)}
print(json.dumps(members))
"""


def names(wheel: Path, beside: list[Path], classes: set[str]) -> dict[str, Names]:
    """By class, and under "" of the module, the members."""
    with tempfile.TemporaryDirectory() as folder:
        for each in (wheel, *beside):
            zipfile.ZipFile(each).extractall(folder)
        _stubs(Path(folder), wheel.name.split("-")[1].split(".")[0])
        module = MODULES[wheel.name.split("-")[0]]
        environment = {**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
        command = [sys.executable, "-c", _ASK, module, json.dumps(sorted(classes))]
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found = json.loads(asked.stdout)
    kept = {of: {name: forms(name, doc or "") for name, doc in all_.items()} for of, all_ in found.items()}
    used = {name for of in described().values() for name in (*of, *of.get("", ()))}
    return {
        of: {
            name: [" ".join(form) for form in each]
            for name, each in sorted(members.items())
            if not name.startswith("_") and (name in used or of or _wanted(name, each))
        }
        for of, members in sorted(kept.items())
    }


def _wanted(name: str, form: list[list[str]]) -> bool:
    """TensorRT's names, all, and CUDA's functions of memory, streams and devices; it has a thousand names."""
    function = bool(form and form != [["_ptr"]])
    return not re.match("cu|CU|anon|EGL|GL|Vdp|ctypes", name) or (
        function
        and re.match("cuda(Malloc|Free|Mem(cpy|set)|Stream|Event|Device|Get|Set|Host)", name) is not None
    )


def forms(name: str, doc: str) -> list[list[str]]:
    """The names of a method's arguments, without `self`, from the first lines of its documentation."""
    found = []
    for line in doc.splitlines():
        signature = re.match(rf"\s*(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> .*)?$", line)
        if signature is None or signature[1].startswith("*args"):
            continue
        # What stands in brackets has commas of its own.
        flat = re.sub(r"\[[^\[\]]*\]|<[^<>]*>", "", re.sub(r"\[[^\[\]]*\]", "", signature[1]))
        arguments = [part.split(":")[0].split("=")[0].split()[-1] for part in flat.split(",") if part.strip()]
        found.append([argument for argument in arguments if argument != "self"])
    return found


def _stubs(folder: Path, major: str) -> None:
    undefined: set[str] = set()
    for library in folder.glob("tensorrt*/*.so"):
        shown = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        )
        undefined |= {line.split()[-1] for line in shown.stdout.splitlines() if " U " in line}
    wanted = sorted(
        name for name in undefined if re.fullmatch(r"(create|get|init)\w*(Nv|Infer|Plugin)\w*", name)
    )
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    for name in LIBRARIES:
        soname = f"lib{name}.so.{major}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", folder / soname, source], check=True
        )


def _text(made: Mapping[str, Mapping[str, Names]]) -> str:
    """JSON with a line for each class."""
    wheels = []
    for wheel, classes in made.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(members)}" for name, members in classes.items()]
        wheels.append(f" {json.dumps(wheel)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(wheels) + "\n}\n"


def main(wheels: list[Path]) -> None:
    """Print the JSON."""
    beside = [wheel for wheel in wheels if wheel.name.split("-")[0] not in MODULES]
    classes = {name for of in described().values() for name, members in of.items() if name and members}
    asked = sorted(wheel for wheel in wheels if wheel not in beside)
    made = {"-".join(wheel.name.split("-")[:2]): names(wheel, beside, classes) for wheel in asked}
    sys.stdout.write(_text(made))


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
