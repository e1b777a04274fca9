"""Exits land on what the rest of the network reads: by evidence, on networks written for each way."""

from __future__ import annotations

import pytest
import torch

import exitkit as ek
from exitkit.errors import BoundaryError
from exitkit.policies import FixedExit
from exitkit.testing import check_backbone
from tests.landing_networks import (
    IMAGE,
    TOKENS,
    Chain,
    Conv,
    DualStream,
    Encoder,
    Fused,
    Outside,
    Refolding,
    UNet,
    WaveNet,
    example,
    gaps,
    landings,
)

EXACT = 1e-5


def built(kind, *args, **kwargs):
    torch.manual_seed(0)
    return kind(*args, **kwargs).eval()


def carried(net, inputs, **overrides):
    overrides.setdefault("exits", None)
    model = ek.wrap(net, "carried", example_inputs=inputs, **overrides)
    model.heads.mark_fitted(uncertainty=False)  # exits are used as they start
    return model


def dead_heads(model, inputs):
    """Exits whose output does not move with the parameters of their heads."""
    own = {id(p) for p in model.backbone.parameters()}
    mine = [p for p in model.exit_parameters() if id(p) not in own]
    dead = []
    for depth in range(1, len(model.exits) + 1):
        model.policy = FixedExit(depth)
        with torch.no_grad():
            before, kept = model(*inputs), [p.clone() for p in mine]
            for p in mine:
                p.add_(0.1 * torch.randn_like(p))
            if torch.equal(before, model(*inputs)):
                dead.append(depth)
            for p, value in zip(mine, kept, strict=True):
                p.copy_(value)
    return dead


# ------------------------------------------------------------------------------ kind 2: skip-sums


def test_a_tail_that_reads_the_sum_of_all_layers_gets_the_running_sum():
    net, inputs = built(WaveNet), example(TOKENS)
    model = carried(net, inputs)
    assert max(gaps(model, inputs)) < EXACT
    ek.unwrap(model)
    model = ek.wrap(net, "relative", example_inputs=inputs)
    assert dead_heads(model, inputs) == []
    for depth in range(1, 5):
        model.policy = FixedExit(depth)
        with torch.no_grad():
            torch.testing.assert_close(model(*inputs), net.passed(*inputs, depth))


def test_rows_that_leave_apart_add_up_apart():
    net, inputs = built(WaveNet), example(TOKENS)
    check_backbone(net, inputs)
    check_backbone(net, inputs, config="carried")


@pytest.mark.parametrize("how", ["cat", "learned"])
def test_layers_that_the_tail_reads_in_another_way_are_refused_with_the_reason(how):
    net, inputs = built(WaveNet, how), example(TOKENS)
    plan = ek.inspect(net, example_inputs=inputs)
    assert not any(b.lands or b.completes for b in plan.boundaries)
    assert "no: the output does not move with the hidden state behind stage 5" in str(plan)
    with pytest.raises(BoundaryError, match="does not move with the hidden state behind stage 5"):
        carried(net, inputs)
    model = ek.wrap(net, "relative", example_inputs=inputs)
    assert landings(model) == [None] * 4 and dead_heads(model, inputs) == []


# --------------------------------------------------------------- kind 3: residuals outside the block


@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"scale": 0.3}, {"apart": True}])
def test_what_the_caller_adds_is_part_of_the_hidden_state(options):
    net, inputs = built(Outside, **options), example(TOKENS)
    model = carried(net, inputs)
    assert max(gaps(model, inputs)) < EXACT
    last = model.plan.stages[-1].calls[-1]
    assert last.base == int("apart" in options)
    assert last.scale == pytest.approx(options.get("scale", 1.0), rel=1e-4)
    ek.unwrap(model)
    model = ek.wrap(net, "relative", example_inputs=inputs)
    for depth in range(1, 5):
        model.policy = FixedExit(depth)
        with torch.no_grad():
            torch.testing.assert_close(
                model(*inputs), net.passed(*inputs, depth), rtol=1e-4, atol=1e-5
            )


def test_the_last_call_is_judged_by_itself():
    net, inputs = built(Outside, last=False), example(TOKENS)
    model = carried(net, inputs)
    assert [s.calls[-1].base for s in model.plan.stages] == [0, 0, 0, 0, None]
    assert max(gaps(model, inputs)) < EXACT


@pytest.mark.parametrize("options", [{}, {"apart": True}])
def test_residuals_outside_keep_the_contract(options):
    net, inputs = built(Outside, **options), example(TOKENS)
    check_backbone(net, inputs)
    check_backbone(net, inputs, config="carried")


