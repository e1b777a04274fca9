"""What people switch on around training: checkpointing, autocast, dropout, compilation, LoRA."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.policies import FixedExit, NeverExit, ScriptedExit
from tests.backbones import case, prediction
from tests.copies import copies

TRANSFORMERS = ("dit", "sd3", "flux")


@copies
def wrapped(name: str, preset: str = "relative") -> tuple[ek.ExitModel, Any, Any]:
    backbone = case(name)
    args, kwargs = backbone.inputs(3)
    model = ek.wrap(backbone.make(), preset, example_inputs=ek.Inputs(*args, **kwargs))
    return model, args, kwargs


def gradients(model: ek.ExitModel, args: Any, kwargs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(*args, output_exits=True, **kwargs)
    sum(
        (e * e).mean() + u.mean() for e, u in zip(out.exits, out.uncertainty, strict=False)
    ).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*TRANSFORMERS, "unet", "unet_conditional"])
def test_gradients_are_the_same_under_checkpointing(name: str) -> None:
    model, args, kwargs = wrapped(name, "paper")
    model.requires_grad_(True)
    model.train()
    torch.manual_seed(0)
    expected = gradients(model, args, kwargs)
    assert sum(n.startswith("backbone.") for n in expected) > 10
    model.backbone.enable_gradient_checkpointing()
    torch.manual_seed(0)
    found = gradients(model, args, kwargs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-6), key
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(1.5)  # the control: other weights, other gradients
    other = gradients(model, args, kwargs)
    assert any(not torch.allclose(other[k], v, rtol=1e-4, atol=1e-6) for k, v in expected.items())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("name", [*TRANSFORMERS, "unet", "timm_vit", "uvit"])
def test_autocast(name: str) -> None:
    model, args, kwargs = wrapped(name)
    bare = case(name).make()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.policy = NeverExit()
        full = prediction(bare(*args, **kwargs))
        assert torch.equal(prediction(model(*args, **kwargs)), full)
        model.policy = ScriptedExit((1, 2, len(model.exits) + 1))
        mixed = prediction(model(*args, **kwargs))
    assert mixed.dtype == full.dtype
    assert mixed.isfinite().all()
    assert not torch.equal(mixed[0], full[0])


@pytest.mark.parametrize("name", ["unet", "timm_resnet", "timm_convnext"])
def test_channels_last(name: str) -> None:
    model, args, kwargs = wrapped(name)
    model.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    args = tuple(
        a.contiguous(memory_format=torch.channels_last) if a.ndim == 4 else a for a in args
    )
    with torch.no_grad():
        model.policy = NeverExit()
        assert torch.equal(
            prediction(model(*args, **kwargs)), prediction(model.backbone(*args, **kwargs))
        )
        model.policy = ScriptedExit((1, 2, len(model.exits) + 1))
        mixed = prediction(model(*args, **kwargs))
    assert mixed.isfinite().all()


def test_dropout_draws_what_the_bare_model_draws() -> None:
    backbone = case("dit")
    args, kwargs = backbone.inputs(3)
    bare = backbone.make()
    for block in bare.transformer_blocks:
        block.attn1.to_out[1].p = 0.5
    model = ek.wrap(copy.deepcopy(bare), example_inputs=ek.Inputs(*args, **kwargs))
    model.policy = NeverExit()
    bare.train()
    model.train()
    outputs = []
    for module, seed in ((bare, 0), (model, 0), (model, 1)):
        torch.manual_seed(seed)
        outputs.append(prediction(module(*args, **kwargs)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["uvit", pytest.param("dit", marks=pytest.mark.slow)])
def test_compiled_blocks(name: str) -> None:
    model, args, kwargs = wrapped(name)
    policies = [NeverExit(), ScriptedExit((1, 2, len(model.exits) + 1)), FixedExit(2)]

    def outputs() -> list[Tensor]:
        found = []
        for policy in policies:
            model.policy = policy
            found.append(prediction(model(*args, **kwargs)))
        return found

    with torch.no_grad():
        expected = outputs()
        calls = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(1)
            return graph.forward

        model.compile_blocks(backend=backend)
        found = outputs()
    assert calls
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    bare = ek.unwrap(model)
    assert not any("forward" in vars(m) for m in bare.modules())


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["sd3", "flux", "unet_conditional"])
def test_lora(name: str, when: str) -> None:
    backbone = case(name)
    args, kwargs = backbone.inputs(3)
    example = ek.Inputs(*args, **kwargs)
    module = backbone.make()
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)

    def adapt() -> None:
        torch.manual_seed(0)
        peft.inject_adapter_in_model(lora, module)

    if when == "before":
        adapt()
    model = ek.wrap(module, example_inputs=example)
    if when == "after":
        adapt()
    reference = backbone.make()
    torch.manual_seed(0)
    peft.inject_adapter_in_model(lora, reference)
    with torch.no_grad():
        model.policy = NeverExit()
        full = prediction(model(*args, **kwargs))
        assert torch.equal(full, prediction(reference(*args, **kwargs)))
        assert not torch.equal(full, prediction(backbone.make()(*args, **kwargs)))
        model.policy = FixedExit(1)
        assert not torch.equal(prediction(model(*args, **kwargs)), full)
    unwrapped = ek.unwrap(model)
    assert any("lora" in n for n, _ in unwrapped.named_parameters())
    assert torch.equal(prediction(unwrapped(*args, **kwargs)), full)


def test_a_peft_model_is_a_backbone() -> None:
    backbone = case("sd3")
    args, kwargs = backbone.inputs(3)
    model = peft.get_peft_model(
        backbone.make(), peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    )
    model.eval()
    full = prediction(model(*args, **kwargs))
    exits = ek.wrap(model, example_inputs=ek.Inputs(*args, **kwargs))
    exits.policy = NeverExit()
    assert torch.equal(prediction(exits(*args, **kwargs)), full)
    exits.policy = FixedExit(1)
    assert not torch.equal(prediction(exits(*args, **kwargs)), full)
    assert isinstance(ek.unwrap(exits), nn.Module)
