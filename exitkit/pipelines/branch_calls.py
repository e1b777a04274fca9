"""What a pipeline's calls of its denoiser get while completion is solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.execution.calls import CallReader
from exitkit.heads import CompletionHead, CompletionState
from exitkit.heads.completion.state import FullStep, behind
from exitkit.model import ExitModel
from exitkit.surgery.inputs import bind, signature_of


@dataclass(frozen=True)
class _Seen:
    """One call: K rows, those of several branches of guidance among them."""

    noisy: Tensor
    timestep: Tensor
    made: Tensor
    columns: list[Tensor]


class BranchCalls:
    """Answers the calls of one trajectory: the backbone's prediction, or the forecast, uncorrected.

    Arguments:
        model: The wrapped model.
        head: Forecasts; None to run the backbone always.
        full: Which steps run the backbone.
    """

    def __init__(
        self, model: ExitModel, head: CompletionHead | None = None, full: list[bool] | None = None
    ) -> None:
        self.model = model
        self._head, self._full, self._step = head, full or [], 0
        self._reader = CallReader(model.plan)
        self._states: dict[int, CompletionState] = {}
        self._outputs: dict[int, Any] = {}
        self._seen: list[_Seen] = []

    @property
    def timestep(self) -> float:
        """Timestep of the present step on the scale 0..1000."""
        return float(self._seen[0].timestep[0])

    def next_step(self) -> None:
        """The scheduler has made a step."""
        self._step += 1
        self._seen = []

    def answer(
        self, through: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Answers a call from the backbone's own forward, positional and keyword arguments."""
        _, noisy, timestep = self._reader.read(bind(signature_of(through), args, kwargs))
        assert timestep is not None
        number, head = len(self._seen), self._head
        if head is None or self._full[self._step]:
            output = through(*args, **kwargs)
            made, columns = self._reader.prediction(output), list[Tensor]()
            if head is not None:
                step = FullStep(noisy.clone(), made.clone(), timestep)
                self._states[number] = state = behind(self._before(number, len(made)), step, None)
                self._outputs[number] = output
                columns = head.columns(noisy, timestep, state, None)
        else:
            before = self._before(number, len(noisy))
            if before is None or before.fewest < 2:
                raise ConfigError(
                    f"fit: step {self._step} makes other calls of the network than the full steps before it "
                    "(guidance that begins or ends on the way), so there is nothing to forecast from. Guide "
                    "all steps alike, or use the preset 'relative'."
                )
            made = head.forecast(noisy, timestep, before)
            columns = head.columns(noisy, timestep, before, made)
            output = self._reader.with_prediction(self._outputs[number], made)
        self._seen.append(_Seen(noisy, timestep, made, columns))
        return output

    def _before(self, number: int, rows: int) -> CompletionState | None:
        state = self._states.get(number)
        return state if state is not None and len(state.count) == rows else None

    def first(self, rows: int) -> tuple[Tensor, Tensor]:
        """Noisy input and timestep of some first rows of the present step."""
        return self._seen[0].noisy[:rows], self._seen[0].timestep[:rows]

    def parts(self, rows: int, mixed: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Takes the calls of the present step apart into branches.

        Arguments:
            rows: Samples that are drawn together, B.
            mixed: What the scheduler gets of them.

        Returns:
            Predictions by branch, each with shape (B, ...), and their columns.

        Raises:
            ConfigError: If the scheduler gets something of another form.
        """
        made, columns = list[Tensor](), list[list[Tensor]]()
        for seen in self._seen:
            for first in range(0, len(seen.made), rows):
                part = slice(first, first + rows)
                prediction = seen.made[part]
                if prediction.shape[1:] != mixed.shape[1:]:  # without a learned variance
                    prediction = prediction[:, : mixed.shape[1]]
                made.append(prediction)
                columns.append([column[part] for column in seen.columns])
        if any(part.shape[1:] != mixed.shape[1:] for part in (*made, *sum(columns, []))):
            raise ConfigError(
                f"fit: the network predicts {tuple(self._seen[0].made.shape)}, and the scheduler gets "
                f"{tuple(mixed.shape)}: the pipeline brings predictions into another form before a step, so "
                "completion cannot be solved along it. Use the preset 'relative'."
            )
        return made, columns
