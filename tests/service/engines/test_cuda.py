"""The device, on fake memory."""

import gc
import sys
import threading

import numpy as np
import pytest

from service.contract.errors import EngineError
from service.engines._cuda import open_device
from service.engines._resident import Uploader
from tests.service.fake_gpu import gpu


@pytest.fixture
def cuda():
    with gpu(nbytes=1 << 20) as cuda:
        yield cuda


def test_the_compute_capability(cuda):
    assert open_device().capability == "9.0"
    cuda.capability = (12, 1)
    assert open_device().capability == "12.1"


def test_copies_there_and_back(cuda):
    device = open_device()
    memory, stream = device.allocate(16), device.stream()
    there, back = device.pinned(16), device.pinned(16)
    there[:] = np.arange(16)
    device.upload(there, memory.address, stream)
    device.download(memory.address, back, stream)
    device.wait(stream)
    assert back.tolist() == list(range(16))
    assert cuda.copies == [("up", 16), ("down", 16)]


def test_memory_goes_with_its_last_owner(cuda):
    device = open_device()
    memory, block = device.allocate(1000), device.pinned(64)
    part = block[8:16]
    del block
    assert (len(cuda.memory), len(cuda.host)) == (1, 1)
    del memory, part
    gc.collect()
    assert (cuda.memory, cuda.host) == ({}, {})


def test_a_thread_that_ignores_captures_goes_on_while_another_captures(cuda):
    device = open_device()
    cuda.capturing = -1
    with pytest.raises(EngineError, match="900"):
        device.allocate(16)
    device.ignore_captures()
    assert device.allocate(16).nbytes == 16
    cuda.capturing = threading.get_ident()  # it allocates no more than before while it captures itself
    with pytest.raises(EngineError, match="900"):
        device.allocate(16)


def test_errors_have_cudas_words(cuda):
    device = open_device()
    with pytest.raises(EngineError, match="CUDA error 2: cudaErrorMemoryAllocation"):
        device.allocate(1 << 21)
    with pytest.raises(EngineError, match="CUDA error 400"):
        device.wait(99)
    with pytest.raises(EngineError, match="CUDA error 1"):
        device.upload(np.zeros(4, np.uint8), 0x1234, device.stream())


def test_resident_arrays_are_contiguous_copies(cuda):
    upload = Uploader(open_device())
    whole = np.arange(12, dtype=np.float32).reshape(4, 3)
    resident = upload({"a": whole[::2], "b": np.asfortranarray(whole)})
    assert resident.nbytes == 24 + 48
    found = [cuda.at(address, 24).view(np.float32).tolist() for _, address in resident.addresses]
    assert found == [[0, 1, 2, 6, 7, 8], [0, 1, 2, 3, 4, 5]]
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        upload({"a": np.zeros(1 << 20, np.float32)})


def test_nothing_is_copied_over_a_stream_that_was_destroyed(cuda):
    upload = Uploader(open_device())
    upload.close()
    upload.close()
    assert not cuda.streams
    with pytest.raises(ValueError, match="closed"):
        upload({"a": np.zeros(4, np.float32)})
    gc.collect()
    assert not cuda.memory


def test_without_the_bindings_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="pip install"):
        open_device()
