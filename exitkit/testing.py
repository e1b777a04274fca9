"""The public contract: what every wrapped backbone and every policy promises, as runnable checks.

For a backbone or an adapter of your own:

    from exitkit.testing import check_backbone

    def test_my_backbone_can_leave_early():
        check_backbone(my_model.eval(), example_inputs=(x, t))

The checks trust nothing that the executor says about itself: rows are compared with the same row
run alone, the work done is counted by hooks inside the blocks, and comparisons have a control that
shows they could have failed.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.config import ExitConfig
from exitkit.errors import ExitKitError
from exitkit.model import ExitModel
from exitkit.policies.base import Policy, StepInfo, policy_from_dict
from exitkit.policies.fixed import FixedExit, ScriptedExit
from exitkit.policies.never import NeverExit
from exitkit.surgery.inputs import Bound, Inputs, bind, signature_of
from exitkit.surgery.spec import Leaf
from exitkit.surgery.trees import constants, leaves
from exitkit.wrapping import unwrap, wrap

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
)


class ContractError(ExitKitError, AssertionError):
    """A backbone or a policy breaks a promise; the message says which, where and what to do."""


def check_backbone(
    model: nn.Module,
    example_inputs: Any,
    *,
    config: str | ExitConfig = "relative",
    atol: float = 2e-5,
) -> None:
    """Wraps a backbone, checks every promise of a wrapped model, and unwraps it.

    Arguments:
        model: The backbone, in eval mode. It is left as it was.
        example_inputs: What it is called with, as for `wrap`; random, at least one row.
        config: Preset name or config to wrap it with.
        atol: Largest absolute difference between a row in a batch and the same row alone: kernels
            for other batch sizes round differently.

    Raises:
        ContractError: At the first broken promise.
        ExitKitError: If the backbone cannot be wrapped at all.

    Example:
        >>> blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)))
        >>> check_backbone(blocks.eval(), torch.randn(4, 8))
    """
    inputs = Inputs.of(example_inputs)
    with torch.no_grad():
        bare = model(*inputs.args, **inputs.kwargs)
        name = type(model).__name__
        _require(
            _equal(bare, model(*inputs.args, **inputs.kwargs)),
            f"{name}: two runs on the same inputs differ, so nothing can be compared. "
            "Call model.eval() and pass generators or seeds explicitly.",
        )
        before = _Snapshot(model)
        wrapped = wrap(model, config, example_inputs=example_inputs)
        try:
            _check_untouched(model, wrapped, inputs, bare)
            batch = _Batch(wrapped, inputs)
            _check_exits(batch, bare)
            _check_rows(batch, atol)
            _check_permutation(batch, atol)
            _check_other_sizes(batch, atol)
            _check_counts(batch)
        finally:
            returned = unwrap(wrapped)
        _require(returned is model, f"{name}: unwrap returned another object.")
        before.compare(model)
        _require(
            _equal(bare, model(*inputs.args, **inputs.kwargs)),
            f"{name}: the output after unwrap differs from the one before wrap.",
        )


def _require(kept: bool, message: str) -> None:
    if not kept:
        raise ContractError(message)


def _equal(first: Any, second: Any) -> bool:
    """Whether two outputs have the same type, structure, constants and tensors, bit for bit."""
    a, b = leaves(first), leaves(second)
    return (
        type(first) is type(second)
        and [path for path, _ in a] == [path for path, _ in b]
        and constants(first) == constants(second)
        and all(
            x.dtype == y.dtype and torch.equal(x, y) for (_, x), (_, y) in zip(a, b, strict=True)
        )
    )


class _Batch:
    """At least three different rows of example inputs, in any selection and order."""

    def __init__(self, model: ExitModel, inputs: Inputs) -> None:
        self.model = model
        self.name = type(model.backbone).__name__
        self.exits = len(model.exits)
        signature = signature_of(model.backbone.forward)
        example = bind(signature, inputs.args, inputs.kwargs)
        self._axes = {leaf.path: leaf for leaf in model.plan.inputs}
        noisy = self._axes[model.plan.noisy]
        given = _rows_in(dict(example.tensors())[noisy.path], noisy)
        self.count = max(given, 3)
        grown = self._take(example, [row % given for row in range(self.count)])
        if self.count > given:
            # Repeated rows would be equal: nothing could be told apart.
            x = dict(grown.tensors())[noisy.path]
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
            grown = grown.replaced({noisy.path: x + noise.to(x)})
        self._bound = grown

    def _take(self, bound: Bound, rows: Sequence[int]) -> Bound:
        taken = {
            path: _take(tensor, leaf, rows)
            for path, tensor in bound.tensors()
            if (leaf := self._axes.get(path)) is not None and leaf.axis is not None
        }
        return bound.replaced(taken)

    def run(self, rows: Sequence[int], policy: Policy) -> Any:
        """Runs some rows under a policy; carried exits get two full steps before."""
        bound = self._take(self._bound, rows)
        args, kwargs = bound.split()
        if self.model.exit_config.output.kind != "carried":
            self.model.policy = policy
            return self.model(*args, **kwargs)
        with self.model.trajectory():
            self.model.policy = NeverExit()
            for steps_before in (2, 1):
                earlier, named = self._earlier(bound, steps_before).split()
                self.model(*earlier, **named)
            self.model.policy = policy
            return self.model(*args, **kwargs)

    def _earlier(self, bound: Bound, steps: int) -> Bound:
        """The same rows some steps before: another noisy input at a later timestep."""
        plan = self.model.plan
        x = dict(bound.tensors())[plan.noisy]
        before = bound.replaced({plan.noisy: x * (1 - 0.1 * steps)})
        if plan.timestep is not None:
            step = 10 * steps / plan.timestep_scale
            t = before.values[plan.timestep]
            before.values[plan.timestep] = t + type(t)(step) if isinstance(t, int) else t + step
            if isinstance(t, Tensor):
                before.values[plan.timestep] = (t + step).to(t.dtype)
        return before

    def scripted(self, rows: Sequence[int], depths: Sequence[int]) -> Any:
        """Runs some rows, each to its own depth."""
        return self.run(rows, ScriptedExit(tuple(depths)))

    def row(self, output: Any, index: int) -> list[Tensor]:
        """One row of every tensor of an output."""
        axes = {leaf.path: leaf for leaf in self.model.plan.outputs}
        return [
            _take(tensor, axes[path], [index])
            for path, tensor in leaves(output)
            if path in axes and axes[path].axis is not None
        ]

    def difference(self, first: list[Tensor], second: list[Tensor]) -> float:
        """Largest absolute difference of two rows; infinite where their shapes differ."""
        if [a.shape for a in first] != [b.shape for b in second] or not first:
            return float("inf")
        gaps = [(a.double() - b.double()).abs().max() for a, b in zip(first, second, strict=True)]
        return float(torch.stack(gaps).max())

    def scripts(self) -> Iterator[list[int]]:
        """Depths of a full batch, until every depth was used; neighbours leave apart."""
        for start in range(0, self.exits + 1, self.count):
            yield [(start + i) % (self.exits + 1) + 1 for i in range(self.count)]


def _rows_in(tensor: Tensor, leaf: Leaf) -> int:
    return 1 if leaf.axis is None else (tensor.shape[leaf.axis] - leaf.tail) // leaf.fold


def _take(tensor: Tensor, leaf: Leaf, rows: Sequence[int]) -> Tensor:
    """Selects rows along the batch axis, folded entries and constant tail included."""
    if leaf.axis is None:
        return tensor
    batch = _rows_in(tensor, leaf)
    if leaf.tiled:
        index = [entry * batch + row for entry in range(leaf.fold) for row in rows]
    else:
        index = [row * leaf.fold + entry for row in rows for entry in range(leaf.fold)]
    index += range(batch * leaf.fold, tensor.shape[leaf.axis])
    return tensor.index_select(leaf.axis, torch.tensor(index, device=tensor.device))


def _check_untouched(model: nn.Module, wrapped: ExitModel, inputs: Inputs, bare: Any) -> None:
    """The backbone on its own, NeverExit and untrained heads all give the bare output."""
    name = type(model).__name__
    _require(
        _equal(bare, model(*inputs.args, **inputs.kwargs)),
        f"{name}: while wrapped, the backbone called on its own gives another output.",
    )
    untrained = wrapped.policy
    wrapped.policy = NeverExit()
    _require(
        _equal(bare, wrapped(*inputs.args, **inputs.kwargs)),
        f"{name}: with NeverExit the output is not bit-identical to the bare backbone's.",
    )
    if untrained.reads_uncertainty:
        wrapped.policy = untrained
        with wrapped.trajectory():
            output = wrapped(*inputs.args, **inputs.kwargs)
        _require(
            _equal(bare, output) and int(wrapped.trace.depth.min()) == len(wrapped.exits) + 1,
            f"{name}: untrained uncertainty heads let rows leave under {untrained}.",
        )


def _check_exits(batch: _Batch, bare: Any) -> None:
    """Every exit gives an output of the same type, shapes and dtypes, and finite."""
    _require(batch.exits > 0, f"{batch.name}: the wrapped model has no exit.")
    rows = range(batch.count)
    full = batch.run(rows, NeverExit())
    expected = [(path, tuple(t.shape), t.dtype) for path, t in leaves(full)]
    for depth in range(1, batch.exits + 1):
        output = batch.run(rows, FixedExit(depth))
        found = [(path, tuple(t.shape), t.dtype) for path, t in leaves(output)]
        where = f"{batch.name}: exit {depth} ({batch.model.exits[depth - 1].path})"
        _require(
            type(output) is type(bare) and found == expected,
            f"{where} gives {type(output).__name__} {found}, the bare backbone "
            f"{type(bare).__name__} {expected}.",
        )
        _require(
            all(bool(t.isfinite().all()) for _, t in leaves(output) if t.is_floating_point()),
            f"{where} gives an output that is not finite.",
        )


def _check_rows(batch: _Batch, atol: float) -> None:
    """A row that left at some depth equals that row alone at that depth, and no other depth."""
    rows = range(batch.count)
    full = batch.run(rows, NeverExit())
    _require(
        batch.difference(batch.row(full, 0), batch.row(full, 1)) > 10 * atol,
        f"{batch.name}: rows 0 and 1 of the example give the same output, so mixed-up rows would "
        "not be noticed. Pass random example_inputs.",
    )
    for row in rows:
        gap = batch.difference(batch.row(full, row), batch.row(batch.run([row], NeverExit()), 0))
        _require(
            gap <= atol,
            f"{batch.name}: without any exit, row {row} depends on its batch mates (it differs by "
            f"{gap:.1e} from the same row alone, allowed {atol:.1e}). Batch statistics? Call "
            "model.eval(); a backbone that mixes rows cannot leave row by row.",
        )
    for depths in batch.scripts():
        output = batch.scripted(rows, depths)
        for row, depth in enumerate(depths):
            mine = batch.row(output, row)
            gap = batch.difference(mine, batch.row(batch.scripted([row], [depth]), 0))
            _require(
                gap <= atol,
                f"{batch.name}: row {row} leaving at depth {depth} among depths {depths} differs "
                f"by {gap:.1e} from the same row alone (allowed {atol:.1e}).",
            )
            if depth > batch.exits:
                continue
            control = batch.difference(mine, batch.row(batch.scripted([row], [depth + 1]), 0))
            _require(
                control > atol,
                f"{batch.name}: row {row} has the same output at depths {depth} and {depth + 1}, "
                "so a wrong depth would not be noticed. Zero-initialised gates? Perturb the "
                "parameters of an untrained backbone first.",
            )


def _check_permutation(batch: _Batch, atol: float) -> None:
    """Rows in another order give the outputs in that order."""
    order = [*range(1, batch.count), 0]
    for depths in batch.scripts():
        plain = batch.scripted(range(batch.count), depths)
        permuted = batch.scripted(order, [depths[row] for row in order])
        for place, row in enumerate(order):
            gap = batch.difference(batch.row(plain, row), batch.row(permuted, place))
            _require(
                gap <= atol,
                f"{batch.name}: row {row} changes by {gap:.1e} when the batch is permuted "
                f"(depths {depths}, allowed {atol:.1e}).",
            )


def _check_other_sizes(batch: _Batch, atol: float) -> None:
    """Batches of another size than the example's work, and their rows stay what they are."""
    reference = batch.run(range(batch.count), FixedExit(1))
    for rows in ([1, 0], [*range(batch.count), 0]):
        output = batch.run(rows, FixedExit(1))
        for place, row in enumerate(rows):
            gap = batch.difference(batch.row(reference, row), batch.row(output, place))
            _require(
                gap <= atol,
                f"{batch.name}: in a batch of {len(rows)} instead of {batch.count}, row {row} "
                f"changes by {gap:.1e} (allowed {atol:.1e}).",
            )


