"""Rows that leave together: the copies of a sample under classifier-free guidance.

A pipeline asks its denoiser for the same noisy input with and without the prompt and extrapolates from
the difference. Left at different depths, the two answers differ for that reason too, and guidance
multiplies it. Copies come stacked along the batch, or in calls of their own at the same timestep.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from exitkit.execution import host

_MOST = 4  # conditional, unconditional, and what perturbed-attention and other guidance add


@dataclass(frozen=True)
class GuidanceGroups:
    """Which rows of a call leave together.

    Attributes:
        copies: How many copies of each sample are stacked along the batch, one behind the other.
        given: Depths that an earlier call of the same step decided, with shape (B,), or None.
    """

    copies: int = 1
    given: Tensor | None = None

    @classmethod
    def of(cls, noisy: Tensor, given: Tensor | None) -> GuidanceGroups:
        """Finds copies among the rows of a noisy input.

        Arguments:
            noisy: Noisy input, with shape (B, ...).
            given: Depths of an earlier call of the same step, or None.

        Returns:
            The ties.
        """
        batch = noisy.shape[0]
        if given is not None and given.shape[0] != batch:
            given = None
        for copies in range(min(_MOST, batch), 1, -1):
            if batch % copies == 0:
                parts = noisy.reshape(copies, batch // copies, *noisy.shape[1:])
                if host.same(parts[1:], parts[:1].expand_as(parts[1:])):
                    return cls(copies, given)
        return cls(1, given)

    def unanimous(self, mask: Tensor) -> Tensor:
        """Lets rows leave only where all copies would; rows sorted and closed under ties, (R,)."""
        if self.copies == 1:
            return mask
        return mask.reshape(self.copies, -1).all(dim=0).repeat(self.copies)

    def deepest(self, depths: Tensor) -> Tensor:
        """The largest depth among the copies, for each, (B,)."""
        if self.copies == 1:
            return depths
        return depths.reshape(self.copies, -1).amax(dim=0).repeat(self.copies)


UNGROUPED = GuidanceGroups()
"""Every row decides for itself."""
