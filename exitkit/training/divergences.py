"""How far one output is from another: for regressions by element, for classifiers by row.

A divergence gives the error that an exit is fitted with, and the pseudo target of its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from exitkit.errors import ShapeError

_EPS = 1e-6
_TOLERATED = 0.1
"""Gap to the full model, in units of its output's size, that does not count as another answer."""


class Divergence(Protocol):
    """What the loss needs to know about outputs."""

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Errors against the task's target, by element or by row."""

    def distances(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """The same against the output of the full model."""

    def absolute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Pseudo target in [0, 1] against the task's target."""

    def relative(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Pseudo target in [0, 1] against the output of the full model."""

    def disagreement(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Pseudo target 0 or 1: whether leaving would change the full model's answer."""

    def crop(self, tensors: Sequence[Tensor], target: Tensor | None) -> list[Tensor]:
        """Brings outputs and maps to the part that the target speaks of."""


class Regression:
    r"""Squared error, eq. 8's :math:`\tanh|y - target|`, the gap in units of the output's size."""

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared differences, (B, *output)."""
        return (prediction - target).square()

    def distances(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Squared differences, (B, *output)."""
        return (prediction - reference).square()

    def absolute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Eq. 8, tanh|prediction - target|, (B, *output)."""
        return (prediction - target).abs().tanh()

    def relative(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """tanh(|prediction - reference| / s), s the root mean square of the reference's row."""
        return ((prediction - reference).abs() / row_size(reference)).tanh()

    def disagreement(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """1 where the root mean square gap exceeds a tenth of the output's size, else 0, (B,)."""
        gap = (prediction - reference).flatten(1).square().mean(dim=1).sqrt()
        size = row_size(reference).flatten()
        return (gap > _TOLERATED * size).to(prediction.dtype)

    def crop(self, tensors: Sequence[Tensor], target: Tensor | None) -> list[Tensor]:
        """Leaves out learned variances if there is a target that lacks them."""
        if target is None:
            return list(tensors)
        return [first_channels(tensor, target) for tensor in tensors]


class Classes:
    r"""Cross entropy, "is the class wrong" (BERxiT), and the total variation between softmaxes."""

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy against classes, (B,)."""
        return F.cross_entropy(prediction, target, reduction="none")

    def distances(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Kullback-Leibler divergence from the reference's distribution, (B,)."""
        wanted, given = reference.log_softmax(dim=1), prediction.log_softmax(dim=1)
        return (wanted.exp() * (wanted - given)).sum(dim=1)

    def absolute(self, prediction: Tensor, target: Tensor) -> Tensor:
        """1 where the most likely class is not the target (classes, or logits), else 0, (B,)."""
        classes = target if target.dim() == 1 else target.argmax(dim=1)
        return (prediction.argmax(dim=1) != classes).to(prediction.dtype)

    def relative(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """Total variation, half the L1 distance between the softmaxes, in [0, 1], (B,)."""
        return (prediction.softmax(dim=1) - reference.softmax(dim=1)).abs().sum(dim=1) / 2

    def disagreement(self, prediction: Tensor, reference: Tensor) -> Tensor:
        """1 where the most likely class is not the full model's, else 0, (B,)."""
        return (prediction.argmax(dim=1) != reference.argmax(dim=1)).to(prediction.dtype)

    def crop(self, tensors: Sequence[Tensor], target: Tensor | None) -> list[Tensor]:
        """Logits stay as they are."""
        for tensor in tensors:
            if tensor.dim() != 2:
                raise ShapeError(
                    f"Classification: expected logits (B, classes), got {tuple(tensor.shape)}."
                )
        return list(tensors)


def first_channels(prediction: Tensor, target: Tensor) -> Tensor:
    """Leaves out what a prediction has beyond the target: the learned variances of its channels.

    Arguments:
        prediction: Prediction with shape (B, C, ...) or (B, 2 C, ...).
        target: Target with shape (B, C, ...).

    Returns:
        The prediction's first C channels.

    Raises:
        ShapeError: If the shapes differ in another way.
    """
    if prediction.shape == target.shape:
        return prediction
    have, want = tuple(prediction.shape), tuple(target.shape)
    if len(have) == len(want) >= 2 and have == (want[0], 2 * want[1], *want[2:]):
        return prediction[:, : want[1]]
    raise ShapeError(
        f"The prediction has shape {have}, the target {want}. Expected the same shape, or twice "
        "the channels (learned variances). Does the task fit what this model predicts?"
    )


def row_size(reference: Tensor) -> Tensor:
    """Root mean square of each row, (B, 1, ...), no gradient, never 0."""
    rows = reference.detach().flatten(1)
    size = rows.square().mean(dim=1).sqrt() + _EPS
    return size.reshape(-1, *[1] * (reference.dim() - 1))


def row_gap(prediction: Tensor, reference: Tensor) -> Tensor:
    """tanh(rms(prediction - reference) / rms(reference)) of each row, (B,)."""
    rms = (prediction - reference).flatten(1).square().mean(dim=1).sqrt()
    return (rms / row_size(reference).flatten()).tanh()


def pool_to(target: Tensor, shape: Sequence[int]) -> Tensor:
    """Averages a map of pseudo targets down to the shape of a coarser uncertainty.

    Arguments:
        target: Pseudo targets (B, ...).
        shape: Shape of the uncertainty (B, ...): the same, one value a row, one a position in
            front, a coarser grid, or one a patch (B, T) in the order of rows.

    Returns:
        Pseudo targets with the wanted shape. Where no layout fits (tokens whose place is unknown),
        every value is the row's mean.
    """
    shape = tuple(shape)
    if target.shape == shape:
        return target
    rows = shape[0]
    count = int(torch.Size(shape[1:]).numel())
    if count == 1:
        return (
            target.flatten(1).mean(dim=1).reshape(shape)
            if target.dim() > 1
            else target.reshape(shape)
        )
    if len(shape) == target.dim() == 4 and _divides(target.shape[2:], shape[2:]):
        pooled = F.adaptive_avg_pool2d(target, shape[2:])
        if shape[1] == target.shape[1]:
            return pooled
        return pooled.mean(dim=1, keepdim=True).expand(shape)
    if len(shape) < target.dim() and tuple(target.shape[: len(shape)]) == shape:
        return target.flatten(len(shape)).mean(dim=-1)
    if len(shape) == 2 and target.dim() == 4:
        grid = _patches(count, *target.shape[2:])
        if grid is not None:
            return F.adaptive_avg_pool2d(target, grid).mean(dim=1).flatten(1)
    mean = target.flatten(1).mean(dim=1) if target.dim() > 1 else target
    return mean.reshape(rows, *[1] * (len(shape) - 1)).expand(shape)


def _divides(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    return all(have % want == 0 for have, want in zip(fine, coarse, strict=True))


def _patches(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """The grid of square patches with as many patches as tokens."""
    for patch in range(1, min(height, width) + 1):
        rows, columns = height // patch, width // patch
        if height % patch == 0 and width % patch == 0 and rows * columns == tokens:
            return rows, columns
    return None
