"""A pipeline's own call as a sampler: the same bits, the same rows, and every verb."""

from __future__ import annotations

import json
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

import exitkit as ek
from exitkit.errors import ConfigError, NonFiniteError
from exitkit.policies import FULL, FixedExit, Interval, NeverExit, StepSchedule
from exitkit.sampling.distance import paired_distance
from tests.tiny_pipelines import CASES, STEPS, PipelineCase, case, models

DEFAULT = ("sd", "sd3", "wan")
every = pytest.mark.parametrize(
    "one",
    # One denoiser and two; the UNet of sd goes from the fit to the comparison.
    [pytest.param(c, marks=[] if c.id in ("sd3", "wan") else [pytest.mark.slow]) for c in CASES],
    ids=lambda c: c.id,
)


def components(pipe: Any) -> list[nn.Module]:
    return [c for c in pipe.components.values() if isinstance(c, nn.Module)]


# ---------------------------------------------------------------------------------------- one by one


@every
def test_without_exits_the_bits_are_those_of_the_bare_call(one: PipelineCase) -> None:
    pipe = one.make()
    expected = torch.cat([one.by_hand(pipe, seed) for seed in (1, 5)])
    sampler = one.sampler(pipe)
    assert torch.equal(sampler.run(one.bare(pipe), [1, 5]).samples, expected)
    wrapped = one.wrap(pipe)
    for component in components(pipe):
        component.train()  # as built by hand
    sample = ek.generate(wrapped, sampler, [1, 5])
    assert torch.equal(sample.samples, expected)
    assert sample.trace.cost == pytest.approx(1, abs=0.05) and sample.seeds == (1, 5)
    assert all(m.training for component in components(pipe) for m in component.modules())
    for model in models(wrapped):
        model.policy = FixedExit(1)
    assert torch.equal(sampler.run(one.bare(pipe), [1, 5]).samples, expected), (
        "bare is without exits"
    )
    early = ek.generate(wrapped, sampler, [1, 5])
    assert not torch.equal(early.samples, expected) and early.trace.cost < 1
    assert "step" not in vars(pipe.scheduler)
    ek.unwrap(pipe)
    one.assert_bare(pipe)
    for component in components(pipe):
        component.eval()
    assert torch.equal(one.by_hand(pipe, 5)[0], expected[1])


def test_training_mode_would_be_another_model() -> None:
    """The control of the last test: DiT drops labels at random while it trains."""
    one = case("dit")
    pipe = one.make()
    sampler, seeds = one.sampler(pipe), list(range(6))
    expected = sampler.run(pipe.transformer, seeds).samples
    pipe.transformer.train()
    assert torch.equal(sampler.run(pipe.transformer, seeds).samples, expected)
    torch.manual_seed(0)
    dropped = torch.cat([one.by_hand(pipe, seed) for seed in seeds])
    assert not torch.allclose(dropped, expected, atol=1e-2)


@every
def test_rows_of_one_call_are_those_of_single_calls(one: PipelineCase) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe)
    alone, together = one.sampler(pipe), one.sampler(pipe, rows=3)
    assert alone.comparisons == 32 and one.sampler(pipe, rows=20).comparisons == 80
    assert (alone.batch_size, together.batch_size) == (1, 3)
    for policy in (NeverExit(), Interval(2)):
        for model in models(wrapped):
            model.policy = policy
        one_by_one, batch = (ek.generate(wrapped, s, [4, 0, 2, 7]) for s in (alone, together))
        gap = paired_distance(batch.samples, one_by_one.samples).max() / batch.samples.std()
        assert float(gap) < 1e-4
        assert batch.trace.cost == pytest.approx(one_by_one.trace.cost, abs=1e-3)


def test_rows_that_differ_are_drawn_one_by_one() -> None:
    """DiT calls its scheduler without a generator, so a stochastic one draws for the whole batch."""
    one = case("dit")
    pipe = one.make()
    pipe.scheduler = diffusers.DDPMScheduler()
    sampler = one.sampler(pipe, rows=3)
    with pytest.warns(UserWarning, match="does not draw 3 samples of one call.*one by one"):
        assert sampler.batch_size == 1
    first, second = (sampler.run(pipe.transformer, seeds).samples for seeds in ([1, 2], [2]))
    assert torch.equal(first[1:], second), "each owns its random numbers"


