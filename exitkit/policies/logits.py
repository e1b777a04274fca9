"""What classification policies read off the logits of an exit."""

from __future__ import annotations

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.policies.base import Signals


def logits_of(signals: Signals, policy: str) -> Tensor:
    """The exit's logits, at least float32, with shape (R, classes).

    Arguments:
        signals: What can be seen at this exit.
        policy: Name of the policy that asks, for the message.

    Returns:
        The logits.

    Raises:
        ShapeError: If the model predicts something else than classes.
    """
    logits = signals.prediction()
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ShapeError(
            f"{policy} reads class logits (rows, classes), and this model predicts "
            f"{tuple(logits.shape)}. For diffusion use UncertaintyThreshold, CALM(measure='cosine' "
            "or 'change') or Patience(tolerance=...)."
        )
    return logits if logits.dtype == torch.float64 else logits.float()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax in nats, with shape (R)."""
    logs = logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def largest_probability(logits: Tensor) -> Tensor:
    """The largest softmax probability, with shape (R)."""
    return logits.softmax(dim=1).amax(dim=1)


def probability_margin(logits: Tensor) -> Tensor:
    """The largest softmax probability minus the second largest, with shape (R)."""
    first, second = logits.softmax(dim=1).topk(2, dim=1).values.unbind(dim=1)
    return first - second
