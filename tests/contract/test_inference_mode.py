"""What is made inside `torch.inference_mode` can be used outside: heads, marks, calibration, fits."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.errors import ConfigError, DoubtWarning
from exitkit.policies import FixedExit

PRESETS = ["relative", "paper", "carried"]
SAMPLER = ek.Sampler("ddim", (5, 8), 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.linear(x)
        return made


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.out = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x + t.view(-1, 1, 1) / 1000
        for block in self.blocks:
            x = block(x)
        made: torch.Tensor = self.out(x)
        return made


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, 8, generator=generator), torch.tensor([900.0, 500.0, 90.0])


def wrapped(preset: str = "relative", net: nn.Module | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DoubtWarning)
        return ek.wrap(net or Net(), preset, example_inputs=inputs())


def inference(model: nn.Module) -> list[str]:
    held = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in held if tensor.is_inference()]


def usable(model: Any) -> None:
    """Marks, a backward through an exit, and a state that is loaded into place."""
    assert not inference(model)
    model.heads.mark_fitted()
    model.policy = FixedExit(1)
    x, t = inputs()
    with model.trajectory():
        model(x, t)
        model(x, t - 1).square().mean().backward()
    model.heads.load_state_dict(model.heads.state_dict())


@pytest.mark.parametrize("preset", PRESETS)
def test_models_wrapped_in_that_mode_are_usable(preset: str) -> None:
    net = Net()
    with torch.inference_mode():
        model = wrapped(preset, net)
    usable(model)
    reference = wrapped(preset)
    assert model.heads.state_dict().keys() == reference.heads.state_dict().keys()


def test_the_mode_of_the_caller_is_kept() -> None:
    with torch.inference_mode():
        model = wrapped(net=Net().requires_grad_(False))
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        assert model(*inputs()).is_inference()
    with torch.no_grad():
        wrapped()
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_models_loaded_in_that_mode_are_usable(preset: str, tmp_path: Path) -> None:
    model = wrapped(preset)
    model.heads.mark_fitted()
    model.save_pretrained(tmp_path / "exits")
    weights = {name: t.clone() for name, t in model.heads.state_dict().items()}
    net = ek.unwrap(model)
    with torch.inference_mode():
        model = ek.load(net, tmp_path / "exits")
    torch.testing.assert_close(dict(model.heads.state_dict()), weights, rtol=0, atol=0)
    usable(model)


def test_fits_and_calibrations_in_any_mode_find_the_same() -> None:
    def found(inside: AbstractContextManager[Any]) -> tuple[Any, Any]:
        torch.manual_seed(0)
        net = Net()
        with inside:
            model = wrapped(net=net)
            ek.fit(model, SAMPLER, steps=2, progress=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # few rows: cost comes in steps
                calibration = ek.calibrate(model, SAMPLER, budget=0.9, seeds=4, progress=False)
        usable(model)
        return dict(model.heads.state_dict()), calibration.policy

    expected, policy = found(nullcontext())
    for mode in (torch.no_grad(), torch.inference_mode()):
        weights, same = found(mode)
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
        assert same == policy


def test_a_backbone_made_in_that_mode_is_named() -> None:
    with torch.inference_mode():
        net = Net()
    model = wrapped(net=net)
    with pytest.raises(ConfigError, match=r"fit: 18 parameters of this Net, such as 'backbone.blo"):
        ek.fit(model, SAMPLER, steps=1, progress=False)


def test_that_mode_does_make_tensors_that_nobody_can_use() -> None:
    """The control: without care, these are the errors."""
    with torch.inference_mode():
        model = wrapped(net=Net())
        model.heads.output.append(nn.Linear(2, 2))
    assert any(name.startswith("heads.output") for name in inference(model))
    with pytest.raises(AssertionError):
        usable(model)
