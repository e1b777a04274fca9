"""Generation and samplers against loops written by hand with diffusers, on tiny networks."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    ScoreSdeVeScheduler,
)
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from torch import Tensor, nn

from exitkit import unwrap, wrap
from exitkit.errors import ConfigError, MissingExtraError, NonFiniteError, ShapeError
from exitkit.policies import FULL, FixedExit, NeverExit, ScriptedExit, StepSchedule
from exitkit.sampling.generate import generate
from exitkit.sampling.sampler import Sampler
from exitkit.sampling.solvers import SAMPLERS, make_scheduler, make_solver
from tests.backbones import TokenNet, perturb

SHAPE = (3, 4, 4)


def draw(model, scheduler, shape, *, seeds=1, progress=False, **options):
    """Samples from a sampler made on the spot."""
    return generate(model, Sampler(scheduler, shape, **options), seeds, progress=progress)


class Conv(nn.Module):
    """A tiny denoiser; `wrapping` turns its prediction into other kinds of output."""

    def __init__(self, wrapping=lambda x: x):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.wrapping, self.seen = wrapping, []

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0, extra=None):
        self.seen.append((x.clone(), t.clone(), shift, extra, self.training))
        assert t.shape == x.shape[:1]
        time = (t.to(x.dtype) / 1000)[:, None, None, None]
        if isinstance(shift, Tensor):
            shift = shift[:, None, None, None]
        return self.wrapping(torch.tanh(self.conv(x) + time + shift))


SCHEDULERS = {
    "ddim": DDIMScheduler(),
    "ddim_unclipped": DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear"),
    "ddpm": DDPMScheduler(),
    "dpm++": DPMSolverMultistepScheduler(),
    "dpm++sde": DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "euler": EulerDiscreteScheduler(),
    "ancestral": EulerAncestralDiscreteScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow_stochastic": FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    "heun": HeunDiscreteScheduler(),
    "pndm": PNDMScheduler(skip_prk_steps=True),
    "sde": ScoreSdeVpScheduler(num_train_timesteps=1000),
}


@torch.no_grad()
def by_hand(net: nn.Module, scheduler, steps: int, seed: int) -> Tensor:
    """The loop of a diffusers pipeline for one sample."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(steps)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(SHAPE, generator=g)[None]
    if isinstance(scheduler, ScoreSdeVpScheduler):
        n = len(scheduler.timesteps)
        for i, t in enumerate(scheduler.timesteps.tolist()):
            noise = net(x, torch.tensor([999 * t]))
            log_mean = -0.25 * t * t * 19.9 - 0.5 * t * 0.1
            score = -noise / math.sqrt(1 - math.exp(2 * log_mean))
            beta = 0.1 + t * 19.9
            x = x + (0.5 * beta * x + beta * score) / n
            if i < n - 1:
                x = x + math.sqrt(beta / n) * torch.randn(SHAPE, generator=g)[None]
        return x
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        noise = net(scaled, t[None])
        try:
            x = scheduler.step(noise, t, x, generator=g).prev_sample
        except TypeError:  # schedulers without noise take no generator
            x = scheduler.step(noise, t, x).prev_sample
    return x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_generation_equals_the_loop_by_hand(name):
    sample = draw(Conv(), SCHEDULERS[name], SHAPE, steps=7, seeds=[5])
    assert sample.samples.shape == (1, *SHAPE) and sample.samples.dtype == torch.float32
    assert sample.trace is None and sample.seconds > 0 and sample.seeds == (5,)
    by_loop = by_hand(Conv(), SCHEDULERS[name], 7, 5)
    # The loop of the SDE computes its coefficients in double precision.
    close = {"rtol": 1e-3, "atol": 1e-3} if name == "sde" else {}
    torch.testing.assert_close(sample.samples, by_loop, **close)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    together = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[8, 3, 5])
    alone = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[3])
    torch.testing.assert_close(together.samples[1:2], alone.samples, rtol=1e-4, atol=1e-5)
    split = draw(Conv(), SCHEDULERS[name], SHAPE, steps=6, seeds=[5, 8, 3], batch_size=2)
    torch.testing.assert_close(split.samples[[1, 2, 0]], together.samples, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together.samples[0], together.samples[1], atol=1e-3)