def _check_counts(batch: _Batch) -> None:
    """The trace says how many rows every block really ran."""
    counter = _RowCounter(batch)
    for depths in batch.scripts():
        counted = counter.count(range(batch.count), ScriptedExit(tuple(depths)))
        claimed = dict.fromkeys(counted, 0)
        for stage in batch.model.plan.stages:
            for call in stage.calls:
                if call.path in claimed:
                    claimed[call.path] += batch.model.trace.block_rows[stage.path]
        _require(
            counted == claimed,
            f"{batch.name}: with depths {depths} the blocks ran {counted} rows, the trace says "
            f"{claimed}.",
        )
        _require(
            not counted or sum(counted.values()) < sum(counter.full.values()),
            f"{batch.name}: with depths {depths} no block ran fewer rows than without exits.",
        )


class _RowCounter:
    """Counts the rows that reach the inside of every block, whatever its `forward` was made into.

    A submodule of the block counts when its number of input elements grows in proportion to the
    batch; blocks without such a submodule are left out.
    """

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch
        backbone = batch.model.backbone
        paths = dict.fromkeys(c.path for stage in batch.model.plan.stages for c in stage.calls)
        self._modules = {
            path: [m for m in backbone.get_submodule(path).modules()][1:] for path in paths
        }
        calls: dict[str, int] = {}
        handles = [
            backbone.get_submodule(path).register_forward_pre_hook(
                lambda module, args, path=path: calls.update({path: calls.get(path, 0) + 1})
            )
            for path in paths
        ]
        try:
            single = self._elements([0], NeverExit())
        finally:
            for handle in handles:
                handle.remove()
        many = self._elements(range(batch.count), NeverExit())
        self._unit: dict[str, tuple[nn.Module, float]] = {}
        for path, modules in self._modules.items():
            for module in modules:
                elements = single.get(module, 0)
                if elements and many.get(module, 0) == elements * batch.count:
                    self._unit[path] = (module, elements / calls[path])
                    break
        self.full = self.count(range(batch.count), NeverExit())

    def count(self, rows: Sequence[int], policy: Policy) -> dict[str, int]:
        """Rows by path of the block."""
        elements = self._elements(rows, policy)
        return {
            path: round(elements.get(module, 0) / unit)
            for path, (module, unit) in self._unit.items()
        }

    def _elements(self, rows: Sequence[int], policy: Policy) -> dict[nn.Module, int]:
        seen: dict[nn.Module, int] = {}

        def count(module: nn.Module, args: Any, kwargs: Any) -> None:
            first = next((t for _, t in leaves([args, kwargs])), None)
            seen[module] = seen.get(module, 0) + (0 if first is None else first.numel())

        unique = dict.fromkeys(m for modules in self._modules.values() for m in modules)
        handles = [m.register_forward_pre_hook(count, with_kwargs=True) for m in unique]
        try:
            self.batch.run(rows, policy)
        finally:
            for handle in handles:
                handle.remove()
        return seen


