"""Calls of another form than the example under every kind of exit: right, or an error that names it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ShapeError
from exitkit.policies import NeverExit, ScriptedExit, UncertaintyThreshold
from tests.backbones import case
from tests.mishaps import PIXART

DIM = 16
PRESETS = ["relative", "paper"]
atol = 2e-5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return x + torch.tanh(self.linear(x) + mean)


class Videos(nn.Module):
    """Takes and gives a list with one video a row, of any sizes, as Wan 2.1's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, DIM), nn.Linear(DIM, 4)
        self.blocks = nn.ModuleList([Block() for _ in range(4)])

    def forward(self, x: list[Tensor], t: Tensor) -> list[Tensor]:
        tokens = [self.into(video.flatten(1).T) for video in x]
        h = nn.utils.rnn.pad_sequence(tokens, batch_first=True) + t[:, None, None] / 1000
        lengths = torch.tensor([len(row) for row in tokens])
        mask = (torch.arange(h.shape[1]) < lengths[:, None])[..., None].float()
        for block in self.blocks:
            h = block(h, mask)
        rows = [self.out(row[:n]).T for row, n in zip(h, lengths.tolist(), strict=True)]
        return [row.reshape(video.shape) for row, video in zip(rows, x, strict=True)]


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


class Series(nn.Module):
    """Features by channel and time, (B, K, L), as CSDI."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv2d(1, DIM, 1), nn.Conv2d(DIM, 1, 1)
        layers = [nn.Conv2d(DIM, DIM, 3, padding=1) for _ in range(4)]
        self.blocks = nn.ModuleList([Residual(layer) for layer in layers])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.into(x[:, None]) + t[:, None, None, None] / 1000
        for block in self.blocks:
            h = block(h)
        return self.out(h)[:, 0]


class Waves(nn.Module):
    """Convolutions along time, (B, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Conv1d(3, DIM, 1), nn.Conv1d(DIM, 3, 1)
        layers = [nn.Conv1d(DIM, DIM, 3, padding=1) for _ in range(4)]
        self.blocks = nn.ModuleList([Residual(layer) for layer in layers])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.into(x) + t[:, None, None] / 1000
        for block in self.blocks:
            h = block(h)
        return self.out(h)


class Tokens(nn.Module):
    """One vector a patch, in any number, (B, N, C), as FiT."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, DIM), nn.Linear(DIM, 8)
        self.blocks = nn.ModuleList([Residual(nn.Linear(DIM, DIM)) for _ in range(4)])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.into(x) + t[:, None, None] / 1000
        for block in self.blocks:
            h = block(h)
        return self.out(h)


T = torch.tensor([900.0, 500.0, 100.0])


def wrapped(net: nn.Module, x: Any, preset: str) -> ek.ExitModel:
    model = ek.wrap(net.eval(), preset, example_inputs=(x, T), exits=("*",))
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.heads.mark_fitted()
    return model


@torch.no_grad()
def check(model: ek.ExitModel, x: Any) -> None:
    """Each row has the form of its own input, and what it has alone."""
    script = (1, len(model.exits) + 1, 2)
    model.policy = ScriptedExit(script)
    together = model(x, T)
    for row, depth in enumerate(script):
        model.policy = ScriptedExit((depth,))
        alone = model(x[row : row + 1], T[row : row + 1])[0]
        assert together[row].shape == x[row].shape
        assert torch.allclose(together[row], alone, atol=atol)
    model.policy = NeverExit()
    full = model.backbone(x, T)
    assert torch.allclose(together[1], full[1], atol=atol)
    assert not torch.allclose(together[0], full[0], atol=1e-3), "the first exit does nothing"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("net", "example", "other"),
    [(Series, (5, 16), (5, 12)), (Waves, (3, 16), (3, 20)), (Tokens, (9, 8), (12, 8))],
)
def test_sequences_of_another_length(
    net: type[nn.Module], example: tuple[int, ...], other: tuple[int, ...], preset: str
) -> None:
    torch.manual_seed(0)
    model = wrapped(net(), torch.randn(3, *example), preset)
    for shape in (example, other, example):
        check(model, torch.randn(3, *shape))


def videos(*sizes: tuple[int, int, int]) -> list[Tensor]:
    return [torch.randn(4, *size) for size in sizes]


RAGGED = [(2, 3, 3), (3, 3, 3), (1, 4, 4)]


@pytest.mark.parametrize("example", [[(2, 3, 3)] * 3, RAGGED], ids=["alike", "ragged"])
@pytest.mark.parametrize("preset", PRESETS)
def test_lists_of_videos(example: list[tuple[int, int, int]], preset: str) -> None:
    torch.manual_seed(0)
    model = wrapped(Videos(), videos(*example), preset)
    check(model, videos(*[(2, 3, 3)] * 3))
    check(model, videos(*[(3, 4, 4)] * 3))
    ragged = videos(*RAGGED)
    if preset == "relative":
        check(model, ragged)
        return
    for policy in (ScriptedExit((1, 2, 4)), UncertaintyThreshold(0.99)):
        model.policy = policy
        with pytest.raises(ShapeError, match="several sizes|tile"), torch.no_grad():
            model(ragged, T)
    model.policy = NeverExit()
    with torch.no_grad():
        assert all(
            torch.equal(a, b)
            for a, b in zip(model(ragged, T), model.backbone(ragged, T), strict=True)
        )


STORED = [
    (torch.float32, "relative", "before"),
    (torch.float32, "carried", "after"),
    (torch.bfloat16, "paper", "before"),
    (torch.bfloat16, "relative", "after"),
]
"""Each value in one of them at least; the other combinations with the slow tests."""


@pytest.mark.parametrize(
    ("compute", "preset", "when"),
    [
        pytest.param(*values, marks=[pytest.mark.slow] * (values not in STORED))
        for values in product(
            (torch.float32, torch.bfloat16), (*PRESETS, "carried"), ("before", "after")
        )
    ],
    ids=str,
)
@torch.no_grad()
def test_weights_stored_in_float8(preset: str, when: str, compute: torch.dtype) -> None:
    """diffusers' layerwise casting, here of all layers, so that the first parameter is narrow, too."""
    (x, *more), kwargs = case("dit").inputs(3)
    net, x = case("dit").make().to(compute), x.to(compute)

    def cast() -> None:
        stored = torch.float8_e4m3fn
        net.enable_layerwise_casting(stored, compute_dtype=compute, skip_modules_pattern=())

    if when == "before":
        cast()
    model = ek.wrap(net, preset, example_inputs=ek.Inputs(x, *more, **kwargs), exits=("*",))
    model.heads.mark_fitted()
    if when == "after":
        cast()
    assert torch.float8_e4m3fn in {p.dtype for p in net.parameters()}
    model.policy = NeverExit()
    with model.trajectory(3):
        for step in range(2):
            full = model((1 - 0.1 * step) * x, *later(more, step), **kwargs)
        model.policy = ScriptedExit((1, len(model.exits) + 1, 2))
        found = model(0.8 * x, *later(more, 2), **kwargs)[0]
    assert {p.dtype for p in model.heads.parameters()} == {compute}
    assert found.dtype == full[0].dtype == compute and bool(found.isfinite().all())
    alone = net(0.8 * x, *later(more, 2), **kwargs)[0]
    torch.testing.assert_close(found[1], alone[1], rtol=2e-2, atol=2e-2)


def later(more: list[Any], steps: int) -> list[Any]:
    return [value - 10 * steps if value.max() > 100 else value for value in more]


@pytest.mark.parametrize("masked", [True, False], ids=["example with a mask", "without"])
@torch.no_grad()
def test_text_with_and_without_a_mask(masked: bool) -> None:
    """PixArt in diffusers, which turns the mask into a bias that the blocks take."""
    net, args = PIXART.build(), PIXART.draw(3)
    kwargs = dict(args.kwargs)
    mask = (torch.arange(5) < torch.tensor([2, 5, 3])[:, None]).float()
    example = {**kwargs, "encoder_attention_mask": mask if masked else None}
    model = ek.wrap(net, "relative", example_inputs=ek.Inputs(**example), exits=("*",))
    model.heads.mark_fitted()
    for parameter in model.heads.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    script = (1, 2, len(model.exits) + 1)
    for given in (mask, None, mask):
        call = {**kwargs, "encoder_attention_mask": given}
        model.policy = ScriptedExit(script)
        together = model(**call)[0]
        for row, depth in enumerate(script):
            model.policy = ScriptedExit((depth,))
            alone = {k: v[row : row + 1] if isinstance(v, Tensor) else v for k, v in call.items()}
            assert torch.allclose(together[row], model(**alone)[0][0], atol=atol)
    full = net(**{**kwargs, "encoder_attention_mask": None})[0]
    assert not torch.allclose(net(**{**kwargs, "encoder_attention_mask": mask})[0], full)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["compile()", "torch.compile"])
def test_blocks_compiled_before_wrapping(how: str) -> None:
    """Compiled for real, if without code of its own: rows and what a block gives are those of eager ones."""
    torch.manual_seed(0)
    net, plain, compiled = Tokens().eval(), Tokens().eval(), list[Any]()
    plain.load_state_dict(net.state_dict())

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    for i, block in enumerate(net.blocks):
        if how == "compile()":
            block.compile(backend=backend)
        else:
            net.blocks[i] = torch.compile(block, backend=backend)
    x = torch.randn(3, 9, 8)
    model, other = (
        ek.wrap(n, "relative", example_inputs=(x, T), exits=("*",)) for n in (net, plain)
    )
    assert not compiled, "what is wrapped was run compiled"
    with torch.no_grad():
        for policy in (NeverExit(), ScriptedExit((1, 4, 2))):
            model.policy = other.policy = policy
            torch.testing.assert_close(model(x, T), other(x, T))
            assert compiled
    rows = [list(m.trace.block_rows.values()) for m in (model, other)]
    assert rows[0] == rows[1] == [3, 2, 1, 1]