def test_a_seed_fixes_the_noise_of_every_step():
    # Negative control of the above: with a network that sees nothing, only the sampler's noise is
    # left, and it must differ between seeds after the first step too.
    class Zero(nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    sde = SCHEDULERS["sde"]
    finals = draw(Zero(), sde, SHAPE, steps=50, seeds=2).samples
    starts = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    assert torch.allclose(finals, draw(Zero(), sde, SHAPE, steps=50, seeds=2).samples)
    residue = finals[0] - finals[1]
    ratio = residue / (starts[0] - starts[1])
    assert float(ratio.std()) > 0.1, "the noise of later steps is shared between seeds"


def test_seeds_are_counted_up_from_the_first():
    counted = draw(Conv(), "ddim", SHAPE, steps=2, seeds=range(7, 10))
    assert counted.seeds == (7, 8, 9)
    listed = draw(Conv(), "ddim", SHAPE, steps=2, seeds=torch.tensor([7, 8, 9]).numpy())
    assert torch.equal(counted.samples, listed.samples)
    assert draw(Conv(), "ddim", SHAPE, steps=2).seeds == (0,)


def test_the_scheduler_that_is_passed_stays_as_it_is():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(11)
    before = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scheduler).items()}
    first = draw(Conv(), scheduler, SHAPE, steps=4)
    again = draw(Conv(), scheduler, SHAPE, steps=4)
    assert torch.equal(first.samples, again.samples)
    for key, value in vars(scheduler).items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value is before[key]
        )
        assert same or value == before[key], key


