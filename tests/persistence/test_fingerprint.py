"""A backbone is known again by its class, its modules and its weights, with or without a LoRA."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from exitkit.persistence.fingerprint import lora_adapters, own_state, structure, values


def net(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


def with_lora(backbone: nn.Module, name: str = "style") -> nn.Module:
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    return inject_adapter_in_model(config, backbone, adapter_name=name)


def test_each_difference_shows() -> None:
    assert structure(net()) == structure(net(1)) and values(net()) == values(net())
    assert values(net()) != values(net(1))
    assert structure(net()) != structure(net(width=5))
    assert structure(net()) != structure(nn.ModuleList(net()))
    half = net().half()
    assert structure(half) == structure(net()) and values(half) != values(net())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_lora_layers_are_told_and_left_out() -> None:
    bare = net()
    expected = [(n, t.clone()) for n, t in bare.state_dict().items()]
    before = structure(bare), values(bare)
    assert lora_adapters(bare) == []
    backbone = with_lora(bare)
    assert [n for n, _ in expected] != list(backbone.state_dict()), "the control: PEFT renames"
    assert [n for n, _ in own_state(backbone)] == [n for n, _ in expected]
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(own_state(backbone), expected, strict=True)
    )
    assert (structure(backbone), values(backbone)) == before
    assert lora_adapters(backbone) == ["style"]
    assert lora_adapters(with_lora(backbone, "other")) == ["other", "style"]


def test_weights_that_are_not_at_hand_have_no_hash() -> None:
    assert values(net().to("meta")) is None
    assert structure(net().to("meta")) == structure(net())


@pytest.mark.parametrize("numel", [0, 1, 15])
def test_small_tensors_count(numel: int) -> None:
    one, two = nn.ParameterList([torch.zeros(numel)]), nn.ParameterList([torch.ones(numel)])
    assert (values(one) == values(two)) is (numel == 0)
