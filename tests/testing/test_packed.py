"""Backbones without a batch axis: a call is one row, and leaves as a whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ShapeError, UnsupportedBackboneError
from exitkit.policies import FixedExit, NeverExit
from exitkit.surgery.adapter import Adapter
from exitkit.testing import check_adapter, check_backbone
from tests.backbones import perturb

PRESETS = ("relative", "paper", "official", "carried")


class Block(nn.Module):
    """Every token sees the mean of all, and a text that every block hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.text = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        text = text + torch.tanh(self.text(text))
        mixed = x - x.mean(dim=0) + text.mean(dim=0)
        return text, x + torch.tanh(self.inner(mixed))


class Packed(nn.Module):
    """Tokens (L, 8) and a time for each of them, with a text of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.words = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(4, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, tokens: Tensor, token_timesteps: Tensor, text: Tensor) -> Tensor:
        h = self.stem(tokens) + torch.sin(token_timesteps[:, None] / 300)
        text = self.words(text)
        for block in self.blocks:
            text, h = block(text, h)
        return self.tail(h)


class Leaky(Packed):
    """Its tail reads the text behind the last block too, which an exit does not bring there."""

    def forward(self, tokens: Tensor, token_timesteps: Tensor, text: Tensor) -> Tensor:
        h = self.stem(tokens) + torch.sin(token_timesteps[:, None] / 300)
        text = self.words(text)
        for block in self.blocks:
            text, h = block(text, h)
        return self.tail(h + 5 * text.mean(dim=0))


class Rows(nn.Module):
    """A model with a batch axis, (B, L, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def packed(kind: str) -> Adapter:
    return Adapter("packed", f"{__name__}.{kind}", batched=False)


def made(kind: type[nn.Module]) -> nn.Module:
    return perturb(kind().eval())


def drawn(tokens: int = 6, words: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(tokens, 8), torch.full((tokens,), 400.0), torch.randn(words, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_promise_is_kept(preset: str) -> None:
    check_backbone(made(Packed), drawn(), config=preset, adapter=packed("Packed"))


def test_a_tail_that_reads_more_than_the_exit_brings_is_no_place_to_land() -> None:
    check_adapter(packed("Packed"), made(Packed), drawn())
    plan = ek.inspect(made(Leaky), example_inputs=drawn(), adapter=packed("Leaky"))
    assert plan.mechanism == "attached"
    assert "the tail reads what stages 2, 3, 4 gave beside the hidden state" in str(plan) or (
        "the tail reads what stage 4 gave beside the hidden state at the end" in str(plan)
    )
    check_backbone(made(Leaky), drawn(), adapter=packed("Leaky"))


def test_without_the_declaration_it_is_refused() -> None:
    with pytest.raises(UnsupportedBackboneError):
        ek.wrap(made(Packed), example_inputs=drawn())


@pytest.mark.parametrize("preset", PRESETS[:3])
def test_other_lengths_leave_as_the_first_blocks_would(preset: str) -> None:
    backbone = made(Packed)
    reference = copy.deepcopy(backbone)
    model = ek.wrap(backbone, preset, example_inputs=drawn(), adapter=packed("Packed"))
    assert model.plan.timestep == "token_timesteps"
    tokens, t, text = drawn(11, 5)
    assert torch.equal(model(tokens, t, text), reference(tokens, t, text))
    model.policy = FixedExit(2)
    out = model(tokens, t, text)
    assert out.shape == tokens.shape and model.trace.depth.tolist() == [[2]]
    if preset != "paper":  # which predicts with a layer of its own
        reference.blocks = reference.blocks[:2]
        torch.testing.assert_close(out, reference(tokens, t, text))


def test_all_exits_come_one_after_the_other() -> None:
    model = ek.wrap(made(Packed), exits=(1, 2, 3), example_inputs=drawn(), adapter=packed("Packed"))
    given = drawn(7)
    seen = model(*given, output_exits=True)
    assert seen.prediction.shape == (1, 7, 8) and len(seen.exits) == 3
    for depth, prediction in enumerate(seen.exits, start=1):
        model.policy = FixedExit(depth)
        torch.testing.assert_close(prediction[0], model(*given))
    assert torch.equal(model.prediction_of(model.backbone(*given)), seen.prediction)


def test_rows_of_a_model_that_has_some_leave_together() -> None:
    model = ek.wrap(made(Rows), example_inputs=torch.randn(2, 5, 8), adapter=packed("Rows"))
    model.policy = FixedExit(1)
    out = model(x := torch.randn(2, 5, 8))
    assert model.trace.depth.tolist() == [[1]]
    torch.testing.assert_close(out, x + model.backbone.blocks[0](x))


def test_one_row_in_the_example_is_one_row_in_every_call() -> None:
    model = ek.wrap(made(Rows), example_inputs=torch.randn(1, 5, 8), adapter=packed("Rows"))
    model.policy = NeverExit()
    model(torch.randn(1, 9, 8))
    with pytest.raises(ShapeError, match="make one call for each"):
        model(torch.randn(2, 5, 8))
