"""`Machine`: TensorRT and the GPU, as far as a plan needs to know both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from service.contract.errors import EngineError
from service.engines._cuda import Device
from service.engines._tensorrt_api import TensorRt
from service.engines._tensorrt_log import Log

_T = TypeVar("_T")


@dataclass(frozen=True)
class Machine:
    """What plans run on."""

    trt: TensorRt
    device: Device
    log: Log

    def reason(self) -> str:
        """Why the last call of TensorRT failed, in one line."""
        return self.log.take() or "TensorRT does not say why"

    def made(self, make: Callable[[], _T], what: str) -> _T:
        """What one of TensorRT's classes makes.

        Raises:
            EngineError: it makes nothing, which its bindings say with a TypeError of their own.
        """
        try:
            return make()
        except TypeError as error:
            raise EngineError(f"TensorRT makes no {what}: {self.reason()}") from error

    def took(self, answer: bool, what: str) -> None:
        """Go on if TensorRT took something.

        Raises:
            EngineError: it did not.
        """
        if not answer:
            raise EngineError(f"TensorRT does not take {what}: {self.reason()}")
