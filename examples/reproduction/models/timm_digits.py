"""A small timm ViT and ResNet on the digits, and the suites that fit exits to them.

All exits start from the same bare weights and see the same batches. The bare classifiers are trained
when they are first asked for, and kept in a folder.
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

from exitkit.benchmark import Suite
from exitkit.training.tasks import Classification

from .digits import CLASSES, load_digits
from .train_classifier import shifted

SHAPE = (1, 32, 32)
KEPT = Path("runs/classify")
"""Where bare classifiers are kept."""
CALIBRATION = 500
"""Training digits that no weight is fitted to: budgets are calibrated on them."""

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Training:
    """How much training the networks get.

    Attributes:
        bare: Steps of the bare classifier.
        exits: Batches of an epoch in which exits are fitted.
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


def bare(kind: str, part: tuple[Tensor, Tensor], training: Training, folder: Path) -> nn.Module:
    """The bare classifier, trained if the folder has none yet."""
    torch.manual_seed(training.seed)
    network = NETWORKS[kind]()
    path = folder / "bare.safetensors"
    if path.is_file():
        network.load_state_dict(load_file(path))
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, training.bare, pct_start=0.2)
    started = time.monotonic()
    network.train()
    for step, (images, labels) in enumerate(
        drawn(part, training.bare, training.batch, training.seed), start=1
    ):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 100 == 0 or step == training.bare:
            seconds = time.monotonic() - started
            print(f"{kind} bare step={step} loss={loss.item():.3f} s={seconds:.0f}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path)
    return network.eval()


def digits_suite(
    kind: str, training: Training | None = None, folder: Path = KEPT, count: int = CALIBRATION
) -> Suite:
    """A network as a suite: `exitkit compare examples.reproduction.models.suites:vit`.

    Args:
        kind: `vit` or `resnet`.
        training: How much training the bare classifier gets, and an epoch of its exits.
        folder: Where the bare classifier is kept; it is trained when it is first asked for.
        count: Digits of the calibration, and held-out digits.

    Returns:
        The suite.
    """
    training = training or Training(BARE_STEPS[kind], 250)
    place = folder / f"{kind}_{training.bare}_{training.batch}_{training.seed}"
    size = min(50, count)
    return Suite(
        name=kind,
        backbone=lambda: bare(kind, Parts.load().fitted, training, place),
        example_inputs=(torch.zeros(2, *SHAPE),),
        loader=lambda batch, seed: drawn(
            Parts.load().fitted, training.exits, batch, training.seed + seed + 1
        ),
        task=Classification(),
        tuning=lambda: in_batches(Parts.load().calibration, size)[: count // size],
        held_out=lambda: in_batches(Parts.load().held_out, size)[: count // size],
    )
