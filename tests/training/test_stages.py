from __future__ import annotations

import pytest
import torch
from torch import nn

from service.contract.errors import RunError
from training.stages import train_mode, training_only


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)), nn.Sequential(nn.Linear(3, 1))
    )


def test_only_the_named_parameters_train(net: nn.Sequential) -> None:
    with training_only(net, frozenset({"1.0.weight"})) as parameters:
        assert [p.shape for p in parameters] == [torch.Size([1, 3])]
        assert [name for name, p in net.named_parameters() if p.requires_grad] == ["1.0.weight"]
    assert all(p.requires_grad for p in net.parameters())


def test_frozen_batch_norm_does_not_drift_and_frozen_dropout_does_not_drop(net: nn.Sequential) -> None:
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with training_only(net, frozenset({"1.0.weight", "1.0.bias"})):
        train_mode(net)
        rows = torch.randn(16, 2)
        assert torch.equal(net(rows), net(rows))
        assert net[1].training
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


def test_what_is_trained_whole_is_in_train_mode_with_its_dropout(net: nn.Sequential) -> None:
    names = frozenset(name for name, _ in net.named_parameters() if name.startswith("0."))
    with training_only(net, names):
        train_mode(net)
        assert all(module.training for module in net[0].modules())
        assert not net[1].training
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize(
    ("names", "says"), [(frozenset(), "no parameter"), (frozenset({"2.weight"}), "2.weight")]
)
def test_a_stage_that_would_train_nothing_is_refused(
    net: nn.Sequential, names: frozenset[str], says: str
) -> None:
    with pytest.raises(RunError, match=says), training_only(net, names):
        pass
