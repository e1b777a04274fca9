"""Reads a call of the backbone: how many rows, the noisy input, the timestep, the form of the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exitkit.errors import PlanMismatchError, ShapeError, suggest
from exitkit.execution.exits import PlacedExit
from exitkit.execution.rows import rows_back, rows_first
from exitkit.surgery.inputs import Bound
from exitkit.surgery.spec import Plan
from exitkit.tree import constants, leaves, substitute


@dataclass
class Call:
    """What a run needs to know of the arguments.

    Attributes:
        batch: Rows B.
        noisy: Noisy input, rows first, with shape (B, ...).
        timestep: Timestep of each row on the scale 0..1000, with shape (B,), or None.
        form: What decides the type and shape of the output, rows left out.
        replay: Puts hidden states of some rows behind an exit's landing and returns predictions.
        record: Runs everything once more and keeps the hidden states.
    """

    batch: int
    noisy: Tensor
    timestep: Tensor | None
    form: tuple[object, ...]
    replay: Callable[[PlacedExit, Tensor, Tensor], Tensor]
    record: Callable[[], Any]


class CallReader:
    """Reads arguments and outputs of a backbone as its plan describes them.

    Arguments:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.noisy = plan.noisy_leaf
        self.output = plan.prediction_leaf

    def read(self, bound: Bound) -> tuple[int, Tensor, Tensor | None]:
        """Finds rows, noisy input and timestep among the arguments.

        Arguments:
            bound: Arguments by name.

        Returns:
            Rows B; the noisy input, rows first; timesteps on the scale 0..1000, with shape (B,),
            or None.

        Raises:
            ShapeError: If the noisy input is missing or has no rows.
        """
        plan = self.plan
        given = bound.values.get(plan.noisy)
        listed = given if self.noisy.listed else None
        if given is None:  # by a path, where it is nested
            given = dict(bound.tensors()).get(plan.noisy)
        if isinstance(listed, list | tuple) and listed:
            noisy = stacked_rows(listed)
        elif isinstance(given, Tensor) and self.noisy.axis is not None:
            noisy = rows_first(given, self.noisy)
        else:
            if bound.refused and not self._new(bound):
                raise ShapeError(
                    f"{plan.class_name}: its parameters do not take this call{bound.refused}. Call the "
                    "wrapped model like the example."
                )
            tensors = [path for path, _ in bound.tensors()]
            raise ShapeError(
                f"{plan.class_name}: {self._misspelt(bound)}the noisy input {plan.noisy!r} is missing from "
                f"this call (found {', '.join(tensors) or 'no tensor'}). Call the wrapped model like the "
                "example."
            )
        if noisy.shape[0] == 0:
            shape = tuple(rows_back(noisy, self.noisy).shape)
            raise ShapeError(
                f"{plan.class_name}: {plan.noisy!r} has shape {shape}, an empty batch. Pass at least one "
                "row."
            )
        if not plan.batched and noisy.shape[0] != 1:
            raise ShapeError(
                f"{plan.class_name}: {plan.noisy!r} has shape {tuple(noisy.shape)}, in the example it "
                f"had {self.noisy.shape}. Its adapter says that there is no batch axis (batched=False),"
                " so a call is one row: make one call for each, or wrap with example_inputs like this."
            )
        return noisy.shape[0], noisy, self._timestep(bound, noisy)

    @property
    def _known(self) -> list[str]:
        return [leaf.path.split("[")[0].split(".")[0] for leaf in self.plan.inputs]

    def _new(self, bound: Bound) -> list[str]:
        """Names in a call that does not fit the backbone which the example did not have."""
        known = self._known
        return [name for name in bound.values.get("kwargs", ()) if name not in known]

    def _misspelt(self, bound: Bound) -> str:
        """Names of arguments that the backbone does not take, where a call does not fit it."""
        if bound.signature is not None:
            return ""
        new = self._new(bound)
        if not new:
            return "its parameters do not take this call; "
        known = self._known
        return (
            f"its parameters do not take this call, in which {' and '.join(map(repr, new))} "
            f"{'are' if len(new) > 1 else 'is'} new.{suggest(new[0], known)} So "
        )

    def _timestep(self, bound: Bound, noisy: Tensor) -> Tensor | None:
        name, batch = self.plan.timestep, noisy.shape[0]
        given = None if name is None else bound.at(name)
        if given is None:
            return None
        value = torch.as_tensor(given, device=noisy.device)
        # A copy: what is kept of it must not change where a loop goes on with it in place.
        value = value.clone() if value.dtype is torch.float32 else value.to(torch.float32)
        if not value.numel():  # a packed sequence of conditions alone
            return None
        if not self.plan.batched:
            value = value.reshape(1, -1)
        if self.plan.timestep_origin:
            value = value - self.plan.timestep_origin
        if self.plan.timestep_scale != 1:
            value = value * self.plan.timestep_scale
        if value.shape == (batch,):
            return value
        if value.numel() != 1 and value.shape[0] == batch:
            # Tables with a time for every token: the noisiest stands for the row. Given ones have 0.
            return value.reshape(batch, -1).amax(dim=1)
        return value.flatten()[:1].expand(batch)

    def form(self, bound: Bound, noisy: Tensor) -> tuple[object, ...]:
        """What decides the type and shape of the output, rows left out."""
        plain = [
            (path, value)
            for name, given in bound.values.items()
            if type(given) is not Tensor
            for path, value in constants(given, name)
            if isinstance(value, bool | int | float | str | type(None))
        ]
        return (tuple(plain), tuple(noisy.shape[1:]), noisy.dtype)

    def prediction(self, output: Any) -> Tensor:
        """The prediction inside an output, rows first, with shape (B, ...)."""
        if self.output.listed:
            within = f"{self.output.path}["
            return stacked_rows([t for p, t in leaves(output) if p.startswith(within)])
        return rows_first(locate(output, self.plan)[1], self.output)

    def with_prediction(self, output: Any, value: Tensor) -> Any:
        """The output with another prediction in its place, rows first, with shape (B, ...)."""
        if self.output.listed:
            rows = {f"{self.output.path}[{row}]": entry for row, entry in enumerate(value)}
            return substitute(output, rows)
        return substitute(output, {locate(output, self.plan)[0]: rows_back(value, self.output)})


def locate(output: Any, plan: Plan) -> tuple[str, Tensor]:
    """Finds the prediction in an output.

    Arguments:
        output: What the backbone returned.
        plan: Its plan.

    Returns:
        Path of the prediction in this output, and the tensor.

    Raises:
        PlanMismatchError: If it is not there.
    """
    found = leaves(output)
    for path, tensor in found:
        if path == plan.prediction:
            return path, tensor
    # return_dict=False and the like change the address but not the order.
    place = [leaf.path for leaf in plan.outputs].index(plan.prediction)
    if place < len(found):
        return found[place]
    raise PlanMismatchError(
        f"{plan.class_name} returned {', '.join(path or 'one tensor' for path, _ in found) or 'nothing'}"
        f", in the example {', '.join(leaf.path for leaf in plan.outputs)}, of which {plan.prediction!r} "
        "is the prediction. Call the wrapped model like the example."
    )


def stacked_rows(entries: Sequence[Tensor]) -> Tensor:
    """One row a tensor; tensors of several sizes are flattened and padded with zeros."""
    if len({t.shape for t in entries}) == 1:
        return torch.stack(list(entries))
    return torch.nn.utils.rnn.pad_sequence([t.flatten() for t in entries], batch_first=True)
