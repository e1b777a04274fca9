"""How a pipeline mixes the predictions of guidance into the one that its scheduler gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from exitkit.errors import ConfigError

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


class GuidedMix:
    """Weights of the parts that a prediction is mixed of, read off the predictions themselves.

    They sum to 1, as those of classifier-free guidance do, and may differ from row to row.

    Arguments:
        parts: Predictions of the branches, each with shape (B, ...).
        mixed: What the scheduler gets, with shape (B, ...).
        name: Class of the pipeline, as the subject of the message.

    Raises:
        ConfigError: If it is no such mixture.
    """

    def __init__(self, parts: Sequence[Tensor], mixed: Tensor, name: str) -> None:
        first, *others = (part.double().flatten(1) for part in parts)
        wanted = mixed.double().flatten(1) - first
        if others:
            apart = torch.stack(
                [other - first for other in others], dim=2
            )  # (B, entries, parts - 1)
            gram = apart.transpose(1, 2) @ apart
            # Branches may agree, as those without a condition do: then any weights are right.
            weights = torch.linalg.pinv(gram) @ (apart.transpose(1, 2) @ wanted[:, :, None])
            wanted = wanted - (apart @ weights)[:, :, 0]
            self._weights = torch.cat([1 - weights.sum(1), weights[:, :, 0]], dim=1)
        else:
            self._weights = torch.ones(len(first), 1, dtype=torch.float64, device=first.device)
        left = float(wanted.norm() / mixed.double().norm().clamp_min(1e-30))
        if left > _TOLERANCE.get(mixed.dtype, 3e-2):
            raise ConfigError(
                f"fit: what {name} hands to its scheduler is no weighted mean of the {len(parts)} "
                f"predictions of a step ({left:.2g} of it is something else): guidance_rescale, projected "
                "guidance or a changed sign. Completion moves predictions before they are mixed, so it "
                "cannot be solved here. Turn that off, or use the preset 'relative'."
            )

    def of(self, parts: Sequence[Tensor]) -> Tensor:
        """Mixes other parts alike.

        Arguments:
            parts: One of each branch, with shape (B, ...).

        Returns:
            With shape (B, ...).
        """
        shape = (-1, *[1] * (parts[0].ndim - 1))
        weights = self._weights.to(parts[0]).unbind(1)
        return torch.stack(
            [weight.view(shape) * part for weight, part in zip(weights, parts, strict=True)]
        ).sum(0)
