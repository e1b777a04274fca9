"""A snapshot notices whatever wrapping could leave behind on a module."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from exitkit.testing.contract import ContractError
from exitkit.testing.snapshot import Snapshot
from tests.backbones import case


def scale(model: nn.Module) -> None:
    with torch.no_grad():
        model.blocks[1].up.weight.mul_(1 + 1e-6)


def add(model: nn.Module) -> None:
    model.blocks.append(nn.Identity())


def gate(model: nn.Module) -> None:
    block = model.blocks[0]
    block.forward = block.forward


CHANGES: list[tuple[Callable[[nn.Module], object], str]] = [
    (scale, "other values in .*blocks.1.up.weight"),
    (add, "changed the submodules.*blocks.4"),
    (gate, "the attributes of 'blocks.0'"),
    (lambda m: m.blocks[2].register_forward_hook(lambda *_: None), "the hooks of 'blocks.2'"),
    (lambda m: m.register_buffer("left", torch.zeros(1)), "keys of the state dict: .*left"),
    (lambda m: m.norm.train(), "the training flag of 'norm'"),
    (lambda m: m.head.weight.requires_grad_(False), "requires_grad of 'head'"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_is_left_behind_is_named(change: Callable[[nn.Module], object], message: str) -> None:
    model = case("value_branch").make()
    before = Snapshot(model)
    before.compare(model)
    change(model)
    with pytest.raises(ContractError, match=message):
        before.compare(model)


@pytest.mark.parametrize("own", [False, True])
def test_what_hangs_on_a_module_is_looked_at_but_for_what_its_forward_changes(own: bool) -> None:
    model = case("value_branch").make()
    model.blocks[1].kept = {"calls": 1, "table": torch.zeros(3)}
    for change in (
        lambda: model.blocks[1].kept.update(calls=2),
        lambda: model.blocks[1].kept["table"].add_(1),
    ):
        watched = Snapshot(model)
        watched.compare(model)
        change()
        with pytest.raises(ContractError, match=r"what hangs on it is not.*blocks\.1\.kept"):
            watched.compare(model)
        paths = watched._inside.left
        moving = Snapshot(model, own=paths if own else ())
        change()
        if own:
            moving.compare(model)
    assert model.blocks[1].kept["calls"] in (1, 2)


def test_running_changes_nothing() -> None:
    model = case("timm_resnet").make()
    before = Snapshot(model)
    args, kwargs = case("timm_resnet").inputs(2)
    model(*args, **kwargs)
    before.compare(model)
    model.train()(*args, **kwargs)
    model.eval()
    with pytest.raises(ContractError, match="running_mean"):
        before.compare(model)
