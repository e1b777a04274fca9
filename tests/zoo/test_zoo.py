"""A representative part of the zoo; `make coverage` judges all of it."""

from __future__ import annotations

import pytest

import exitkit as ek
from exitkit.errors import UnsupportedBackboneError
from exitkit.testing import check_backbone
from tests.zoo import specimens

ZOO = specimens()
# One of each kind: dual and single streams, folded frames, lists of rows, experts, sequence first,
# skips held outside, two outputs, repeated visits, side networks, CNNs and hierarchical transformers,
# and one packed sequence.
CHOSEN = (
    "diffusers.AllegroTransformer3DModel",
    "diffusers.BriaFiboTransformer2DModel",
    "diffusers.CogVideoXTransformer3DModel",
    "diffusers.Cosmos3OmniTransformer",
    "diffusers.ErnieImageTransformer2DModel",
    "diffusers.Flux2Transformer2DModel",
    "diffusers.HiDreamImageTransformer2DModel",
    "diffusers.HunyuanDiT2DModel",
    "diffusers.JoyImageEditPlusTransformer3DModel",
    "diffusers.Kandinsky6SRTransformer3DModel",
    "diffusers.LTX2VideoTransformer3DModel",
    "diffusers.LatteTransformer3DModel",
    "diffusers.Lumina2Transformer2DModel.padded",
    "diffusers.QwenImageTransformer2DModel.edit",
    "diffusers.StableCascadeUNet.decoder",
    "diffusers.UNet1DModel",
    "diffusers.UNet2DConditionModel",
    "diffusers.UNetMotionModel",
    "diffusers.UNetSpatioTemporalConditionModel",
    "diffusers.WanAnimateTransformer3DModel",
    "diffusers.WanVACETransformer3DModel",
    "diffusers.ZImageTransformer2DModel",
    "timm.twins_svt_small",
    "timm.regnetx_002",
    "timm.test_efficientnet",
    "timm.test_vit",
)


# Seconds each: these run always, the others with the slow tests.
ALWAYS = {
    "diffusers.Cosmos3OmniTransformer",
    "diffusers.Flux2Transformer2DModel",
    "diffusers.LatteTransformer3DModel",
    "timm.regnetx_002",
    "timm.test_vit",
}


# Its attention is meant to be compiled, and says so.
@pytest.mark.filterwarnings("ignore:.*flex_attention:UserWarning")
# One is padded, and `wrap` says what that means for decisions.
@pytest.mark.filterwarnings("ignore:.*as long as the longest:exitkit.errors.DoubtWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ALWAYS else [pytest.mark.slow]) for n in CHOSEN],
)
def test_a_third_party_model_keeps_every_promise(name: str) -> None:
    specimen = ZOO[name]
    check_backbone(specimen.make(), specimen.inputs(4), atol=1e-4)


def test_a_packed_sequence_is_refused_with_the_reason_unless_declared() -> None:
    specimen = ZOO["diffusers.Cosmos3OmniTransformer"]
    model = specimen.make()
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    nothing = ek.Adapter("nothing", lambda module: True)
    with pytest.raises(UnsupportedBackboneError, match=r"no batch axis.*Adapter\(batched=False\)"):
        ek.wrap(model, example_inputs=specimen.inputs(4), adapter=nothing)
    assert before.keys() == {path for path, _ in model.named_modules()}
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    "name",
    [
        "timm.test_vit",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("timm.regnetx_002", "diffusers.Flux2Transformer2DModel")
        ),
    ],
)
def test_plans_are_the_same_on_every_run(name: str) -> None:
    plans = [ek.inspect(ZOO[name].make(), example_inputs=ZOO[name].inputs(4)) for _ in range(2)]
    assert plans[0] == plans[1]
    other = ek.inspect(ZOO[name].make(seed=1), example_inputs=ZOO[name].inputs(3, seed=1))
    assert [s.path for s in other.stages] == [s.path for s in plans[0].stages]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # A first level of far smaller blocks of the same class is a level; a stem is none.
        ("timm.resnest14d", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("timm.cspnext_tiny", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        # The last level holds most parameters, and all four are stages.
        ("timm.regnetx_002", ["s1", "s2", "s3", "s4"]),
    ],
)
def test_stages_of_cnns(name: str, expected: list[str]) -> None:
    plan = ek.inspect(ZOO[name].make(), example_inputs=ZOO[name].inputs(4))
    assert [s.path for s in plan.stages] == expected
