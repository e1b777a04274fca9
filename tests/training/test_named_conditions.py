"""Fitting backbones that take their timestep by name, because something else comes second."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel
from torch import nn

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.model import ExitModel
from exitkit.training.tasks import Noise
from tests.backbones import perturb
from tests.tiny_suites import SHAPE

TASK = Noise(DDPMScheduler())


def pixart() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=3,
            out_channels=3,
            num_layers=3,
            sample_size=4,
            patch_size=2,
            cross_attention_dim=16,
            caption_channels=6,
            use_additional_conditions=False,
        )
        return perturb(model.eval())


class Texts:
    """Batches of images and captions, in one form or another."""

    NAMES = ("encoder_hidden_states", "encoder_attention_mask")

    def __init__(self, named: bool) -> None:
        self.named = named

    def __iter__(self) -> Iterator[Any]:
        g = torch.Generator().manual_seed(0)
        for _ in range(2):
            image, text = torch.randn(4, *SHAPE, generator=g), torch.randn(4, 5, 6, generator=g)
            rest = (text, torch.ones(4, 5))
            sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
            if self.named:
                yield {"image": image, **dict(zip(self.NAMES, rest, strict=True)), **sizes}
            else:
                yield (image, *rest, sizes)


def wrapped_pixart(preset: str) -> ExitModel:
    inputs = {
        "hidden_states": torch.randn(2, *SHAPE),
        "timestep": torch.tensor([5, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 6),
        "encoder_attention_mask": torch.ones(2, 5),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    torch.manual_seed(0)
    model = ek.wrap(pixart(), preset, example_inputs=inputs)
    assert isinstance(model, ExitModel)
    return model


def test_conditions_by_name_reach_a_backbone_that_takes_them_second() -> None:
    model = wrapped_pixart("paper")
    seen: list[dict[str, Any]] = []
    names = inspect.signature(PixArtTransformer2DModel.forward)

    def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(dict(names.bind(module, *args, **kwargs).arguments))

    model.backbone.register_forward_pre_hook(listen, with_kwargs=True)
    options: dict[str, Any] = {"steps": 2, "progress": False, "ema": None}
    first = ek.fit(model, Texts(named=True), TASK, **options)
    assert seen
    for given in seen:
        assert given["hidden_states"].shape == (4, *SHAPE) and given["timestep"].shape == (4,)
        assert given["encoder_hidden_states"].shape == (4, 5, 6)
        assert given["encoder_attention_mask"].shape == (4, 5)
    # The task can give the names: the same run.
    task = Noise(DDPMScheduler(), conditions=(*Texts.NAMES, "added_cond_kwargs"))
    second = ek.fit(wrapped_pixart("paper"), Texts(named=False), task, **options)
    assert first.history[-1]["total"] == second.history[-1]["total"]


def test_conditions_without_names_are_refused_there() -> None:
    model = wrapped_pixart("relative")
    with pytest.raises(
        ConfigError, match=r"takes its timestep by name \('timestep'\).*holds 2 without"
    ):
        ek.fit(model, Texts(named=False), TASK, steps=1, progress=False)


def test_conditions_that_the_backbone_does_not_know_are_refused() -> None:
    model = wrapped_pixart("relative")
    batches = [{"image": torch.randn(2, *SHAPE), "colour": torch.ones(2)}]
    with pytest.raises(ConfigError, match="does not take what the batches hold .*colour"):
        ek.fit(model, batches, TASK, steps=1, progress=False)
