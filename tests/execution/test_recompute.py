"""Gradient checkpointing gives the gradients of the same forward without it, under any policy."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import exitkit as ek
from exitkit.errors import ConfigError, PlanMismatchError
from exitkit.policies import (
    CALM,
    FixedExit,
    NeverExit,
    Patience,
    ScriptedExit,
    UncertaintyThreshold,
)
from tests.backbones import case
from tests.copies import copies
from tests.policies.spy import randomise


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.drop(self.down(torch.tanh(self.up(self.norm(x) + c[:, None]))))


class Net(nn.Module):
    how: Any = None  # None, or whether the checkpoint is reentrant

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.into, self.time, self.out = nn.Linear(4, 16), nn.Linear(1, 16), nn.Linear(16, 4)
            self.blocks = nn.ModuleList([Block() for _ in range(6)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.into(x)
        c = self.time(t.float().view(-1, 1) / 1000)
        for block in self.blocks:
            run = block if self.how is None else self.checkpointed(block)
            h = run(h, c)
        return self.out(h)

    def checkpointed(self, block: nn.Module) -> Any:
        return lambda h, c: checkpoint(block, h, c, use_reentrant=self.how)


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 5, 4, generator=generator), torch.tensor([900, 500, 300, 20])


@copies
def wrapped(config: str = "relative") -> ek.ExitModel:
    return randomise(ek.wrap(Net().eval(), config, example_inputs=example(), exits=("*",)))


POLICIES = [
    NeverExit(),
    FixedExit(2),
    ScriptedExit((1, 3, 5, 6)),
    ScriptedExit((6, 6, 1, 1)),
    UncertaintyThreshold(0.5),
    UncertaintyThreshold(0.52, patience=2),
    CALM("cosine", 0.9),
    CALM("change", 0.6),
    Patience(1, tolerance=0.6),
]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def alike(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> list[str]:
    """Names of the parameters whose gradients differ."""
    return [
        name
        for name, grad in expected.items()
        if (grad is None) != ((mine := found[name]) is None)
        or (grad is not None and not torch.allclose(mine, grad, atol=1e-6))
    ]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_gradients_are_those_without_a_checkpoint(policy: Any) -> None:
    model, args = wrapped(), example()
    model.policy = policy
    plain = model(*args)
    depth = model.trace.depth
    expected = gradients(model, plain.square().mean())
    model.backbone.how = False
    output = model(*args)
    assert torch.equal(output, plain) and torch.equal(model.trace.depth, depth)
    cost = model.trace.cost
    assert alike(gradients(model, output.square().mean()), expected) == []
    assert model.trace.cost == cost, "running a block again is booked"


def test_the_policies_above_decide() -> None:
    model = wrapped()
    depths = set()
    for policy in POLICIES[4:]:
        model.policy = policy
        with torch.no_grad():
            model(*example())
        depths.add(tuple(model.trace.depth[0].tolist()))
    assert len(depths) > 2 and any(len(set(depth)) > 1 for depth in depths)


@pytest.mark.parametrize("policy", POLICIES[1:4], ids=str)
def test_reentrant_checkpoints_are_named(policy: Any) -> None:
    model, (x, t) = wrapped(), example()
    model.backbone.how, model.policy = True, policy
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        model(x.requires_grad_(), t)
    model.policy = NeverExit()
    output = model(x, t)
    model.backbone.how = None
    expected = gradients(model, model(x, t).square().mean())
    assert alike(gradients(model, output.square().mean()), expected) == []


def test_two_forwards_before_one_backward() -> None:
    model, (x, t) = wrapped(), example()
    found = []
    for how in (None, False):
        model.backbone.how, loss = how, torch.zeros(())
        for policy in (FixedExit(2), ScriptedExit((1, 6, 3, 2)), NeverExit()):
            model.policy = policy
            loss = loss + model(x * (1 + loss.detach()), t).square().mean()
        found.append(gradients(model, loss))
    assert alike(*found) == []


def test_all_exits_for_training() -> None:
    model, (x, t) = wrapped("paper"), example()
    found = []
    for how in (None, False):
        model.backbone.how = how
        out = model(x, t, output_exits=True)
        found.append(gradients(model, sum(e.square().mean() for e in (out.prediction, *out.exits))))
    assert alike(*found) == []
    model, found = wrapped("relative"), []
    for how in (None, False):
        model.backbone.how = how
        out = model(x.requires_grad_(), t, output_exits=True)
        found.append(gradients(model, sum(e.square().mean() for e in out.exits)))
    assert alike(*found) == [], "the tail is replayed with blocks passed over"


def test_in_a_trajectory() -> None:
    model, (x, t) = wrapped("carried"), example()
    found = []
    for how in (None, False):
        model.backbone.how, loss = how, torch.zeros(())
        with model.trajectory(4):
            for step in range(4):
                model.policy = NeverExit() if step < 2 else ScriptedExit((1, 6, 2, 6))
                loss = loss + model(x - step * 0.1, t - step).square().mean()
        found.append(gradients(model, loss))
    assert alike(*found) == []


def test_what_was_decided_goes_with_the_graph() -> None:
    model, args = wrapped(), example()
    model.backbone.how, model.policy = False, ScriptedExit((1, 3, 5, 6))
    output = model(*args)
    pasts = model._executor.gates.gates["blocks.1"].pasts
    assert len(pasts._known) == 1 and pasts._known[0][1]() is not None
    del output
    gc.collect()
    assert pasts._known[0][1]() is None
    model.backbone.how = None
    with torch.no_grad():
        model(*args)
    assert len(pasts._known) == 1, "without gradients nothing is kept"


def kept_forwards(model: ek.ExitModel) -> tuple[int, int]:
    """How many calls were kept for a backward pass, and how many still are."""
    gc.collect()
    kept = [ref for gate in model._executor.gates.gates.values() for _, ref in gate.pasts._known]
    return len(kept), sum(ref() is not None for ref in kept)


@pytest.mark.parametrize(
    "policy", [FixedExit(2), ScriptedExit((1, 3, 5, 6)), UncertaintyThreshold(0.5)]
)
@pytest.mark.parametrize("how", [None, False])
def test_graphs_of_forwards_are_freed(policy: Any, how: Any) -> None:
    model, args = wrapped(), example()
    model.backbone.how, model.policy = how, policy
    loss = model(*args).square().mean()
    assert min(kept_forwards(model)) > 0  # the control
    gradients(model, loss)
    del loss
    assert kept_forwards(model)[1] == 0


@pytest.mark.parametrize("config", ["calm", "official", "relative"])
def test_graphs_of_all_exits_are_freed(config: str) -> None:
    """A hidden state that is put behind a block leaves with the node that had made it."""
    model, args = wrapped(config), example()
    loss = ek.ExitLoss(ek.tasks.Noise(DDPMScheduler()), config=model.exit_config.loss)
    total = loss(model(*args, output_exits=True), args[0]).total
    total.backward()
    del total
    assert kept_forwards(model)[1] == 0


def test_a_plain_call_between_is_plain() -> None:
    """The backbone's own checkpoints are run again without exits, on the same inputs too."""
    model, args = wrapped(), example()
    net = model.backbone
    net.how, model.policy = False, FixedExit(2)
    output, own = model(*args), net(*args)
    net.how = None
    expected = gradients(net, net(*args).square().mean())
    net.zero_grad()
    own.square().mean().backward()
    found = {n: p.grad for n, p in net.named_parameters()}
    assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)
    output.square().mean().backward()


