"""Which tensor of an output is the prediction: one rule for wrapped and for bare backbones.

The only candidate is the prediction. Among several, a denoiser predicts in the form of its noisy
input, and a classifier gives one vector a row; `.sample` and `.logits` are the names that diffusers
and transformers give them. What this does not decide is declared, not guessed: exits that are fitted
to one tensor and judged by another would be wrong without a sign.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from exitkit.errors import ConfigError, ShapeError, UnsupportedBackboneError, suggest
from exitkit.surgery.spec import Leaf
from exitkit.tree import leaves

_NAMED = (".sample", ".logits")

Candidate = tuple[str, tuple[int, ...]]
"""Path and shape of a floating-point tensor of an output."""


def choose_prediction(
    name: str, found: Sequence[Candidate], noisy: Sequence[int] | None, declared: str | None = None
) -> str:
    """Says which of several tensors is the prediction.

    Arguments:
        name: The backbone, for the message.
        found: The tensors that may be it, in the order of the output; at least one.
        noisy: Shape of the noisy input, or None for a backbone that does not denoise.
        declared: Path that an adapter declares.

    Returns:
        Its path.

    Raises:
        ConfigError: If the declared path is not among them.
        UnsupportedBackboneError: If several could be it.
    """
    paths = [path for path, _ in found]
    shown = ", ".join(f"{path or 'tensor'} {tuple(shape)}" for path, shape in found)
    if declared is not None:
        if declared not in paths:
            raise ConfigError(
                f"{name}: Adapter(prediction={declared!r}) is not among the floating-point tensors of "
                f"its output ({shown}).{suggest(declared, paths)} Name one of these."
            )
        return declared
    if len(found) == 1:
        return paths[0]
    for alike in _forms(found, noisy):
        if len(alike) == 1:
            return alike[0]
        named = [path for path in alike if path in _NAMED]
        if len(named) == 1:
            return named[0]
        if alike:
            break
    wanted = (
        f"the noisy input has shape {tuple(noisy)}" if noisy else "a classifier gives (B, classes)"
    )
    raise UnsupportedBackboneError(
        f"{name} returns several tensors that could be its prediction: {shown}; {wanted}, which does "
        f"not single one out. Say which with an adapter: Adapter(prediction={paths[0]!r})."
    )


def planned_prediction(
    name: str, outputs: Sequence[Leaf], noisy: Sequence[int], timed: bool, declared: str | None
) -> str:
    """Says which leaf of an output that was run for a plan is the prediction.

    A backbone without a timestep is a classifier, if it gives one vector a row.

    Arguments:
        name: The backbone, for the message.
        outputs: Leaves of its output.
        noisy: Shape of the noisy input.
        timed: Whether it has a timestep.
        declared: Path that an adapter declares.

    Returns:
        Its path, see `choose_prediction`.

    Raises:
        UnsupportedBackboneError: If no floating-point tensor has rows, or several could be it.
    """
    rows = [leaf for leaf in outputs if leaf.axis is not None and "float" in leaf.dtype]
    if not rows:
        raise UnsupportedBackboneError(
            f"{name} returns no floating-point tensor with a batch axis "
            f"({', '.join(f'{o.path} {o.shape}' for o in outputs) or 'no tensor'})."
        )
    able = rows if declared else [leaf for leaf in rows if leaf.moved] or rows
    found = [(leaf.path, leaf.shape) for leaf in able]
    denoises = timed or not any(len(shape) == 2 for _, shape in found)
    return choose_prediction(name, found, noisy if denoises else None, declared)


def _forms(found: Sequence[Candidate], noisy: Sequence[int] | None) -> list[list[str]]:
    """Paths of the right form, the strictest form first."""
    if noisy is None:
        return [[path for path, shape in found if len(shape) == 2]]

    def differs(shape: Sequence[int]) -> int:
        if len(shape) != len(noisy):
            return len(noisy)
        return sum(a != b for a, b in zip(shape, noisy, strict=True))

    # Channels may differ: a learned variance has twice as many, a mask in the input has more.
    return [
        [path for path, shape in found if differs(shape) == 0],
        [path for path, shape in found if differs(shape) <= 1],
        [path for path, _ in found if path in _NAMED],
    ]


def find_prediction(output: object, noisy: Tensor | None = None) -> Tensor:
    """The prediction in the output of a backbone that was never run for a plan.

    Arguments:
        output: Whatever it returned.
        noisy: Its noisy input, with shape (B, ...); None for a classifier.

    Returns:
        The prediction, as it is in the output.

    Raises:
        ShapeError: If there is no tensor to be found.
        UnsupportedBackboneError: If several could be it.
    """
    if isinstance(output, Tensor):
        return output
    found = {path: t for path, t in leaves(output) if t.is_floating_point()}
    if not found:
        raise ShapeError(
            f"The model returned {type(output).__name__}, in which no prediction can be found. "
            "Expected a tensor, or a tuple, mapping or dataclass that holds one."
        )
    candidates = [(path, tuple(t.shape)) for path, t in found.items()]
    name = f"The model ({type(output).__name__})"
    shape = None if noisy is None else tuple(noisy.shape)
    return found[choose_prediction(name, candidates, shape)]
