"""Losses and presets of the rivals: weights by depth, disagreement, alternating steps, shared heads."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

import exitkit as ek
from exitkit.config import PRESETS, LossConfig, UncertaintyConfig
from exitkit.errors import BoundaryError
from exitkit.model import ExitModel
from exitkit.training.losses import ExitLoss
from exitkit.training.tasks import Classification, Noise
from tests.backbones import case
from tests.copies import copies
from tests.tiny_suites import SHAPE, backbone, example

RIVALS = ("berxit", "calm", "pabee", "branchynet")
TASK = Noise(DDPMScheduler())


def outputs(seed: int, exits: int = 3) -> tuple[SimpleNamespace, Tensor]:
    """Random outputs and uncertainties of three rows, and a target."""
    g = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64)

    out = SimpleNamespace(
        prediction=normal(),
        exits=[normal() for _ in range(exits)],
        uncertainty=[torch.rand(3, generator=g, dtype=torch.float64) for _ in range(exits)],
    )
    return out, normal()


# --- weights and targets --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("include_last", [False, True])
def test_weights_by_depth_are_shares_of_the_exit_numbers(seed: int, include_last: bool) -> None:
    out, target = outputs(seed)
    config = LossConfig(weighting="depth", include_last=include_last)
    layers = ExitLoss(config=config)(out, target).layers
    all_outputs = [*out.exits, out.prediction] if include_last else out.exits
    errors = [float((g - target).square().mean()) for g in all_outputs]
    total = sum(range(1, len(errors) + 1))
    want = sum(i / total * error for i, error in enumerate(errors, start=1))
    assert float(layers) == pytest.approx(want, rel=1e-12)
    # Negative control: neither equal weights nor those of the article do the same.
    for other in ("uniform", "one_minus_u"):
        assert (
            abs(float(ExitLoss(config=LossConfig(weighting=other))(out, target).layers) - want)
            > 0.05
        )


def test_weights_by_depth_do_not_look_at_uncertainty() -> None:
    out, target = outputs(0)
    loss = ExitLoss(config=LossConfig(weighting="depth"))
    before = float(loss(out, target).layers)
    out.uncertainty = [1 - u for u in out.uncertainty]
    assert float(loss(out, target).layers) == before


def test_regressions_disagree_beyond_a_tenth_of_the_full_outputs_size() -> None:
    g = torch.Generator().manual_seed(0)
    full = torch.randn(4, 2, 4, 4, generator=g, dtype=torch.float64)
    away = torch.randn(4, 2, 4, 4, generator=g, dtype=torch.float64)
    sizes = [math.sqrt(sum(v * v for v in row) / 32) for row in full.flatten(1).tolist()]
    lengths = [math.sqrt(sum(v * v for v in row) / 32) for row in away.flatten(1).tolist()]
    gaps = [0.0, 0.09, 0.11, 2.0]
    unit = torch.tensor(sizes).double() / torch.tensor(lengths).double()
    exit = full + (torch.tensor(gaps).double() * unit)[:, None, None, None] * away
    u = torch.tensor([0.3, 0.4, 0.2, 0.9], dtype=torch.float64)
    wanted = [0.0, 0.0, 1.0, 1.0]
    for scale in (1.0, 1000.0):  # in units of the output: no scale
        out = SimpleNamespace(prediction=scale * full, exits=[scale * exit], uncertainty=[u])
        config = LossConfig(uncertainty_target="disagreement", target="model")
        want = sum((v - w) ** 2 for v, w in zip(u.tolist(), wanted, strict=True)) / 4
        assert float(ExitLoss(config=config)(out).uncertainty) == pytest.approx(want, rel=1e-9)
        # Negative control: eq. 8 has other targets.
        plain = ExitLoss(config=LossConfig(target="model"))(out).uncertainty
        assert abs(float(plain) - want) > 0.01


@pytest.mark.parametrize("seed", range(3))
def test_classes_disagree_where_the_full_model_names_another(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = [torch.randn(8, 4, generator=g, dtype=torch.float64) for _ in range(3)]
    u = [torch.rand(8, generator=g, dtype=torch.float64) for _ in range(2)]
    labels = torch.randint(0, 4, (8,), generator=g)
    out = SimpleNamespace(prediction=logits[0], exits=logits[1:], uncertainty=u)
    config = LossConfig(uncertainty_target="disagreement")
    parts = ExitLoss(Classification(), config)(out, labels)

    def best(row: list[float]) -> int:
        return row.index(max(row))

    want = sum(
        (v - (best(row) != best(full))) ** 2 / 8
        for us, exit in zip(u, logits[1:], strict=True)
        for v, row, full in zip(us.tolist(), exit.tolist(), logits[0].tolist(), strict=True)
    )
    assert float(parts.uncertainty) == pytest.approx(want, rel=1e-12)
    # The label has no part in it: that is BERxiT's target.
    again = ExitLoss(Classification(), config)(out, (labels + 1) % 4)
    assert float(again.uncertainty) == float(parts.uncertainty)
    assert again.uncertainty != ExitLoss(Classification(), LossConfig())(out, labels).uncertainty


# --- alternating ----------------------------------------------------------------------------------


@copies
def berxit(seed: int = 0) -> ExitModel:
    torch.manual_seed(seed)
    model = ek.wrap(backbone(depth=3, dim=16), "berxit", example_inputs=example())
    assert isinstance(model, ExitModel)
    return model


def gradients(step: int | None, config: LossConfig | None = None) -> tuple[ExitModel, Tensor]:
    """The model after backpropagation of the loss of a step; and the target."""
    model = berxit()
    x, t = example()
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    loss = ExitLoss(config=config or model.exit_config.loss)
    loss(model(x, t, output_exits=True), target, step).total.backward()
    return model, target


def test_even_steps_train_on_the_full_models_loss_alone() -> None:
    for step in (0, 2, 100):
        model, target = gradients(step)
        for name, p in model.heads.named_parameters():
            assert p.grad is not None, f"{name}: several processes count on every gradient"
            assert int(p.grad.count_nonzero()) == 0, name
        plain = backbone(depth=3, dim=16)
        F.mse_loss(plain(*example()), target).backward()
        for (name, p), q in zip(model.backbone.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, msg=lambda m, n=name: f"{n}: {m}")
        assert any(int(q.grad.count_nonzero()) for q in plain.parameters() if q.grad is not None)


def test_odd_steps_train_on_the_exits_alone() -> None:
    model, _ = gradients(1)
    moved = [int(p.grad.count_nonzero()) for p in model.heads.parameters() if p.grad is not None]
    assert len(moved) == len(list(model.heads.parameters())) and all(moved)
    # Exits have output layers of their own, so that nothing but the full output reaches these two.
    for p in (model.backbone.head.weight, model.backbone.norm.weight):
        assert p.grad is not None and int(p.grad.count_nonzero()) == 0
    assert int(model.backbone.embed.weight.grad.count_nonzero())
    # Both halves together are the loss without alternation, and without a step both count.
    whole, _ = gradients(None)
    even, _ = gradients(0)
    plain, _ = gradients(1, model.exit_config.loss.model_copy(update={"alternating": False}))
    for p, q, r, s in zip(*(m.parameters() for m in (model, even, whole, plain)), strict=True):
        torch.testing.assert_close(p.grad + q.grad, r.grad)
        torch.testing.assert_close(r.grad, s.grad)


def test_fit_counts_the_steps_of_alternation_from_zero() -> None:
    data = [torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))]
    plain = ek.Optimizer(weight_decay=0.0, warmup=0)
    options: dict[str, Any] = {"optimizer": plain, "ema": None, "progress": False}
    moved: dict[int, tuple[bool, bool]] = {}
    for steps in (1, 2):
        model = berxit()
        before = copy.deepcopy(model.state_dict())
        ek.fit(model, data, TASK, steps=steps, **options)
        changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
        moved[steps] = (
            any("heads." in n for n in changed),
            any("heads." not in n for n in changed),
        )
    assert moved == {1: (False, True), 2: (True, True)}


# --- presets --------------------------------------------------------------------------------------


MADE = [
    # Of the U-Net's shapes only shared heads are another case than the ResNet's.
    pytest.param(rival, name, marks=[pytest.mark.slow] * (name == "unet" and rival != "berxit"))
    for rival in RIVALS
    for name in ("uvit", "unet", "timm_resnet")
]


@pytest.mark.parametrize(("preset", "name"), MADE)
def test_rivals_can_be_built_and_trained_on(preset: str, name: str) -> None:
    made = case(name)
    args, kwargs = made.inputs(2)
    model = ek.wrap(made.make(), preset, example_inputs=(*args,), **kwargs)
    assert isinstance(model, ExitModel)
    assert model.exit_config.loss.train_backbone and model.exit_config.preset == preset
    out = model(*args, output_exits=True)
    assert all(u.shape == (2,) for u in out.uncertainty), "one number a row, as in their papers"
    if name == "timm_resnet":
        parts = ExitLoss(Classification(), model.exit_config)(out, torch.tensor([1, 2]), 1)
    else:
        parts = ExitLoss(config=model.exit_config)(out, torch.randn_like(args[0]), 1)
    parts.total.backward()
    assert all(p.grad is not None for p in model.heads.output.parameters())
    policy = model.policy
    assert policy.to_dict() == {**policy.to_dict(), **(PRESETS[preset].policy or {})}


@pytest.mark.parametrize(
    "name", ["uvit", pytest.param("unet", marks=pytest.mark.slow), "timm_resnet"]
)
def test_exits_of_one_shape_share_one_head(name: str) -> None:
    made = case(name)
    args, _ = made.inputs(2)
    model = ek.wrap(made.make(), "berxit", example_inputs=args)
    heads: dict[Any, set[int]] = {}
    for boundary, head in zip(model.heads.boundaries, model.heads.uncertainty, strict=True):
        heads.setdefault(boundary.hidden, set()).add(id(head))
    assert all(len(mine) == 1 for mine in heads.values())
    assert len(set.union(*heads.values())) == len(heads), "other shapes have heads of their own"
    assert len(heads) < len(model.exits), "here some shape occurs twice"
    if name == "uvit":
        assert len(heads) == 1
    else:
        with pytest.raises(BoundaryError, match="shared='by_shape'"):
            ek.wrap(
                made.make(),
                "berxit",
                example_inputs=args,
                uncertainty=UncertaintyConfig(kind="scalar", shared=True),
            )
    # Negative control: without sharing every exit has its own.
    own = ek.wrap(made.make(), "calm", example_inputs=args)
    assert len({id(head) for head in own.heads.uncertainty}) == len(own.exits)
