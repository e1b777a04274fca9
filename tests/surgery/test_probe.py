"""Few dry runs, on the inputs they say, and nothing of them stays; what cannot be probed is refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import TracingError, UnsupportedBackboneError
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.probe import probe
from tests.backbones import COUPLED, TokenNet, case


def image(rows: int = 3) -> tuple[Tensor, Tensor]:
    return case("value_branch").inputs(rows)[0]


# Not in a closure: what the hooks of a network hold is put back behind every dry run.
CALLS: list[tuple[Any, ...]] = []


def told(net: nn.Module) -> list[tuple[Any, ...]]:
    """Arguments of every forward of a network from now on."""
    CALLS.clear()
    net.register_forward_pre_hook(lambda _, args: CALLS.append(tuple(t.clone() for t in args)))
    return CALLS


# --------------------------------------------------------------------------------------- what is run


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_five_forwards_on_two_inputs_three_sizes_and_two_timesteps(rows: int) -> None:
    net = TokenNet().eval()
    calls = told(net)
    x, t = image(rows)
    seen = probe(net, (x, t))
    assert sorted(len(call[0]) for call in calls) == [2, 2, 2, 3, 4]
    base, changed, later = (call for call in calls if len(call[0]) == 2)
    # Row 0 of the noisy input alone, and then the last timestep alone.
    assert not torch.equal(base[0][0], changed[0][0]) and torch.equal(base[0][1], changed[0][1])
    assert torch.equal(base[1], changed[1]) and torch.equal(base[0], later[0])
    assert base[1][0] == later[1][0] and base[1][1] != later[1][1]
    assert seen.timestep == "t" and len(seen.further) == 1


def test_without_a_timestep_four_do() -> None:
    one = case("timm_vit")
    net = one.make()
    calls = told(net)
    assert probe(net, one.inputs(2)[0]).timestep is None
    assert sorted(len(call[0]) for call in calls) == [2, 2, 3, 4]


@pytest.mark.parametrize("rows", [1, 4])
def test_macs_are_those_of_one_row(rows: int) -> None:
    seen = probe(TokenNet().eval(), image(rows))
    mlp = 64 * 2 * 16 * 32 + 16 * 16  # 64 pixels through up and down, one row through the shift
    by_path = {call.path: seen.macs(i) for i, call in enumerate(seen.base.calls)}
    assert by_path["blocks.0"] == by_path["blocks.3"] == mlp
    assert by_path[""] == 4 * mlp + 2 * 64 * 3 * 16


@pytest.mark.parametrize(
    ("name", "axes"), [("encoder_sequence_first", {"src": 1}), ("uvit", {"x": 0, "timesteps": 0})]
)
def test_leaves_tell_where_rows_are(name: str, axes: dict[str, int]) -> None:
    args, kwargs = case(name).inputs(4)
    seen = probe(case(name).make(), Inputs(*args, **kwargs))
    assert {leaf.path: leaf.axis for leaf in seen.leaves(0, "inputs")} == axes
    (output,) = seen.leaves(0, "outputs")
    assert output.axis == axes[case(name).noisy] and output.shape[output.axis] == 2


# --------------------------------------------------------------------------------- nothing stays


def test_batch_statistics_and_modes_are_left() -> None:
    net = case("timm_resnet").make().train()
    list(net.modules())[7].training = False
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    args, _ = case("timm_resnet").inputs(3)
    probe(net, args)
    assert flags == [module.training for module in net.modules()]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    net(*args)  # the control: a forward in this mode does change them
    assert not all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


class Drawing(TokenNet):
    """Draws numbers in its forward, from all three sources."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        noise = torch.rand(()) + float(np.random.rand()) + random.random()
        return super().forward(x, t) + 0 * noise


@pytest.mark.parametrize("seed", [0, 5])
def test_random_states_are_left(seed: int) -> None:
    def drawn() -> tuple[list[float], float, float]:
        return torch.rand(3).tolist(), float(np.random.rand()), random.random()

    def seeded() -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    net, (x, t) = Drawing().eval(), image()
    seeded()
    expected = drawn()
    seeded()
    probe(net, (x, t))
    assert drawn() == expected
    seeded()
    net(x, t)
    assert drawn() != expected, "the control: a forward draws"


# --------------------------------------------------------------------------------- the timestep


