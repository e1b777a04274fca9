"""The timestep is confirmed by what moves with it; where none is, that is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import DoubtWarning
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.probe import probe


class Net(nn.Module):
    """Four blocks; subclasses say what the levels are called and which of them count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(4)
        )

    def run(self, x: Tensor, *levels: Tensor) -> Tensor:
        h = self.stem(x) + sum(level.view(-1, 1, 1) / 1000 for level in levels)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


class Nameless(Net):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.run(x, c)


class Two(Net):
    def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.run(x, a, b)


class Deaf(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.run(x, 0 * t)


class Labelled(Net):
    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.run(x, k.float())


class Classifier(Net):
    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        return self.run(x, 0 * size).mean((1, 2), keepdim=True).flatten(1).expand(-1, 3)


X, T = torch.randn(3, 4, 6), torch.tensor([700.0, 400.0, 90.0])


def built(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind().eval()


def test_an_argument_without_a_telling_name_is_told_by_what_it_moves() -> None:
    plan = ek.inspect(built(Nameless), example_inputs=(X, T))
    assert plan.timestep == "c" and plan.doubts == ()
    assert "timestep 'c' is told by what it moves, not by its name" in str(plan)


@pytest.mark.parametrize(
    ("kind", "levels", "why"),
    [
        (Two, (T, T / 2), "'a', 'b' each move the output as one does"),
        (Deaf, (T,), "nothing moves with 't'"),
        (Labelled, (T.long(),), "'k' may be timesteps or labels"),
    ],
)
def test_a_timestep_that_is_not_found_is_said(
    kind: type[Net], levels: tuple[Tensor, ...], why: str
) -> None:
    net = built(kind)
    plan = ek.inspect(net, example_inputs=(X, *levels))
    assert plan.timestep is None
    assert f"in doubt: no timestep was found: {why}" in str(plan)
    with pytest.warns(DoubtWarning, match=r"no timestep was found.*Adapter\(timestep"):
        model = ek.wrap(net, example_inputs=(X, *levels))
    ek.unwrap(model)


def test_a_declared_timestep_leaves_no_doubt() -> None:
    adapter = Adapter("two", lambda net: True, timestep="b")
    model = ek.wrap(built(Two), example_inputs=(X, T, T / 2), adapter=adapter)
    assert model.plan.timestep == "b" and model.plan.doubts == ()


def test_what_does_not_denoise_needs_none() -> None:
    plan = ek.inspect(built(Classifier), example_inputs=(X, torch.rand(3)))
    assert plan.timestep is None and plan.doubts == ()


def test_a_range_that_an_example_does_not_tell_is_in_doubt_until_it_is_declared() -> None:
    net, ones = built(Nameless), torch.ones(3)
    with pytest.warns(DoubtWarning, match="timestep 'c': its range cannot be told from 1"):
        model = ek.wrap(net, example_inputs=(X, ones))
    assert model.plan.timestep_scale == 1.0
    ek.unwrap(model)
    adapter = Adapter("flow", lambda net: True, timestep_range=(0.0, 1.0))
    model = ek.wrap(net, example_inputs=(X, ones), adapter=adapter)
    assert model.plan.timestep_scale == 1000.0 and model.plan.doubts == ()


@pytest.mark.parametrize("step", [14, 1, 0, 999])
@pytest.mark.parametrize("of", ["number", "tensor", "scalar"])
def test_whole_steps_of_any_value_are_heard(step: int, of: str) -> None:
    class Steps(Net):
        def forward(self, x: Tensor, t: Any) -> Tensor:
            return self.run(x, torch.as_tensor(t).float().expand(len(x)))

    value = {"number": step, "tensor": torch.full((3,), step), "scalar": torch.tensor(step)}[of]
    seen = probe(built(Steps), (X, value))
    assert (seen.timestep, seen.timestep_scale, seen.doubts) == ("t", 1.0, ())
