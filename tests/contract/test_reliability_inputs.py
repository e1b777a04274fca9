"""Inputs in every form: ragged masks, by position and by name, nested, listed, none and very many."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import exitkit as ek
from exitkit.errors import ShapeError
from exitkit.policies import FixedExit, NeverExit, ScriptedExit, UncertaintyThreshold
from exitkit.testing.contract import equal, require
from tests.backbones import TokenNet, case, perturb, prediction
from tests.mishaps import CASES, LUMINA, PIXART, SLOW, VIDEO, ZIMAGE, Subject, Whole

MASKED = (PIXART, LUMINA, CASES["unet_conditional"])
masked = pytest.mark.parametrize("subject", MASKED, ids=lambda s: s.id)
MASK = "encoder_attention_mask"


def chosen(value: Any, rows: Sequence[int], of: int) -> Any:
    """Rows of nested arguments; written without exitkit."""
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and value.shape[0] == of else value
    if isinstance(value, Mapping):
        return {key: chosen(item, rows, of) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(value[row] for row in rows)
    return value


def by_name(model: nn.Module, inputs: ek.Inputs) -> dict[str, Any]:
    return dict(inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments)


def ragged(rows: int, tokens: int, seed: int) -> Tensor:
    """A mask of another length for each row, in any order."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return torch.arange(tokens) < 1 + (order[:, None] + seed) % tokens


def run(model: ek.ExitModel, depths: Sequence[int], named: dict[str, Any]) -> Tensor:
    model.policy = ScriptedExit(tuple(depths))
    with torch.no_grad():
        return prediction(model(**named))


# Ragged masks


# One pads what it joins, and `wrap` says what that means for decisions.
@pytest.mark.filterwarnings("ignore:.*as long as the longest:exitkit.errors.DoubtWarning")
@masked
@pytest.mark.parametrize("given", [True, False], ids=["in the example", "later"])
def test_rows_with_masks_of_their_own_equal_the_row_alone(subject: Subject, given: bool) -> None:
    """Also where the example had no mask at all; and with another row's mask they do not."""
    if subject is LUMINA and not given:
        pytest.skip("its mask is not optional")
    model, rows = subject.build(), 4
    named = by_name(model, subject.draw(rows))
    tokens = named["encoder_hidden_states"].shape[1]
    example = {k: v for k, v in named.items() if k != MASK}
    if given:
        example[MASK] = ragged(rows, tokens, 0)
    wrapped = ek.wrap(model, example_inputs=example)
    last = len(wrapped.exits) + 1
    for seed in range(3):
        mask = ragged(rows, tokens, seed)
        depths = [(seed + row * 2) % last + 1 for row in range(rows)]
        together = run(wrapped, depths, {**named, MASK: mask})
        swapped = run(wrapped, depths, {**named, MASK: mask.roll(1, dims=0)})
        for row, depth in enumerate(depths):
            alone = run(wrapped, [depth], chosen({**named, MASK: mask}, [row], rows))
            gap = float((together[row] - alone[0]).abs().max())
            require(gap <= 1e-4, f"row {row} at depth {depth} differs by {gap:.1e} from it alone")
        gap = float((together - swapped).abs().max())
        require(gap > 1e-3, f"another row's mask would not be noticed: it changes {gap:.1e}")
    ek.unwrap(wrapped)


def test_a_mask_that_the_example_lacked_reaches_the_replay() -> None:
    """Outputs of all exits, and predictions asked for in the middle, see every row's own mask."""
    model = PIXART.build()
    named = by_name(model, PIXART.draw(4))
    named.pop(MASK, None)
    wrapped = ek.wrap(model, example_inputs=named)
    masks = {**named, MASK: ragged(4, named["encoder_hidden_states"].shape[1], 1)}
    with torch.no_grad():
        exits = wrapped(**masks, output_exits=True).exits
        for depth, found in enumerate(exits, 1):
            expected = run(wrapped, [depth] * 4, masks)
            require(torch.allclose(found, expected, atol=1e-4), f"exit {depth} is replayed wrongly")
    ek.unwrap(wrapped)


