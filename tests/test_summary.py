"""What a wrapped model says of itself, against counts of torch's own and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import exitkit as ek
from exitkit import summary
from exitkit.policies import FULL, FixedExit
from exitkit.summary import ExitTimes, count_parameters, describe_exits, time_exits
from tests.backbones import Case, TokenNet, case
from tests.copies import copies

NAMES = ("uvit", "unet", "timm_vit", "timm_resnet", "shared_block")
every = pytest.mark.parametrize("one", [case(name) for name in NAMES], ids=lambda c: c.id)


@copies
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


# ---------------------------------------------------------------------------- what exits take


class Clock:
    """A clock that blocks and heads set forward."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "time", CLOCK)


class Slow(nn.Module):
    """A block that takes as long as it is told to."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear, self.seconds = nn.Linear(8, 8), seconds

    def forward(self, h: Tensor) -> Tensor:
        CLOCK.now += self.seconds
        out: Tensor = h + self.linear(h)
        return out


class Net(nn.Module):
    """Five such blocks on four tokens."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Slow(seconds) for _ in range(5))
        self.tail = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x + t.view(-1, 1, 1) / 1000
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.tail(h)
        return out


EXAMPLE = torch.randn(2, 4, 8), torch.tensor([10.0, 900.0])


def timed(seconds: float, preset: str = "relative", **more: Any) -> ek.ExitModel:
    model = ek.wrap(Net(seconds).eval(), preset, example_inputs=EXAMPLE, **more)
    assert isinstance(model, ek.ExitModel)
    for head in (*model.heads.output, *model.heads.uncertainty):
        head.register_forward_hook(_one_second)
    return model


def _one_second(*_: Any) -> None:
    CLOCK.now += 1.0


def test_what_each_exit_takes_is_measured() -> None:
    model = timed(10.0, exits=(1, 4))
    times = time_exits(model.backbone, model._executor, EXAMPLE, rounds=2)
    # Five blocks; one or four of them and an output head; an uncertainty head.
    assert times == ExitTimes(50.0, 1.0, (11.0, 41.0))
    first, last = model.summary(example_inputs=EXAMPLE).splitlines()[1:]
    assert "measured: saves 76% of" in first and "measured: saves 14% of" in last
    assert "measured" not in model.summary()


def test_exits_over_blocks_of_little_work_do_not_pay() -> None:
    lines = timed(0.6, exits=(1, 2, 3, 4)).summary(EXAMPLE).splitlines()[1:]
    # Of 3 seconds: 1.6, 2.2, 2.8, 3.4, and one second more for each look.
    assert "saves 13% of" in lines[0]
    assert "pays under a schedule alone" in lines[1] and "schedule alone" in lines[2]
    assert "measured: does not pay: 3.4e+03 ms" in lines[3]


def test_carried_exits_are_timed_behind_a_full_step() -> None:
    model = timed(10.0, "carried", exits=(1,))
    times = time_exits(model.backbone, model._executor, EXAMPLE, rounds=2)
    assert times.leaving == (11.0,) and times.full == 50.0


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = timed(1.0)
    model.policy = ek.policies.FixedExit(1)
    model.train()
    model(*EXAMPLE)
    before = model.trace
    model.summary(EXAMPLE)
    assert model.trace is before and model.backbone.training
    assert model.policy == ek.policies.FixedExit(1)


@pytest.mark.parametrize(
    ("full", "look", "leaving", "said"),
    [
        (1.0, 0.0, 1.0, "does not pay: 1e+03 ms"),
        (1.0, 0.2, 0.7, "pays under a schedule alone: 700 ms of 1e+03 ms"),
        (1.0, 0.1, 0.5, "saves 30% of 1e+03 ms"),
    ],
)
def test_verdicts(full: float, look: float, leaving: float, said: str) -> None:
    assert ExitTimes(full, look, (0.1, leaving)).verdict(2).startswith(said)
