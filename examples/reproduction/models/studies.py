"""The reference models as studies: `exitkit compare examples.reproduction.models.studies:uvit`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import exitkit as ek
from exitkit.benchmark import ClassStudy, Study
from exitkit.evaluation.baselines import DuoDiff

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
from .timm_digits import class_study

SHAPE = (1, 32, 32)
SWITCH = 600.0
"""Timestep below which DuoDiff's full network takes over; about half the cost with DDIM."""


def ddim() -> DDIMScheduler:
    """The sampler, with the noise schedule of the training."""
    made: DDIMScheduler = DDIMScheduler.from_config(scheduler().config)
    return made


def _judges() -> dict[str, Any]:
    return {
        "features": load_features,
        "reference_images": lambda: load_digits().held_out_images,
        "classifier": load_classifier,
    }


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


def uvit() -> Study:
    """Unconditional digits by a U-ViT of 9 blocks."""
    networks: dict[str, Any] = {}
    if (WEIGHTS / "small_mnist.safetensors").is_file():
        networks["small model"] = load_small_uvit
        networks["duodiff"] = lambda: DuoDiff(load_small_uvit(), load_uvit(), SWITCH)
    return Study(
        name="uvit",
        backbone=load_uvit,
        example_inputs=(torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])),
        scheduler=ddim(),
        shape=SHAPE,
        task=ek.tasks.Noise(scheduler()),
        loader=_plain_loader,
        networks=networks,
        **_judges(),
    )


def unet() -> Study:
    """Unconditional digits by diffusers' UNet2DModel."""
    return Study(
        name="unet",
        backbone=load_unet,
        example_inputs=(torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])),
        scheduler=ddim(),
        shape=SHAPE,
        task=ek.tasks.Noise(scheduler()),
        loader=_plain_loader,
        **_judges(),
    )


def dit() -> Study:
    """Digits by class with guidance, by diffusers' DiTTransformer2DModel."""
    none = int(DIT_CONFIG["num_embeds_ada_norm"])
    return Study(
        name="dit",
        backbone=load_dit,
        example_inputs={
            "hidden_states": torch.randn(2, *SHAPE),
            "timestep": torch.tensor([500, 100]),
            "class_labels": torch.tensor([3, 7]),
        },
        scheduler=ddim(),
        shape=SHAPE,
        task=ek.tasks.Noise(scheduler()),
        loader=lambda batch_size, seed: _conditioned("class", batch_size, seed),
        inputs=lambda rows: {"class_labels": rows % 10},
        negative_inputs=lambda rows: {"class_labels": torch.full_like(rows, none)},
        guidance_scale=1.5,
        **_judges(),
    )


def _prompts(rows: Tensor, empty: bool = False) -> dict[str, Any]:
    texts = ["" if empty else caption(int(row) % 10) for row in rows]
    features, mask = embedded(texts)
    return {
        "encoder_hidden_states": features,
        "encoder_attention_mask": mask,
        "added_cond_kwargs": _NO_SIZES,
    }


def pixart() -> Study:
    """Digits by caption with guidance, by diffusers' PixArtTransformer2DModel."""
    return Study(
        name="pixart",
        backbone=load_pixart,
        example_inputs={
            "hidden_states": torch.randn(2, *SHAPE),
            "timestep": torch.tensor([500, 100]),
            **_prompts(torch.tensor([3, 7])),
        },
        scheduler=ddim(),
        shape=SHAPE,
        task=ek.tasks.Noise(scheduler()),
        loader=lambda batch_size, seed: _conditioned("text", batch_size, seed),
        inputs=_prompts,
        negative_inputs=lambda rows: _prompts(rows, empty=True),
        guidance_scale=1.5,
        **_judges(),
    )


def vit() -> ClassStudy:
    """Digits named by a timm ViT of 8 blocks."""
    return class_study("vit")


def resnet() -> ClassStudy:
    """Digits named by a timm ResNet-18 of half its width."""
    return class_study("resnet")
