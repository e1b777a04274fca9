"""What classification policies read off the logits of an exit."""

from __future__ import annotations

import torch
from torch import Tensor

from exitkit.errors import ShapeError
from exitkit.policies.base import Policy


def class_logits(policy: Policy, prediction: Tensor) -> Tensor:
    """A prediction as logits of classes.

    Arguments:
        policy: The policy that reads, for the message.
        prediction: What an exit predicts, with shape (R, ...).

    Returns:
        The logits, at least float32, with shape (R, classes).

    Raises:
        ShapeError: If it is something else than classes.
    """
    if prediction.dim() != 2 or prediction.shape[1] < 2:
        raise ShapeError(
            f"{policy} reads class logits (rows, classes), and this model predicts "
            f"{tuple(prediction.shape)}. For diffusion use UncertaintyThreshold, CALM(measure='cosine' "
            "or 'change') or Patience(tolerance=...)."
        )
    return prediction if prediction.dtype == torch.float64 else prediction.float()


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
