"""Which tensor is the prediction, by evidence, by declaration, or by neither."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import ConfigError, ShapeError, UnsupportedBackboneError
from exitkit.policies import FixedExit, NeverExit
from exitkit.surgery.prediction import choose_prediction, find_prediction, planned_prediction
from exitkit.surgery.spec import Leaf

X = (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("found", "noisy", "wanted"),
    [
        ([("[0]", (2, 7))], X, "[0]"),
        ([(".features", (2, 3, 16)), (".out", X)], X, ".out"),
        ([(".features", X), (".sample", X)], X, ".sample"),
        ([(".pooled", (2, 3)), (".out", (2, 6, 8, 8))], X, ".out"),
        ([(".hidden", (2, 5, 16)), (".logits", (2, 10))], None, ".logits"),
        ([(".aux", (2, 10)), (".logits", (2, 10))], None, ".logits"),
    ],
)
def test_the_form_decides_and_then_the_usual_name(found, noisy, wanted) -> None:
    assert choose_prediction("Net", found, noisy) == wanted


@pytest.mark.parametrize(
    ("found", "noisy"),
    [([("[0]", X), ("[1]", X)], X), ([("[0]", (2, 10)), ("[1]", (2, 10))], None)],
)
def test_what_is_not_decided_is_asked_for(found, noisy) -> None:
    with pytest.raises(UnsupportedBackboneError, match=r"\[0\].*\[1\].*Adapter\(prediction="):
        choose_prediction("Net", found, noisy)
    assert choose_prediction("Net", found, noisy, "[1]") == "[1]"
    with pytest.raises(ConfigError, match=r"prediction='\[2\]'\) is not among"):
        choose_prediction("Net", found, noisy, "[2]")


@pytest.mark.parametrize(
    ("shapes", "timed", "wanted"),
    [
        ([(2, 8, 6), (2, 3, 6)], True, 0),
        ([(2, 3, 6), (2, 8, 6)], False, 1),  # no vector a row: it is no classifier
        ([(2, 8, 6), (2, 10)], False, 1),
    ],
)
def test_without_a_timestep_a_vector_a_row_tells_a_classifier(shapes, timed, wanted) -> None:
    outputs = [Leaf(f"[{i}]", s, "float32", 0, moved=True) for i, s in enumerate(shapes)]
    assert planned_prediction("Net", outputs, (2, 8, 6), timed, None) == f"[{wanted}]"


def test_bare_outputs_follow_the_same_rule() -> None:
    x = torch.zeros(X)
    assert find_prediction({"a": torch.zeros(X), "sample": x}, x) is x
    assert find_prediction((torch.zeros(2, 5), x), x) is x
    with pytest.raises(UnsupportedBackboneError):
        find_prediction((torch.zeros(X), x), x)
    with pytest.raises(ShapeError, match="no prediction"):
        find_prediction({"a": 1})


class TwoOutputs(nn.Module):
    """Returns features of its tokens first, and only then what it predicts."""

    def __init__(self, names: tuple[str, str] = ("features", "sample"), width: int = 8) -> None:
        super().__init__()
        self.names, self.width = names, width
        self.stem, self.time = nn.Linear(3, 16), nn.Linear(1, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
            for _ in range(3)
        )
        self.features, self.sample = nn.Linear(16, width), nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        h = self.stem(x.flatten(2).transpose(1, 2)) + self.time(t.float()[:, None] / 1000)[:, None]
        for block in self.blocks:
            h = h + block(h)
        out = self.sample(h).transpose(1, 2).reshape(x.shape)
        features = self.features(h)
        if self.width == 3:
            features = features.transpose(1, 2).reshape(x.shape)
        return dict(zip(self.names, (features, out), strict=True))


def wrapped(net: nn.Module, **options: object) -> ek.ExitModel:
    x = torch.randn(2, 3, 4, 4)
    return ek.wrap(net.eval(), "relative", example_inputs=(x, torch.tensor([10, 900])), **options)


def test_heads_change_what_generate_reads() -> None:
    torch.manual_seed(0)
    model = wrapped(TwoOutputs())
    assert model.plan.prediction == ".sample"
    sampler = ek.Sampler("ddim", (3, 4, 4), steps=3)
    bare = ek.generate(model.backbone, sampler, 2).samples
    full = ek.generate(model, sampler, 2).samples
    assert torch.equal(bare, full)
    model.policy = FixedExit(1)
    before = ek.generate(model, sampler, 2).samples
    with torch.no_grad():
        for weight in model.heads.output.parameters():
            weight.add_(torch.randn_like(weight))
    after = ek.generate(model, sampler, 2).samples
    assert not torch.allclose(before, after)
    model.policy = NeverExit()
    assert torch.equal(ek.generate(model, sampler, 2).samples, full)


def test_two_of_one_form_need_a_word() -> None:
    net = TwoOutputs(("first", "second"), width=3)
    with pytest.raises(UnsupportedBackboneError, match=r"\.first.*\.second.*Adapter\(prediction="):
        wrapped(net)
    adapter = ek.Adapter("two", matches=lambda _: True, prediction=".second")
    model = wrapped(net, adapter=adapter)
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([10, 900])
    assert torch.equal(model.prediction_of(model(x, t)), net(x, t)["second"])
    assert torch.equal(model.record(x, t).prediction, net(x, t)["second"])


def test_a_plain_tuple_keeps_the_order_of_the_example() -> None:
    model = wrapped(TwoOutputs())
    x, t = torch.randn(2, 3, 4, 4), torch.tensor([10, 900])
    out = model.backbone(x, t)
    assert torch.equal(model.prediction_of(tuple(out.values())), out["sample"])
