"""The U-ViT of an experiment, bare and with exits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import exitkit as ek
from examples.reproduction.models.uvit import UViT
from exitkit.errors import ConfigError
from exitkit.policies import UncertaintyThreshold

from .config import Experiment
from .weights import load_weights


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers of a seed: all processes, and the same run started again, begin alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def build_backbone(experiment: Experiment) -> UViT:
    """The U-ViT with its published weights, in eval mode; random ones of seed 0 if none are named."""
    with seeded(0):
        model = UViT(experiment.backbone.shape)
    if experiment.backbone.weights is not None:
        load_weights(model, experiment.backbone.weights)
    return model.eval()


def example_inputs(experiment: Experiment, device: torch.device) -> ek.Inputs:
    """A small batch to find the blocks with."""
    x = torch.randn(2, *experiment.sample_shape, device=device)
    named: dict[str, Tensor] = {}
    if experiment.backbone.shape.num_classes > 0:
        named["y"] = torch.tensor([0, 1], device=device)
    if experiment.backbone.shape.clip_dim > 0:
        shape = (2, experiment.backbone.shape.num_clip_token, experiment.backbone.shape.clip_dim)
        named["context"] = torch.randn(shape, device=device)
    return ek.Inputs(x, torch.tensor([500.0, 100.0], device=device), **named)


def wrap_exits(experiment: Experiment, device: torch.device) -> ek.ExitModel:
    """The U-ViT with the untrained exits of the preset."""
    backbone = build_backbone(experiment).to(device)
    inputs = example_inputs(experiment, device)
    with seeded(experiment.recipe.seed):
        model: ek.ExitModel = ek.wrap(backbone, experiment.exits.preset, example_inputs=inputs)
    model.policy = at_threshold(model.policy, experiment.exits.threshold)
    return model


def load_exits(
    experiment: Experiment, folder: Path, threshold: float | None, device: torch.device
) -> ek.ExitModel:
    """The U-ViT with trained exits.

    Arguments:
        experiment: The experiment.
        folder: What training wrote: `OUT/exits`.
        threshold: Uncertainty below which a sample leaves; the experiment's if None.
        device: Where it is to run.
    """
    backbone = build_backbone(experiment).to(device)
    inputs = example_inputs(experiment, device)
    model = ek.ExitModel.from_pretrained(backbone, folder, example_inputs=inputs)
    chosen = experiment.exits.threshold if threshold is None else threshold
    model.policy = at_threshold(model.policy, chosen)
    return model


def at_threshold(policy: ek.policies.Policy, threshold: float) -> ek.policies.Policy:
    """A preset's policy with another threshold, and one decision a sample.

    The released code takes one decision a batch, and is run with batches of one: the same, and here
    with batches of any size.

    Arguments:
        policy: The policy.
        threshold: The threshold.

    Raises:
        ConfigError: If the policy has no threshold.
    """
    if not isinstance(policy, UncertaintyThreshold):
        raise ConfigError(
            f"expected exits with an UncertaintyThreshold, these have {type(policy).__name__}."
        )
    return replace(policy, threshold=threshold, batch_mean=False)
