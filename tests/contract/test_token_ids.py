"""Backbones that take token ids: the score of a discrete diffusion, and classifiers of text."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ConfigError, ShapeError
from exitkit.policies import FixedExit, NeverExit
from exitkit.testing import check_backbone
from exitkit.training import Example
from tests.backbones import perturb
from tests.zoo import specimens

VOCABULARY, LENGTH = 40, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.down(torch.tanh(self.up(h + h.mean(1, keepdim=True))))


class Score(nn.Module):
    """`forward(indices, sigma)`, a number for each class at each place, as in SEDD."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.blocks = nn.ModuleList(Block() for _ in range(5))

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        h = self.embed(indices) + sigma[:, None, None]
        for block in self.blocks:
            h = block(h)
        return self.out(h)


class Masked(Score):
    """`forward(ids)` alone: the state of a masked diffusion is its own time, as in LLaDA."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids, torch.zeros(len(ids)))


class Reader(Score):
    """A classifier of text, with a mask of as many entries as there are ids."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        h = self.embed(input_ids)
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        for block in self.blocks:
            h = block(h)
        return self.out(h.mean(1))


def ids(rows: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(
        0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed)
    )


def built(kind: type[Score]) -> Score:
    torch.manual_seed(0)
    return perturb(kind().eval())  # type: ignore[return-value]


SIGMA, MASK = torch.tensor([0.9, 0.5, 0.1]), torch.ones(3, LENGTH, dtype=torch.long)
CALLS: dict[str, tuple[type[Score], tuple[Tensor, ...]]] = {
    "score": (Score, (ids(), SIGMA)),
    "masked": (Masked, (ids(),)),
    "reader": (Reader, (ids(), MASK)),
    "all alike": (Score, (torch.full((3, LENGTH), 39), SIGMA)),
}


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_ids_are_the_noisy_input(name: str, declared: bool) -> None:
    kind, call = CALLS[name]
    path = {"score": "indices", "all alike": "indices", "masked": "ids", "reader": "input_ids"}[
        name
    ]
    adapter = ek.Adapter("ids", lambda net: True, noisy=path) if declared else None
    plan = ek.inspect(built(kind), example_inputs=call, adapter=adapter)
    assert plan.noisy == path and plan.doubts == ()
    assert plan.timestep == ("sigma" if len(call) == 2 and kind is Score else None)
    assert [stage.path for stage in plan.stages] == [f"blocks.{i}" for i in range(5)]
    assert [b.resume for b in plan.boundaries] == [5] * 5


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        *itertools.product(("score", "masked"), ("relative", "carried", "paper")),
        *itertools.product(("reader",), ("relative", "paper")),
    ],
)
def test_backbones_of_ids_keep_the_contract(name: str, preset: str) -> None:
    kind, call = CALLS[name]
    check_backbone(built(kind), call, config=preset)


@pytest.mark.slow  # a denoiser of ids is one of the handwritten backbones
def test_a_real_denoiser_of_tokens() -> None:
    specimen = specimens()["diffusers.UVit2DModel"]
    model, inputs = specimen.make(), specimen.inputs(3)
    assert ek.inspect(model, example_inputs=inputs).noisy == "input_ids"
    check_backbone(model, inputs, atol=1e-4)


def test_a_real_classifier_of_texts() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    torch.manual_seed(0)
    bert = perturb(transformers.BertForSequenceClassification(config).eval())
    call = {"input_ids": ids(), "attention_mask": MASK}
    plan = ek.inspect(bert, example_inputs=call)
    assert (plan.noisy, plan.num_stages, plan.prediction) == ("input_ids", 3, ".logits")
    check_backbone(bert, call)


def errors(model: Any, call: tuple[Tensor, ...]) -> list[float]:
    with torch.no_grad():
        model.policy = NeverExit()
        full = model(*call)
        found = []
        for depth in range(1, len(model.exits) + 1):
            model.policy = FixedExit(depth)
            found.append(float((model(*call) - full).square().mean()))
    return found


def test_the_exits_of_a_score_are_fitted_on_its_own_output() -> None:
    model = ek.wrap(built(Score), "relative", example_inputs=CALLS["score"][1], exits=("*",))
    data = [Example((ids(16, seed), torch.rand(16))) for seed in range(8)]
    before = errors(model, (ids(16, 99), torch.rand(16)))
    ek.fit(model, data, steps=60, progress=False)
    after = errors(model, (ids(16, 99), torch.rand(16)))
    assert all(b < 0.9 * a for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("named", [False, True])
def test_the_exits_of_a_classifier_of_text_are_fitted_on_labels(named: bool) -> None:
    model = ek.wrap(built(Reader), "relative", example_inputs=CALLS["reader"][1], exits=("*",))

    def batch(seed: int) -> Any:
        words = ids(16, seed)
        if not named:
            return words, words[:, 0]
        return {"input_ids": words, "labels": words[:, 0], "attention_mask": torch.ones_like(words)}

    before = [p.detach().clone() for p in model.exit_parameters()]
    ek.fit(model, [batch(i) for i in range(4)], ek.tasks.Classification(), steps=4, progress=False)
    after = list(model.exit_parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_stays_outside_is_refused_by_name() -> None:
    model = ek.wrap(built(Score), "relative", example_inputs=CALLS["score"][1])
    with pytest.raises(ShapeError, match="dtype int64"):  # noise is added to numbers alone
        ek.fit(model, [ids(4)], ek.tasks.FlowMatching(), steps=1, progress=False)
    with pytest.raises(ShapeError, match="dtype uint8"):
        batch = (ids(4).to(torch.uint8), torch.zeros(4, dtype=torch.long))
        ek.fit(model, [batch], ek.tasks.Classification(), steps=1, progress=False)
    sampler = ek.Sampler("ddim", (LENGTH,), steps=4)
    with pytest.raises(ConfigError, match="token ids"):
        ek.generate(model, sampler, seeds=2)