# Forms of arguments


def forms(model: nn.Module, inputs: ek.Inputs) -> dict[str, tuple[Any, ek.Inputs]]:
    """The same arguments as `example_inputs` in every form, and as they are called."""
    named = by_name(model, inputs)
    parameters = inspect.signature(model.forward).parameters
    last = max(i for i, name in enumerate(parameters) if name in named)
    ordered = [named.get(n, p.default) for n, p in [*parameters.items()][: last + 1]]
    half = len(ordered) // 2
    mixed = ek.Inputs(*ordered[:half], **{k: named[k] for k in [*parameters][half:] if k in named})
    return {
        "position": (tuple(ordered), ek.Inputs(*ordered)),
        "name": (named, ek.Inputs(**named)),
        "both": (mixed, mixed),
    }


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(s, id=s.id, marks=[pytest.mark.slow] * (s in SLOW))
        for s in (CASES["dit"], CASES["unet_conditional"], PIXART, ZIMAGE, VIDEO)
    ],
)
def test_any_form_gives_the_same_plan_and_takes_calls_in_any_other(subject: Subject) -> None:
    model, inputs = subject.make()
    whole, found = Whole(model, inputs), {}
    for form, (example, _) in forms(model, inputs).items():
        wrapped = ek.wrap(model, example_inputs=example)
        # Untrained heads are drawn: the same ones each time.
        for parameter in perturb(wrapped.heads).parameters():
            torch.nn.init.constant_(parameter, 0.01)
        wrapped.policy = ScriptedExit((1, 2, len(wrapped.exits) + 1))
        for other, (_, call) in forms(model, inputs).items():
            with torch.no_grad():
                found[form, other] = wrapped(*call.args, **call.kwargs)
        found[form] = ek.unwrap(wrapped) and wrapped.plan
    plans = [plan for form, plan in found.items() if isinstance(form, str)]
    require(all(plan == plans[0] for plan in plans), "the form of the example changes the plan")
    outputs = [output for form, output in found.items() if isinstance(form, tuple)]
    require(all(equal(o, outputs[0]) for o in outputs), "the form of a call changes the output")
    require(not equal(outputs[0], whole.output), "no row has left, so nothing was compared")
    whole()


def test_tuples_and_lists_of_rows_are_alike() -> None:
    model, inputs = ZIMAGE.make()
    wrapped = ek.wrap(model, example_inputs=inputs)
    named = by_name(model, inputs)
    listed = [k for k, v in named.items() if isinstance(v, list)]
    wrapped.policy = ScriptedExit((1, 2, len(wrapped.exits) + 1))
    with torch.no_grad():
        first = wrapped(**named)
        second = wrapped(**{k: tuple(v) if k in listed else v for k, v in named.items()})
        require(len(listed) > 1 and equal(first, second), "a tuple of rows is read otherwise")
        with pytest.raises(ShapeError, match="'x'"):
            wrapped(**{k: [] if k in listed else v for k, v in named.items()})
    ek.unwrap(wrapped)


@pytest.mark.parametrize("example", ["a number", "a row each"])
def test_a_timestep_for_all_or_for_each_row_whichever_the_example_had(example: str) -> None:
    model, inputs = CASES["unet_conditional"].make()
    named = by_name(model, inputs)
    each = torch.full((3,), 300)
    times = {"a number": 300, "a row each": each}
    wrapped = ek.wrap(model, example_inputs={**named, "timestep": times[example]})
    depths = (1, 2, len(wrapped.exits) + 1)
    outputs = [run(wrapped, depths, {**named, "timestep": t}) for t in (300, each, each[0])]
    require(all(torch.allclose(o, outputs[0], atol=1e-5) for o in outputs), "times are mixed up")
    ek.unwrap(wrapped)


# No rows, and very many