def test_two_forwards_on_the_same_memory_are_named() -> None:
    class Direct(Net):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h, c = x, t[:, None].expand(-1, 16) / 1000
            for block in self.blocks:
                h = checkpoint(block, h, c, use_reentrant=False)
            return h

    x, t = torch.randn(4, 5, 16, requires_grad=True), torch.rand(4)
    c = t[:, None].expand(-1, 16) / 1000
    model = randomise(ek.wrap(Direct().eval(), "relative", example_inputs=(x.detach(), t)))
    loss = torch.zeros(())
    for depth in (1, 2):
        model.policy = FixedExit(depth)
        loss = loss + model(x, t).square().mean()
    del c
    try:
        loss.backward()
    except PlanMismatchError as error:
        assert "behind each forward" in str(error)


@pytest.mark.parametrize("name", ["unet_conditional", "dit", "sd3"])
def test_real_networks(name: str) -> None:
    args, kwargs = case(name).inputs(3)
    net = case(name).make()
    model = randomise(ek.wrap(net, "relative", example_inputs=ek.Inputs(*args, **kwargs)))
    k = len(model.exits) + 1
    model.policy = ScriptedExit((1, k, 2))
    found = []
    for on in (False, True):
        net.enable_gradient_checkpointing() if on else net.disable_gradient_checkpointing()
        net.train()  # diffusers checkpoints in training mode alone
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(0)  # labels are dropped at random
        output = model(*args, **kwargs)
        tensor = output if isinstance(output, Tensor) else output[0]
        found.append(gradients(model, tensor.square().mean()))
    assert alike(*found) == []
