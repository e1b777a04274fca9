"""Networks of timm by name, untrained: enough to see where they can be left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, suggest

PREFIX = "timm/"
"""What an address of a timm model begins with."""


def timm_model(name: str) -> tuple[nn.Module, tuple[Tensor]]:
    """Builds a network of timm without its weights, and inputs of the size that it is made for.

    Arguments:
        name: As in `timm.list_models()`, with or without a tag of weights.

    Returns:
        The network in eval mode, and two random images.

    Raises:
        ConfigError: If timm has no such model, or does not say what it takes.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(
            f"timm {timm.__version__} has no model {name!r}, one of {len(known)}."
            f"{suggest(name, known)} `timm.list_models('*{name[:4]}*')` lists those alike."
        )
    network = timm.create_model(name, pretrained=False).eval()
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", {})
    size = config.get("input_size")
    if size is None:
        raise ConfigError(
            f"timm does not say what {name!r} takes. Build it in a function that returns an "
            "exitkit.benchmark.Suite, and pass that function's address, module:function."
        )
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    return network, (images,)
