"""Tasks: closed forms against the scheduler's noise levels, batch forms, refusals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from exitkit.errors import ConfigError, ExitKitError, ShapeError
from exitkit.training.divergences import first_channels
from exitkit.training.tasks import (
    Classification,
    FlowMatching,
    Noise,
    Sample,
    Velocity,
)

SEEDS = [0, 1, 2]
DIFFUSION = {"epsilon": Noise, "v_prediction": Velocity, "sample": Sample}


def gen(seed):
    return torch.Generator().manual_seed(seed)


def ddpm(kind, **more):
    return DDPMScheduler(prediction_type=kind, **more)


def data(seed, rows=5):
    return torch.randn(rows, 2, 4, 4, generator=gen(100 + seed))


def levels(scheduler, t):
    alpha = scheduler.alphas_cumprod[t].double().reshape(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", DIFFUSION)
def test_target_recovers_data_and_noise(kind, seed):
    """From x_t and the target alone, the closed forms give x_0 and the noise back."""
    scheduler, x0 = ddpm(kind), data(seed).double()
    example = DIFFUSION[kind](scheduler).draw(x0, gen(seed))
    x_t, t = example.args
    a, s = levels(scheduler, t)
    if kind == "epsilon":
        noise = example.target
        clean = (x_t - s * noise) / a
    elif kind == "v_prediction":
        clean, noise = a * x_t - s * example.target, s * x_t + a * example.target
    else:
        clean = example.target
        noise = (x_t - a * clean) / s
    # alphas_cumprod is float32 inside the task's double data: equal up to the rounding of 1/a.
    torch.testing.assert_close(clean, x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a * x0 + s * noise, x_t, rtol=1e-5, atol=1e-5)
    assert abs(float(noise.mean())) < 0.3 and 0.7 < float(noise.std()) < 1.3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_diffusers_bit_for_bit(seed, dtype):
    scheduler, x0 = ddpm("v_prediction"), data(seed).to(dtype)
    x_t, t = Velocity(scheduler).draw(x0, gen(seed)).args
    noise = Noise(ddpm("epsilon")).draw(x0, gen(seed)).target
    assert torch.equal(x_t, scheduler.add_noise(x0, noise, t))
    velocity = Velocity(scheduler).draw(x0, gen(seed)).target
    assert torch.equal(velocity, scheduler.get_velocity(x0, noise, t))


def test_velocity_identities():
    scheduler, x0 = ddpm("v_prediction"), data(0)
    example = Velocity(scheduler).draw(x0, gen(0))
    x_t, t = example.args
    a, s = levels(scheduler, t)
    noise = Noise(ddpm("epsilon")).draw(x0, gen(0)).target
    torch.testing.assert_close(example.target.double(), a * noise - s * x0, rtol=1e-5, atol=1e-5)
    # (x_t, v) is (x_0, noise) turned by an angle: lengths are kept.
    length = x_t.square() + example.target.square()
    torch.testing.assert_close(length, x0.square() + noise.square(), rtol=1e-4, atol=1e-4)
    # negative control: the noise itself is no velocity
    assert not torch.allclose(example.target, noise, atol=0.1)


def test_noise_free_end_is_the_data():
    scheduler = ddpm("epsilon", beta_start=1e-8, beta_end=1e-8, num_train_timesteps=1)
    x0 = data(0)
    x_t, t = Noise(scheduler).draw(x0, gen(0)).args
    assert t.tolist() == [0] * 5
    torch.testing.assert_close(x_t, x0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_timesteps_are_uniform_over_the_whole_range(seed):
    task = Noise(ddpm("epsilon", num_train_timesteps=10))
    t = task.draw(torch.zeros(4000, 1), gen(seed)).args[1]
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    # 400 expected, standard deviation 19
    assert counts.min() > 310 and counts.max() < 490


def test_same_generator_same_example_and_no_global_randomness():
    task, before = Noise(ddpm("epsilon")), torch.get_rng_state()
    one, two, other = (task.draw(data(0), gen(s)) for s in (3, 3, 4))
    assert torch.equal(one.args[0], two.args[0]) and torch.equal(one.args[1], two.args[1])
    assert not torch.equal(one.args[0], other.args[0])
    assert torch.equal(before, torch.get_rng_state())


def test_scheduler_is_not_changed():
    scheduler = ddpm("epsilon")
    before = dict(vars(scheduler))
    Noise(scheduler).draw(data(0), gen(0))
    assert all(vars(scheduler)[name] is value for name, value in before.items())


def test_any_scheduler_with_the_same_training_levels_gives_the_same_example():
    """A sampler's own add_noise is scaled for its sigma space; the network never sees that."""
    x0 = data(0)
    want = Noise(ddpm("epsilon")).draw(x0, gen(0)).args[0]
    for other in (DDIMScheduler(), EulerDiscreteScheduler()):
        torch.testing.assert_close(Noise(other).draw(x0, gen(0)).args[0], want)


