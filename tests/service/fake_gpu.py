"""A GPU and a TensorRT, both of them fakes, in the place of the modules that are imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.service.fake_cuda import FakeCuda
from tests.service.fake_tensorrt import FakeTensorRt


@contextmanager
def gpu(
    capability: tuple[int, int] = (9, 0),
    version: str = "11.4.0.106",
    name: str = "tensorrt",
    nbytes: int = 1 << 30,
) -> Iterator[FakeCuda]:
    """The modules as long as the block lasts.

    `name` is `tensorrt_lean` for the lean runtime alone: `tensorrt` is then not found.
    """
    cuda = FakeCuda(capability, nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        patch.setitem(sys.modules, "tensorrt", None)
        patch.setitem(sys.modules, name, FakeTensorRt(cuda, name, version))
        yield cuda
