"""Calls that do not meet the blocks of the plan: right, or an error that names the block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import PlanMismatchError
from exitkit.policies import NeverExit, ScriptedExit
from tests.backbones import case

atol = 2e-5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Net(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([block() for _ in range(5)])
            self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor, skip: tuple[int, ...] = ()) -> Tensor:
        h = x + t[:, None, None] / 1000
        for i, block in enumerate(self.blocks):
            if i not in skip:
                h = self.step(block, h)
        return self.out(h)

    def step(self, block: nn.Module, h: Tensor) -> Tensor:
        return block(h)


def example(rows: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, 8, generator=generator), torch.linspace(900, 100, rows)


def wrapped(net: nn.Module, config: str = "relative") -> ek.ExitModel:
    model = ek.wrap(net.eval(), config, example_inputs=example(), exits=("*",))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for p in model.heads.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.heads.mark_fitted()
    return model


@torch.no_grad()
def test_a_call_that_passes_blocks_over() -> None:
    net = Net()
    model, (x, t) = wrapped(net), example()
    model.policy = ScriptedExit((2, 5, 1, 5))
    for skip in ((0,), (2,), (1, 3)):
        together = model(x, t, skip=skip)
        for row in range(4):
            model.policy = ScriptedExit((model.policy.per_row[row],))
            assert torch.allclose(
                together[row], model(x[row : row + 1], t[row : row + 1], skip=skip)[0]
            )
            model.policy = ScriptedExit((2, 5, 1, 5))
        assert torch.allclose(together[3], net(x, t, skip=skip)[3], atol=atol)
    with pytest.raises(
        PlanMismatchError, match=r"left behind 'blocks.\d'.*'blocks.4', which this call"
    ):
        model(x, t, skip=(4,))
    model.policy = NeverExit()
    assert torch.equal(model(x, t, skip=(4,)), net(x, t, skip=(4,)))
    with pytest.raises(PlanMismatchError, match="behind 'blocks.4', which this call passed over"):
        model(x, t, skip=(4,), output_exits=True)
    with pytest.raises(PlanMismatchError, match="behind 'blocks.1', which this call passed over"):
        model(x, t, skip=(1,), output_exits=True)


@torch.no_grad()
def test_a_step_that_passes_blocks_over_leaves_nothing_to_carry() -> None:
    net = Net()
    model, (x, t) = wrapped(net, "carried"), example()
    with model.trajectory(4):
        model.policy = NeverExit()
        model(x, t)
        model(x, t - 1, skip=(1,))
        model.policy = ScriptedExit((2,) * 4)
        assert torch.equal(model(x, t - 2), net(x, t - 2)), "exit 2 carried what was not there"
        assert model.trace.depth[-1].tolist() == [len(model.exits) + 1] * 4
        model(x, t - 3)
        assert model.trace.depth[-1].tolist() == [2] * 4


@torch.no_grad()
def test_skipped_layers_of_a_real_transformer() -> None:
    net = case("sd3").make()
    args, kwargs = case("sd3").inputs(3)
    model = ek.wrap(net, "relative", example_inputs=ek.Inputs(*args, **kwargs))
    last = len(net.transformer_blocks) - 1
    for skip in ([0], [last]):
        expected = net(*args, **kwargs, skip_layers=skip)[0]
        model.policy = NeverExit()
        assert torch.equal(model(*args, **kwargs, skip_layers=skip)[0], expected)
    model.policy = ScriptedExit((1, 2, 1))
    with pytest.raises(
        PlanMismatchError, match=f"transformer_blocks.{last}', which this call passed"
    ):
        model(*args, **kwargs, skip_layers=[last])


def exchanged(net: Net) -> None:
    net.blocks[2] = Block()


def cut_off(net: Net) -> None:
    del net.blocks[3:]


def without_gate(net: Net) -> None:
    del net.blocks[2].forward


def another_forward(net: Net) -> None:
    net.blocks[2].forward = lambda x: x


@pytest.mark.parametrize("change", [exchanged, cut_off, without_gate, another_forward])
@pytest.mark.parametrize("policy", [NeverExit(), ScriptedExit((3, 6, 6, 1))], ids=lambda p: p.name)
@torch.no_grad()
def test_blocks_changed_after_wrapping_are_named(
    change: Callable[[Net], None], policy: Any
) -> None:
    net = Net()
    model = wrapped(net)
    model.policy = policy if isinstance(policy, NeverExit) else ScriptedExit((3, 5, 5, 1))
    change(net)
    with pytest.raises(PlanMismatchError, match=r"block 'blocks.[23]' .* since it was wrapped"):
        model(*example())


@torch.no_grad()
def test_a_hook_put_over_a_gate_is_none_of_that() -> None:
    net = Net()
    model, (x, t) = wrapped(net), example()
    inner = net.blocks[2].forward

    def hooked(*args: Any) -> Any:
        return inner(*args)

    net.blocks[2].forward = hooked
    model.policy = ScriptedExit((1, 5, 5, 2))
    model(x, t, skip=(2,))
    model(x, t)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(torch.tanh(self.linear(x)))


class Dropping(Net):
    def step(self, block: nn.Module, h: Tensor) -> Tensor:
        block(h)
        return h


@pytest.mark.parametrize(
    "net", [lambda: Dropping(InPlace), lambda: Net(InPlace)], ids=["dropped", "used"]
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_blocks_that_work_in_place(net: Callable[[], Net], mode: Any) -> None:
    reference, model, (x, t) = wrapped(Net()), wrapped(net()), example()
    with mode():
        for script in ((1, 1, 1, 1), (5, 2, 1, 4), (3, 5, 5, 2), (2, 2, 2, 5)):
            for policy in (ScriptedExit(script), NeverExit()):
                reference.policy = model.policy = policy
                assert torch.allclose(model(x, t), reference(x, t), atol=atol), script
                assert torch.equal(model.trace.depth, reference.trace.depth)


@torch.no_grad()
def test_blocks_that_work_in_place_in_a_trajectory() -> None:
    outputs = []
    for net in (Net(), Dropping(InPlace)):
        model, (x, t) = wrapped(net, "carried"), example()
        with model.trajectory(5):
            for step in range(5):
                model.policy = NeverExit() if step < 2 else ScriptedExit((1, 5, 2, 5))
                outputs.append(model(x, t - step))
    for expected, found in zip(outputs[:5], outputs[5:], strict=True):
        assert torch.allclose(expected, found, atol=atol)