def test_duck_typed_scheduler():
    class Cosine:
        config = SimpleNamespace(num_train_timesteps=7)

        def add_noise(self, x0, noise, t):
            angle = (t.to(x0.dtype) / 7 * 1.5).reshape(-1, 1, 1, 1)
            return angle.cos() * x0 + angle.sin() * noise

        def get_velocity(self, x0, noise, t):
            angle = (t.to(x0.dtype) / 7 * 1.5).reshape(-1, 1, 1, 1)
            return angle.cos() * noise - angle.sin() * x0

    example = Velocity(Cosine()).draw(data(0), gen(0))
    x_t, t = example.args
    angle = (t / 7 * 1.5).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(angle.cos() * x_t - angle.sin() * example.target, data(0))
    delattr(Cosine, "get_velocity")
    with pytest.raises(ConfigError, match="get_velocity"):
        Velocity(Cosine()).draw(data(0), gen(0))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_flow_matching_closed_form(seed, sampling):
    x0 = data(seed, rows=6)
    example = FlowMatching(sampling=sampling).draw(x0, gen(seed))
    x_s, t = example.args
    s = (t / 1000).reshape(-1, 1, 1, 1)
    assert 0 <= float(s.min()) and float(s.max()) <= 1
    # x_s - s (noise - x_0) = x_0, and x_s + (1 - s)(noise - x_0) = noise
    torch.testing.assert_close(x_s - s * example.target, x0, rtol=1e-4, atol=1e-5)
    noise = x_s + (1 - s) * example.target
    torch.testing.assert_close(noise - x0, example.target, rtol=1e-4, atol=1e-5)


def test_flow_matching_scales_the_timestep_and_samples_s():
    x0 = torch.zeros(4000, 1)
    by_1000, by_1 = (FlowMatching(timestep_scale=k).draw(x0, gen(0)).args[1] for k in (1000.0, 1.0))
    torch.testing.assert_close(by_1000, by_1 * 1000)
    assert abs(float(by_1.mean()) - 0.5) < 0.02 and abs(float(by_1.std()) - 0.2887) < 0.01
    task = FlowMatching(sampling="logit_normal", mean=0.5, std=0.7, timestep_scale=1.0)
    logit = task.draw(x0, gen(0)).args[1].double().logit()
    assert abs(float(logit.mean()) - 0.5) < 0.05 and abs(float(logit.std()) - 0.7) < 0.05


def test_flow_matching_agrees_with_diffusers():
    scheduler, x0 = FlowMatchEulerDiscreteScheduler(), data(0, rows=1)
    t = scheduler.timesteps[300:301]
    s = t / 1000
    noise = torch.randn(x0.shape, generator=gen(1))
    mixed = scheduler.scale_noise(x0, t, noise)
    torch.testing.assert_close(mixed, (1 - s) * x0 + s * noise, rtol=1e-4, atol=1e-4)


BATCHES = {
    "tensor": (lambda x, y: x, (), {}),
    "tuple": (lambda x, y: (x, y), ("y",), {}),
    "list": (lambda x, y: [x, y], ("y",), {}),
    "tuple with a dict": (lambda x, y: (x, {"label": y}), (), {"label": "y"}),
    "dict": (lambda x, y: {"x0": x, "y": y}, (), {"y": "y"}),
    "hub dict": (lambda x, y: {"pixel_values": x, "class_labels": y}, (), {"class_labels": "y"}),
}


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("task", [Noise(ddpm("epsilon")), FlowMatching()], ids=["noise", "flow"])
def test_batch_forms(task, form):
    make, extras, named = BATCHES[form]
    x, y = data(0), torch.arange(5)
    example = task.draw(make(x, y), gen(0))
    plain = task.draw(x, gen(0))
    assert torch.equal(example.args[0], plain.args[0])
    assert torch.equal(example.args[1], plain.args[1])
    assert len(example.args) == 2 + len(extras)
    assert all(torch.equal(arg, y) for arg in example.args[2:])
    assert example.kwargs.keys() == named.keys()
    assert all(torch.equal(value, y) for value in example.kwargs.values())