class _Snapshot:
    """Everything about a module that `unwrap` must give back."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {key: value.clone() for key, value in _tensors(model).items()}
        self.keys = list(model.state_dict())
        self.facts = {path: _facts(module) for path, module in model.named_modules()}

    def compare(self, model: nn.Module) -> None:
        """Raises ContractError where the module is not what it was."""
        name = type(model).__name__
        _require(
            list(model.state_dict()) == self.keys,
            f"{name}: unwrap changed the keys of the state dict: "
            f"{sorted(set(self.keys) ^ set(model.state_dict()))}.",
        )
        now = _tensors(model)
        changed = [key for key in self.state if not torch.equal(self.state[key], now[key])]
        _require(not changed, f"{name}: unwrap left other values in {changed[:5]}.")
        modules = {path: _facts(module) for path, module in model.named_modules()}
        _require(
            list(modules) == list(self.facts),
            f"{name}: unwrap changed the submodules: {sorted(set(modules) ^ set(self.facts))[:5]}.",
        )
        for path, facts in self.facts.items():
            for what, value in facts.items():
                _require(
                    modules[path][what] == value,
                    f"{name}: after unwrap, {what} of {path or 'the backbone'!r} is "
                    f"{modules[path][what]}, before wrap it was {value}.",
                )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def _facts(module: nn.Module) -> dict[str, Any]:
    forward = module.forward
    return {
        "the module": (id(module), type(module).__qualname__),
        "the attributes": sorted(vars(module)),
        "forward": id(getattr(forward, "__func__", forward)),
        "the signature": str(inspect.signature(forward)),
        "the hooks": {hook: list(getattr(module, hook)) for hook in _HOOKS},
        "the training flag": module.training,
        "requires_grad": [p.requires_grad for p in module.parameters(recurse=False)],
    }


def check_policy(policy: Policy, *, exits: int = 5, batch: int = 6, seed: int = 0) -> None:
    """Checks every promise of a policy on made-up signals.

    Arguments:
        policy: The policy.
        exits: Number of exits K of the made-up model.
        batch: Rows of the made-up batch, at least 2.
        seed: Seed of the signals.

    Raises:
        ContractError: At the first broken promise.

    Example:
        >>> from exitkit.policies.threshold import UncertaintyThreshold
        >>> check_policy(UncertaintyThreshold(0.5))
    """
    name = type(policy).__name__
    params = getattr(policy, "__dataclass_params__", None)
    _require(
        params is not None and params.frozen,
        f"{name}: a policy is a frozen dataclass. Decorate it with @dataclass(frozen=True) and "
        "keep what changes in signals.memory.",
    )
    try:
        text = json.dumps(policy.to_dict())
    except TypeError as error:
        raise ContractError(f"{name}.to_dict() is not JSON ({error}). Use plain values.") from error
    _require(
        policy_from_dict(json.loads(text)) == policy,
        f"{name}: policy_from_dict(policy.to_dict()) gives another policy. Every field must be in "
        "to_dict(), and the class registered with @register_policy.",
    )
    world = _World(exits, batch, seed)
    together = world.walk(policy)
    _require(
        together == world.walk(policy),
        f"{name}: two runs on the same signals decide differently. Keep no state in the policy.",
    )
    if getattr(policy, "batch_mean", False):
        return  # couples rows openly
    other = _World(exits, batch, seed + 1)
    for row in range(batch):
        mates_changed = world.only(row, other).walk(policy)
        _require(
            mates_changed[row] == together[row],
            f"{name}: row {row} leaves at depth {together[row]}, and at {mates_changed[row]} with "
            "other batch mates. Reduce over everything but the rows.",
        )


class _World:
    """Made-up signals of one forward."""

    def __init__(self, exits: int, batch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.exits = exits
        self.timestep = torch.randint(1, 1000, (batch,), generator=generator).float()
        self.age = torch.randint(0, 4, (batch,), generator=generator)
        self.maps = torch.rand(exits, batch, 3, 4, 4, generator=generator) * 0.9
        # Spread the rows, or every policy would let all of them leave at one exit.
        self.maps = self.maps * torch.linspace(0.1, 1, batch)[:, None, None, None]
        self.hidden = torch.randn(exits, batch, 5, 8, generator=generator)
        self.prediction = torch.randn(exits, batch, 3, 4, 4, generator=generator)

    def only(self, row: int, other: _World) -> _World:
        """This row among the other rows of another world."""
        mixed = copy.copy(other)
        mixed.timestep, mixed.age = other.timestep.clone(), other.age.clone()
        mixed.timestep[row], mixed.age[row] = self.timestep[row], self.age[row]
        for field in ("maps", "hidden", "prediction"):
            values = getattr(other, field).clone()
            values[:, row] = getattr(self, field)[:, row]
            setattr(mixed, field, values)
        return mixed

    def walk(self, policy: Policy) -> list[int]:
        """Depth of every row under a policy."""
        name, count = type(policy).__name__, len(self.timestep)
        planned = policy.depths(StepInfo(count, self.exits, self.timestep, 3, 10))
        if planned is not None:
            _require(
                planned.shape == (count,) and planned.dtype == torch.long,
                f"{name}.depths: expected ({count},) of torch.long, got {tuple(planned.shape)} of "
                f"{planned.dtype}.",
            )
            _require(
                bool(((planned >= 1) & (planned <= self.exits + 1)).all()),
                f"{name}.depths: expected 1..{self.exits + 1}, got {planned.tolist()}.",
            )
            return [int(depth) for depth in planned]
        memory: dict[str, Tensor] = {}
        depths, alive = torch.full((count,), self.exits + 1), torch.arange(count)
        for at in range(1, self.exits + 1):
            signals = _MadeUpSignals(self, alive, at, memory)
            before = copy.deepcopy(vars(self))
            leaves_here = policy.decide(signals)
            _require(
                leaves_here.shape == alive.shape and leaves_here.dtype == torch.bool,
                f"{name}.decide: expected {tuple(alive.shape)} of torch.bool, got "
                f"{tuple(leaves_here.shape)} of {leaves_here.dtype}.",
            )
            _require(
                all(v.equal(before[k]) for k, v in vars(self).items() if isinstance(v, Tensor)),
                f"{name}.decide: changes a signal in place. Work on a copy.",
            )
            _require(
                policy.reads_uncertainty or not signals.uncertainty_was_read,
                f"{name}: reads the uncertainty but says reads_uncertainty = False, so no head "
                "would be there. Set it to True.",
            )
            _require(
                all(len(value) == count for value in memory.values()),
                f"{name}.decide: signals.memory holds full-batch tensors, ({count}, ...); got "
                f"{ {k: tuple(v.shape) for k, v in memory.items()} }.",
            )
            depths[alive[leaves_here]] = at
            alive = alive[~leaves_here]
            if not len(alive):
                break
        return [int(depth) for depth in depths]


class _MadeUpSignals:
    """`Signals` of one exit, cut out of a `_World`."""

    def __init__(self, world: _World, rows: Tensor, at: int, memory: dict[str, Tensor]) -> None:
        self._world = world
        self.exit, self.exits, self.batch = at, world.exits, len(world.timestep)
        self.rows, self.memory = rows, memory
        self.timestep, self.age = world.timestep[rows], world.age[rows]
        self.step: int | None = 3
        self.steps: int | None = 10
        self.uncertainty_was_read = False

    def _at(self, values: Tensor, exit_index: int) -> Tensor:
        return values[exit_index - 1, self.rows]

    def uncertainty_map(self) -> Tensor:
        self.uncertainty_was_read = True
        return self._at(self._world.maps, self.exit)

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        flat = self.uncertainty_map().flatten(1)
        if reduction == "quantile":
            return flat.quantile(q, dim=1)
        return flat.amax(dim=1) if reduction == "max" else flat.mean(dim=1)

    def hidden(self) -> Tensor:
        return self._at(self._world.hidden, self.exit)

    def previous_hidden(self) -> Tensor | None:
        return None if self.exit == 1 else self._at(self._world.hidden, self.exit - 1)

    def prediction(self) -> Tensor:
        return self._at(self._world.prediction, self.exit)

    def previous_prediction(self) -> Tensor | None:
        return None if self.exit == 1 else self._at(self._world.prediction, self.exit - 1)
