"""Every name of TensorRT and of CUDA that our code uses is one that the libraries have.

mypy lets our code use only what the protocols of `_tensorrt_api` and `_cuda` describe. Here, what they
describe is compared with the names in the published bindings, which `tensorrt_names.py` asked. No list is
kept by hand.
"""

import json

import pytest

from service.engines import _tensorrt_api
from tests.golden import protocols
from tests.golden.protocols import BUILDER, CUDA, RUNTIME, described
from tests.golden.tensorrt_names import forms
from tests.service import fake_tensorrt
from tests.service.fake_cuda import FakeCuda

NAMES = json.loads((protocols.ROOT / "tests/golden/tensorrt-names.json").read_text())
WHOLE = [name for name in NAMES if name.startswith("tensorrt_cu13")]
LEAN = [name for name in NAMES if name.startswith("tensorrt_lean")]
CUDA_BINDINGS = [name for name in NAMES if name.startswith("cuda")]
USED = described()


def unknown(path, library):
    """What a file's protocols describe and a library does not have, or has with other arguments."""
    has = NAMES[library]
    for name, members in USED[path].items():
        if name and name not in has[""]:
            yield name
            continue
        for member, arguments in members.items():
            there = has.get(name, {}).get(member)
            # Where the bindings give no form, the name is all there is to compare.
            if there is None or (
                arguments is not None and there and not any(fits(arguments, each) for each in there)
            ):
                yield f"{name}.{member}({arguments})"


def fits(arguments, form):
    """Arguments that we name all, and in the library's order; it may have more, with defaults."""
    return form.split()[: len(arguments)] == arguments


def test_the_versions_are_those_that_are_supported():
    assert {name.split("-")[1].split(".")[0] for name in WHOLE} == {"10", "11"}
    assert LEAN
    assert CUDA_BINDINGS


@pytest.mark.parametrize("library", [*WHOLE, *LEAN])
def test_what_runs_plans_is_in_the_library_and_in_the_lean_runtime(library):
    assert list(unknown(RUNTIME, library)) == []


@pytest.mark.parametrize("library", WHOLE)
def test_what_builds_plans_is_in_the_library(library):
    assert list(unknown(BUILDER, library)) == []


@pytest.mark.parametrize("library", CUDA_BINDINGS)
def test_cudas_calls_are_in_its_bindings(library):
    assert list(unknown(CUDA, library)) == []


def test_enough_was_read_to_mean_something():
    """Some of what is used, by hand: the protocols are read, and the comparison finds what is wrong."""
    assert USED[RUNTIME]["IExecutionContext"]["set_tensor_address"] == ["name", "memory"]
    assert USED[RUNTIME][""].keys() == {"ILogger", "Runtime", "TensorIOMode", "DataType"}
    assert USED[BUILDER]["BuilderFlag"].keys() == {"TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}
    assert USED[CUDA][""]["cudaMemcpyAsync"] == ["dst", "src", "count", "kind", "stream"]
    assert "FP16" not in NAMES[WHOLE[-1]]["BuilderFlag"]
    assert not fits(["name", "address"], "name memory")
    assert fits(["network"], "network logger")


def test_no_file_speaks_of_tensorrt_but_by_protocols():
    """A name of TensorRT that no protocol checks can come in by `Any` alone: it is used in one place."""
    files = [path for folder in ("service", "export") for path in (protocols.ROOT / folder).rglob("*.py")]
    with_any = [path.name for path in files if "trt" in (text := path.read_text()) and ": Any = trt" in text]
    assert with_any == ["_tensorrt_log.py"]
    assert _tensorrt_api.TensorRt.__annotations__["ILogger"] == "Any"


def test_the_fakes_have_no_name_that_the_libraries_do_not_have():
    for library in WHOLE:
        for name, members in NAMES[library].items():
            fake = getattr(fake_tensorrt, name, None) if name else None
            if fake is None:
                continue
            used = {**USED[RUNTIME], **USED[BUILDER]}[name]
            missing = [member for member in used if not hasattr(fake, member) and member not in _fields(fake)]
            assert missing == [], name
            assert set(used) <= set(members), name
    calls = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert calls == set(USED[CUDA][""])


def _fields(fake):
    return getattr(fake, "__dataclass_fields__", {})


def test_arguments_are_read_from_pybinds_documentation():
    doc = """f(*args, **kwargs)
    1. f(self: a.B, name: str, shape: tuple[int, ...]) -> bool
    2. f(self: a.B, config: a.C = <X.Y: 0>) -> None
    """
    assert forms("f", doc) == [["name", "shape"], ["config"]]
    assert forms(
        "cudaMemcpyAsync", "cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)"
    ) == [["dst", "src", "count", "kind", "stream"]]