def test_conditions_name_and_drop():
    x, y, z = data(0), torch.arange(5), torch.ones(5, 3)
    scheduler = ddpm("epsilon")
    named = Noise(scheduler, conditions=("y",)).draw((x, y, z))
    assert len(named.args) == 2 and named.kwargs.keys() == {"y"}
    skipping = Noise(scheduler, conditions=(None, "context")).draw((x, y, z))
    assert torch.equal(skipping.kwargs["context"], z) and len(skipping.kwargs) == 1
    dropped = Noise(scheduler, conditions=()).draw((x, y))
    assert len(dropped.args) == 2 and not dropped.kwargs
    kept = Noise(scheduler, conditions=("y",)).draw({"x0": x, "y": y, "id": z})
    assert kept.kwargs.keys() == {"y"}
    with pytest.raises(ConfigError, match="no 'y'"):
        Noise(scheduler, conditions=("y",)).draw(x)


NOISE = Noise(ddpm("epsilon"))


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        ("images", ConfigError, "type str.*tuple"),
        (None, ConfigError, "NoneType"),
        ((), ConfigError, "cannot read a batch of type tuple"),
        ({"label": torch.zeros(2)}, ConfigError, "Name the data one of x0"),
        ({"x0": [1, 2]}, ConfigError, "of type list"),
        (torch.zeros(0, 1, 2, 2), ShapeError, "rows first"),
        (torch.zeros(3), ShapeError, "rows first"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), ShapeError, "uint8.*127.5"),
        ((torch.zeros(2, 3), torch.zeros(3)), ShapeError, "3 rows where the data have 2"),
    ],
)
def test_bad_batches(batch, error, match):
    with pytest.raises(error, match=match) as caught:
        NOISE.draw(batch, gen(0))
    assert isinstance(caught.value, ExitKitError)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Noise(FlowMatchEulerDiscreteScheduler()), "FlowMatching"),
        (lambda: Noise(ddpm("v_prediction")), "tasks.Velocity"),
        (lambda: Velocity(ddpm("epsilon")), "tasks.Noise"),
        (lambda: Noise(SimpleNamespace(add_noise=None)), "num_train_timesteps is None"),
        (lambda: FlowMatching(sampling="cosine"), "logit_normal"),
        (lambda: FlowMatching(timestep_scale=0.0), "positive"),
    ],
)
def test_bad_tasks(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_is_the_mean_square_of_each_row(seed):
    prediction, target = data(seed), data(seed + 1)
    want = [float(((p - t) ** 2).mean()) for p, t in zip(prediction, target, strict=True)]
    assert NOISE.loss(prediction, target).tolist() == pytest.approx(want, rel=1e-5)


def test_learned_variances_do_not_count():
    prediction, target = data(0), data(1)
    both = torch.cat([prediction, 100 * torch.ones_like(prediction)], dim=1)
    assert torch.equal(NOISE.loss(both, target), NOISE.loss(prediction, target))
    for wrong in (prediction[:, :1], prediction[:3], torch.cat([both, prediction], 1)):
        with pytest.raises(ShapeError, match="twice the channels"):
            first_channels(wrong, target)


def test_classification():
    task, images, labels = Classification(), torch.randn(4, 3, 8, 8), torch.tensor([0, 2, 1, 1])
    forms = [(images, labels), {"image": images, "label": labels}, {"x0": images, "y": labels}]
    for batch in forms:
        example = task.draw(batch)
        assert torch.equal(example.args[0], images) and len(example.args) == 1
        assert torch.equal(example.target, labels) and not example.kwargs
    logits = torch.randn(4, 3)
    want = [float(-logits[i].log_softmax(0)[labels[i]]) for i in range(4)]
    assert task.loss(logits, labels).tolist() == pytest.approx(want, rel=1e-5)
    assert task.draw((images, labels.int())).target.dtype == torch.int64
    torch.testing.assert_close(task.loss(logits, labels).mean(), F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("batch", "error", "match"),
    [
        (torch.zeros(2, 3, 4, 4), ConfigError, "no labels"),
        ((torch.zeros(2, 3), torch.zeros(2)), ShapeError, "integer classes.*float32"),
        ((torch.zeros(2, 3), torch.zeros(3).long()), ShapeError, r"shape \(2,\)"),
        ((torch.zeros(2, 3), torch.zeros(2).long(), 1), ConfigError, "got 3 entries"),
    ],
)
def test_bad_labelled_batches(batch, error, match):
    with pytest.raises(error, match=match):
        Classification().draw(batch)


def test_classification_refuses_maps():
    with pytest.raises(ShapeError, match="logits"):
        Classification().loss(torch.zeros(2, 3, 4), torch.zeros(2).long())