# ------------------------------------------------------------------------- kind 4: skips, joined


@pytest.mark.parametrize("how", ["cat", "slice", "add", "scaled"])
def test_skips_joined_in_any_way_are_found(how):
    net, inputs = built(UNet, how), example(IMAGE)
    model = carried(net, inputs)
    assert [b.mirror for b in model.plan.boundaries][1::3] == [6, 7]
    assert len(model.exits) == 6 and max(gaps(model, inputs)) == 0


def test_a_unet_keeps_the_contract():
    check_backbone(built(UNet, "cat"), example(IMAGE), config="carried")


# ------------------------------------------------------------------------- kind 6: exit by exit


def test_exits_behind_a_join_resume_at_the_end_and_those_before_it_too():
    net = built(DualStream)
    inputs = (*example(TOKENS), torch.randn(3, 5, 12))
    model = carried(net, inputs)
    assert set(landings(model)) == {7} and max(gaps(model, inputs)) < EXACT
    assert [b.lands for b in model.plan.boundaries] == [False] * 3 + [True] * 4


def test_the_stream_that_is_reshaped_behind_the_last_block_is_the_one():
    net = built(Fused)
    inputs = (*example((4, 6, 16)), torch.randn(3, 5, 16))
    plan = ek.inspect(net, example_inputs=inputs)
    assert [stage.calls[-1].hidden_out for stage in plan.stages] == ["[0]"] * 4
    assert [b.resume for b in plan.boundaries] == [4] * 4
    check_backbone(net, inputs, config="carried")


def test_the_last_block_gives_its_hidden_state_where_the_others_do():
    net, inputs = built(Encoder), example(IMAGE)
    plan = ek.inspect(net, example_inputs=inputs)
    assert [stage.calls[-1].hidden_out for stage in plan.stages] == ["[0]"] * 3
    assert [b.resume for b in plan.boundaries] == [3] * 3
    check_backbone(net, inputs, config="carried", atol=1e-4)


def test_refolded_rows_resume():
    net, inputs = built(Refolding), example((4, 6, 16))
    model = carried(net, inputs)
    assert set(landings(model)) == {6} and max(gaps(model, inputs)) < EXACT


# ------------------------------------------------------------- where nothing can be established


def test_a_forward_that_draws_numbers_cannot_resume_and_says_so():
    net, inputs = built(Chain, "draws"), example(TOKENS)
    plan = ek.inspect(net, example_inputs=inputs)
    assert all(b.resume is None for b in plan.boundaries)
    assert "no: who reads whom could not be established: equal rows of one batch differ" in str(
        plan
    )
    with pytest.raises(BoundaryError, match=r"can resume nowhere.*draws numbers"):
        carried(net, inputs)


def test_hidden_states_that_noise_breaks_are_scaled():
    net, inputs = built(Chain, "positive"), example(TOKENS)
    model = carried(net, inputs)
    assert set(landings(model)) == {5} and max(gaps(model, inputs)) < EXACT


def test_a_last_layer_of_zeros_hides_nothing():
    net, inputs = built(Chain, "zero tail"), example(TOKENS)
    assert [b.resume for b in ek.inspect(net, example_inputs=inputs).boundaries] == [5] * 5
    zero = built(Outside)
    torch.nn.init.zeros_(zero.out[1].weight)
    plan = ek.inspect(zero, example_inputs=inputs)
    assert plan.stages[-1].calls[-1].base == 0 and {b.resume for b in plan.boundaries} == {5}


# ------------------------------------------------------------------------- kind 7: the channel axis


@pytest.mark.parametrize("shape", [(3, 24), (3, 16, 24), (3, 16, 16), (3, 4, 8, 8), (3, 16, 4, 4)])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_heads_mix_channels_whatever_the_axes(shape, preset):
    net = built(Conv, len(shape) - 1)
    plan = ek.inspect(net, example_inputs=example(shape))
    assert {(b.hidden.channel_axis, b.hidden.channels) for b in plan.boundaries} == {(0, 16)}
    check_backbone(net, example(shape), config=preset)


def test_tokens_that_convolutions_mix_inside_keep_their_channels():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = torch.nn.Conv1d(16, 16, 3, padding=1), torch.nn.Linear(16, 16)

        def forward(self, x):
            return x + self.linear(torch.tanh(self.conv(x.transpose(1, 2)).transpose(1, 2)))

    net = torch.nn.Sequential(*(Mixed() for _ in range(4))).eval()
    plan = ek.inspect(net, example_inputs=torch.randn(3, 8, 16))
    assert {b.hidden.channel_axis for b in plan.boundaries} == {1}
