"""Which argument is the noisy input and which the timestep: names propose, what they do decides.

The noisy input has the form of the output, up to the number of channels; ids have it up to the classes
behind each. A timestep is one number a row that moves every row it is changed for. What names and
runs do not settle is said, and an adapter declares it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from exitkit.errors import TracingError
from exitkit.surgery.dry_run import LeafRecord
from exitkit.surgery.inputs import (
    NOISY_NAMES,
    TIMESTEP_NAMES,
    TOKEN_NAMES,
    Bound,
    entry_name,
    is_time,
)


def noisy_candidates(bound: Bound, module: nn.Module, given: str | None = None) -> list[str]:
    """Paths that may carry the noisy input, the best guess by name and form first.

    Arguments:
        bound: The example inputs.
        module: The backbone, for the message.
        given: Path that an adapter or the user declares.

    Returns:
        The paths; only the declared one, if there is one.

    Raises:
        TracingError: If there is no tensor of data, or the declared path is not there.
    """
    tensors = dict(bound.tensors())
    if given is not None:
        found = given if given in tensors else f"{given}[0]"
        if found not in tensors:
            raise TracingError(
                f"{type(module).__name__}: noisy={given!r} is not among the example inputs "
                f"({', '.join(tensors)}). Name one of these."
            )
        return [found]
    floating = [p for p, t in tensors.items() if t.is_floating_point() and not is_time(p)]
    ids = [p for p, t in tensors.items() if _is_ids(t) and not is_time(p)]
    # Ids before masks: a mask knows two values.
    ids.sort(key=lambda path: -len(tensors[path].unique()))
    order = [
        *_named(floating, NOISY_NAMES, tensors),
        *sorted((p for p in floating if tensors[p].ndim > 1), key=lambda p: tensors[p].ndim < 3),
        *_named(ids, TOKEN_NAMES, tensors),
        *ids,
        *(p for p in floating if tensors[p].ndim == 1),
    ]
    if not order:
        raise TracingError(
            f"{type(module).__name__}: example_inputs hold no floating-point tensor and no ids with "
            f"shape (B, length) (found {', '.join(tensors) or 'no tensor'}). Pass what the model is "
            "called with, for example example_inputs=(x, t)."
        )
    return list(dict.fromkeys(order))


def _is_ids(tensor: Tensor) -> bool:
    plain = not tensor.is_floating_point() and not tensor.is_complex()
    return plain and tensor.dtype != torch.bool and tensor.ndim > 1


def _named(paths: Sequence[str], names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[str]:
    by_name = {entry_name(path): path for path in paths if "." in path and tensors[path].ndim > 1}
    # Arguments come before entries of mappings that have the same name.
    by_name |= {p.removesuffix("[0]"): p for p in paths if "." not in p and tensors[p].ndim > 1}
    return [by_name[name] for name in names if name in by_name]


def noisy_by_form(
    candidates: Mapping[str, LeafRecord], outputs: Sequence[LeafRecord]
) -> str | None:
    """The candidate that has the form of an output.

    Arguments:
        candidates: The candidates in a dry run, the best guess first.
        outputs: The floating-point tensors of its output.

    Returns:
        The first guess that differs from an output in one axis at most, named ones first; if none is
        named, the one that differs least. None if no candidate has the form of an output.
    """
    fits = {
        path: min((_misfit(leaf, output.shape) for output in outputs), default=2)
        for path, leaf in candidates.items()
    }
    able = [path for path in candidates if fits[path] < 2]
    names = (*NOISY_NAMES, *TOKEN_NAMES)
    named = [path for path in able if entry_name(path) in names]
    return next(iter(named or sorted(able, key=fits.__getitem__)), None)


def _misfit(leaf: LeafRecord, output: Sequence[int]) -> int:
    """In how many axes an input differs from an output; 2 for more, or another number of axes."""
    if not leaf.dtype.is_floating_point:  # a score has a number for each class of each id
        rest = [(*output[:axis], *output[axis + 1 :]) for axis in range(1, len(output))]
        return 0 if leaf.shape in rest else 2
    if len(output) != len(leaf.shape):
        return 2
    return min(2, sum(a != b for a, b in zip(leaf.shape, output, strict=True)))


def time_candidates(bound: Bound, noisy: str, declared: str | None) -> tuple[list[str], list[str]]:
    """Names of arguments that may carry the timestep.

    Arguments:
        bound: Two rows of the example.
        noisy: Path of the noisy input.
        declared: Name that an adapter declares.

    Returns:
        Those whose names say so, in the order in which they are tried, and nameless ones: a
        floating-point number, or one a row. Arguments come before entries of mappings.
    """
    if declared is not None:
        return [declared], []
    within = {path: tensor for path, tensor in bound.tensors() if path not in bound.values}
    values = {**bound.values, **within}
    known = dict.fromkeys([*TIMESTEP_NAMES, *(path for path in values if is_time(path))])
    named = [path for path in known if is_number(values.get(path))]
    nameless = [
        path
        for path, value in values.items()
        if path not in known and path != noisy and _is_level(value)
    ]
    return named, nameless


def is_number(value: object) -> bool:
    """Whether a value is a number or a tensor, as timesteps are."""
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _is_level(value: object) -> bool:
    """Whether a value is a floating-point number, or one a row: without a place of its own."""
    if not isinstance(value, Tensor):
        return isinstance(value, float)
    return value.is_floating_point() and value.numel() == (value.shape[0] if value.ndim else 1)


def time_scale(value: int | float | Tensor) -> tuple[float, str]:
    """What brings a timestep to 0..1000, as far as examples of it tell.

    Arguments:
        value: The timesteps of the example.

    Returns:
        The factor, and what is not sure about it, in words. Fractions of one are read as 0..1. A
        timestep of exactly 0 or 1 may be one step of a thousand or an end of 0..1; it is left as it
        is.
    """
    if isinstance(value, int) or (isinstance(value, Tensor) and not value.is_floating_point()):
        return 1.0, ""
    times = torch.as_tensor(value, dtype=torch.float64).abs()
    if not times.numel() or float(times.max()) > 1:
        return 1.0, ""
    if bool((times != times.round()).any()):
        return 1000.0, ""
    return 1.0, (
        f"its range cannot be told from {float(times.max()):g} in the example and is taken as 0..1000; "
        "declare Adapter(timestep_range=(0.0, 1.0)) if that is its range, or pass other timesteps"
    )
