"""A network of one depth: what a row that leaves at one exit runs, as a plain module.

Blocks behind the exit are exchanged for ones that hand on what comes in. Nothing in it decides or
looks: it can be exported, traced and compiled wherever the bare backbone can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.execution.exits import ExitLayout, PlacedExit
from exitkit.execution.rows import from_rows, rows_back, rows_first, to_rows
from exitkit.model.stand_ins import Change, given, names_of, rebuilt, shared_copy, skipped, ungated
from exitkit.policies.base import FULL
from exitkit.policies.fields import integer
from exitkit.surgery.spec import Call, Plan
from exitkit.tree import leaves


class FixedDepth(nn.Module):
    """The backbone up to one exit, that exit's output head, and what the backbone does at its end.

    Parameters are those of the backbone and the heads, not copies. Called like the backbone.

    Arguments:
        backbone: The backbone, with or without gates.
        layout: Its exits.
        depth: The exit, 1..K; K + 1 for the whole backbone.

    Attributes:
        network: The backbone with other blocks behind the exit.
        head: The exit's output head; None of the whole backbone.

    Raises:
        ConfigError: If there is no such exit, or it is no network of one call.
    """

    def __init__(self, backbone: nn.Module, layout: ExitLayout, depth: int) -> None:
        super().__init__()
        plan, self._layout = layout.plan, layout
        point = layout.points[depth - 1] if depth <= len(layout.points) else None
        if point is not None:
            check_plain(plan, point)
        self._point = point
        self._seen: dict[str, Tensor] = {}
        self._names = names_of(backbone.forward)
        self.network = shared_copy(backbone, self._changes(plan, point))
        self.head = None if point is None else point.output
        self.training = backbone.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network.

        Arguments:
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.

        Returns:
            The backbone's own output type, each row from the exit.
        """
        point, plan = self._point, self._layout.plan
        if point is None:
            return self.network(*args, **kwargs)
        noisy = rows_first(given(plan.noisy, self._names, args, kwargs), plan.noisy_leaf)
        self._seen["noisy"] = noisy
        self._seen["embedding"] = self._embedding(noisy, args, kwargs)
        output = self.network(*args, **kwargs)
        if point.landing is not None:
            self._seen.clear()
            return output
        value = rows_back(self._leaving(), plan.prediction_leaf)
        self._seen.clear()
        return rebuilt(output, {_place(output, plan): value})

    def _embedding(self, noisy: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        plan, rows = self._layout.plan, noisy.shape[0]
        if plan.timestep is None:
            return self._layout.embed(noisy.new_zeros(rows, dtype=torch.float32))
        value = given(plan.timestep, self._names, args, kwargs)
        value = torch.as_tensor(value, device=noisy.device).to(torch.float32)
        value = (value - plan.timestep_origin) * plan.timestep_scale
        leaf = next((leaf for leaf in plan.inputs if leaf.path == plan.timestep), None)
        if leaf is None or leaf.axis is None or value.ndim == 0:
            value = value.reshape(-1)[:1].expand(rows)
        elif value.ndim > 1:  # a time for every token: the noisiest stands for the row
            value = value.reshape(rows, -1).amax(dim=1)
        return self._layout.embed(value)

    def _leaving(self) -> Tensor:
        """What leaves with the rows: a hidden state for the landing, or the prediction."""
        point, seen = self._point, self._seen
        assert point is not None
        noisy = seen["noisy"] if point.landing is None else None
        left: Tensor = point.output(seen["hidden"], seen["embedding"], noisy, None)
        return left

    def _changes(self, plan: Plan, point: PlacedExit | None) -> dict[str, Change]:
        """What becomes of each block."""
        if point is None:
            return {call.path: ungated for stage in plan.stages for call in stage.calls}
        changes: dict[str, Change] = {}
        until = point.landing or plan.num_stages
        for stage in plan.stages:
            for call in stage.calls:
                last = call is stage.calls[-1]
                exits = last and stage.index == point.boundary.stage
                lands = last and stage.index == point.landing
                skips = point.boundary.stage < stage.index <= until
                changes[call.path] = self._change(call, stage.index, skips, exits, lands)
        return changes

    def _change(self, call: Call, stage: int, skips: bool, exits: bool, lands: bool) -> Change:
        if not (skips or exits):
            return ungated
        leaf, spec = (
            self._layout.hidden.get(stage),
            self._layout.plan.boundaries[stage - 1].hidden,
        )
        added, path = call.base == 0, call.hidden_out or ""

        def change(block: nn.Module) -> None:
            ungated(block)
            own, names = type(block), names_of(block.forward)
            run: Callable[..., Any] = own.forward

            def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
                if skips:
                    out = skipped(call, names, args, kwargs)
                else:
                    out = run(block, *args, **kwargs)
                if not (exits or lands):
                    return out
                assert leaf is not None
                fixed: FixedDepth = block._fixed_depth
                hidden: Tensor = out if isinstance(out, Tensor) else dict(leaves(out))[path]
                entering = given(call.hidden_in, names, args, kwargs) if call.hidden_in else hidden
                if added:
                    hidden = entering + call.scale * hidden
                if exits:
                    rows = fixed._seen["noisy"].shape[0]
                    fixed._seen["hidden"] = to_rows(hidden, leaf, rows, spec)
                if not lands:
                    return out
                value = from_rows(fixed._leaving(), hidden, leaf, spec)
                if added:
                    value = (value - entering) / call.scale
                if call.in_place:
                    value = entering.copy_(value)
                return rebuilt(out, {path: value})

            block.__class__ = type(own.__name__, (own,), {"forward": forward})
            block.__dict__["_fixed_depth"] = self  # no submodule of it

        return change


def fixed_depth(backbone: nn.Module, layout: ExitLayout, depth: int) -> FixedDepth:
    """Makes the network of one depth; `ExitModel.at` is the public name of this.

    Arguments:
        backbone: The backbone.
        layout: Its exits.
        depth: An exit, 1..K, or `FULL`.

    Returns:
        The network.

    Raises:
        ConfigError: If there is no such exit, or it is no network of one call.
    """
    count, name = len(layout.points), layout.plan.class_name
    whole = integer(f"{name}.at: depth", depth)
    if count + 1 < whole != FULL:
        raise ConfigError(
            f"{name}.at: depth is {depth}, and the model has {count} exits. Take 1 to {count}, or "
            "ek.policies.FULL for the whole network."
        )
    return FixedDepth(backbone, layout, min(whole, count + 1))


def check_plain(plan: Plan, point: PlacedExit) -> None:
    """Refuses exits that are no network of one call.

    Arguments:
        plan: The plan.
        point: The exit.

    Raises:
        ConfigError: If it is none; the message says why.
    """
    where = f"{plan.class_name}.at({point.index}): the exit behind {point.boundary.path!r}"
    if point.carried is not None:
        raise ConfigError(
            f"{where} completes a row with what its last full steps left, so a single call of it has no "
            "output. Wrap with exits of another kind, such as 'relative', for a network of one depth."
        )
    calls = [call for stage in plan.stages for call in stage.calls]
    several = [path for path, count in Counter(call.path for call in calls).items() if count > 1]
    if several:
        raise ConfigError(
            f"{where} is in a network that calls {several[0]!r} several times, and a module cannot be "
            "run for some of its calls alone. Use model.policy = FixedExit(depth) there."
        )
    odd = [call.path for call in calls if call.summed or call.base or call.lists]
    if odd or plan.lists or not plan.batched:
        raise ConfigError(
            f"{where} is in a network whose hidden state is not handed from block to block "
            f"({odd[0] if odd else plan.noisy!r}). Use model.policy = FixedExit(depth) there."
        )


def _place(output: Any, plan: Plan) -> str:
    """Address of the prediction in an output, which may be a tuple where the example's was not."""
    found = [path for path, _ in leaves(output)]
    order = [leaf.path for leaf in plan.outputs].index(plan.prediction)
    return plan.prediction if plan.prediction in found else found[order]
