"""What a wrapped model says of itself, against counts of torch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import exitkit as ek
from exitkit.policies import FULL, FixedExit
from exitkit.summary import count_parameters, describe_exits
from tests.backbones import Case, TokenNet, case

NAMES = ("uvit", "unet", "timm_vit", "timm_resnet", "shared_block")
every = pytest.mark.parametrize("one", [case(name) for name in NAMES], ids=lambda c: c.id)


def wrapped(one: Case, preset: str = "relative", **more: object) -> ek.ExitModel:
    args, kwargs = one.inputs(2)
    return ek.wrap(one.make(), preset, example_inputs=ek.Inputs(*args, **kwargs), **more)


def executed(model: ek.ExitModel, one: Case, depth: int) -> float:
    """Multiply-accumulates of one row that leaves at a depth, uncertainty heads aside."""
    args, kwargs = one.inputs(1)
    model.policy = FixedExit(depth)
    # What is around the blocks is booked for every row. Runs that end with the last row skip it; none
    # does so where a hook waits behind a block.
    block = model.backbone.get_submodule(one.stages[0])
    handle = block.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        model(*args, **kwargs)  # once before: shapes are known afterwards
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*args, **kwargs)
    handle.remove()
    return counter.get_total_flops() / 2


@every
def test_an_exits_cost_is_what_leaving_there_runs(one: Case) -> None:
    model = wrapped(one)
    full = executed(model, one, FULL)
    assert full == pytest.approx(model.plan.macs)
    exits = describe_exits(model._executor.layout)
    assert exits == model.exits and [e.index for e in exits] == list(range(1, len(exits) + 1))
    for e in exits:
        assert e.cost == pytest.approx(executed(model, one, e.index) / full, rel=1e-6), e.path
    assert len({round(e.cost, 6) for e in exits}) == len(exits), "the control: costs do not differ"


def test_an_exit_that_resumes_pays_for_what_follows() -> None:
    one = case("unet")
    model = wrapped(one, "carried")
    plan = model.plan
    (e, *_), (point, *_) = model.exits, model._executor.layout.points
    after = sum(s.macs for s in plan.stages[point.landing :])
    assert 0 < after and e.path == "down_blocks.0"
    assert e.cost == pytest.approx(
        plan.boundaries[0].share + (after + point.output_macs) / plan.macs
    )


@every
def test_exits_have_the_names_of_their_blocks(one: Case) -> None:
    for e in wrapped(one).exits:
        path, _, visit = e.path.partition("#")
        assert path in one.stages and (visit != "") == (one.id == "shared_block")
        assert e.class_name == type(one.make().get_submodule(path)).__name__


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (False, "trainable params: 12 || all params: 1,032 || trainable%: 1.1628"),
        (True, "trainable params: 1,032 || all params: 1,032 || trainable%: 100.0000"),
    ],
)
def test_parameters_are_counted_as_peft_does(whole: bool, said: str) -> None:
    backbone, heads = nn.Linear(50, 20), nn.Linear(3, 3)
    assert count_parameters(backbone, heads, whole) == said


def test_the_summary_lists_policy_exits_and_where_they_go_on() -> None:
    one = case("uvit")
    model = wrapped(one)
    model.policy = FixedExit(2)
    head, *lines = model.summary().splitlines()
    assert head == (f"UViT with 4 exits of 5 stages, preset 'relative', policy {FixedExit(2)}")
    assert len(lines) == 4
    for e, line in zip(model.exits, lines, strict=True):
        assert line.startswith(f"  exit {e.index}: {e.path} ({e.class_name}), cost {e.cost:.1%}")
        assert line.endswith("resumes after stage 5")
    # Exits that make a prediction of their own say so, and where a kind of head finds no tail.
    unet = wrapped(case("unet")).summary()
    assert unet.count("own prediction") == 4 and "no tail to go through" in unet
    assert "no tail" not in wrapped(case("unet"), "paper").summary()


def test_exits_that_do_not_pay_are_told() -> None:
    thin = ek.wrap(
        TokenNet(depth=3, dim=4).eval(),
        "relative",
        example_inputs=case("value_branch").inputs(2)[0],
        exits=("blocks.*",),
    )
    lines = thin.summary().splitlines()[1:3]
    poor = [e.cost >= 1 for e in thin.exits]
    assert ["does not pay" in line for line in lines] == poor
