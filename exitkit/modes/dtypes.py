"""The dtype that a model computes in, which need not be the one that its weights are stored in."""

from __future__ import annotations

import torch
from torch import nn


def compute_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of what a model hands from layer to layer.

    Weights may be stored in fewer bits and widened for each layer (diffusers' layerwise casting); such
    a model declares as `dtype` what it computes in.

    Arguments:
        model: The model.

    Returns:
        Its first floating parameter's dtype; a wider one where the model declares that, or where the
        first is stored in one byte. None where nothing tells.
    """
    found = [p.dtype for p in model.parameters() if p.is_floating_point()]
    if not found:
        return None
    declared = getattr(model, "dtype", None)
    if isinstance(declared, torch.dtype) and declared.is_floating_point:
        if declared.itemsize > found[0].itemsize:
            return declared
    return next((dtype for dtype in found if dtype.itemsize > 1), None)


class ComputeDtype:
    """The dtype that a model computes in, asked anew where its first parameter is stored otherwise.

    Arguments:
        model: The model. The place of its first floating parameter is looked for once.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._folders: list[str] = []
        self._name = ""
        self._stored: torch.dtype | None = None
        self._computes: torch.dtype | None = None

    def __call__(self) -> torch.dtype | None:
        """The dtype at present, see `compute_dtype`."""
        stored = self._first()
        if stored != self._stored:
            self._stored, self._computes = stored, compute_dtype(self._model)
        return self._computes

    def _first(self) -> torch.dtype | None:
        module: nn.Module | None = self._model
        for name in self._folders:
            module = module._modules.get(name) if module is not None else None
        parameter = module._parameters.get(self._name) if module is not None else None
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
        for path, found in self._model.named_parameters():
            if found.is_floating_point():
                *self._folders, self._name = path.split(".")
                return found.dtype
        return None
