"""Backbones for tests of reliability, and things that go wrong at a chosen point.

A representative spread: dual and single streams, masks, lists of rows, text and video UNets, a
classifier of each kind, and two calling conventions of the handwritten nets.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from exitkit.surgery.inputs import Inputs
from exitkit.testing.contract import equal, require
from exitkit.testing.snapshot import Snapshot
from tests.backbones import case, perturb


class Mishap(Exception):
    """Goes wrong in a block, a head or a gate."""


class Interrupted(BaseException):
    """What no `except Exception` sees, as KeyboardInterrupt."""


@dataclass(frozen=True)
class Subject:
    """A backbone and its inputs.

    Attributes:
        id: Name in the test report.
        build: Makes the backbone, in eval mode and perturbed.
        draw: Makes inputs for a number of rows.
    """

    id: str
    build: Callable[[], nn.Module]
    draw: Callable[[int], Inputs]

    def make(self) -> tuple[nn.Module, Inputs]:
        """The backbone with some modules in train mode, and inputs of three rows."""
        return self.build(), self.draw(3)


def _of_case(name: str) -> Subject:
    def draw(rows: int) -> Inputs:
        args, kwargs = case(name).inputs(rows)
        return Inputs(*args, **kwargs)

    return Subject(name, case(name).make, draw)


def _of_zoo(module: str, name: str) -> Subject:
    """One specimen, without importing the whole zoo."""

    def specimen() -> Any:
        found = importlib.import_module(f"tests.zoo.{module}").SPECIMENS
        return next(s for s in found if s.name == name)

    return Subject(name, lambda: specimen().make(), lambda rows: specimen().inputs(rows))


def _video_unet() -> nn.Module:
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNetSpatioTemporalConditionModel(
            sample_size=8,
            block_out_channels=(32, 32),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            layers_per_block=1,
            num_attention_heads=(2, 2),
            cross_attention_dim=12,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            num_frames=2,
        )
    return perturb(model.eval())


def _video_inputs(rows: int) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    randn = partial(torch.randn, generator=generator)
    return Inputs(
        sample=randn(rows, 2, 8, 8, 8),
        timestep=torch.arange(1, rows + 1) * 100,
        encoder_hidden_states=randn(rows, 1, 12),
        added_time_ids=randn(rows, 3),
    )


PIXART = _of_zoo("diffusers_lz_image_b", "diffusers.PixArtTransformer2DModel")
LUMINA = _of_zoo("diffusers_lz_image_b", "diffusers.Lumina2Transformer2DModel.padded")
ZIMAGE = _of_zoo("diffusers_lz_other_b", "diffusers.ZImageTransformer2DModel")
VIDEO = Subject("video_unet", _video_unet, _video_inputs)
CASES = {
    name: _of_case(name)
    for name in (
        "dit",
        "sd3",
        "flux",
        "unet_conditional",
        "timm_vit",
        "timm_resnet",
        "uvit",
        "shared_block",
        "encoder_sequence_first",
    )
}
SUBJECTS = (*CASES.values(), PIXART, LUMINA, ZIMAGE, VIDEO)
SLOW = (
    PIXART,
    LUMINA,
    ZIMAGE,
    VIDEO,
)  # seconds a test; their mechanisms have smaller members above

spread = pytest.mark.parametrize(
    "subject",
    [pytest.param(s, id=s.id, marks=[pytest.mark.slow] * (s in SLOW)) for s in SUBJECTS],
)


def mixed_modes(model: nn.Module) -> nn.Module:
    """Leaves every third leaf in train mode where that draws no numbers and changes no statistics."""
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm, nn.SiLU, nn.GELU, nn.Identity)
    for module in [m for m in model.modules() if isinstance(m, kinds)][::3]:
        module.training = True
    return model


class Whole:
    """A backbone before a mishap; called afterwards, it raises unless nothing has changed."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self.output = self.run()
        self._snapshot = Snapshot(model)

    def run(self) -> Any:
        with torch.no_grad():
            return self.model(*self.inputs.args, **self.inputs.kwargs)

    def __call__(self, output: bool = True) -> None:
        """Compares all that a user could notice, and the output bit for bit unless told not to."""
        self._snapshot.compare(self.model)
        if output:
            require(equal(self.run(), self.output), "the output after the mishap is another one")


# Not in a closure: what the hooks of a network hold is put back behind every dry run.
_COUNTS: dict[int, list[int]] = {}


@contextmanager
def raising_at_call(model: nn.Module, at: int, error: BaseException) -> Iterator[list[int]]:
    """Raises in the module call with this number (the first is 1); yields the count so far."""
    name = len(_COUNTS)
    count = _COUNTS.setdefault(name, [0])

    def tick(*_: Any) -> None:
        _COUNTS[name][0] += 1
        if _COUNTS[name][0] == at:
            raise error

    handles = [module.register_forward_pre_hook(tick) for module in model.modules()]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def raises_at(at: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """A stand-in for a function that raises in its call with this number alone."""
    count = 0

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise error
        return function(*args, **kwargs)

    return stand_in
