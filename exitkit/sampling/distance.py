"""How far samples are from those of another run with the same seeds."""

from __future__ import annotations

from torch import Tensor

from exitkit.errors import ShapeError


def paired_distance(images: Tensor, reference: Tensor) -> Tensor:
    """Root mean square difference between samples of the same seed.

    Arguments:
        images: (n, *shape).
        reference: (n, *shape), in the same order of seeds.

    Returns:
        (n,), in the units of the images, 0 or larger.

    Raises:
        ShapeError: If the shapes differ.
    """
    if images.shape != reference.shape:
        raise ShapeError(
            f"Paired distance: got images {tuple(images.shape)} and reference "
            f"{tuple(reference.shape)}. Generate both from the same list of seeds."
        )
    return (images.float() - reference.float()).square().flatten(1).mean(dim=1).sqrt()
