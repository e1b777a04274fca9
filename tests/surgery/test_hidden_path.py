"""The hidden state from block to block: against tensor objects that hooks see, and layouts by hand."""

from __future__ import annotations

import inspect
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.surgery.hidden_path import describe_calls
from exitkit.surgery.probe import probe
from exitkit.surgery.spec import Call
from tests.backbones import CASES, Case, TokenNet, case

every = pytest.mark.parametrize("one", CASES, ids=lambda c: c.id)


@cache
def calls_of(one: Case) -> tuple[Call, ...]:
    args, kwargs = one.inputs(2)
    plan = ek.inspect(one.make(), example_inputs=ek.Inputs(*args, **kwargs))
    return tuple(call for stage in plan.stages for call in stage.calls)


def at(value: Any, path: str) -> Any:
    """What a path such as `[1].hidden` leads to; written anew, without the package's own walk."""
    for part in path.replace("[", ".[").split("."):
        if part.startswith("["):
            value = value[int(part[1:-1])]
        elif part:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


class Seen:
    """Arguments and outputs of every call of some modules, in order, with the tensors kept alive."""

    def __init__(self, net: nn.Module, paths: set[str]) -> None:
        self.calls: list[tuple[str, int, dict[str, Any], Any]] = []
        times: defaultdict[str, int] = defaultdict(int)
        for path in paths:
            block = net.get_submodule(path)
            signature = inspect.signature(type(block).forward.__get__(block))

            def hook(
                module: nn.Module,
                args: Any,
                kwargs: Any,
                output: Any,
                path: str = path,
                signature: inspect.Signature = signature,
            ) -> None:
                named = dict(signature.bind(*args, **kwargs).arguments)
                self.calls.append((path, times[path], named, output))
                times[path] += 1

            block.register_forward_hook(hook, with_kwargs=True)


@every
def test_each_block_is_given_the_very_tensor_that_the_one_before_has_made(one: Case) -> None:
    described = calls_of(one)
    net = one.make()
    seen = Seen(net, {call.path for call in described})
    args, kwargs = one.inputs(3, seed=4)
    with torch.no_grad():
        net(*args, **kwargs)
    assert [(path, nth) for path, nth, _, _ in seen.calls] == [(c.path, c.nth) for c in described]
    made: Tensor | None = None
    handed = 0
    for call, (_, _, given, output) in zip(described, seen.calls, strict=True):
        assert call.hidden_in is not None and call.hidden_out is not None
        if made is not None:
            handed += at({**given}, f".{call.hidden_in}") is made
        made = at(output, call.hidden_out)
    # The control: glue between blocks makes tensors of its own.
    assert handed == (0 if one.id == "glue_between" else len(described) - 1)


@every
def test_the_hidden_state_moves_with_the_noisy_input_row_by_row(one: Case) -> None:
    described = calls_of(one)
    nets = one.make(), one.make()
    both = [Seen(net, {call.path for call in described}) for net in nets]
    args, kwargs = one.inputs(2)
    other, named = one.rows([0, 7])  # another second row
    with torch.no_grad():
        nets[0](*args, **kwargs)
        nets[1](*other, **named)
    for call, mine, theirs in zip(described, both[0].calls, both[1].calls, strict=True):
        a, b = (at(seen[3], call.hidden_out or "") for seen in (mine, theirs))
        leaf = next(leaf for leaf in call.outputs if leaf.path == call.hidden_out)
        assert leaf.axis is not None and leaf.moved
        rows = [x.unflatten(leaf.axis, (2, leaf.fold)) for x in (a, b)]
        assert torch.equal(rows[0].select(leaf.axis, 0), rows[1].select(leaf.axis, 0))
        assert not torch.equal(rows[0].select(leaf.axis, 1), rows[1].select(leaf.axis, 1))


@pytest.mark.parametrize(
    ("name", "names", "passes"),
    [
        ("uvit", ("x", ""), {}),
        ("tuple_blocks", ("pair[1]", "[1]"), {"[0]": "pair[0]"}),
        ("dict_blocks", ("state.hidden", ".hidden"), {".emb": "state.emb"}),
        ("keyword_only", ("hidden_states", ""), {}),
        ("sd3", ("hidden_states", "[1]"), {"[0]": "encoder_hidden_states"}),
    ],
)
def test_names_and_what_a_skipped_block_hands_on(
    name: str, names: tuple[str, str], passes: dict[str, str]
) -> None:
    calls = calls_of(case(name))
    for call in calls:
        assert (call.hidden_in, call.hidden_out) == names
        # The last block of SD3 makes no context any more.
        mine = passes if len(call.outputs) > 1 else {}
        assert dict(call.passes) == {names[1]: names[0], **mine}
        assert call.base is None
    assert [len(call.outputs) > 1 for call in calls[:-1]] == [bool(passes)] * (len(calls) - 1)


class Branch(nn.Module):
    """What a block adds to its input; whole blocks add it themselves."""

    def __init__(self, dim: int, whole: bool = False) -> None:
        super().__init__()
        self.up, self.whole = nn.Linear(dim, dim), whole

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        added = torch.tanh(self.up(x) + emb[:, None])
        return x + added if self.whole else added


class Adding(TokenNet):
    """Adds the output of each block to its input itself."""

    def trunk(self, tokens: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = tokens + block(tokens, emb)
        return tokens


class Whole(TokenNet):
    """The same blocks, whole."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Branch(16, whole=True) for _ in range(4))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_caller_that_adds_is_told_from_blocks_that_add(seed: int) -> None:
    torch.manual_seed(seed)
    args, _ = case("uvit").inputs(2, seed)
    adding = ek.inspect(Adding(Branch).eval(), example_inputs=args)
    for stage in adding.stages:  # the last one, too, which hands on to no other block
        (call,) = stage.calls
        assert (call.base, call.scale, call.passes) == (0, 1.0, ())
    for stage in ek.inspect(Whole().eval(), example_inputs=args).stages:
        (call,) = stage.calls
        assert call.base is None and call.passes == (("", "x"),)


def test_calls_are_described_by_their_place_in_the_run() -> None:
    one = case("shared_block")
    seen = probe(one.make(), one.inputs(2)[0])
    flat = [i for i, call in enumerate(seen.base.calls) if call.path == "block"]
    described = describe_calls(seen, flat)
    assert list(described) == flat and [described[i].nth for i in flat] == [0, 1, 2, 3]
    some = describe_calls(seen, flat[:2])
    assert list(some) == flat[:2] and some[flat[0]] == described[flat[0]]