NAMES = ("dit", "unet_conditional", "encoder_sequence_first", "uvit", "shared_block")


def without_rows(name: str) -> ek.Inputs:
    one, (args, kwargs) = case(name), case(name).inputs(2)
    named = list(inspect.signature(one.make().forward).parameters)
    axes = [one.axes.get(n, 0) or 0 for n in named if n not in kwargs]
    taken = tuple(a.narrow(axis, 0, 0) for a, axis in zip(args, axes, strict=False))
    return ek.Inputs(*taken, **{k: v.narrow(0, 0, 0) for k, v in kwargs.items()})


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_are_refused_and_nothing_is_left(name: str) -> None:
    model, inputs = CASES[name].make()
    whole, none = Whole(model, inputs), without_rows(name)
    with pytest.raises(ShapeError, match="empty batch.*at least one row"):
        ek.wrap(model, example_inputs=none)
    whole()
    wrapped = ek.wrap(model, example_inputs=inputs)
    calls: list[Callable[[], Any]] = [
        lambda: wrapped(*none.args, **none.kwargs),
        lambda: wrapped(*none.args, output_exits=True, **none.kwargs),
        lambda: wrapped.record(*none.args, **none.kwargs),
    ]
    with torch.no_grad():
        for call in calls:
            with pytest.raises(ShapeError, match="empty batch"):
                call()
        wrapped.policy = FixedExit(1)
        expected = wrapped(*inputs.args, **inputs.kwargs)
        with wrapped.trajectory():
            for _ in range(2):
                with pytest.raises(ShapeError, match="empty batch"):
                    calls[0]()
                require(equal(wrapped(*inputs.args, **inputs.kwargs), expected), "rows are lost")
        require(wrapped.trace.steps == 2, "a call without rows is in the accounts")
    ek.unwrap(wrapped)
    whole()


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operator made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def tiny() -> tuple[ek.ExitModel, Callable[[int], tuple[Tensor, Tensor]]]:
    model = perturb(TokenNet(depth=4, dim=8).eval())

    def draw(rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(rows, 3, 1, 1, generator=generator)
        return x, torch.randint(1, 1000, (rows,), generator=generator)

    return ek.wrap(model, example_inputs=draw(3)), draw


def test_very_many_rows_equal_their_chunks() -> None:
    """More than 2^16 rows: each keeps its own number, through selecting and putting back."""
    wrapped, draw = tiny()
    rows, size = 70_000, 7_000
    x, t = draw(rows)
    depths = (torch.arange(rows) * 7 % (len(wrapped.exits) + 1) + 1).tolist()
    together = run(wrapped, depths, {"x": x, "t": t})
    require(wrapped.trace.depth[0].tolist() == depths, "rows left elsewhere")
    for start in range(0, rows, size):
        part = slice(start, start + size)
        alone = run(wrapped, depths[part], {"x": x[part], "t": t[part]})
        require(torch.allclose(together[part], alone, atol=2e-5), f"rows from {start} differ")
    # The control: another depth is another output nearly everywhere.
    shifted = run(wrapped, depths[1:] + depths[:1], {"x": x, "t": t})
    changed = (together - shifted).abs().flatten(1).amax(1) > 2e-5
    require(float(changed.float().mean()) > 0.9, "another depth would not be noticed")


@pytest.mark.parametrize("policy", [NeverExit(), UncertaintyThreshold(1.0), FixedExit(2), None])
def test_memory_grows_with_the_rows_not_with_their_square(policy: Any) -> None:
    wrapped, draw = tiny()
    rows = 4096
    wrapped.policy = policy or ScriptedExit(tuple(1 + row % 3 for row in range(rows)))
    with torch.no_grad():
        wrapped(*draw(2)) if policy else None  # shapes are known afterwards
        with Largest() as largest:
            wrapped(*draw(rows))
    require(0 < largest.elements <= rows * 64, f"a tensor of {largest.elements} elements was made")
