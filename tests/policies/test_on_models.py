"""What policies decide inside real models is what they decide on the signals of those models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.policies import (
    CALM,
    FULL,
    ConfidenceThreshold,
    CorrectedSchedule,
    EntropyThreshold,
    ExitRule,
    FixedExit,
    LearningToExit,
    NeverExit,
    Oracle,
    Patience,
    Policy,
    ScriptedExit,
    TimestepSchedule,
    UncertaintyThreshold,
    ase_schedule,
)
from exitkit.testing import SignalTable
from tests.backbones import case
from tests.policies.spy import Spy, between, randomise, spied

MODELS = ("timm_vit", "uvit")
BATCH = 6


@cache
def watched(name: str) -> tuple[ek.ExitModel, tuple[Any, ...], Spy, SignalTable]:
    """A wrapped model, its arguments, and all signals of one full run."""
    net = case(name)
    args, _ = net.inputs(BATCH)
    model = randomise(ek.wrap(net.make(), "relative", example_inputs=args))
    spy = spied(model, [args])
    return model, args, spy, spy.table(1)


def rms(x: Tensor) -> Tensor:
    return x.flatten(3).square().mean(dim=3).sqrt()


def policies(model: ek.ExitModel, table: SignalTable) -> Iterator[Policy]:
    """Settings of every policy that are in the middle of what the model's signals do."""
    costs = tuple(e.cost for e in model.exits)
    maps = table.maps.flatten(3) if table.maps.dim() > 3 else table.maps[..., None]
    u = maps.mean(dim=3)  # (1, K, B)
    change = rms(table.prediction[:, 1:] - table.prediction[:, :-1])
    hidden = table.hidden.flatten(3)
    gaps = rms(table.prediction - table.full[:, None])
    for theta in between(u):
        yield UncertaintyThreshold(theta)
        yield UncertaintyThreshold(theta, patience=2, patience_until=0.7)
        yield UncertaintyThreshold(theta, minimum_depth=2)
        yield LearningToExit(1.0, (theta,) * (table.exits - 1) + (1.0,))
        yield CALM("meta", 1 - theta)
        yield CALM("meta", 1 - theta, whole_batch=True)
    for theta in between(u.mean(dim=2), 1):
        yield UncertaintyThreshold(theta, batch_mean=True)
    for theta in between(maps.amax(dim=3)):
        yield UncertaintyThreshold(theta, reduction="max")
    for theta in between(maps.quantile(0.9, dim=3)):
        yield UncertaintyThreshold(theta, reduction="quantile")
    for bound in between(torch.cosine_similarity(hidden[:, 1:], hidden[:, :-1], dim=3)):
        yield CALM("cosine", max(bound, 0.0))
        yield CALM("cosine", max(bound, 0.0), whole_batch=True)
    for bound in between(1 / (1 + change / rms(table.prediction[:, 1:]))):
        yield CALM("change", bound)
    for tolerance in between(change):
        yield Patience(1, tolerance)
        yield Patience(2, tolerance)
        yield Patience(1, tolerance, whole_batch=True)
    for delta in between(gaps):
        yield Oracle(delta=delta)
        yield Oracle(price=delta, costs=costs)
    means, spreads = u[0].mean(dim=1).tolist(), u[0].std(dim=1).tolist()
    for depth in (*range(1, table.exits + 1), FULL):
        yield CorrectedSchedule((), (depth,), (tuple(means),), (tuple(spreads),), limit=0.7)
        yield FixedExit(depth)
    yield ScriptedExit((1, 2, 3, FULL, 2, 1))
    yield NeverExit()
    if table.prediction.dim() == 4:  # classes
        p = table.prediction.softmax(dim=3)
        top = p.topk(2, dim=3).values
        for bound in between(-(p * p.log()).sum(dim=3) / torch.tensor(p.shape[3]).log()):
            yield EntropyThreshold(bound)
        for bound in between(top[..., 0]):
            yield ConfidenceThreshold(bound)
        for bound in between(top[..., 0] - top[..., 1]):
            yield CALM("margin", bound)
            yield CALM("margin", bound, whole_batch=True)
        for k in (1, 2):
            yield Patience(k)
    else:
        yield TimestepSchedule((250.0, 500.0, 750.0), (FULL, 3, 2, 1))
        yield ase_schedule(costs)


@pytest.mark.parametrize("name", MODELS)
def test_signals_are_what_the_modules_really_computed(name: str) -> None:
    model, args, spy, table = watched(name)
    bare = case(name).make()
    paths = [e.path for e in model.exits]
    inside: dict[str, Tensor] = {}
    first = case(name).stages[0]
    bare.get_submodule(first).register_forward_pre_hook(
        lambda m, given: inside.__setitem__("entry", given[0])
    )
    for path in paths:
        bare.get_submodule(path).register_forward_hook(
            lambda m, given, out, at=path: inside.__setitem__(at, out)
        )
    with torch.no_grad():
        out = bare(*args)
        exits = model(*args, output_exits=True)
    assert torch.equal(table.entry[0], inside["entry"])
    assert torch.equal(table.full[0], out)
    for i, path in enumerate(paths):
        assert torch.equal(table.hidden[0, i], inside[path])
        torch.testing.assert_close(table.prediction[0, i], exits.exits[i], atol=1e-6, rtol=0)
        torch.testing.assert_close(table.maps[0, i], exits.uncertainty[i], atol=1e-6, rtol=0)
        gap = (table.prediction[0, i] - out).flatten(1).square().mean(dim=1).sqrt()
        torch.testing.assert_close(spy.seen["gaps"][-1][:, i], gap, atol=1e-6, rtol=0)
        if i:
            assert torch.equal(spy.seen["previous_hidden"][i], table.hidden[0, i - 1])
            assert torch.equal(spy.seen["previous_prediction"][i], table.prediction[0, i - 1])
    assert spy.seen["previous_hidden"][0].isnan().all()
    # Negative control: exits differ from each other, so that the right one was asked.
    assert not torch.allclose(table.prediction[0, 0], table.prediction[0, 1], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_decides_as_the_recorded_signals_say(name: str) -> None:
    model, args, _, table = watched(name)
    seen: dict[type[Policy], set[int]] = {}
    with torch.no_grad():
        for policy in policies(model, table):
            model.policy = policy
            model(*args)
            depths = model.trace.depth[0].tolist()
            assert depths == table.walk(policy)[0].tolist(), policy
            reads = policy.reads() if isinstance(policy, ExitRule) else set()
            assert model.trace.oracle == ("oracle" in reads)
            seen.setdefault(type(policy), set()).update(depths)
    assert set().union(*seen.values()) == set(range(1, table.exits + 2))
    # A policy that lets everybody do the same whatever its setting would agree with anything.
    assert all(len(depths) > 1 for policy, depths in seen.items() if policy is not NeverExit)


def test_another_policy_is_one_assignment_and_wraps_nothing_again() -> None:
    model, args, _, table = watched("uvit")
    inside = [model.backbone.get_submodule(path).forward for path in case("uvit").stages]
    gates, heads = model._executor.gates, list(model.heads.parameters())
    for policy in policies(model, table):
        model.policy = policy
        assert model.policy is policy and str(policy) in model.summary()
    assert model._executor.gates is gates
    assert all(a is b for a, b in zip(heads, model.heads.parameters(), strict=True))
    now = [model.backbone.get_submodule(path).forward for path in case("uvit").stages]
    assert all(a is b for a, b in zip(inside, now, strict=True))
    with pytest.raises(ek.errors.ConfigError, match="expected a Policy, got float"):
        model.policy = 0.5  # type: ignore[assignment]
