"""Gates: a block as it was without a run of their own, and all of them in or none."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError
from exitkit.execution import gate as gates_module
from exitkit.execution.gate import CURRENT, CallSite, Gate, GateSet, check_ungated
from exitkit.surgery.spec import Plan
from tests.backbones import Case, case, prediction
from tests.copies import copies

NAMES = ("uvit", "unet", "tuple_blocks", "dict_blocks", "keyword_only", "shared_block")
every = pytest.mark.parametrize("one", [case(name) for name in NAMES], ids=lambda c: c.id)


@copies
def planned(one: Case) -> tuple[nn.Module, Plan]:
    args, kwargs = one.inputs(2)
    net = one.make()
    return net, ek.inspect(net, example_inputs=ek.Inputs(*args, **kwargs))


class Counting:
    """A run that lets every call through and writes down which."""

    def __init__(self, gates: object) -> None:
        self.gates, self.seen = gates, list[str]()

    def through(self, gate: Gate, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append(gate.sites[0].call.path)
        return gate.original(*args, **kwargs)


@contextmanager
def running(run: Counting) -> Iterator[None]:
    token = CURRENT.set(run)
    try:
        yield
    finally:
        CURRENT.reset(token)


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_calls_are_handed_to_the_run_that_owns_the_gates(one: Case, seed: int) -> None:
    net, plan = planned(one)
    args, kwargs = one.inputs(3, seed)
    with torch.no_grad():
        want = prediction(net(*args, **kwargs))
        gates = GateSet(net, plan)
        mine, other = Counting(gates), Counting(object())
        for run, expected in ((mine, list(one.stages)), (other, [])):
            with running(run):
                assert torch.equal(prediction(net(*args, **kwargs)), want)
            assert run.seen == expected
        assert torch.equal(prediction(net(*args, **kwargs)), want)
    assert mine.seen == list(one.stages), "a gate without a run has asked an old one"
    gates.remove()
    assert not any("forward" in vars(module) for module in net.modules())


@every
def test_a_gate_looks_like_the_forward_that_it_replaces(one: Case) -> None:
    net, plan = planned(one)
    before = {p: (inspect.signature(m.forward), m.forward.__doc__) for p, m in net.named_modules()}
    gates = GateSet(net, plan)
    for path, gate in gates.gates.items():
        block = net.get_submodule(path)
        assert block.forward is gate and (inspect.signature(gate), gate.__doc__) == before[path]
    assert set(gates.gates) == set(one.stages)


def test_sites_say_which_outputs_a_skipped_call_cannot_make() -> None:
    for name, learns in (("uvit", False), ("dict_blocks", False), ("unet", True)):
        _, plan = planned(case(name))
        for stage in plan.stages:
            for call in stage.calls:
                site = CallSite.of(call, stage.index, call is stage.calls[-1])
                made = {out for out, _ in call.passes}
                assert site.learns == (set(site.outputs) > made), (name, call.path)
                assert site.last and site.passes == dict(call.passes)
        # Down blocks of a U-Net hand skips on, which no argument holds.
        first = plan.stages[0].calls[0]
        assert CallSite.of(first, 1, True).learns is learns


def test_a_gate_names_its_arguments() -> None:
    net, plan = planned(case("uvit"))
    gate = GateSet(net, plan).gates["mid_block"]
    assert gate.names(1) == ("x",) and gate.names(2) == ("x", "skip")
    assert gate.names(3) is None, "there is no third parameter"


# --------------------------------------------------------------------------------- in and out


@pytest.mark.parametrize("at", [1, 3, 5])
def test_gates_go_in_all_or_none(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net, plan = planned(case("uvit"))
    real, made = gates_module.Gate.__init__, list[int]()

    def failing(self: Gate, *args: Any) -> None:
        made.append(1)
        if len(made) == at:
            raise KeyboardInterrupt
        real(self, *args)

    monkeypatch.setattr(gates_module.Gate, "__init__", failing)
    with pytest.raises(KeyboardInterrupt):
        GateSet(net, plan)
    assert not any("forward" in vars(module) for module in net.modules())
    monkeypatch.undo()
    assert len(GateSet(net, plan).gates) == 5


def test_a_gated_backbone_takes_no_second_set() -> None:
    net, plan = planned(case("uvit"))
    check_ungated(net)
    GateSet(net, plan)
    with pytest.raises(AlreadyWrappedError, match=r"UViT: block 'in_blocks.0' .*unwrap"):
        GateSet(net, plan)
    block = net.in_blocks[0]
    hidden = block.forward  # as accelerate's hooks keep what they found
    block._old_forward, block.forward = hidden, lambda *a, **k: hidden(*a, **k)
    for other in list(net.modules()):
        if other is not block and isinstance(vars(other).get("forward"), Gate):
            del other.forward
    with pytest.raises(AlreadyWrappedError, match=r"in_blocks.0"):
        check_ungated(net)


def test_a_forward_of_the_instance_is_called_and_comes_back() -> None:
    one = case("uvit")
    net, plan = planned(one)
    inner, ran = net.mid_block.forward, list[int]()

    def mine(x: Tensor, skip: Tensor | None = None) -> Tensor:
        ran.append(len(x))
        return inner(x, skip)

    net.mid_block.forward = mine
    gates = GateSet(net, plan)
    assert gates.gates["mid_block"].bare is mine and gates.gates["in_blocks.0"].bare is None
    with torch.no_grad():
        net(*one.inputs(3)[0])
    assert ran == [3]
    gates.remove()
    assert vars(net.mid_block)["forward"] is mine


def test_a_copy_has_gates_on_its_own_blocks() -> None:
    one = case("uvit")
    net, plan = planned(one)
    gates = GateSet(net, plan)
    twin, copied = copy.deepcopy((net, gates))
    for path, gate in copied.gates.items():
        block = twin.get_submodule(path)
        assert gate.block is block is not net.get_submodule(path)
        assert gate.original.__self__ is block and gate.owner is copied and block.forward is gate
    gates.remove()
    assert isinstance(twin.mid_block.forward, Gate)
    with torch.no_grad():
        args, _ = one.inputs(2)
        assert torch.equal(twin(*args), net(*args))


# ------------------------------------------------------------------------- what waits behind them


def test_hooks_that_wait_behind_a_block_are_seen() -> None:
    net, plan = planned(case("uvit"))
    gates = GateSet(net, plan)
    assert not gates.watched(inside=False)
    for module, inside, seen in (
        (net.in_blocks[0], True, True),
        (net.in_blocks, False, True),  # a module around blocks
        (net, False, True),
        (net, True, False),  # what is around the backbone's own forward sees it return
        (net.in_blocks[0].attn, False, False),  # within a block, which ends as ever
    ):
        handle = module.register_forward_hook(lambda *_: None)
        assert gates.watched(inside) is seen, module
        handle.remove()
    # A function over a forward, which may send weights away behind it.
    own = net.in_blocks[0].forward
    net.in_blocks[0].forward = lambda *a, **k: own(*a, **k)
    assert gates.watched(inside=True)
    net.in_blocks[0].forward = own
    assert not gates.watched(inside=True)


def test_forms_of_calls_that_are_known_are_forgotten_in_time() -> None:
    net, plan = planned(case("uvit"))
    gates = GateSet(net, plan)
    for form in range(32):
        gates.note(gates.learned, form)
    assert gates.learned == set(range(32))
    gates.note(gates.learned, "one more")
    assert gates.learned == {"one more"}


def test_what_is_compiled_is_the_blocks_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    one = case("uvit")
    net, plan = planned(one)
    gates, asked = GateSet(net, plan), list[Any]()

    def compiled(forward: Any, **options: Any) -> Any:
        asked.append((forward, options))
        return lambda *args, **kwargs: 2 * forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compiled)
    args, _ = one.inputs(2)
    with torch.no_grad():
        want = net(*args)
        gates.compile({"dynamic": True})
        assert not torch.equal(net(*args), want), "the control: what was compiled is not called"
        assert all(gate.bare is gate.original for gate in gates.gates.values())
        gates.remove()
        assert torch.equal(net(*args), want)
    assert len(asked) == 5 and all(options == {"dynamic": True} for _, options in asked)
    assert not any(isinstance(forward, Gate) for forward, _ in asked)
