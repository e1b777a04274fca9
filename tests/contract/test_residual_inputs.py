"""Residuals of a ControlNet or a T2I-Adapter are arguments that enter between blocks, and may be consumed.

A call with them after an example without, and the reverse, gives what the backbone gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.policies import FixedExit, NeverExit
from exitkit.testing import check_backbone
from exitkit.tree import copied
from tests.backbones import Case, case, perturb, prediction
from tests.zoo import specimens

Call = dict[str, Any]
EXACT = 1e-5


class Popping(nn.Module):
    """Takes the residuals of its blocks off the end of a list, as T2I-Adapters' UNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 16), nn.Linear(16, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(5)
        )

    def forward(self, x: Tensor, t: Tensor, residuals: list[Tensor] | None = None) -> Tensor:
        x = self.stem(x) + t[:, None, None] / 1000
        for block in self.blocks:
            x = x + block(x)
            if residuals:
                x = x + residuals.pop()
        return self.out(x)


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)


def tiny(backbone: Case) -> tuple[nn.Module, Call]:
    model = backbone.make()
    return model, by_name(model, *backbone.inputs(3))


def noise(*shape: int) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def popping() -> tuple[nn.Module, Call, Call]:
    torch.manual_seed(0)
    call = {"x": torch.randn(3, 4, 6), "t": torch.tensor([700.0, 400.0, 90.0])}
    # Fewer than blocks, so that which block gets one depends on the order.
    return Popping().eval(), call, {"residuals": [noise(3, 4, 16), noise(3, 4, 16)]}


def sd3() -> tuple[nn.Module, Call, Call]:
    model, call = tiny(case("sd3"))
    return model, call, {"block_controlnet_hidden_states": [noise(3, 16, 16), noise(3, 16, 16)]}


def flux() -> tuple[nn.Module, Call, Call]:
    model, call = tiny(case("flux"))
    control = {
        "controlnet_block_samples": [noise(3, 16, 16)],
        "controlnet_single_block_samples": [noise(3, 16, 16), noise(3, 16, 16)],
    }
    return model, call, control


def qwen() -> tuple[nn.Module, Call, Call]:
    specimen = specimens()["diffusers.QwenImageTransformer2DModel"]
    model, inputs = specimen.make(), specimen.inputs(3)
    call = by_name(model, inputs.args, inputs.kwargs)
    tokens = call["hidden_states"].shape[1]
    return model, call, {"controlnet_block_samples": [noise(3, tokens, 32)] * 3}


UNET_SKIPS = ((8, 16), (8, 16), (8, 8), (16, 8))  # channels and side, in the order of a ControlNet


def unet() -> tuple[nn.Module, Call, Call]:
    model, call = tiny(case("unet_conditional"))
    control = {
        "down_block_additional_residuals": tuple(noise(3, c, s, s) for c, s in UNET_SKIPS),
        "mid_block_additional_residual": noise(3, 16, 8, 8),
    }
    return model, call, control


def unet_adapter() -> tuple[nn.Module, Call, Call]:
    model, call = tiny(case("unet_conditional"))
    return (
        model,
        call,
        {"down_intrablock_additional_residuals": [noise(3, 8, 16, 16), noise(3, 16, 8, 8)]},
    )


def sdxl() -> tuple[nn.Module, Call, Call]:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )
    _, call, control = unet()
    added = {"text_embeds": torch.randn(3, 10), "time_ids": 100 * torch.rand(3, 6)}
    return perturb(model.eval()), {**call, "added_cond_kwargs": added}, control


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Call, Call]]] = {
    "popping": popping,
    "sd": unet,
    "sd_adapter": unet_adapter,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "qwen": qwen,
}


@contextmanager
def wrapped(net: nn.Module, preset: str, call: Call) -> Iterator[Any]:
    model = ek.wrap(net, preset, example_inputs=copied(call), exits=("*",))
    model.heads.mark_fitted(uncertainty=False)  # exits are used as they start
    yield model
    assert ek.unwrap(model) is net


def run(model: Any, call: Call) -> Tensor:
    with torch.no_grad():
        return prediction(model(**copied(call))).clone()


def gaps(model: Any, call: Call, full: Tensor) -> list[float]:
    """How far each exit is from the full output when a step is repeated exactly, in its std."""
    found = []
    for depth in range(1, len(model.exits) + 1):
        with model.trajectory() as trajectory:
            for policy in (NeverExit(), NeverExit(), FixedExit(depth)):
                trajectory.next_step()
                model.policy = policy
                out = run(model, call)
        found.append(float((out - full).abs().max() / full.std()))
    return found


@pytest.mark.parametrize(
    ("name", "example_has_them"),
    [
        pytest.param(name, given, id=f"{name}-{given}", marks=[pytest.mark.slow] * late)
        for name in NETWORKS
        for given in (True, False)
        # An SDXL is a larger SD; residuals inside its blocks enter as those between them.
        for late in [name == "sdxl" or (name == "sd_adapter" and given)]
    ],
)
def test_carried_exits_with_and_without_residuals(name: str, example_has_them: bool) -> None:
    net, plain, control = NETWORKS[name]()
    calls = (plain, {**plain, **control})
    full = [run(net, call) for call in calls]
    assert (full[0] - full[1]).abs().max() > 0.1, "the control: they matter"
    with wrapped(net, "carried", calls[example_has_them]) as model:
        assert len(model.exits) >= 2
        for call, wanted in zip(calls, full, strict=True):
            model.policy = NeverExit()
            assert torch.equal(run(model, call), wanted)
            assert max(gaps(model, call, wanted)) < EXACT


def test_what_is_handed_in_is_not_consumed_by_wrapping() -> None:
    net, plain, control = popping()
    given = list(control["residuals"])
    with wrapped(net, "carried", plain | {"residuals": given}):
        assert len(given) == 2
    net(**plain, residuals=given)
    assert not given, "the control: the network itself takes them out"


def test_rows_with_residuals_leave_apart() -> None:
    net, plain, control = sd3()
    check_backbone(net, {**plain, **control}, config="carried")
    check_backbone(net, {**plain, **control})
