"""A small timm ViT and ResNet on the digits: bare, and with the exits of every preset.

All exits start from the same bare weights and see the same batches, as many of them each. What was
trained is kept in a folder, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import exitkit as ek

from .digits import CLASSES, load_digits
from .train_classifier import shifted

SHAPE = (1, 32, 32)
CALIBRATION = 500
"""Training digits that no weight is fitted to: budgets are calibrated on them."""

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How much training the networks get.

    Attributes:
        bare: Steps of the bare classifier.
        exits: Steps of each preset.
        batch: Images of a step.
        lr: Largest learning rate, of both.
        seed: Seed of weights, order and shifts.
    """

    bare: int
    exits: int
    batch: int = 32
    lr: float = 1e-3
    seed: int = 0


def vit() -> nn.Module:
    """A ViT of 8 blocks, width 96, on patches of 4x4 pixels."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SHAPE[1],
        patch_size=4,
        in_chans=SHAPE[0],
        num_classes=CLASSES,
        embed_dim=96,
        depth=8,
        num_heads=3,
    )


def resnet() -> nn.Module:
    """A ResNet-18 at half its width."""
    return timm.create_model(
        "resnet18", in_chans=SHAPE[0], num_classes=CLASSES, channels=(32, 64, 128, 256)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "resnet": resnet}
BARE_STEPS = {"vit": 1500, "resnet": 600}
"""Steps of the bare classifier; without convolutions it takes longer to see what a stroke is."""


@dataclass(frozen=True)
class Parts:
    """The digits: what weights are fitted to, what budgets are, and what is reported."""

    fitted: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]

    @classmethod
    @cache
    def load(cls) -> Parts:
        """Splits the training digits; the held-out ones stay whole. Reading them takes seconds."""
        digits = load_digits()
        images, labels = digits.train_images, digits.train_labels
        return cls(
            (images[CALIBRATION:], labels[CALIBRATION:]),
            (images[:CALIBRATION], labels[:CALIBRATION]),
            (digits.held_out_images, digits.held_out_labels),
        )


def in_batches(part: tuple[Tensor, Tensor], size: int) -> Batches:
    """A part of the digits in its own order."""
    return list(zip(part[0].split(size), part[1].split(size), strict=True))


def drawn(part: tuple[Tensor, Tensor], steps: int, size: int, seed: int) -> Batches:
    """Batches of randomly shifted images, the same for the same seed."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        chosen = [torch.randint(len(part[0]), (size,)) for _ in range(steps)]
        return [(shifted(part[0][rows]), part[1][rows]) for rows in chosen]
    finally:
        torch.set_rng_state(state)


def bare(kind: str, part: tuple[Tensor, Tensor], recipe: Recipe, folder: Path) -> nn.Module:
    """The bare classifier, trained if the folder has none yet."""
    torch.manual_seed(recipe.seed)
    network = NETWORKS[kind]()
    path = folder / "bare.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.bare, pct_start=0.2)
    started = time.monotonic()
    network.train()
    for step, (images, labels) in enumerate(
        drawn(part, recipe.bare, recipe.batch, recipe.seed), start=1
    ):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 100 == 0 or step == recipe.bare:
            seconds = time.monotonic() - started
            print(f"{kind} bare step={step} loss={loss.item():.3f} s={seconds:.0f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path)
    return network.eval()


def exits(
    kind: str, preset: str, part: tuple[Tensor, Tensor], recipe: Recipe, folder: Path
) -> ek.ExitModel:
    """The classifier with the fine-tuned exits of a preset, from the folder if it has them."""
    saved, example = folder / preset, (torch.zeros(2, *SHAPE),)
    network = bare(kind, part, recipe, folder)
    if (saved / "done").is_file():
        return ek.ExitModel.from_pretrained(network, saved, example_inputs=example)
    torch.manual_seed(recipe.seed)
    model = ek.wrap(network, preset, example_inputs=example)
    result = ek.fit(
        model,
        drawn(part, recipe.exits, recipe.batch, recipe.seed + 1),
        ek.tasks.Classification(),
        steps=recipe.exits,
        lr=recipe.lr,
        warmup=max(1, recipe.exits // 10),
        schedule="cosine",
        ema=0.99,
        seed=recipe.seed,
        checkpoint_dir=folder / "checkpoints" / preset,
        checkpoint_every=50,
        progress=False,
    )
    print(f"{kind} {preset}: {result.steps} steps in {result.seconds:.0f} s", flush=True)
    model.save_pretrained(saved)
    (saved / "done").touch()
    return model
