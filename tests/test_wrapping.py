"""wrap leaves the backbone usable and unwrap gives it back, also when something goes wrong."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import AlreadyWrappedError, DoubtWarning, ExitKitError, TracingError
from exitkit.policies import FixedExit
from tests.backbones import CASES, Case, case

HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a user could notice, read without exitkit; cheap to compare."""
    facts: dict[str, Any] = {"state": list(model.state_dict())}
    for path, module in model.named_modules():
        own = vars(module)
        facts[path] = {
            "class": type(module),
            "attributes": set(own),
            "forward": getattr(module.forward, "__func__", module.forward),
            "instance forward": own.get("forward"),
            "signature": inspect.signature(module.forward),
            "hooks": {name: dict(own[name]) for name in HOOKS},
            "training": module.training,
            "parameters": {
                k: (id(p), p.requires_grad) for k, p in own["_parameters"].items() if p is not None
            },
            "children": {k: id(m) for k, m in own["_modules"].items()},
        }
    return facts


def values(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, facts: dict[str, Any], state: dict[str, Tensor]) -> None:
    assert_facts(model, facts)
    assert list(model.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def assert_facts(model: nn.Module, facts: dict[str, Any]) -> None:
    now = snapshot(model)
    assert list(now) == list(facts)
    for path, module in facts.items():
        if path == "state":
            assert now[path] == module
            continue
        for what, value in module.items():
            if what == "attributes":
                assert not now[path][what] ^ value, f"{path!r} has other attributes"
            assert now[path][what] == value, f"{what} of {path!r} changed"


def mixed_flags(model: nn.Module) -> nn.Module:
    """As in fine-tuning: some modules in train mode, some parameters frozen."""
    modules = list(model.modules())
    for module in modules[::3]:
        module.training = True
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_unwrap_gives_back_the_same_module(backbone: Case) -> None:
    model = mixed_flags(backbone.make())
    args, kwargs = backbone.inputs(3)
    facts, state = snapshot(model), values(model)
    wrapped = ek.wrap(model, example_inputs=ek.Inputs(*args, **kwargs))
    for path, module in model.named_modules():
        assert module.training == facts[path]["training"], f"wrap changed the mode of {path!r}"
    assert ek.unwrap(wrapped) is model
    assert_unchanged(model, facts, state)


@pytest.mark.parametrize("backbone", CASES, ids=lambda c: c.id)
def test_wrapping_and_running_change_no_value(backbone: Case) -> None:
    model = backbone.make()
    args, kwargs = backbone.inputs(3)
    facts, state = snapshot(model), values(model)
    wrapped = ek.wrap(model, example_inputs=ek.Inputs(*args, **kwargs))
    assert list(model.state_dict()) == list(state), "a wrapped backbone saves as before"
    assert inspect.signature(model.forward) == facts[""]["signature"]
    wrapped.policy = FixedExit(1)
    with torch.no_grad():
        wrapped(*args, **kwargs)
    ek.unwrap(wrapped)
    assert_unchanged(model, facts, state)


def test_probing_in_train_mode_leaves_batch_statistics() -> None:
    backbone = case("timm_resnet")
    model = backbone.make().train()
    facts, state = snapshot(model), values(model)
    args, kwargs = backbone.inputs(3)
    ek.unwrap(ek.wrap(model, example_inputs=ek.Inputs(*args, **kwargs)))
    assert_unchanged(model, facts, state)


def test_hooks_of_the_user_survive_and_fire() -> None:
    backbone = case("uvit")
    model = backbone.make()
    args, _ = backbone.inputs(3)
    fired: list[str] = []
    model.mid_block.register_forward_hook(lambda *_: fired.append("hook"))
    model.mid_block.register_forward_pre_hook(lambda *_: fired.append("pre"))
    facts = snapshot(model)
    wrapped = ek.wrap(model, example_inputs=args)
    fired.clear()
    with torch.no_grad():
        wrapped(*args)
        assert fired == ["pre", "hook"]
        ek.unwrap(wrapped)
        assert_facts(model, facts)
        model(*args)
    assert fired == ["pre", "hook"] * 2


def test_an_instance_forward_of_the_user_is_kept() -> None:
    # accelerate and offloading hooks put a `forward` on the instance, too.
    backbone = case("uvit")
    model = backbone.make()
    args, _ = backbone.inputs(3)
    inner = model.mid_block.forward
    calls: list[int] = []

    def mine(x: Tensor, skip: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        return inner(x, skip)

    model.mid_block.forward = mine
    wrapped = ek.wrap(model, example_inputs=args)
    calls.clear()
    with torch.no_grad():
        wrapped(*args)
    assert calls == [3]
    ek.unwrap(wrapped)
    assert vars(model.mid_block)["forward"] is mine


class Bomb(nn.Module):
    """Wraps a block's working part; `armed` makes it raise."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            raise RuntimeError("boom")
        return self.inner(x)


def fragile() -> tuple[nn.Module, Bomb]:
    model = case("value_branch").make()
    bomb = Bomb(model.blocks[2].up)
    model.blocks[2].up = bomb
    return model, bomb


def test_an_exception_in_a_block_leaves_a_working_model() -> None:
    model, bomb = fragile()
    args, _ = case("value_branch").inputs(3)
    facts, state = snapshot(model), values(model)
    with torch.no_grad():
        bare = model(*args)
        wrapped = ek.wrap(model, example_inputs=args)
        wrapped.policy = FixedExit(3)
        early = wrapped(*args)
        bomb.armed = True
        with pytest.raises(RuntimeError, match="boom"):
            wrapped(*args)
        with pytest.raises(RuntimeError, match="boom"):
            model(*args)
        with pytest.raises(RuntimeError, match="boom"), wrapped.trajectory():
            wrapped(*args)
        bomb.armed = False
        assert torch.equal(model(*args), bare)
        assert torch.equal(wrapped(*args), early)
        ek.unwrap(wrapped)
        assert_unchanged(model, facts, state)
        assert torch.equal(model(*args), bare)


def test_an_exception_while_probing_leaves_the_model_as_it_was() -> None:
    model, bomb = fragile()
    mixed_flags(model)
    args, _ = case("value_branch").inputs(3)
    facts, state = snapshot(model), values(model)
    bomb.armed = True
    with pytest.raises(TracingError, match="boom") as caught:
        ek.wrap(model, example_inputs=args)
    assert isinstance(caught.value.__cause__, RuntimeError)
    bomb.armed = False
    assert_unchanged(model, facts, state)
    ek.unwrap(ek.wrap(model, example_inputs=args))


LEFT: list[int] = []
STAYS: list[bool] = []
ARMED: list[Any] = []


def _countdown(*_: Any) -> None:
    LEFT[0] -= 1
    ARMED[0].armed = LEFT[0] == 0 or (LEFT[0] < 0 and STAYS[0])


@pytest.mark.parametrize("stays", [True, False], ids=["from then on", "once"])
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5, 6, 7])
def test_an_exception_in_any_dry_run_leaves_the_model_as_it_was(calls: int, stays: bool) -> None:
    model, bomb = fragile()
    args, _ = case("value_branch").inputs(3)
    facts, state = snapshot(model), values(model)
    # Not in a closure: what the hooks of a network hold is put back behind every forward.
    LEFT[:] = [calls]
    ARMED[:] = [bomb]
    STAYS[:] = [stays]

    handle = bomb.register_forward_pre_hook(_countdown)
    try:
        ek.unwrap(ek.wrap(model, example_inputs=args))
        raised = False
    except ExitKitError:
        raised = True
    # What an experiment meets is no error of the network: another change is tried. Where it was once
    # alone, the run that counts is made without counting, and another noisy input is tried, of two rows
    # and of four.
    assert raised == (LEFT[0] <= 0 and calls in ((1, 2, 3, 4, 5) if stays else (2, 5)))
    handle.remove()
    bomb.armed = False
    facts["blocks.2.up"]["attributes"] = set(vars(bomb))
    assert_unchanged(model, facts, state)


def test_wrapping_twice_is_refused_with_the_way_out() -> None:
    model = case("uvit").make()
    args, _ = case("uvit").inputs(2)
    wrapped = ek.wrap(model, example_inputs=args)
    facts = snapshot(model)
    with pytest.raises(AlreadyWrappedError, match=r"UViT.*unwrap"):
        ek.wrap(model, example_inputs=args)
    with pytest.raises(AlreadyWrappedError, match="unwrap"):
        ek.wrap(wrapped, example_inputs=args)
    assert_facts(model, facts)
    ek.unwrap(wrapped)
    again = ek.wrap(model, example_inputs=args)
    assert ek.unwrap(again) is model


def test_wrapping_a_part_of_a_wrapped_model_is_refused() -> None:
    backbone = case("classifier_sequence_first")
    model = backbone.make()
    args, _ = backbone.inputs(2)
    wrapped = ek.wrap(model, example_inputs=args)
    with pytest.raises(AlreadyWrappedError, match=r"layers.*unwrap"):
        ek.wrap(model.encoder, example_inputs=case("encoder_sequence_first").inputs(2)[0])
    ek.unwrap(wrapped)


def test_unwrapping_twice_says_so() -> None:
    model = case("uvit").make()
    args, _ = case("uvit").inputs(2)
    wrapped = ek.wrap(model, example_inputs=args)
    ek.unwrap(wrapped)
    with pytest.raises(ExitKitError, match="unwrap"):
        ek.unwrap(wrapped)
    with pytest.raises(ExitKitError, match="unwrap"):
        wrapped(*args)


def test_unwrapping_something_else_says_so() -> None:
    model = case("uvit").make()
    with pytest.raises(ExitKitError, match="wrap.*UViT|UViT.*wrap"):
        ek.unwrap(model)


@pytest.mark.parametrize("name", ["timm_resnet", "classifier_sequence_first"])
def test_carried_exits_of_a_classifier_are_told_that_nothing_is_carried(name: str) -> None:
    net, inputs = case(name).make(), ek.Inputs(*case(name).inputs(2)[0])
    with pytest.warns(DoubtWarning, match="carry nothing outside a trajectory.*'relative'"):
        model = ek.wrap(net, "carried", example_inputs=inputs)
    ek.unwrap(model)
    # Controls: presets that keep no state, and denoisers; warnings are errors here.
    ek.unwrap(ek.wrap(net, "relative", example_inputs=inputs))
    one = case("uvit")
    ek.wrap(one.make(), "carried", example_inputs=ek.Inputs(*one.inputs(2)[0]))
