"""`Stage`: one pass of optimisation, as data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import nn

from service.contract.errors import RunError

ALIGN = "align"
"""The stage before a paradigm's own, where a recipe has one (`training.align`)."""


@dataclass(frozen=True)
class Stage:
    """Which rows and which parameters.

    `all domains` trains the paradigm itself, on mixed rows, once. `each domain` trains the one-domain
    form, domain by domain, each time on that domain's rows and from that domain's pack.
    """

    name: str
    rows: Literal["all domains", "each domain"]
    trains: frozenset[str]
    """Parameter names: of the paradigm for `all domains`, of its servable for `each domain`."""


@contextmanager
def training_only(module: nn.Module, names: frozenset[str]) -> Iterator[list[nn.Parameter]]:
    """Train exactly the parameters named; everything else stays as it is, buffers included.

    A module of which any parameter is frozen is in eval mode: `requires_grad` alone would not stop the
    running statistics of a BatchNorm from moving, nor the dropout of a frozen layer.

    Raises:
        RunError: no name, or one that the module does not have.
    """
    parameters = dict(module.named_parameters())
    if unknown := names - parameters.keys():
        raise RunError(f"a stage trains parameters that do not exist: {', '.join(sorted(unknown))}")
    if not names:
        raise RunError("a stage trains no parameter")
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        yield [parameters[name] for name in sorted(names)]
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
        module.eval()


def train_mode(module: nn.Module) -> None:
    """Put in train mode what is trained whole, and everything else in eval mode."""
    own = list(module.parameters())
    if own and all(parameter.requires_grad for parameter in own):
        module.train()
        return
    module.training = False
    for child in module.children():
        train_mode(child)
