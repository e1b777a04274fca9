"""Exits that are out for a while: the bare backbone answers, and all is back in its place afterwards."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, ConfigError
from exitkit.execution.gate import Gate
from exitkit.execution.patching import found
from exitkit.pipelines.routes import take_over
from exitkit.policies import FixedExit
from tests.backbones import Case, case, prediction
from tests.copies import copies

NAMES = ("uvit", "unet", "timm_resnet", "shared_block", "tuple_blocks")
every = pytest.mark.parametrize("one", [case(name) for name in NAMES], ids=lambda c: c.id)


@copies
def wrapped(one: Case, seed: int = 0) -> tuple[ek.ExitModel, Any]:
    args, kwargs = one.inputs(3, seed)
    model = ek.wrap(one.make(seed), "relative", example_inputs=ek.Inputs(*args, **kwargs))
    model.policy = FixedExit(1)
    return model, lambda net: prediction(net(*args, **kwargs))


def gated(net: nn.Module) -> int:
    return sum("forward" in vars(module) for module in net.modules())


@every
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bare_backbone_answers_bit_for_bit(one: Case, seed: int) -> None:
    model, ask = wrapped(one, seed)
    with torch.no_grad():
        want, early = ask(one.make(seed)), ask(model)
        gates = gated(model.backbone)
        cost = model.trace.cost
        with model.suspended():
            assert torch.equal(ask(model), want) and torch.equal(ask(model.backbone), want)
            assert gated(model.backbone) == 0
            assert not model.trace.calls, "accounts of a run with exits are told of one without"
        # Negative control: with its exits the model answers otherwise.
        assert not torch.equal(early, want)
        assert model.trace.cost == cost and torch.equal(ask(model), early)
    assert gated(model.backbone) == gates


def test_calls_of_a_backbone_that_was_taken_over_are_its_own() -> None:
    one = case("uvit")
    model, ask = wrapped(one)
    take_over(model)
    with torch.no_grad():
        want, early = ask(one.make()), ask(model)
        assert torch.equal(ask(model.backbone), early)
        with model.suspended():
            assert torch.equal(ask(model.backbone), want)
        assert torch.equal(ask(model.backbone), early)


def test_contexts_nest_and_end_by_exceptions() -> None:
    model, ask = wrapped(case("uvit"))
    with torch.no_grad():
        early = ask(model)
        with pytest.raises(ZeroDivisionError), model.suspended():
            with model.suspended():
                pass
            assert gated(model.backbone) == 0, "the inner context has put the gates back"
            raise ZeroDivisionError
        assert torch.equal(ask(model), early)


def test_an_exception_while_gates_come_off_leaves_them_all_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from exitkit.execution import suspension

    model, ask = wrapped(case("uvit"))
    real, left = suspension.restore, 3

    def failing(*args: Any) -> str | None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return real(*args)

    with torch.no_grad():
        early, gates = ask(model), gated(model.backbone)
        monkeypatch.setattr(suspension, "restore", failing)
        with pytest.raises(KeyboardInterrupt), model.suspended():
            raise AssertionError("it was entered")
        monkeypatch.undo()
        assert gated(model.backbone) == gates
        assert torch.equal(ask(model), early)
        with model.suspended():
            assert gated(model.backbone) == 0


def test_what_needs_exits_says_that_they_are_out() -> None:
    one = case("uvit")
    model, _ = wrapped(one)
    args, _ = one.inputs(3)
    with model.suspended():
        for ask in (
            lambda: model(*args, output_exits=True),
            lambda: model.record(*args),
            lambda: model.replay(args, {}, [torch.zeros(3, 1)]),
            lambda: model.compile_blocks(),
        ):
            with pytest.raises(ConfigError, match=r"UViT are suspended.*outside"):
                ask()
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ConfigError, match="suspended: a copy"):
                copied(model)
    assert model(*args, output_exits=True).exits
    assert copy.deepcopy(model).trace.exits == len(model.exits)


def test_a_model_undone_inside_stays_undone() -> None:
    one = case("uvit")
    model, ask = wrapped(one)
    with torch.no_grad():
        with model.suspended():
            net = ek.unwrap(model)
            with pytest.raises(AlreadyWrappedError, match="undone"):
                ask(model)
        assert gated(net) == 0 and torch.equal(ask(net), ask(one.make()))
    with pytest.raises(AlreadyWrappedError, match="undone"), model.suspended():
        pass
    with pytest.raises(AlreadyWrappedError, match="undone"):
        ek.unwrap(model)


def test_compiled_blocks_stay_compiled() -> None:
    model, ask = wrapped(case("uvit"))
    ran: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Tensor) -> Any:
            ran.append(1)
            return graph.forward(*args)

        return run

    model.compile_blocks(backend=backend)
    with torch.no_grad():
        with model.suspended():
            ask(model)
            assert ran and not any(found(module, Gate) for module in model.backbone.modules())
        ran.clear()
        ask(model)
        assert ran
        ek.unwrap(model)
        ran.clear()
        ask(model.backbone)
    assert not ran and gated(model.backbone) == 0


@contextmanager
def hooked(block: nn.Module) -> Iterator[list[int]]:
    """What accelerate does: a function over the forward, which keeps what it found beside it."""
    fired: list[int] = []
    before, block._old_forward = vars(block).get("forward"), block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        fired.append(1)
        return block._old_forward(*args, **kwargs)

    block.forward = forward
    yield fired
    # As accelerate takes it off: what lay under it is the forward again.
    block.forward = block._old_forward
    del block._old_forward
    if before is None and not isinstance(vars(block)["forward"], Gate):
        del block.forward


@pytest.mark.parametrize("when", ["around", "inside", "over the end"])
def test_hooks_put_over_a_block_go_on_firing(when: str) -> None:
    one = case("uvit")
    model, ask = wrapped(one)
    block = model.backbone.in_blocks[0]
    with torch.no_grad():
        want, early = ask(one.make()), ask(model)
        if when == "around":
            with hooked(block) as fired:
                with model.suspended():
                    assert torch.equal(ask(model), want) and fired == [1]
                assert torch.equal(ask(model), early) and fired == [1, 1]
        elif when == "inside":
            with model.suspended(), hooked(block) as fired:
                assert torch.equal(ask(model), want) and fired == [1]
        else:
            suspended = model.suspended()
            suspended.__enter__()
            with hooked(block) as fired:
                suspended.__exit__(None, None, None)
                assert torch.equal(ask(model), early) and fired == [1]
        assert torch.equal(ask(model), early)
    assert ek.unwrap(model) is model.backbone and gated(model.backbone) == 0


def test_a_forward_that_somebody_puts_on_inside_is_kept() -> None:
    model, ask = wrapped(case("uvit"))
    block = model.backbone.in_blocks[0]
    inner, ran = block.forward.original, []

    def mine(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return inner(*args, **kwargs)

    with torch.no_grad():
        early = ask(model)
        with model.suspended():
            block.forward = mine
        assert torch.equal(ask(model), early) and ran == [1]
    ek.unwrap(model)
    assert vars(block)["forward"] is mine


def test_the_last_thread_to_leave_puts_the_exits_back() -> None:
    model, _ = wrapped(case("uvit"))
    gates = gated(model.backbone)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with model.suspended():
            entered.set()
            leave.wait(timeout=30)

    thread = threading.Thread(target=other)
    with model.suspended():
        thread.start()
        assert entered.wait(timeout=30)
    assert gated(model.backbone) == 0
    leave.set()
    thread.join(timeout=30)
    assert gated(model.backbone) == gates


def test_samples_of_a_suspended_model_are_those_of_the_bare_one() -> None:
    one = case("uvit")
    model, _ = wrapped(one)
    sampler = ek.Sampler("ddim", tuple(one.inputs(1)[0][0].shape[1:]), 3)
    want = ek.generate(one.make(), sampler, 2).samples
    early = ek.generate(model, sampler, 2)
    with model.suspended():
        bare = ek.generate(model, sampler, 2)
    assert torch.equal(bare.samples, want) and bare.trace is None
    assert not torch.equal(early.samples, want) and early.trace is not None