def test_random_states_and_bars_are_left_alone() -> None:
    one = case("sd3")
    pipe = one.make()
    pipe.set_progress_bar_config(desc="mine")
    state = torch.random.get_rng_state()
    one.sampler(pipe).run(pipe.transformer, [0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pipe._progress_bar_config == {"desc": "mine"}


def test_decoded_samples_are_what_the_pipeline_shows() -> None:
    one = case("sd")
    pipe = one.make()
    calls, shared = one.requests()
    source = torch.Generator().manual_seed(1)
    shown = pipe(**calls[1], **shared, generator=source, output_type="pt").images
    sample = one.sampler(pipe, decode=True).run(pipe.unet, [1])
    assert torch.equal(sample.samples, shown) and sample.decoded is sample.samples
    assert one.sampler(pipe).run(pipe.unet, [1]).decoded is None


def test_steps_are_the_pipelines_own() -> None:
    one = case("sd3")
    pipe = one.make()
    sampler = one.sampler(pipe, rows=2)
    fewer = sampler.with_steps(3)
    assert (sampler.steps, fewer.steps, fewer.rows) == (STEPS, 3, 2)
    expected = one.by_hand(pipe, 1, num_inference_steps=3)
    assert torch.equal(fewer.run(pipe.transformer, [1]).samples, expected)
    assert ek.PipelineSampler(pipe, one.requests()[0]).steps == 28, (
        "what the pipeline takes by itself"
    )
    assert fewer.describe() != sampler.describe()


def test_a_description_survives_json_and_leaves_prompts_out() -> None:
    one = case("sd3")
    pipe = one.make()
    described = one.sampler(pipe, guidance_scale=2.0).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["pipeline"] == "StableDiffusion3Pipeline" and described["steps"] == STEPS
    assert described["call"]["guidance_scale"] == 2.0
    model = one.wrap(pipe)
    ek.fit(model, one.sampler(pipe), steps=1, progress=False)
    model.policy = Interval(2)
    calls, shared = one.requests(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ek.generate(model, ek.PipelineSampler(pipe, calls, **shared))
    with pytest.warns(UserWarning, match="guidance_scale=2.0"):
        ek.generate(model, one.sampler(pipe, guidance_scale=2.0))


# --------------------------------------------------------------------------------------------- verbs


@every
def test_replayed_arguments_give_the_recorded_predictions(one: PipelineCase) -> None:
    """Rows of several steps mixed, in any order, as many as there are."""
    pipe = one.make()
    wrapped = one.wrap(pipe)
    rollouts = ek.Rollouts(wrapped, one.sampler(pipe, rows=3), seeds=3, hidden=True)
    source = torch.Generator().manual_seed(0)
    for model in models(wrapped):
        own = rollouts.of(model)
        assert len(own) == (one.calls if len(models(wrapped)) > 1 or one.calls > 1 else 1)
        for rollout in own:
            assert (rollout.steps, rollout.rows) == (one.steps, 3 * one.copies)
            steps = torch.randint(0, rollout.steps, (rollout.rows,), generator=source)
            rows = torch.randperm(rollout.rows, generator=source)
            call, expected = rollout.at(steps, rows), rollout.prediction[steps, rows]
            with torch.no_grad():
                made = model.record(*call.args, **call.kwargs).prediction
                bad = rollout.at(steps, rows.roll(1))
                other = model.record(*bad.args, **bad.kwargs).prediction
            scale = float(expected.abs().max())
            torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5 * scale)
            assert not torch.allclose(other, expected, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize(
    "one",
    # Ten seconds each; test_story tells the same of transformers and of two denoisers.
    [pytest.param(c, id=c.id, marks=pytest.mark.slow) for c in CASES],
)
def test_from_fit_to_comparison(one: PipelineCase) -> None:
    pipe = one.make()
    wrapped = one.wrap(pipe)
    sampler = one.sampler(pipe, rows=4, num_inference_steps=24)
    result = ek.fit(wrapped, sampler, steps=4, progress=False)
    assert result.seconds > 0 and all(m.fitted["steps"] == 24 for m in models(wrapped))
    assert set(result.parts) == (set(one.components) if len(models(wrapped)) > 1 else set())
    found = ek.calibrate(wrapped, sampler, budget=0.6, policy="schedule", seeds=4, progress=False)
    within = [m.error for m in found.history if m.cost <= 0.6 * 1.02]
    assert found.cost <= 0.6 * 1.02 and found.error == min(within) and len(within) > 1
    wrapped.policy = found.policy
    assert wrapped.calibration is found
    sample = ek.generate(wrapped, sampler, range(10_000, 10_004))
    assert sample.trace.cost == pytest.approx(found.cost, abs=1e-6)
    assert len({call.step for call in sample.trace.calls}) == 24
    assert "exit 1" in wrapped.summary()
    few = sampler.with_steps(8)
    wrapped.policy = Interval(2)
    metrics = ek.Metrics(exits=one.id in DEFAULT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compare: ")
        table = ek.compare(
            [ek.Entry("mine", wrapped)], few, seeds=4, metrics=metrics, progress=False
        )
    rows = {row.name: row for row in table.rows}
    assert rows["mine"].distance.mean > 0
    assert rows["mine"].cost < 0.8 and any(row.kind == "fewer steps" for row in table.rows)
    assert "full" in str(table)


def test_thresholds_and_certificates() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe, "relative")
    sampler = one.sampler(pipe, rows=4)
    ek.fit(model, sampler, steps=4, progress=False)
    found = ek.calibrate(model, sampler, budget=0.9, policy="schedule", seeds=4, progress=False)
    assert isinstance(found.policy, StepSchedule) and found.cost <= 0.92, "sensitivity by step"
    risk = ek.RiskTarget(0.9, "crc", loss_bound=1.0, seeds=12)
    certified = ek.calibrate(model, sampler, max_error=risk, seeds=4, progress=False)
    assert certified.certificate is not None and certified.certificate.count == 12


# ------------------------------------------------------------------------------------- several experts


def test_experts_share_steps_and_costs() -> None:
    one = case("wan")
    pipe = one.make()
    wrapped = one.wrap(pipe)
    sampler = one.sampler(pipe)
    wrapped.policy = StepSchedule((FULL, 1, FULL, 1))
    ran: dict[str, int] = dict.fromkeys(one.components, 0)
    for name in one.components:
        block = wrapped[name].backbone.blocks[-2]

        def count(*_: Any, name: str = name) -> None:
            ran[name] += 1

        block.register_forward_pre_hook(count)
    for name in ran:
        ran[name] = 0
    sample = ek.generate(wrapped, sampler, [3])
    assert [(c.step, c.branch) for c in sample.trace.calls] == [
        (s, b) for s in range(4) for b in (0, 1)
    ]
    parts = [model.trace for model in models(wrapped)]
    assert sample.trace.macs == pytest.approx(sum(part.macs for part in parts))
    assert sample.trace.full_macs == pytest.approx(sum(part.full_macs for part in parts))
    assert sample.trace.cost < 1
    with pytest.raises(ConfigError, match="further wrapped denoisers, transformer_2"):
        ek.generate(wrapped["transformer"], sampler)


def test_an_expert_that_the_example_does_not_reach_is_named() -> None:
    one = case("wan")
    pipe = one.make()
    pipe.register_to_config(boundary_ratio=0.0001)
    with pytest.raises(ek.ExitKitError, match=r"did not reach transformer_2.*components="):
        one.wrap(pipe)
    one.assert_bare(pipe)
    models = ek.enable_early_exit(pipe, example_inputs=one.call(1), components=("transformer",))
    assert list(models) == ["transformer"]


# -------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def sd3() -> Any:
    return case("sd3").make()


@pytest.mark.parametrize(
    ("calls", "options", "message"),
    [
        ([{"promt": "a cat"}], {}, r"takes no 'promt'.*mean.*prompt"),
        ({"prompt": "a cat"}, {}, "a list of the keywords"),
        ([], {}, "a list of the keywords"),
        (["a cat"], {}, "one is a str"),
        ([{"prompt": "a"}, {}], {}, "the same keywords"),
        ([{"prompt": "a"}], {"prompt": "b"}, "prompt is given for every call and in the calls"),
        ([{"prompt": "a", "generator": None}], {}, "generator cannot be given"),
        ([{"prompt": "a"}], {"num_images_per_prompt": 2}, "num_images_per_prompt cannot be given"),
        ([{"prompt": "a"}], {"num_inference_steps": 2.5}, "whole number of at least 1, got 2.5"),
        ([{"num_inference_steps": 3}], {}, "belongs to all calls"),
        ([{"prompt": "a"}], {"rows": 0}, "rows must be"),
    ],
)
def test_bad_arguments(sd3: Any, calls: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ek.PipelineSampler(sd3, calls, **options)


def test_other_things_than_pipelines_and_their_models(sd3: Any) -> None:
    with pytest.raises(ConfigError, match="expected a diffusers pipeline, got SD3Transformer"):
        ek.PipelineSampler(sd3.transformer, [{}])
    one = case("wan")
    pipe = one.make()
    with pytest.raises(ConfigError, match="2 denoisers.*none of them"):
        one.sampler(pipe).run(sd3.transformer, [0])
    fixed = ek.PipelineSampler(sd3, [{"prompt": "a"}], sigmas=[1.0, 0.5])
    assert fixed.steps == 2
    with pytest.raises(ConfigError, match="cannot run with 4 steps: sigmas are given"):
        fixed.with_steps(4)


def test_what_is_not_finite_is_told() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    with torch.no_grad():
        pipe.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="SD3Transformer2DModel.*step 0"):
        ek.generate(model, one.sampler(pipe))