class Deaf(TokenNet):
    """Is given a timestep and does not listen to it."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, torch.zeros_like(t))


class Late(TokenNet):
    """Listens to the second of two names."""

    def forward(self, x: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x, 1000 * sigma)


def test_only_what_is_listened_to_is_a_timestep() -> None:
    x, t = image()
    assert probe(Deaf().eval(), (x, t)).timestep is None
    found = probe(Late().eval(), (x, t, t / 1000))
    assert found.timestep == "sigma" and found.timestep_scale == 1000.0


@pytest.mark.parametrize(
    ("times", "adapter", "scale", "origin"),
    [
        ((900.0, 20.0), None, 1.0, 0.0),
        ((0.9, 0.02), None, 1000.0, 0.0),
        ((0.9, 0.02), Adapter("range", "-", timestep_range=(1.0, 0.0)), -1000.0, 1.0),
        ((-3.0, 2.0), Adapter("range", "-", timestep_range=(-4.0, 4.0)), 125.0, -4.0),
    ],
)
def test_scale_and_origin(
    times: tuple[float, ...], adapter: Adapter | None, scale: float, origin: float
) -> None:
    found = probe(TokenNet().eval(), (image(2)[0], torch.tensor(times)), adapter)
    assert found.timestep == "t"
    assert (found.timestep_scale, found.timestep_origin) == (scale, origin)


# ----------------------------------------------------------------------------------- refusals


def refused(net: nn.Module, example: Any, match: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=match):
        probe(net.eval(), example)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class Fickle(TokenNet):
    """Runs its blocks backwards where the image is large."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.backwards = bool(x.abs().max() > 0.1)
        return super().forward(x, t)

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in reversed(self.blocks) if self.backwards else self.blocks:
            tokens = block(tokens, emb)
        return tokens


class Broken(TokenNet):
    """Returns a NaN."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t).log() * float("nan")


class Fixed(TokenNet):
    """Takes two rows and no other number."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x.reshape(2, 3, 8, 8), t)


def test_what_cannot_be_probed_is_refused_and_no_hook_stays() -> None:
    refused(
        COUPLED.make(), COUPLED.inputs(3)[0], "counts independent rows", UnsupportedBackboneError
    )
    refused(Broken(), image(), "NaN or infinity", TracingError)
    refused(Fixed(), image(2), r"no batch axis.*Adapter\(noisy", UnsupportedBackboneError)
    refused(TokenNet(), (torch.randn(2, 5, 8, 8), image(2)[1]), "could not be run", TracingError)
    x, t = image(2)
    refused(Fickle(), (0.01 * x, t), "calls other modules when the input changes", TracingError)


class Atoms(nn.Module):
    """Insists that atoms beyond a molecule's stay zero, and perhaps on a centre of mass of zero."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.centred = centred
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.blocks = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        assert float((x * (1 - mask)).abs().max()) < 1e-5, "masked atoms moved"
        if self.centred:
            assert float(x.sum(1).abs().max()) < 1e-4, "centre of mass moved"
        h = x * (1 + t[:, None, None] / 1000)
        for block in self.blocks:
            h = h + torch.tanh(block(h)) * mask
        return h * mask


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_invariants_that_noise_breaks_are_kept(centred: bool, preset: str) -> None:
    x, t = torch.randn(4, 5, 3), torch.linspace(900, 100, 4)
    mask = (torch.arange(5) < torch.tensor([5, 3, 2, 4])[:, None])[..., None].float()
    x = x * mask
    x = x - mask * x.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    model = ek.wrap(Atoms(centred).eval(), preset, example_inputs=(x, t, mask), exits=("*",))
    assert [exit.path for exit in model.exits] == ["blocks.0", "blocks.1", "blocks.2"]
    model.policy = ek.policies.ScriptedExit((1, 4, 2, 3))
    if preset == "relative":
        with torch.no_grad():
            found, full = model(x, t, mask), model.backbone(x, t, mask)
        torch.testing.assert_close(found[1], full[1])
        assert not torch.allclose(found[0], full[0])


class Sorting(nn.Module):
    """Brings the rows in the order of their timesteps, and back; or takes tokens first, rows second."""

    def __init__(self, sequence_first: bool = False) -> None:
        super().__init__()
        self.sequence_first = sequence_first
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        if self.sequence_first:
            h, order = x - x.mean(0) + t[:, None] / 1000, torch.arange(len(x))
        else:
            order = t.argsort()
            h = x[order] + t[order][:, None, None] / 1000
        for block in self.blocks:
            h = h + torch.tanh(block(h))
        return h[order.argsort()]


@pytest.mark.parametrize("shape", [(4, 6, 8), (4, 4, 8)])
def test_tokens_are_not_taken_for_rows_where_rows_meet(shape: tuple[int, ...]) -> None:
    x, t = torch.randn(shape), torch.tensor([900.0, 100.0, 300.0, 10.0])
    told = r"axis 1: 't' \(4,\) has as many entries as axis 0"
    refused(Sorting(), (x, t), told, UnsupportedBackboneError)
    refused(Sorting(), (x, t, torch.randn(shape)), told, UnsupportedBackboneError)
    # Rows along axis 1 are found as before, also where there are as many tokens as rows.
    first = Sorting(sequence_first=True)
    batch = probe(first.eval(), (x.transpose(0, 1).contiguous(), t)).batch
    assert (batch.axes, batch.batch) == ({"x": 1, "t": 0}, 4)
