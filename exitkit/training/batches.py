"""What a training step works on, and how a batch of the user's data is read.

A batch is a tensor, a tuple `(x0, conditions...)`, or a dictionary; it becomes an `Example`: the
arguments of one forward and the target of its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import ConfigError, ShapeError

IDS_KEYS = ("input_ids", "indices", "token_ids")
"""Names under which a dictionary may hold the ids of a text, for classifiers."""
DATA_KEYS = ("x0", "image", "images", "pixel_values", "latents", "latent", "sample", "input")
"""Names under which a dictionary may hold the data, in the order they are looked up."""
LABEL_KEYS = ("label", "labels", "target", "targets", "class", "y")
"""Names under which a dictionary may hold the class, for classifiers."""


@dataclass(frozen=True)
class Example:
    """One forward and what it should give.

    Attributes:
        args: Positional arguments of the model; `(x_t, t, ...)` for diffusion.
        kwargs: Keyword arguments of the model.
        target: What the output is compared with, rows first; None where only the full model's own
            output counts.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None

    def to(self, device: torch.device | str) -> Example:
        """Returns the example on another device."""
        target = None if self.target is None else self.target.to(device)
        kwargs = {name: to_device(value, device) for name, value in self.kwargs.items()}
        return Example(tuple(to_device(value, device) for value in self.args), kwargs, target)


def to_device(value: Any, device: torch.device | str) -> Any:
    """Moves the tensors inside (nested) tuples, lists and dictionaries; leaves the rest alone."""
    if isinstance(value, Tensor | Example):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(to_device(item, device) for item in value)
    return value


def split_batch(
    batch: Any, task: str, conditions: Sequence[str | None] | None = None
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Reads a batch of diffusion data.

    Arguments:
        batch: A tensor, a tuple `(x0, conditions...)` or a dictionary.
        task: Name of the task, for messages.
        conditions: Names of what follows `x0` in a tuple, None for an entry to drop; entries beyond
            the names are dropped. For dictionaries: the keys to keep. If it is None, a tuple's
            tensors follow `(x_t, t)` by position, dictionaries become keyword arguments, and
            everything is kept.

    Returns:
        The data, further positional arguments, keyword arguments.

    Raises:
        ConfigError: If the batch has another form, or holds no data.
        ShapeError: If the data are no floating-point tensor with rows.
    """
    data, extras, named = _forms(batch, task)
    kwargs: dict[str, Any] = {}
    if conditions is not None:
        wanted = [name for name in conditions if name is not None]
        for name, value in zip(conditions, extras, strict=False):
            if name is not None:
                kwargs[name] = value
        kwargs |= {name: value for name, value in named.items() if name in wanted}
        missing = [name for name in wanted if name not in kwargs]
        if missing:
            raise ConfigError(
                f"{task}: the batch has no {', '.join(map(repr, missing))} "
                f"(it has {1 + len(extras)} entries by position and the names {sorted(named)}). "
                f"Adapt conditions={tuple(conditions)!r}."
            )
        extras = ()
    else:
        kwargs |= named
    _check_data(data, task)
    for value in (*extras, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() > 0 and len(value) != len(data):
            raise ShapeError(
                f"{task}: a condition has {len(value)} rows where the data have {len(data)}. "
                "Conditions need one entry for each row."
            )
    return data, extras, kwargs


def split_labelled(batch: Any, task: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Reads a batch of images or ids with classes: a tuple `(image, label)` or a dictionary.

    Arguments:
        batch: The batch.
        task: Name of the task, for messages.

    Returns:
        Images (B, ...) or ids (B, length), classes (B,) as int64, further keyword arguments.

    Raises:
        ConfigError: If the batch has another form, or holds no labels.
        ShapeError: If images or labels have the wrong shape or dtype.
    """
    data, extras, named = _forms(batch, task)
    label: Any = None
    if extras:
        label, extras = extras[0], extras[1:]
    else:
        found = [key for key in LABEL_KEYS if key in named]
        if found:
            label = named.pop(found[0])
    if not isinstance(label, Tensor):
        raise ConfigError(
            f"{task}: the batch has no labels. Expected (image, label), or a dictionary with one "
            f"of {', '.join(LABEL_KEYS)}."
        )
    if extras:
        raise ConfigError(f"{task}: expected (image, label), got {2 + len(extras)} entries.")
    _check_data(data, task, ids=True)
    if label.shape != (len(data),) or label.is_floating_point() or label.is_complex():
        raise ShapeError(
            f"{task}: labels must be integer classes with shape ({len(data)},), got "
            f"{str(label.dtype).removeprefix('torch.')} with shape {tuple(label.shape)}."
        )
    return data, label.long(), named


def _forms(batch: Any, task: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, Tensor):
        return batch, (), {}
    if isinstance(batch, Mapping):
        found = [key for key in (*DATA_KEYS, *IDS_KEYS) if key in batch]
        if not found:
            raise ConfigError(
                f"{task}: the batch holds {sorted(map(str, batch))}, none of which is the data. "
                f"Name the data one of {', '.join(DATA_KEYS)}, or pass (x0, conditions)."
            )
        return batch[found[0]], (), {str(k): v for k, v in batch.items() if k != found[0]}
    if isinstance(batch, tuple | list) and batch:
        tensors = [item for item in batch[1:] if not isinstance(item, Mapping)]
        named = [item for item in batch[1:] if isinstance(item, Mapping)]
        return batch[0], tuple(tensors), {str(k): v for d in named for k, v in d.items()}
    raise ConfigError(
        f"{task}: cannot read a batch of type {type(batch).__name__}. Expected a tensor x0, a "
        "tuple (x0, conditions...), or a dictionary with the data under 'x0' or 'image'."
    )


def _check_data(data: Any, task: str, ids: bool = False) -> None:
    if not isinstance(data, Tensor):
        raise ConfigError(
            f"{task}: the data of the batch are of type {type(data).__name__}, expected a tensor. "
            "Convert images with a transform such as torchvision's ToTensor."
        )
    if data.dim() < 2 or data.shape[0] == 0:
        raise ShapeError(
            f"{task}: the data have shape {tuple(data.shape)}, expected rows first, (B, ...)."
        )
    if ids and data.dtype in (torch.int32, torch.int64):
        return
    if not data.is_floating_point():
        raise ShapeError(
            f"{task}: the data have dtype {str(data.dtype).removeprefix('torch.')}. Scale them to "
            "floating point as the model was trained, for example image / 127.5 - 1."
        )
