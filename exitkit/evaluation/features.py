"""What sets of images are compared by: a network's vectors, taken where its weights are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from exitkit.errors import ShapeError
from exitkit.modes.flags import evaluating
from exitkit.sampling.network import placement


@contextmanager
def judging(network: Callable[[Tensor], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """A network in evaluation mode, fed where its weights are; answers come back to the CPU."""
    device, _ = placement(network)
    with ExitStack() as stack:
        if isinstance(network, nn.Module):
            stack.enter_context(evaluating(network))
        yield lambda images: network(images.to(device)).cpu()


def check_sets(what: str, images: Tensor, reference: Tensor) -> None:
    """Raises unless both sets have two images or more.

    Arguments:
        what: The measure, for the message.
        images: (n, *shape).
        reference: (m, *shape).

    Raises:
        ShapeError: If a set is smaller.
    """
    if min(len(images), len(reference)) < 2:
        raise ShapeError(
            f"{what}: got {len(images)} and {len(reference)} images, needs two of each."
        )


def width(what: str, features: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Length of the vector that one image becomes.

    Arguments:
        what: The measure, for the message.
        features: Maps images to vectors.
        image: (1, *shape).

    Returns:
        Its length.

    Raises:
        ShapeError: If it becomes something else.
    """
    out = features(image)
    if out.dim() < 2 or len(out) != 1:
        raise ShapeError(
            f"{what}: expected features of shape (1, d) for one image, got "
            f"{tuple(out.shape)}. Pass a module that maps images to one vector each."
        )
    return out[0].numel()


@torch.no_grad()
def vectors(what: str, images: Tensor, features: nn.Module, batch_size: int) -> Tensor:
    """Images as vectors of double precision.

    Arguments:
        what: The measure, for messages.
        images: (n, *shape).
        features: Maps images to vectors.
        batch_size: Images a call.

    Returns:
        (n, d).
    """
    with judging(features) as judge:
        width(what, judge, images[:1])
        return torch.cat([judge(b).flatten(1).double() for b in images.split(batch_size)])
