"""Comparisons of a tiny wrapped U-ViT: who runs against whom, on which seeds, and what is booked."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from exitkit import wrap
from exitkit.errors import ConfigError
from exitkit.evaluation.compare import compare
from exitkit.evaluation.entries import Entry
from exitkit.evaluation.metrics import Metrics
from exitkit.pipelines.routes import take_over
from exitkit.policies import (
    Calibration,
    FixedExit,
    NeverExit,
    UncertaintyThreshold,
)
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.fitted import description
from exitkit.sampling.loop_sampler import LoopSampler
from exitkit.sampling.network import planned
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.seeds import COMPARE
from tests.evaluation.models import DDIM, SHAPE, STEPS, backbone, sampler, some_leave, wrapped

QUICK = Metrics(exits=False, clock=False)


def samples(model, steps, seeds):
    return sampler(steps).run(model, seeds).samples


@pytest.fixture(scope="module")
def relative():
    return wrapped("relative")


@pytest.fixture(scope="module")
def carried():
    return wrapped("carried")


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
    # The first call of the run is known: pure noise at the largest timestep.
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


def told(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return action(), [str(w.message) for w in caught]


def test_seeds_of_the_fit_and_of_the_calibration_are_told_once():
    model = wrapped("relative")
    model.fitted = description(sampler(2), range(3, 8))
    found = Calibration(FixedExit(2), 0.5, 0.1, seeds=(20, 23))
    model.calibrations.append(found)
    entries = [Entry("first", model, FixedExit(1)), Entry("second", model, FixedExit(2))]

    def compared(seeds):
        return told(
            lambda: compare(
                entries, sampler(2), seeds=seeds, metrics=QUICK, fewer_steps=False, progress=False
            )
        )

    result, (text,) = compared([0, 7, 20, 23, 30])
    fitted = "1 of 5 seeds (such as 7) are among those that the exits were fitted on, 3 to 7"
    assert text.startswith(f"compare: first: {fitted}") and "2 more" in text and "100,000" in text
    assert [note.split(":")[0] for note in result.notes] == ["first", "second", "second"]
    assert fitted in result.notes[1]
    assert (
        "2 of 5 seeds (such as 20)" in result.notes[2]
        and "calibrated on, 20 to 23" in result.notes[2]
    )
    # The controls: seeds that nobody has seen, and a policy that was calibrated on none of them.
    result, nothing = compared([0, 1, 30])
    assert nothing == [] and result.notes == ()
    entries.pop()
    result, nothing = compared([0, 20, 23])
    assert nothing == [] and result.notes == ()


def test_seeds_of_what_compare_calibrates_itself_are_told(relative):
    on = sampler(2, batch_size=4)

    def compared(**options):
        return told(
            lambda: compare(
                [Entry("mine", relative, "static")],
                on,
                budgets=[0.9],
                metrics=QUICK,
                fewer_steps=False,
                progress=False,
                **options,
            )
        )

    result, (text,) = compared(seeds=range(10_001, 10_003))
    assert "mine at 0.9: 2 of 2 seeds (such as 10001)" in text and "calibrated on" in text
    assert len(result.notes) == 1
    assert compared(seeds=2)[1] == []


def test_the_baseline_is_bare_also_where_its_own_calls_leave_early():
    # As inside a pipeline: the backbone itself answers with its exits.
    model = wrapped("relative")
    take_over(model)
    entry = Entry("mine", model, FixedExit(1))
    model.policy = FixedExit(1)
    on, seeds = sampler(2), list(range(5))
    want = on.run(backbone(), seeds).samples
    assert not torch.equal(on.run(model.backbone, seeds).samples, want), "the control: it is bare"
    result = compare([entry], on, seeds=seeds, metrics=QUICK, progress=False)
    assert torch.equal(result.images["full"], want[: len(result.images["full"])])
    # A network of its own that happens to be that backbone is bare, too.
    bare = Entry("bare", model.backbone)
    result = compare([entry, bare], on, seeds=seeds, metrics=QUICK, progress=False)
    assert result["bare"].distance.mean == 0 and result["bare"].cost == 1.0
    assert result["mine"].distance.mean > 0
    assert torch.equal(on.run(model, seeds).samples, on.run(model.backbone, seeds).samples)


def test_where_nobody_says_how_many_seeds_the_kind_of_sampler_does_and_it_is_said(
    relative, capsys: pytest.CaptureFixture[str]
):
    """A pipeline's samples take seconds each: 256 of each rival would take hours."""
    noise = torch.randn(1, *SHAPE)
    own = LoopSampler(
        lambda model, seeds, steps: model(noise.expand(len(seeds), -1, -1, -1), seeds.float()), 1
    )
    entry = [Entry("mine", relative, NeverExit())]
    for on, count in ((own, 32), (sampler(1), 256), ({"a": sampler(1), "own": own}, 32)):
        result = compare(entry, on, metrics=QUICK, fewer_steps=False)
        assert result.settings["seeds"].startswith(f"{count}, {COMPARE} to {COMPARE + count - 1}")
        told = [note for note in result.notes if f"on {count} seeds, as many as is usual" in note]
        assert len(told) == 1 and "LoopSampler" in told[0] or on is not own
        assert told[0] in str(result) and f", {count} seeds" in capsys.readouterr().err
    # Control: who says a number is told nothing.
    result = compare(entry, own, seeds=3, metrics=QUICK, fewer_steps=False, progress=False)
    assert result.settings["seeds"].startswith("3, ") and "usual" not in str(result)
    assert capsys.readouterr().err == ""


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
