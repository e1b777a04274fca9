"""Comparisons of a tiny wrapped U-ViT: who runs against whom, on which seeds, and what is booked."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from examples.reproduction.models.uvit import UViT, UViTConfig
from exitkit import wrap
from exitkit.errors import ConfigError
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.generation import SampledSet
from exitkit.evaluation.metrics import Metrics
from exitkit.policies import (
    FixedExit,
    NeverExit,
    Patience,
    TimestepSchedule,
    UncertaintyThreshold,
)
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.network import planned
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.seeds import COMPARE

SHAPE = (1, 8, 8)
STEPS = 6
QUICK = Metrics(exits=False, clock=False)


def backbone():
    torch.manual_seed(0)
    return UViT(UViTConfig(8, 4, 1, embed_dim=16, depth=4, num_heads=2)).eval()


DDIM = DDIMScheduler(clip_sample=True)


def sampler(steps=STEPS, batch_size=64):
    return Sampler(DDIM, SHAPE, steps, batch_size=batch_size)


def samples(model, steps, seeds):
    return sampler(steps).run(model, seeds).samples


def lined_up(entries, bare, steps=STEPS):
    ground = SampledSet({"DDIM": sampler(steps, batch_size=2)}, (0, 1), Metrics())
    rivals, notes = ground.line_up(entries, bare)
    assert notes == []
    return rivals


def wrapped(preset):
    inputs = (torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0]))
    model = wrap(backbone(), preset, example_inputs=inputs)
    torch.manual_seed(1)
    for parameter in model.exit_parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def relative():
    return wrapped("relative")


@pytest.fixture(scope="module")
def carried():
    return wrapped("carried")


@torch.no_grad()
def some_leave(model):
    """A threshold that lets some rows leave and others stay."""
    seen = []
    x = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(3))
    for t in (900.0, 500.0, 100.0):
        out = model(x, torch.full((16,), t), output_exits=True)
        seen += [u.flatten(1).mean(dim=1) for u in out.uncertainty]
    return UncertaintyThreshold(float(torch.cat(seen).quantile(0.4)))


class Judge(nn.Module):
    """Two pixels are features and logits alike."""

    def forward(self, x):
        return x.flatten(1)[:, :2]


@pytest.fixture(scope="module")
def comparison(relative):
    policy = some_leave(relative)
    before = relative.policy
    result = compare(
        [Entry("mine", relative, policy)],
        sampler(batch_size=4),
        baseline=backbone(),
        seeds=range(10),
        fewer_steps=(2,),
        metrics=Metrics(Judge(), classifier=Judge(), pictures=3),
        progress=False,
    )
    assert relative.policy is before, "the model's own policy is put back"
    return result


def test_every_policy_meets_all_baselines(comparison):
    kinds = [row.kind for row in comparison.rows]
    assert kinds[:4] == ["full", "policy", "mode schedule", "fixed exit"]
    assert kinds.count("fewer steps") in (1, 2)  # the two counts may coincide
    assert "fewer steps (2)" in [row.name for row in comparison.rows]
    assert {row.count for row in comparison.rows} == {10}


def test_fewer_steps_has_the_policys_cost(comparison):
    mine = comparison["mine"]
    assert 0 < mine.cost < 1
    fewer = [row for row in comparison.rows if row.kind == "fewer steps"]
    # The pilot's cost, which sets the number of steps, is that of other seeds.
    equal = min(fewer, key=lambda row: abs(row.cost - mine.cost))
    assert abs(equal.cost - mine.cost) <= 1 / STEPS
    assert equal.cost == equal.steps / STEPS == equal.layers
    assert mine.against_steps is not None
    ratio = mine.distance.mean / equal.distance.mean
    assert mine.against_steps.mean == pytest.approx(ratio, rel=1e-6)
    assert mine.against_steps.low <= ratio <= mine.against_steps.high


def test_distances_are_those_of_the_same_seeds(comparison, relative):
    seeds = list(range(10))
    full = samples(backbone(), STEPS, seeds)
    policy = comparison.settings["policy of mine"]
    assert policy.startswith("UncertaintyThreshold")
    assert comparison["full"].distance.mean == 0
    torch.testing.assert_close(comparison.images["full"], full[:3], rtol=1e-4, atol=1e-5)
    fewer = samples(backbone(), 2, seeds)
    expected = paired_distance(fewer, full).mean()
    assert comparison["fewer steps (2)"].distance.mean == pytest.approx(float(expected), rel=1e-4)


def test_cost_and_depth_are_those_of_the_trace(comparison):
    trace = comparison.traces["mine"]
    assert trace.depth.shape == (STEPS, 10)
    row = comparison["mine"]
    assert row.cost == trace.cost
    assert row.layers == trace.layer_ratio
    assert row.timestep_share == pytest.approx(trace.timestep_share())
    assert comparison["mine, its schedule"].timestep_share is None
    assert "full" not in comparison.traces, "the baseline is a bare module"


def test_wall_clock_is_a_ratio_within_batches(comparison):
    assert comparison["full"].clock is not None
    assert comparison["full"].clock.median == 1.0
    assert all(row.clock is not None and row.clock.median > 0 for row in comparison.rows)


def test_frechet_and_labels_are_measured_against_the_full_run(comparison):
    full = comparison["full"]
    assert full.frechet == pytest.approx(0.0, abs=1e-6)
    assert full.agreement == 1.0
    assert all(0.5 <= row.confidence <= 1 for row in comparison.rows)


def test_diagnostics_cover_every_exit_and_step(comparison, relative):
    errors = comparison.errors["mine"]
    assert errors.error.shape == (STEPS, len(relative.exits))
    assert list(errors.timesteps) == sorted(errors.timesteps, reverse=True)
    assert bool((errors.error > 0).all())
    first, last, values = errors.bands(2)[0]
    assert first == errors.timesteps[0] and last == errors.timesteps[2]
    torch.testing.assert_close(values, errors.error[:3].mean(dim=0))
    maps = comparison.maps["mine"]
    assert maps.predicted.shape == maps.actual.shape == maps.noisy.shape == (STEPS, 1, *SHAPE)
    assert float(maps.predicted.min()) >= 0 and float(maps.predicted.max()) <= 1


def test_errors_by_layer_are_the_gaps_of_each_exit(comparison, relative):
    # The first call of the walk is known: pure noise at the largest timestep.
    noise = [torch.randn(*SHAPE, generator=torch.Generator().manual_seed(s)) for s in range(10)]
    errors = comparison.errors["mine"]
    t = torch.full((10,), errors.timesteps[0])
    with torch.no_grad():
        out = relative(torch.stack(noise), t, output_exits=True)
    size = out.prediction.flatten(1).square().mean(dim=1).sqrt()
    for k, exit in enumerate(out.exits):
        gap = (exit - out.prediction).flatten(1).square().mean(dim=1).sqrt()
        assert float(errors.error[0, k]) == pytest.approx(float((gap / size).mean()), rel=1e-4)


def test_carried_exits_are_compared_and_diagnosed(carried):
    policy = UncertaintyThreshold(0.99999, max_age=2)
    result = compare(
        [Entry("carried", carried, policy)],
        sampler(batch_size=3),
        seeds=range(3),
        progress=False,
    )
    kinds = [row.kind for row in result.rows]
    assert "mode schedule" in kinds and "fixed exit" not in kinds
    # Everybody leaves twice after each full step: F11F11.
    assert result.traces["carried"].depth[:, 0].tolist() == [2, 1, 1, 2, 1, 1]
    # The first step has nothing to carry, so it has no exit to be judged.
    assert result.errors["carried"].error.shape == (STEPS - 1, 1)
    assert result.maps["carried"].predicted.shape == (STEPS - 1, 1, *SHAPE)


def test_static_policies_are_not_compared_with_themselves(relative):
    schedule = TimestepSchedule((500.0,), (5, 2))
    entries = [
        Entry("schedule", relative, schedule),
        Entry("fixed", relative, FixedExit(2)),
        Entry("never", relative, NeverExit()),
    ]
    rivals = lined_up(entries, relative.backbone)
    assert {r.kind for r in rivals} == {"full", "policy", "fewer steps"}
    never = next(r for r in rivals if r.name == "never")
    assert never.opponent is None, "fewer steps at full cost are the full run"


def test_one_decision_for_a_batch_is_no_static_policy(relative):
    """Rows agree by design: the next batch may leave elsewhere."""
    batch = Patience(1, 1e9, whole_batch=True)
    rivals = lined_up([Entry("batch", relative, batch)], relative.backbone)
    assert [r.kind for r in rivals][:4] == ["full", "policy", "mode schedule", "fixed exit"]
    (schedule,) = (r for r in rivals if r.name == "batch, its schedule")
    # Negative control: the very same depths, as a plan, are static.
    rivals = lined_up([Entry("plan", relative, schedule.policy)], relative.backbone)
    assert {r.kind for r in rivals} == {"full", "policy", "fewer steps"}


def test_fine_tuned_networks_also_run_without_exits():
    rivals = lined_up([Entry("paper", wrapped("paper"), FixedExit(2))], backbone(), steps=2)
    row = next(r for r in rivals if r.kind == "no exit")
    assert row.name == "paper, no exit" and row.policy == NeverExit()
    assert row.opponent is None


def test_pilot_seeds_are_other_seeds():
    ground = SampledSet({"DDIM": sampler(batch_size=16)}, tuple(range(5, 50)), Metrics())
    assert not set(ground.pilot_seeds) & set(ground.seeds)
    assert len(ground.pilot_seeds) == 16


def test_measures_that_are_blind_say_so(relative):
    class OneLabel(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 9.0, 0.0]]).expand(len(x), 3)

    generator = torch.Generator().manual_seed(0)
    elsewhere = 50 + torch.randn(64, *SHAPE, generator=generator)
    entry = [Entry("mine", relative, FixedExit(2))]

    def compared(**metrics):
        measured = Metrics(Judge(), clock=False, exits=False, **metrics)
        return compare(entry, sampler(2), seeds=range(16), metrics=measured, progress=False)

    noted = compared(classifier=OneLabel(), reference=elsewhere)
    assert "gives 100% of the images of 'full' one and the same label" in noted.notes[0]
    assert "the full model does not draw them well" in noted.notes[1]
    own = samples(backbone(), 2, range(100, 164))
    assert compared(reference=own).notes == ()


def test_several_samplers_have_their_own_baselines(relative):
    result = compare(
        [Entry("mine", relative, FixedExit(2))],
        {"ddim": sampler(3), "euler": Sampler("euler", SHAPE, 3)},
        seeds=range(2),
        metrics=QUICK,
        progress=False,
    )
    names = [row.name for row in result.rows]
    assert "full, ddim" in names and "mine, euler" in names
    assert all(row.clock is None for row in result.rows)
    assert result["full, euler"].distance.mean == 0
    assert result.errors == {} and result.maps == {}


def test_bare_backbones_are_called_as_they_want():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = backbone()

        def forward(self, timestep, sample):
            return self.net(sample, timestep)

    bare = Backwards().eval()
    inputs = {"timestep": torch.tensor([500.0, 100.0]), "sample": torch.randn(2, *SHAPE)}
    model = wrap(Backwards().eval(), "relative", example_inputs=inputs)
    called = planned(bare, model)
    x, t = torch.randn(2, *SHAPE), torch.tensor([500.0, 100.0])
    torch.testing.assert_close(called(x, t), bare(t, x))
    plain = wrapped("relative")
    assert planned(plain.backbone, plain) is plain.backbone


def test_bad_requests_say_what_to_do(relative):
    entry = Entry("twice", relative, NeverExit())
    for entries, on, options, said in (
        ([entry, entry], sampler(), {}, "names that differ, got twice, twice"),
        ([], sampler(), {}, "names that differ, got none"),
        ([Entry("a", relative, "threshold")], sampler(), {}, r"budgets=\[0.5\]"),
        ([entry], sampler(), {"seeds": 0}, "names no sample"),
        ([entry], sampler(), {"seeds": []}, "names no sample"),
        ([entry], {}, {}, "a mapping names samplers"),
        ([entry], {"ddim": DDIM}, {}, "a mapping names samplers, and 'ddim' is none"),
        ([entry], 3, {}, "on is a int, expected a Sampler"),
        ([Entry("bare", backbone(), NeverExit())], sampler(), {"baseline": backbone()}, "use wrap"),
    ):
        with pytest.raises(ConfigError, match=said):
            compare(entries, on, progress=False, **options)


def test_a_number_of_seeds_counts_beyond_those_of_fits_and_calibrations(relative):
    result = compare([Entry("a", relative, FixedExit(1))], sampler(2), seeds=2, metrics=QUICK)
    assert result.settings["seeds"].startswith(f"2, {COMPARE} to {COMPARE + 1}")


def test_entries_choose_their_static_opponents(relative):
    policy = some_leave(relative)
    for static, tails in (
        (True, {"mode schedule", "fixed exit"}),
        ("schedule", {"mode schedule"}),
        ("fixed exit", {"fixed exit"}),
        (False, set()),
    ):
        rivals = lined_up([Entry("mine", relative, policy, static=static)], relative.backbone)
        assert {r.kind for r in rivals} - {"full", "policy", "fewer steps"} == tails


def test_the_very_same_work_is_done_once(relative):
    entries = [Entry("a", relative, FixedExit(1)), Entry("b", relative, FixedExit(1))]
    watched = []
    own = sampler(2)

    class Watched(type(own)):
        def run(self, model, seeds, **options):
            watched.append(model)
            return super().run(model, seeds, **options)

    on = Watched(DDIM, SHAPE, 2)
    result = compare(entries, on, seeds=range(2), metrics=QUICK, fewer_steps=False, progress=False)
    # Two pilots, one call that warms up, and then the full model and one of the two.
    assert len(watched) == 5
    assert result["a"].distance == result["b"].distance and result["b"].against_steps is None
    assert result["a"].name != result["b"].name and not math.isnan(result["b"].cost)
