"""The reference models as suites: `exitkit compare examples.reproduction.models.suites:uvit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import exitkit as ek
from exitkit.benchmark import Suite
from exitkit.evaluation.baselines import DuoDiff
from exitkit.evaluation.metrics import Metrics
from exitkit.sampling.sampler import Sampler

from .captions import caption, embedded
from .digits import load_digits
from .kinds import UNCONDITIONAL
from .models import (
    DIT_CONFIG,
    WEIGHTS,
    load_classifier,
    load_dit,
    load_features,
    load_pixart,
    load_small_uvit,
    load_unet,
    load_uvit,
    scheduler,
)
from .timm_digits import digits_suite

SHAPE = (1, 32, 32)
SWITCH = 600.0
"""Timestep below which DuoDiff's full network takes over; about half the cost with DDIM."""


def ddim() -> DDIMScheduler:
    """The sampler, with the noise schedule of the training."""
    made: DDIMScheduler = DDIMScheduler.from_config(scheduler().config)
    return made


def _metrics() -> Metrics:
    return Metrics(
        features=load_features(),
        reference=load_digits().held_out_images,
        classifier=load_classifier(),
        exits=False,
    )


def _plain_loader(batch_size: int, seed: int) -> DataLoader[Tensor]:
    return DataLoader(
        load_digits().train_images,  # type: ignore[arg-type]  # rows are a map-style data set
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )


class _Conditioned(Dataset[dict[str, Any]]):
    """Digits with a condition each; a tenth of them with the empty one, as in training."""

    def __init__(self, kind: str, seed: int) -> None:
        digits = load_digits()
        self.images, self.labels = digits.train_images, digits.train_labels
        self.kind = kind
        self.free = torch.rand(len(self.labels), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        label, free = int(self.labels[index]), bool(self.free[index] < UNCONDITIONAL)
        if self.kind == "class":
            none = int(DIT_CONFIG["num_embeds_ada_norm"])
            given: dict[str, Any] = {"class_labels": none if free else label}
        else:
            features, mask = embedded(["" if free else caption(label)])
            given = {"encoder_hidden_states": features[0], "encoder_attention_mask": mask[0]}
        return {"image": self.images[index], **given}


class _WithoutSizes:
    """A loader whose batches say that images have no recorded size, as PixArt wants to be told."""

    def __init__(self, loader: DataLoader[dict[str, Any]]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield {**batch, "added_cond_kwargs": _NO_SIZES}


_NO_SIZES = {"resolution": None, "aspect_ratio": None}


def _conditioned(kind: str, batch_size: int, seed: int) -> Any:
    loader: DataLoader[dict[str, Any]] = DataLoader(
        _Conditioned(kind, seed),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )
    return _WithoutSizes(loader) if kind == "text" else loader


def uvit() -> Suite:
    """Unconditional digits by a U-ViT of 9 blocks."""
    networks: dict[str, Any] = {}
    if (WEIGHTS / "small_mnist.safetensors").is_file():
        networks["small model"] = load_small_uvit
        networks["duodiff"] = lambda: DuoDiff(load_small_uvit(), load_uvit(), SWITCH)
    return Suite(
        name="uvit",
        backbone=load_uvit,
        example_inputs=(torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])),
        sampler=Sampler(ddim(), SHAPE),
        task=ek.tasks.Noise(scheduler()),
        loader=_plain_loader,
        networks=networks,
        metrics=_metrics,
    )


def unet() -> Suite:
    """Unconditional digits by diffusers' UNet2DModel."""
    return Suite(
        name="unet",
        backbone=load_unet,
        example_inputs=(torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])),
        sampler=Sampler(ddim(), SHAPE),
        task=ek.tasks.Noise(scheduler()),
        loader=_plain_loader,
        metrics=_metrics,
    )


def dit() -> Suite:
    """Digits by class with guidance, by diffusers' DiTTransformer2DModel."""
    none = int(DIT_CONFIG["num_embeds_ada_norm"])
    return Suite(
        name="dit",
        backbone=load_dit,
        example_inputs={
            "hidden_states": torch.randn(2, *SHAPE),
            "timestep": torch.tensor([500, 100]),
            "class_labels": torch.tensor([3, 7]),
        },
        sampler=Sampler(
            ddim(),
            SHAPE,
            conditions=lambda seeds: {"class_labels": seeds % 10},
            guidance_scale=1.5,
            negative_conditions=lambda seeds: {"class_labels": torch.full_like(seeds, none)},
        ),
        task=ek.tasks.Noise(scheduler()),
        loader=lambda batch_size, seed: _conditioned("class", batch_size, seed),
        metrics=_metrics,
    )


def _prompts(seeds: Tensor, empty: bool = False) -> dict[str, Any]:
    texts = ["" if empty else caption(int(row) % 10) for row in seeds]
    features, mask = embedded(texts)
    return {
        "encoder_hidden_states": features,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": _NO_SIZES,
    }


def pixart() -> Suite:
    """Digits by caption with guidance, by diffusers' PixArtTransformer2DModel."""
    return Suite(
        name="pixart",
        backbone=load_pixart,
        example_inputs={
            "hidden_states": torch.randn(2, *SHAPE),
            "timestep": torch.tensor([500, 100]),
            **_prompts(torch.tensor([3, 7])),
        },
        sampler=Sampler(
            ddim(),
            SHAPE,
            conditions=_prompts,
            guidance_scale=1.5,
            negative_conditions=lambda seeds: _prompts(seeds, empty=True),
        ),
        task=ek.tasks.Noise(scheduler()),
        loader=lambda batch_size, seed: _conditioned("text", batch_size, seed),
        metrics=_metrics,
    )


def vit() -> Suite:
    """Digits named by a timm ViT of 8 blocks."""
    return digits_suite("vit")


def resnet() -> Suite:
    """Digits named by a timm ResNet-18 of half its width."""
    return digits_suite("resnet")


BY_NAME = {"uvit": uvit, "unet": unet, "dit": dit, "pixart": pixart}
"""The generators by the names of their suites."""
