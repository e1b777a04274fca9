"""Arguments whose rows lie in unusual places: lists, folds, tables, tiles, heaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ExitKitError
from exitkit.surgery.example_batch import ExampleBatch, example_batch
from exitkit.surgery.inputs import Bound, bind, signature_of
from exitkit.testing import check_backbone
from tests.backbones import Mlp, perturb, time_features

DIM, TOKENS = 16, 6


class Base(nn.Module):
    """Blocks over (B, T, D) with a shift from the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, DIM)
        self.blocks = nn.ModuleList(Mlp(DIM) for _ in range(3))
        self.tail = nn.Linear(DIM, 3)

    def walk(self, h: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, emb)
        out: Tensor = self.tail(h)
        return out


class RowsInLists(Base):
    """One tensor a row comes in, one a row goes out; sizes come as a list too."""

    def forward(self, x: list[Tensor], t: Tensor, scales: Sequence[float]) -> list[Tensor]:
        h = self.stem(torch.stack([row * scale for row, scale in zip(x, scales, strict=True)]))
        return list(self.walk(h, time_features(t, DIM)).unbind(0))


class RepeatedText(Base):
    """Text comes repeated for every frame, frames of a row one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(5, DIM)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        h = self.stem(x.flatten(0, 1)) + self.text(text)[:, None]
        emb = time_features(t, DIM).repeat_interleave(frames, 0)
        return self.walk(h, emb).unflatten(0, (batch, frames))


class TwoTimes(Base):
    """Modulation for noisy and for given tokens: (2B, D), all rows of one kind first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Halves() for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.walk(self.stem(x), time_features(torch.cat([t, 0 * t]), DIM))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp(DIM)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        noisy, given = emb.chunk(2)
        return self.inner(x, noisy) + 0.1 * self.inner(x, given)


class LayersOfText(Base):
    """A text state for every block, (layers, B, S, D): as many layers as the example has rows."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(5, DIM)

    def forward(self, x: Tensor, t: Tensor, texts: Tensor) -> Tensor:
        h, emb = self.stem(x), time_features(t, DIM)
        mixed = self.text(texts.reshape(-1, len(x), 2, 5).mean(2))
        for i, block in enumerate(self.blocks):
            h = block(h, emb + mixed[i % len(mixed)])
        out: Tensor = self.tail(h)
        return out


class Experts(Base):
    """A gate hands the tokens of all rows to experts in heaps, whose sizes depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Routed() for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.walk(self.stem(x), time_features(t, DIM))


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp(DIM)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = self.inner(x, emb)
        flat = x.flatten(0, 1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            where = (flat[:, 0] > 0) == bool(i)
            out[where] = expert(flat[where])
        return x + 0.5 * out.view_as(x)


class Mixing(Base):
    """The control: every token sees the mean of all tokens of all rows."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x)
        return self.walk(h + h.mean((0, 1), keepdim=True), time_features(t, DIM))


def example(kind: type[Base], rows: int = 4) -> ek.Inputs:
    numbers = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers)

    t = torch.randint(1, 1000, (rows,), generator=numbers)
    if kind is RowsInLists:
        scales = [1 + i / 10 for i in range(rows)]
        return ek.Inputs([draw(TOKENS, 3) for _ in range(rows)], t, scales=scales)
    if kind is RepeatedText:
        return ek.Inputs(draw(rows, 3, TOKENS, 3), t, text=draw(3 * rows, 5))
    if kind is LayersOfText:
        return ek.Inputs(draw(rows, TOKENS, 3), t, texts=draw(4, rows, 2, 5))
    return ek.Inputs(draw(rows, TOKENS, 3), t)


KINDS = (RowsInLists, RepeatedText, TwoTimes, LayersOfText, Experts)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])  # other weights
@pytest.mark.parametrize("preset", ["relative", "carried"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_found_wherever_they_lie(kind: type[Base], preset: str, seed: int) -> None:
    torch.manual_seed(seed)
    check_backbone(perturb(kind(), seed).eval(), example(kind), config=preset)


@pytest.mark.parametrize("kind", [RowsInLists, RepeatedText, LayersOfText])
def test_what_was_found_is_in_the_plan(kind: type[Base]) -> None:
    plan = ek.inspect(perturb(kind()).eval(), example_inputs=example(kind))
    leaves = {leaf.path: leaf for leaf in plan.inputs}
    if kind is RowsInLists:
        assert plan.lists == ("x", "scales")
        assert leaves["x"].listed
        assert plan.outputs[0].listed
    elif kind is RepeatedText:
        assert (leaves["text"].axis, leaves["text"].fold) == (0, 3)
    else:
        assert leaves["texts"].axis == 1


def test_rows_that_see_each_other_are_refused() -> None:
    model = perturb(Mixing()).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ExitKitError, match="rows must not see each other"):
        ek.wrap(model, example_inputs=example(Mixing))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any("forward" in vars(m) for m in model.modules())


def test_tokens_with_times_of_their_own_take_the_noisiest() -> None:
    class PerToken(Base):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.walk(self.stem(x), time_features(t.amax(1), DIM))

    t = torch.tensor([[0, 500, 500], [0, 20, 20]])
    model = ek.wrap(perturb(PerToken()).eval(), example_inputs=(torch.randn(2, TOKENS, 3), t))
    assert model.plan.timestep == "t"
    model.policy = ek.policies.FixedExit(1)
    model(torch.randn(2, TOKENS, 3), t)
    assert model.trace.timesteps.tolist() == [500.0]


def test_an_example_is_cut_to_any_number_of_rows() -> None:
    def forward(x: list[Tensor], t: Tensor, texts: Tensor, frames: Tensor, table: Tensor) -> None:
        raise NotImplementedError

    x = [torch.full((2,), float(i)) for i in range(3)]
    t, texts = torch.arange(3.0), torch.arange(12.0).reshape(4, 3)
    frames, table = torch.arange(6.0), torch.arange(5.0)
    bound = bind(signature_of(forward), (x, t, texts, frames, table), {})
    batch = example_batch(bound, "x[0]", None, nn.Identity())
    assert batch.batch == 3 and batch.lists == ("x",)
    batch = replace(batch, axes={"t": 0, "texts": 1, "frames": 0}, folds={"frames": 2})
    cut = batch.rows(5).values
    rows = [0, 1, 0, 1, 0]
    assert [int(entry[0]) for entry in cut["x"]] == rows == cut["t"].tolist()
    assert torch.equal(cut["texts"], torch.stack([texts[:, i] for i in rows], dim=1))
    assert cut["frames"].tolist() == [2 * i + entry for i in rows for entry in (0, 1)]
    assert cut["table"] is table


def test_the_noisy_input_is_changed_in_several_ways() -> None:
    x, t = torch.randn(3, 4), torch.rand(3)
    batch = ExampleBatch(Bound({"x": x, "t": t}, None), "x", 0, 3, {"x": 0, "t": 0})
    for change, expected in (("scale", 1.3 * x[0]), ("exchange", x[2])):
        given = batch.perturbed(2, change).values
        torch.testing.assert_close(given["x"], torch.stack([expected, x[1]]))
        assert torch.equal(given["t"], t[:2])
    noise = batch.perturbed(2).values["x"]
    assert not torch.allclose(noise[0], x[0]) and torch.equal(noise[1], x[1])
    listed = ExampleBatch(Bound({"x": [*x]}, None), "x[0]", 0, 3, lists=("x",))
    assert torch.equal(listed.perturbed(2, "exchange").values["x"][0], x[2])
