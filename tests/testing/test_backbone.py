"""The contract of a backbone can fail: every broken promise is noticed, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ExitKitError, UnsupportedBackboneError
from exitkit.testing import ContractError, check_backbone
from exitkit.testing.batches import Batch
from tests.backbones import COUPLED, case


def test_a_backbone_that_mixes_rows_is_refused() -> None:
    args, _ = COUPLED.inputs(4)
    with pytest.raises(ExitKitError, match="batch mates|rows .*depend|independent rows"):
        check_backbone(COUPLED.make(), args)


def test_a_random_backbone_is_refused() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)) for _ in range(3)))
    with pytest.raises(ContractError, match=r"two runs .* differ.*eval\(\)"):
        check_backbone(model.train(), torch.randn(3, 4))


def test_a_backbone_whose_depths_look_alike_is_refused() -> None:
    model = case("value_branch").make()
    for block in model.blocks:  # zero-initialised, as an untrained DiT's gates are
        nn.init.zeros_(block.down.weight)
        nn.init.zeros_(block.down.bias)
    with pytest.raises(ContractError, match=r"same output at depths 1 and 2.*Perturb"):
        check_backbone(model, case("value_branch").inputs(3)[0])


class Timeless(nn.Module):
    """Begins with a norm and has no timestep: a factor on its input is not seen."""

    def __init__(self, centred: bool = False) -> None:
        super().__init__()
        self.centred, self.norm = centred, nn.GroupNorm(2, 4, eps=0.0)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        assert not self.centred or float(x.mean((2, 3)).abs().max()) < 1e-6, "the centre moved"
        h: Tensor = self.norm(x)
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return x + h


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_what_is_carried_is_seen_without_a_timestep(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6)
    check_backbone(Timeless().eval(), x, config=preset)
    # Sums that have to stay zero bear one factor only.
    check_backbone(Timeless(True).eval(), x - x.mean((2, 3), keepdim=True), config="relative")
    if preset == "carried":
        monkeypatch.setattr(Batch, "_bears_uneven", lambda self: False)
        with pytest.raises(ContractError, match="same output at depths 1 and 2"):
            check_backbone(Timeless().eval(), x, config=preset)


def test_equal_rows_are_refused() -> None:
    x, t = case("value_branch").rows([0, 0, 0])[0]
    with pytest.raises(ContractError, match="same output.*random example_inputs"):
        check_backbone(case("value_branch").make(), (x, t))


class SizeReader(nn.Module):
    """Reads its own batch size: equal runs are equal, and still rows depend on their number."""

    def __init__(self, few: int) -> None:
        super().__init__()
        self.linear, self.few = nn.Linear(4, 4), few

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x)) * (1.0 + 0.1 * (x.shape[0] < self.few))


def test_a_backbone_that_reads_its_batch_size_is_refused() -> None:
    def model(few: int) -> nn.Module:
        return nn.Sequential(*(SizeReader(few) for _ in range(3))).eval()

    with pytest.raises(UnsupportedBackboneError, match="row 0 changes with the number of rows"):
        check_backbone(model(3), torch.randn(4, 4))
    # Two rows and three behave alike: only a row run alone shows it.
    with pytest.raises(ContractError, match=r"row \d depends on its batch mates"):
        check_backbone(model(2), torch.randn(4, 4))


def _broken(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Lets `change(output, depths)` tamper with every output of a wrapped model."""
    forward = ek.ExitModel.forward

    def tampered(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        return change(output, self.trace.depth[-1].tolist(), len(self.exits))

    monkeypatch.setattr(ek.ExitModel, "forward", tampered)


def _shifted_rows(output: Tensor, depths: list[int], exits: int) -> Tensor:
    return output.roll(1, 0) if len(set(depths)) > 1 else output


def _nearly(output: Tensor, depths: list[int], exits: int) -> Tensor:
    return output + 1e-7 if set(depths) == {exits + 1} else output


def _wider(output: Tensor, depths: list[int], exits: int) -> Tensor:
    return output.double() if max(depths) <= exits else output


def _infinite(output: Tensor, depths: list[int], exits: int) -> Tensor:
    return output / 0 if max(depths) <= exits else output


def _as_tuple(output: Tensor, depths: list[int], exits: int) -> Any:
    return (output,) if max(depths) <= exits else output


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (_shifted_rows, "differs by .* from the same row alone"),
        (_nearly, "not bit-identical"),
        (_wider, "float64"),
        (_infinite, "not finite"),
        (_as_tuple, "gives tuple"),
    ],
)
def test_a_broken_promise_is_noticed(
    monkeypatch: pytest.MonkeyPatch, change: Any, promise: str
) -> None:
    _broken(monkeypatch, change)
    model = case("value_branch").make()
    with pytest.raises(ContractError, match=promise):
        check_backbone(model, case("value_branch").inputs(3)[0])
    assert "forward" not in vars(model.blocks[0])  # unwrapped all the same


def test_a_trace_that_lies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = ek.ExitModel.trace.fget

    def lying(self: Any) -> Any:
        found = trace(self)
        found.block_rows["blocks.3"] = 1
        return found

    monkeypatch.setattr(ek.ExitModel, "trace", property(lying))
    with pytest.raises(ContractError, match="the trace says"):
        check_backbone(case("value_branch").make(), case("value_branch").inputs(3)[0])


class Consuming(nn.Module):
    """Takes its residuals off a list and scales its condition in place, as a ControlNet's UNet may."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.time, self.out = nn.Linear(1, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor, residuals: list[Tensor], scale: Tensor) -> Tensor:
        h = x + self.time(t[:, None].float() / 1000)[:, None]
        scale.mul_(2)
        for block in self.blocks:
            h = h + block(h) * scale
            if residuals:
                h = h + residuals.pop(0)
        return self.out(h)


def test_arguments_that_a_forward_consumes_are_copied() -> None:
    torch.manual_seed(0)
    x, given = torch.randn(3, 5, 8), [torch.randn(3, 5, 8) for _ in range(3)]
    inputs = ek.Inputs(x, torch.tensor([900.0, 500, 100]), given, torch.rand(3, 5, 8))
    before = inputs.args[3].clone()
    net = Consuming().eval()
    check_backbone(net, inputs)
    assert len(given) == 3 and torch.equal(inputs.args[3], before)
    net(*inputs.args)  # the control: the network itself does consume them
    assert not given and not torch.equal(inputs.args[3], before)