def test_names_take_over_the_settings_of_a_base():
    base = DDPMScheduler(
        num_train_timesteps=500, beta_start=0.001, beta_end=0.03, clip_sample=False
    )
    for name, cls in SAMPLERS.items():
        made = make_scheduler(name, base)
        assert type(made).__name__ == cls
        assert made.config.num_train_timesteps == 500
        assert type(make_scheduler(name)).__name__ == cls
    assert make_scheduler("ddim", base).config.clip_sample is False
    sde = make_scheduler("euler-maruyama", base).config
    assert sde.beta_min == pytest.approx(0.5) and sde.beta_max == pytest.approx(15.0)
    solver = make_solver("euler-maruyama", 3, base=base)
    torch.testing.assert_close(solver.timesteps, torch.tensor([499.0, 0.5005 * 499, 0.499]))
    default = make_solver(ScoreSdeVpScheduler(), 2).timesteps
    torch.testing.assert_close(default, torch.tensor([999.0, 0.999]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_scheduler("dimm"), "no sampler 'dimm'.*Did you mean 'ddim'"),
        (
            lambda: make_scheduler("euler-maruyama", DDPMScheduler(prediction_type="sample")),
            "prediction_type='sample'",
        ),
        (
            lambda: make_scheduler("euler-maruyama", DDPMScheduler(trained_betas=[0.1, 0.2])),
            "with trained_betas",
        ),
        (
            lambda: make_scheduler(
                "euler-maruyama", DDPMScheduler(beta_schedule="squaredcos_cap_v2")
            ),
            "beta_schedule='squaredcos_cap_v2'",
        ),
        (lambda: make_solver(nn.Linear(1, 1), 5), "Expected a diffusers scheduler or one of ddpm"),
        (lambda: make_solver(ScoreSdeVeScheduler(), 5), "ScoreSdeVeScheduler has no `step`"),
        (lambda: make_solver("ddpm", 1001), "made for 1000 timesteps and cannot take 1001"),
        (lambda: make_solver("ddpm", 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: make_solver("ddpm", -5), "got -5"),
        (lambda: make_solver("ddpm", 2.5), "got 2.5"),
        (
            lambda: make_solver(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 5),
            "use_dynamic_shifting=False",
        ),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_missing_diffusers_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"exitkit-torch\[diffusers\]"):
        draw(Conv(), "ddim", SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0 names no sample"),
        ({"seeds": -3}, "seeds=-3 names no sample"),
        ({"seeds": []}, "names no sample"),
        ({"seeds": True}, "seeds must be a whole number or a sequence"),
        ({"seeds": "12"}, "seeds must be a whole number or a sequence"),
        ({"seeds": [1.5]}, "A seed must be a whole number"),
        ({"seeds": [-1]}, "A seed must be"),
        ({"steps": -1}, "steps must be a whole number of at least 1, got -1"),
        ({"steps": 0}, "got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"shape": ()}, "shape must hold the sizes of one sample"),
        ({"shape": (3, 0, 4)}, "shape must hold"),
        ({"shape": (3, 4.0, 4)}, "shape must hold"),
        ({"guidance_scale": 2.0}, "guidance_scale and negative_conditions belong together"),
        ({"negative_conditions": {}}, "belong together"),
        ({"conditions": [1]}, "conditions must be a mapping of tensors"),
        ({"scheduler": "dimm"}, "no sampler"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"scheduler": "ddim", "shape": SHAPE, **options}
    with pytest.raises(ConfigError, match=message):
        draw(Conv(), arguments.pop("scheduler"), arguments.pop("shape"), **arguments)


def test_a_nan_is_refused_with_step_timestep_and_seed():
    net = Conv()

    def spoil(x):
        if len(net.seen) == 3:
            x[1] = float("nan")
        return x

    net.wrapping = spoil
    with pytest.raises(NonFiniteError, match=r"Conv .* step 2 of 5, timestep 400, for seeds \[4\]"):
        draw(net, "ddim", SHAPE, steps=5, seeds=range(3, 6))


def test_a_wrong_shape_is_refused():
    with pytest.raises(ShapeError, match=r"shape \(2, 3, 2, 2\) for noisy inputs of shape \(2, 3"):
        draw(Conv(lambda x: x[..., :2, :2]), "ddim", SHAPE, steps=2, seeds=2)
    with pytest.raises(ShapeError, match="returned str, in which no prediction"):
        draw(Conv(lambda x: "x"), "ddim", SHAPE, steps=2)
    with pytest.raises(ShapeError, match="returned tuple"):
        draw(Conv(lambda x: ()), "ddim", SHAPE, steps=2)


@dataclass
class Output:
    sample: Tensor


@dataclass
class Unusual:
    note: str
    velocity: Tensor


@pytest.mark.parametrize(
    "wrapping",
    [
        lambda x: (x, "more"),
        lambda x: [x],
        lambda x: Output(x),
        lambda x: {"note": 1, "other": -x, "sample": x},
        lambda x: {"note": 1, "out": x},
        lambda x: Unusual("a", x),
        lambda x: torch.cat([x, torch.full_like(x, 9.0)], dim=1),
    ],
    ids=["tuple", "list", "sample", "mapping", "mapping_first", "dataclass", "variance"],
)
def test_every_kind_of_output_gives_the_same_image(wrapping):
    plain = draw(Conv(), "ddim", SHAPE, steps=3, seeds=2)
    other = draw(Conv(wrapping), "ddim", SHAPE, steps=3, seeds=2)
    assert torch.equal(plain.samples, other.samples)


def test_a_learned_variance_reaches_the_sampler_that_uses_it():
    learned = DDPMScheduler(variance_type="learned_range")
    images = {}
    for value in (-1.0, 1.0):
        net = Conv(lambda x, v=value: torch.cat([x, torch.full_like(x, v)], dim=1))
        images[value] = draw(net, learned, SHAPE, steps=5).samples
        torch.testing.assert_close(images[value], by_hand(net, learned, 5, 0))
    assert not torch.allclose(images[-1.0], images[1.0])


# --- conditioning ---------------------------------------------------------------------------------


def test_conditioning_follows_its_rows_through_batches():
    shift = torch.linspace(-1, 1, 5)
    given = {"shift": shift, "extra": {"deep": [torch.arange(5), "word"], "scalar": torch.ones(())}}
    net = Conv()
    together = draw(net, "ddim", SHAPE, steps=2, seeds=5, conditions=given, batch_size=2)
    rows = [extra["deep"][0].tolist() for _, _, _, extra, _ in net.seen[::2]]
    assert rows == [[0, 1], [2, 3], [4]]
    assert net.seen[0][3]["deep"][1] == "word" and net.seen[0][3]["scalar"].shape == ()
    for i in range(5):
        alone = draw(Conv(), "ddim", SHAPE, steps=2, seeds=[i], conditions={"shift": shift})
        torch.testing.assert_close(alone.samples[0], together.samples[i], rtol=1e-4, atol=1e-5)
    made = draw(
        Conv(),
        "ddim",
        SHAPE,
        steps=2,
        seeds=5,
        batch_size=2,
        conditions=lambda r: {"shift": shift[r]},
    )
    assert torch.equal(made.samples, together.samples)


def test_a_seed_gets_its_entry_of_the_pools_wherever_it_stands():
    shift = torch.tensor([-1.0, 0.0, 1.0])
    net = Conv()
    draw(net, "ddim", SHAPE, steps=1, seeds=[10_001, 4, 3], conditions={"shift": shift})
    assert net.seen[0][2].tolist() == [1.0, 0.0, -1.0]  # 10,001, 4 and 3 modulo 3


def test_a_function_gets_the_seeds_once_a_batch_and_branch():
    asked = []

    def conditions(seeds):
        asked.append((seeds.tolist(), seeds.dtype, seeds.device.type))
        return {"shift": seeds.float() / 10}

    net = Conv()
    draw(
        net, "ddim", SHAPE, steps=3, seeds=[5, 2, 9], batch_size=2, conditions=conditions,
        negative_conditions=lambda seeds: {}, guidance_scale=2.0,
    )  # fmt: skip
    assert asked == [([5, 2], torch.int64, "cpu"), ([9], torch.int64, "cpu")]
    torch.testing.assert_close(net.seen[0][2], torch.tensor([0.5, 0.2]))


def test_pools_of_different_lengths_are_refused_by_name():
    pools = {"shift": torch.zeros(3), "extra": {"deep": [torch.zeros(2)]}}
    named = r"conditions\['shift'\] 3, conditions\['extra'\]\['deep'\]\[0\] 2"
    with pytest.raises(ShapeError, match=named):
        Sampler("ddim", SHAPE, conditions=pools)
    with pytest.raises(ShapeError, match="hold no entry"):
        Sampler("ddim", SHAPE, conditions={"shift": torch.zeros(0)})
    with pytest.raises(ConfigError, match="must return a mapping of keyword arguments"):
        draw(Conv(), "ddim", SHAPE, steps=1, conditions=lambda seeds: [seeds])


def test_generate_wants_a_sampler():
    with pytest.raises(ConfigError, match=r"expected a sampler, got str\..*ek\.Sampler"):
        generate(Conv(), "ddim")


def test_guidance_mixes_both_branches():
    cond, neg = {"shift": torch.tensor([0.5, 0.2])}, {"shift": torch.tensor([-0.5, 0.0])}

    def run(**options):
        return draw(Conv(), "ddim", SHAPE, steps=3, seeds=2, **options).samples

    one = run(conditions=cond, negative_conditions=neg, guidance_scale=1.0)
    torch.testing.assert_close(one, run(conditions=cond))
    torch.testing.assert_close(
        run(conditions=cond, negative_conditions=neg, guidance_scale=0.0), run(conditions=neg)
    )

    class Guided(Conv):
        def forward(self, x, t):
            a, b = (Conv.forward(self, x, t, c["shift"]) for c in (cond, neg))
            return b + 3.5 * (a - b)

    guided = run(conditions=cond, negative_conditions=neg, guidance_scale=3.5)
    torch.testing.assert_close(guided, draw(Guided(), "ddim", SHAPE, steps=3, seeds=2).samples)
    assert not torch.allclose(guided, one, atol=1e-2)
    net = Conv()
    draw(net, "ddim", SHAPE, steps=3, conditions={}, negative_conditions={}, guidance_scale=2.0)
    assert [int(t[0]) for _, t, *_ in net.seen] == [666, 666, 333, 333, 0, 0]


def test_guidance_leaves_a_learned_variance_alone():
    def wrapping(x):
        return torch.cat([x, x.mean() + torch.zeros_like(x)], dim=1)

    cond, neg = {"shift": torch.tensor([0.9])}, {"shift": torch.tensor([-0.9])}
    scheduler = DDPMScheduler(variance_type="learned_range")

    class Guided(Conv):
        def forward(self, x, t):
            a, b = (Conv.forward(self, x, t, c["shift"]) for c in (cond, neg))
            return torch.cat([(b + 2 * (a - b))[:, :3], a[:, 3:]], dim=1)

    by_generate = draw(
        Conv(wrapping), scheduler, SHAPE, steps=4, conditions=cond, negative_conditions=neg,
        guidance_scale=2.0,
    )  # fmt: skip
    torch.testing.assert_close(by_generate.samples, by_hand(Guided(wrapping), scheduler, 4, 0))


# --- modes and dtypes -----------------------------------------------------------------------------


def test_training_flags_come_back_one_by_one():
    net = Conv()
    net.extra_module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    net.train()
    net.extra_module[1].eval()
    flags = [m.training for m in net.modules()]
    assert True in flags and False in flags
    draw(net, "ddim", SHAPE, steps=2)
    assert not any(training for *_, training in net.seen)
    assert [m.training for m in net.modules()] == flags
    net.wrapping = lambda x: x * float("nan")
    with pytest.raises(NonFiniteError):
        draw(net, "ddim", SHAPE, steps=2)
    assert [m.training for m in net.modules()] == flags


def test_no_gradients_are_kept_and_the_global_generator_is_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = draw(Conv(), "ddpm", SHAPE, steps=3).samples
    assert not images.requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_is_fed_its_own_dtype_and_the_sampler_stays_exact(dtype):
    net = Conv().to(dtype)
    images = draw(net, "ddim", SHAPE, steps=4).samples
    assert {x.dtype for x, *_ in net.seen} == {dtype}
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    assert images.dtype == exact
    reference = draw(Conv(), "ddim", SHAPE, steps=4).samples
    close = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(images.float(), reference, rtol=close, atol=close)


def test_plain_functions_and_progress(capsys):
    images = draw(lambda x, t: 0.1 * x, "ddim", SHAPE, steps=2, progress=True).samples
    assert images.shape == (1, *SHAPE)
    assert "2/2" in capsys.readouterr().err


def test_second_order_samplers_have_fewer_steps_than_calls():
    solver = make_solver(SCHEDULERS["heun"], 5)
    assert len(solver.timesteps) == 9 and solver.steps == 5
    assert make_solver("ddim", 5).steps == 5


# --- wrapped models -------------------------------------------------------------------------------


class Swapped(TokenNet):
    """Takes its timestep first, and the noisy input by another name."""

    def forward(self, timestep: Tensor, latents: Tensor):
        return super().forward(latents, timestep)


@pytest.fixture(scope="module")
def example():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor(
        [5, 700]
    )


@pytest.fixture
def model(example):
    wrapped = wrap(perturb(TokenNet(depth=3).eval()), "relative", example_inputs=example)
    wrapped.policy = NeverExit()
    return wrapped


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++"])
def test_a_wrapped_model_that_never_exits_equals_the_bare_one(model, name):
    ours = draw(model, SCHEDULERS[name], SHAPE, steps=4, seeds=3, batch_size=2)
    bare = draw(unwrap(model), SCHEDULERS[name], SHAPE, steps=4, seeds=3, batch_size=2)
    assert torch.equal(ours.samples, bare.samples)
    assert ours.trace.cost == 1.0 and bare.trace is None


def test_the_trace_covers_all_samples_and_steps(model):
    model.policy = StepSchedule((FULL, 1, 2, FULL))
    sample = draw(model, "ddim", SHAPE, steps=4, seeds=5, batch_size=2)
    assert len(model.exits) == sample.trace.exits == 2
    assert sample.trace.depth.tolist() == [[3] * 5, [1] * 5, [2] * 5, [3] * 5]
    assert sample.trace.timesteps.tolist() == [750, 500, 250, 0]
    assert 0 < sample.trace.cost < 1


def test_rows_of_their_own_depth_do_not_depend_on_batch_mates(model):
    model.policy = ScriptedExit((1, 2, FULL))
    together = draw(model, "ddpm", SHAPE, steps=4, seeds=[4, 5, 6])
    for i, depth in enumerate((1, 2, FULL)):
        model.policy = FixedExit(depth)
        alone = draw(model, "ddpm", SHAPE, steps=4, seeds=[4 + i])
        torch.testing.assert_close(alone.samples[0], together.samples[i], rtol=1e-4, atol=1e-5)


def test_the_trajectory_is_closed_after_an_error(model):
    with pytest.raises(ConfigError, match="StepSchedule holds 2 steps"):
        model.policy = StepSchedule((1, 1))
        draw(model, "ddim", SHAPE, steps=4)
    model.policy = NeverExit()
    assert draw(model, "ddim", SHAPE, steps=2).trace.cost == 1.0


def test_guidance_and_second_order_samplers_count_steps_once(example):
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor):
            return super().forward(x + label[:, None, None, None], t)

    x, t = example
    net = wrap(
        perturb(Labelled(depth=3).eval()),
        "relative",
        example_inputs=(x, t, torch.tensor([0.1, 0.3])),
    )
    net.policy = StepSchedule((FULL, 1, FULL))
    label = {"label": torch.tensor([0.5, 0.1])}
    options = {"steps": 3, "seeds": 2, "conditions": label}
    guided = draw(
        net,
        "ddim",
        SHAPE,
        **options,
        guidance_scale=2.0,
        negative_conditions={"label": torch.zeros(2)},
    )
    full = len(net.exits) + 1
    assert guided.trace.depth[:, 0].tolist() == [full, full, 1, 1, full, full]
    assert StepSchedule.from_trace(guided.trace) == net.policy
    heun = draw(net, HeunDiscreteScheduler(), SHAPE, **options)
    assert heun.trace.depth[:, 0].tolist() == [full, 1, 1, full, full]


def test_arguments_go_by_name_where_they_do_not_come_first(example):
    x, t = example
    net = perturb(Swapped(depth=3).eval())
    model = wrap(net, "relative", example_inputs=(t, x))
    model.policy = NeverExit()
    assert (model.plan.noisy, model.plan.timestep) == ("latents", "timestep")
    ours = draw(model, "ddim", SHAPE, steps=3, seeds=2)

    def swap(x, t):
        return net(t, x)

    unwrap(model)
    assert torch.equal(ours.samples, draw(swap, "ddim", SHAPE, steps=3, seeds=2).samples)
