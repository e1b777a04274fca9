"""Sampling loops of the user's own as samplers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor
from typing_extensions import override

from exitkit.errors import ConfigError
from exitkit.sampling.sample import Edit, Record
from exitkit.sampling.sampler import SamplerBase


@dataclass(frozen=True)
class LoopSampler(SamplerBase):
    """A sampling loop of your own, for models that no diffusers scheduler drives.

    Arguments:
        function: `(model, seeds, steps) -> samples`, with the seeds of one batch, (B,), and samples
            of shape (B, ...). It calls `model` as the backbone is called; a sample must depend on its
            seed alone.
        steps: Steps of a trajectory, handed to the function.
        batch_size: Samples that run together.

    Raises:
        ConfigError: If an argument is out of range.
    """

    function: Callable[[Callable[..., Any], Tensor, int], Tensor]
    steps: int = 50
    batch_size: int = 64

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if not callable(self.function):
            raise ConfigError(
                f"LoopSampler: expected a function of (model, seeds, steps), got "
                f"{type(self.function).__name__}."
            )
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"LoopSampler: {name} must be a whole number of at least 1, got {value!r}."
                )

    @property
    @override
    def ticks(self) -> int:
        return 1

    @property
    @override
    def comparisons(self) -> int:
        return 32

    @override
    def run_batch(
        self,
        model: Callable[..., Any],
        seeds: Tensor,
        edit: Edit | None,
        record: Record | None,
        tick: Callable[[], Any],
    ) -> Tensor:
        if edit is not None:
            raise ConfigError(
                "LoopSampler: the predictions of a loop of your own cannot be edited, so sensitivity "
                "cannot be measured on it. Use ek.Sampler, or a policy that needs no schedule."
            )
        called = model if record is None else _Recorded(model, record)
        samples = self.function(called, seeds, self.steps)
        tick()
        return samples

    @override
    def with_steps(self, steps: int) -> Self:
        return replace(self, steps=steps)

    @override
    def describe(self) -> dict[str, Any]:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return {"function": name, "steps": self.steps}


class _Recorded:
    """Looks like the model to a loop of the user's, and runs it in full."""

    def __init__(self, model: Any, record: Record) -> None:
        self._model, self._record = model, record

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._record.call(self._model, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
