"""The S-Pruning row: structural pruning to equal cost by torch-pruning, then the same fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples.reproduction.models.digits import load_digits
from examples.reproduction.models.models import load_uvit, scheduler
from exitkit.evaluation.baselines import executed_macs

RATE = 2e-4


def pruned_uvit(ratio: float) -> nn.Module:
    """The trained U-ViT without the least important hidden units of its perceptrons.

    The residual width stays: sines of the timestep and the position table fix it.

    Args:
        ratio: Share of the hidden units that goes.

    Returns:
        A smaller network.
    """
    import torch_pruning as tp

    model = load_uvit()
    inputs = (torch.randn(1, 1, 32, 32), torch.tensor([500.0]))
    wanted = [m for name, m in model.named_modules() if name.endswith("mlp.fc1")]
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    pruner = tp.pruner.MagnitudePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[m for m in ignored if m not in wanted],
        unwrapped_parameters=[(model.pos_embed, 2)],
    )
    pruner.step()
    return model


def ratio_for(cost: float) -> float:
    """Finds the share of hidden units to prune for a cost, by bisection on executed MACs."""
    inputs = (torch.randn(1, 1, 32, 32), torch.tensor([500.0]))

    def macs(model: nn.Module) -> float:
        return executed_macs(lambda: model(*inputs))

    full, low, high = macs(load_uvit()), 0.0, 0.98
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(pruned_uvit(middle)) > cost * full else (low, middle)
    return high


def fine_tuned(
    model: nn.Module, steps: int, batch: int, path: Path, say: Callable[[str], None], seed: int = 0
) -> nn.Module:
    """Fine-tunes a network on the noise target, or loads what was fine-tuned before.

    Args:
        model: The network.
        steps: Optimiser steps, as many as exits get.
        batch: Rows of a step.
        path: Where the weights are kept.
        say: Told the loss now and then.
        seed: Seed of data and noise.

    Returns:
        The same network, in eval mode.
    """
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    torch.manual_seed(seed)
    images, noises = load_digits().train_images, scheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    model.train()
    for step in range(steps):
        x = images[torch.randint(len(images), (batch,))]
        t, noise = torch.randint(1000, (batch,)), torch.randn_like(x)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            predicted = model(noises.add_noise(x, noise, t), t.float())
        loss = F.mse_loss(predicted.float(), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 49:
            say(f"pruned: step {step + 1} loss {loss.item():.4f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()
