"""Model and loss as one module, and how an example becomes a call of the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.execution.call_form import CallForm
from exitkit.model import ExitModel
from exitkit.training.batches import Example
from exitkit.training.carried import CarriedLoss
from exitkit.training.losses import ExitLoss
from exitkit.training.windows import Windows


class Objective(nn.Module):
    """Model and loss as one module: what is handed to accelerate, so that the model stays as it is.

    Arguments:
        model: The wrapped model.
        loss: The loss.
    """

    def __init__(self, model: ExitModel, loss: ExitLoss | CarriedLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, item: Any, step: int) -> dict[str, Tensor]:
        """Computes the loss of an `Example` or of `Windows` in a step; `total` has the graph."""
        if isinstance(item, Windows):
            assert isinstance(self.loss, CarriedLoss)
            parts = self.loss(self.model, item)
        else:
            assert isinstance(self.loss, ExitLoss)
            args, named = arguments(self.model, item)
            output = self.model(*args, **named, output_exits=True)
            # Losses of users' own know no steps.
            numbered = {"step": step} if self.loss.config.alternating else {}
            parts = self.loss(output, item.target, **numbered)
        named = {"uncertainty": parts.uncertainty, "layers": parts.layers}
        if parts.final is not None:
            named["final"] = parts.final
        named |= {f"exit_{k}": error for k, error in enumerate(parts.per_exit, start=1)}
        return {"total": parts.total, **{name: part.detach() for name, part in named.items()}}


def arguments(model: ExitModel, example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an example as the backbone wants them: by name where (x_t, t) do not lead.

    Arguments:
        model: The wrapped model.
        example: The example, with noisy input and timestep first.

    Returns:
        Arguments by position and by name.

    Raises:
        ConfigError: If further conditions come by position although the first two go by name.
    """
    if model.plan.timestep is None or len(example.args) < 2:
        return example.args, example.kwargs
    (noisy, timestep, *more) = example.args
    form = CallForm.of(model.plan, model.backbone.forward)
    given = form.arguments(noisy, timestep, **example.kwargs)
    args, named = given.args, given.kwargs
    if form.noisy is not None and more:
        raise ConfigError(
            f"fit: {model.plan.class_name} takes its timestep by name ({model.plan.timestep!r}), so "
            f"conditions need names too, and the batch holds {len(more)} without. Use dictionaries, "
            "or conditions=('encoder_hidden_states', ...) of the task."
        )
    return (*args, *more), named
