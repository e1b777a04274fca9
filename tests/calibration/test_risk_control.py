"""Certified calibration by real runs of tiny wrapped models: fresh seeds judge, refusals say why."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from exitkit import calibrate, generate, wrap
from exitkit.calibration import risk_control as certified
from exitkit.calibration.calibrate import calibrate_report
from exitkit.calibration.certificates import betting_bound, conformal_figures, hoeffding_bentkus
from exitkit.calibration.promises import Promise
from exitkit.calibration.workload import acting
from exitkit.errors import CalibrationError, ConfigError, ShapeError
from exitkit.policies import CALM, FULL, FixedExit, NeverExit, StepSchedule, UncertaintyThreshold
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import Sampler
from tests.backbones import TokenNet, perturb

SHAPE, STEPS, PILOT, FRESH = (3, 4, 4), 5, 6, 64
SCHEDULER = DDIMScheduler(clip_sample=False)


def make(preset: str, net=None, example=None, **overrides):
    """A wrapped model whose heads disagree and whose exits are a little off."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    example = example or (torch.randn(2, *SHAPE, generator=g), torch.tensor([5, 700]))
    net = perturb((net or TokenNet(depth=4, dim=16)).eval())
    model = wrap(net, preset, example_inputs=example, **overrides)
    model.policy = NeverExit()
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
            if name.endswith("bias"):
                p.zero_()
        for p in model.heads.output.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    return model


@pytest.fixture(scope="module")
def relative():
    return make("relative")


@pytest.fixture(scope="module")
def carried():
    return make("carried", output={"kind": "carried", "width": 8})


def errors(model, policy, *, seed: int, count: int) -> Tensor:
    """Error of each trajectory, measured independently of the calibration."""
    images = {}
    for name, chosen in (("full", NeverExit()), ("early", policy)):
        with acting(model, chosen):
            sampler, seeds = Sampler(SCHEDULER, SHAPE, STEPS), range(seed, seed + count)
            images[name] = generate(model, sampler, seeds).samples
    return paired_distance(images["early"], images["full"]).double()


@pytest.fixture(scope="module")
def scale(request):
    """What leaving at the first exit always costs, for each model: bounds are given in it."""
    return {
        name: float(errors(request.getfixturevalue(name), EARLIEST[name], seed=0, count=16).mean())
        for name in ("relative", "carried")
    }


EARLIEST = {"relative": FixedExit(1), "carried": StepSchedule((FULL, *[1] * (STEPS - 1)))}


def search(model, bound: float, **options):
    defaults = {"steps": STEPS, "count": PILOT, "certify_count": FRESH, "seed": 500}
    return calibrate_report(model, SCHEDULER, SHAPE, max_error=bound, **{**defaults, **options})


# --- what is certified ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
@pytest.mark.parametrize("kind", ["threshold", "schedule"])
@pytest.mark.parametrize("preset", ["relative", "carried"])
def test_a_certificate_rests_on_fresh_seeds(request, scale, preset, kind, method):
    model, bound = request.getfixturevalue(preset), 0.6 * scale[preset]
    largest = 3 * scale[preset]
    result = search(model, bound, policy=kind, certify=method, largest=largest)
    made = result.certificate
    assert model.calibration is result and made.policy == result.policy and made.chosen > 0
    assert model.policy == NeverExit()
    assert (made.method, made.bound, made.largest, made.count) == (method, bound, largest, FRESH)
    assert made.confidence == (None if method == "crc" else 0.9)
    assert made.seeds == (500 + PILOT, 500 + PILOT + FRESH - 1)
    # Every number again, from the fresh seeds alone.
    losses = torch.stack(
        [
            errors(model, policy, seed=500 + PILOT, count=FRESH).clamp(max=largest)
            for policy in made.ladder[: len(made.risks)]
        ]
    )
    torch.testing.assert_close(
        torch.tensor(made.risks).double(), losses.mean(dim=1), rtol=1e-4, atol=1e-7
    )
    if method == "ltt":
        means = (losses.mean(dim=1) / largest).tolist()
        figures = [hoeffding_bentkus(min(m, 1.0), FRESH, bound / largest) for m in means]
    elif method == "crc":
        figures = conformal_figures(losses, largest).tolist()
    else:
        figures = betting_bound(losses, 1 - 0.9, largest).tolist()
    assert made.figures == pytest.approx(tuple(figures), rel=1e-3)
    # All up to the chosen one pass, and the one behind it, if there is one, was tried and failed.
    assert all(f <= made.limit for f in made.figures[: made.chosen + 1])
    assert len(made.risks) == min(made.chosen + 2, len(made.ladder))
    assert all(f > made.limit for f in made.figures[made.chosen + 1 :])
    assert result.error == pytest.approx(made.risks[made.chosen]) and result.error < bound
    assert result.cost < 1 and result.budget is None and result.max_error == bound
    # The promise itself, on seeds that nobody has seen: here with some room.
    assert float(errors(model, result.policy, seed=90_000, count=64).mean()) <= bound


def test_the_ladder_is_laid_on_the_pilot_alone(relative, scale):
    bound, largest = 0.6 * scale["relative"], 3 * scale["relative"]
    one = search(relative, bound, certify="ltt", largest=largest).certificate
    other = search(relative, bound, certify="ucb", largest=largest, certify_count=40).certificate
    assert one.ladder == other.ladder
    moved = search(relative, bound, certify="ltt", largest=largest, count=PILOT + 2).certificate
    assert moved.ladder != one.ladder
    assert one.ladder[0] == NeverExit() and len(set(one.ladder)) == len(one.ladder) >= 5
    tops = [max([p.threshold, *(v for _, v in p.per_timestep or ())]) for p in one.ladder[1:]]
    assert tops == sorted(tops)


def test_pilot_and_fresh_seeds_do_not_meet(relative, scale, monkeypatch):
    parts = []
    original = certified._trials

    def watched(setting, promise):
        first = setting.options["seed"]
        parts.append(set(range(first, first + setting.options["count"])))
        return original(setting, promise)

    monkeypatch.setattr(certified, "_trials", watched)
    search(relative, 0.6 * scale["relative"], certify="ltt", largest=3 * scale["relative"])
    pilot, fresh = parts
    assert not pilot & fresh and (len(pilot), len(fresh)) == (PILOT, FRESH)


def test_a_schedule_ladder_gives_up_full_steps_one_by_one(carried, scale):
    result = search(
        carried,
        0.6 * scale["carried"],
        policy="schedule",
        certify="ucb",
        largest=3 * scale["carried"],
    )
    full = [p.per_step.count(FULL) for p in result.certificate.ladder[1:]]
    assert full == sorted(full, reverse=True) and full[0] < STEPS
    assert isinstance(result.policy, StepSchedule)


def test_the_better_kind_is_chosen_by_the_pilot(relative, scale):
    result = search(
        relative,
        0.6 * scale["relative"],
        policy="best",
        certify="ucb",
        largest=3 * scale["relative"],
    )
    kinds = {type(p) for p in result.certificate.ladder[1:]}
    assert len(kinds) == 1 and type(result.policy) in kinds


@pytest.mark.parametrize("kind", ["static", "ase"])
def test_other_kinds_climb_over_the_trials_of_the_pilot(relative, scale, kind):
    bound = 0.8 * scale["relative"]
    result = search(relative, bound, policy=kind, certify="ucb", largest=3 * scale["relative"])
    ladder = result.certificate.ladder
    pilot = {str(t.policy): t for t in result.history[: -len(result.certificate.risks)]}
    rungs = [pilot[str(policy)] for policy in ladder[1:]]
    assert rungs and [t.error for t in rungs] == sorted(t.error for t in rungs)
    assert [t.cost for t in rungs] == sorted((t.cost for t in rungs), reverse=True)
    assert all(t.error <= 1.2 * bound for t in rungs)


def test_policies_that_couple_rows_cannot_be_certified(relative, scale):
    coupled = UncertaintyThreshold(1.0, batch_mean=True)
    for policy in (coupled, [coupled]):
        with pytest.raises(ConfigError, match="decides for a whole batch.*batch_mean=False"):
            search(relative, scale["relative"], policy=policy, certify="ltt", largest=10.0)


def test_a_ladder_of_ones_own(relative, scale):
    rungs = [FixedExit(d) for d in range(len(relative.exits), 0, -1)]
    options = {"certify": "ltt", "largest": 3 * scale["relative"], "policy": rungs}
    result = search(relative, 2 * scale["relative"], **options)
    assert result.certificate.ladder == (NeverExit(), *rungs)
    assert result.policy == FixedExit(1) and len(result.history) == len(rungs) + 1
    with pytest.raises(ConfigError, match="got str among them"):
        search(relative, scale["relative"], **{**options, "policy": ["threshold"]})


def test_errors_are_clipped_and_the_words_say_so(relative, scale):
    bound, largest = 0.25 * scale["relative"], 0.5 * scale["relative"]
    result = search(relative, bound, certify="ucb", largest=largest, confidence=0.8)
    assert max(result.certificate.risks) <= largest
    text = str(result)
    for words in (
        f"Certified by an upper confidence bound by betting on {FRESH} fresh trajectories",
        f"with probability at least 0.8 over the seeds of the calibration, the mean error of new "
        f"trajectories is at most {bound:g}",
        f"counted as at most {largest:g}",
        "the same sampler, number of steps, guidance and distribution of conditioning",
        "not promised: any single image; another sampler",
        str(result.policy),
    ):
        assert words in text
    expected = search(relative, bound, certify="crc", largest=largest)
    assert "on average over calibrations" in str(expected)
    assert "with probability" not in str(expected)


def test_the_result_stays_with_the_model(relative, scale):
    result = search(relative, 0.6 * scale["relative"], certify="ltt", largest=3 * scale["relative"])
    twin = copy.deepcopy(relative)
    assert twin.calibration == result and str(twin.calibration) == str(result)
    with pytest.raises(CalibrationError):  # A refusal takes nothing away.
        search(relative, 0.01 * scale["relative"], certify="ltt", certify_count=2)
    assert relative.calibration is result
    plain = calibrate_report(relative, SCHEDULER, SHAPE, max_error=1.0, steps=STEPS, count=PILOT)
    assert plain.certificate is None and "Certified" not in str(plain)


def test_conditioning_of_the_fresh_samples_follows_that_of_the_pilot():
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor):
            seen.append(label)
            return super().forward(x + label[:, None, None, None], t)

    seen: list[Tensor] = []
    example = (torch.randn(2, *SHAPE), torch.tensor([5, 700]), torch.tensor([0.1, 0.3]))
    model = make("relative", Labelled(depth=3, dim=16), example)
    given = torch.cat([torch.zeros(4), torch.ones(30)])
    seen.clear()
    rungs = [FixedExit(len(model.exits)), FixedExit(1)]
    options = {"steps": 3, "count": 4, "certify_count": 30, "certify": "ucb", "largest": 10.0}
    ladder = {"inputs": {"label": given}, "policy": rungs, "max_error": 9.0, "batch_size": 16}
    calibrate(model, SCHEDULER, SHAPE, **options, **ladder)
    assert seen and all(bool((label == 1).all()) for label in seen)
    seen.clear()
    by_row = {"inputs": lambda rows: {"label": given[rows]}, "max_error": 9.0}
    calibrate(model, SCHEDULER, SHAPE, **options, **by_row, batch_size=64)
    assert {tuple(label.unique().tolist()) for label in seen} == {(0.0,), (1.0,)}
    with pytest.raises(ShapeError, match="30 rows, but there are 34 samples"):
        calibrate(model, SCHEDULER, SHAPE, **options, max_error=9.0, inputs={"label": given[:30]})


# --- refusals -------------------------------------------------------------------------------------


def test_too_few_trajectories_are_refused_with_the_number_that_would_do(relative, scale):
    bound, largest = 0.5 * scale["relative"], 5 * scale["relative"]
    for method, figure in (("ltt", "p-value"), ("ucb", "upper bound"), ("crc", "corrected error")):
        with pytest.raises(CalibrationError, match="cannot be certified") as caught:
            search(relative, bound, certify=method, largest=largest, certify_count=4)
        text = str(caught.value)
        assert f"the {figure} " in text and "on 4 trajectories" in text
        assert "Never exiting has an observed error of 0 " in text
        enough = int(text.split("About ")[1].split()[0])
        # It is the number: as many do, for the policy that never exits; one fewer does not.
        zeros = torch.zeros(1, enough)
        promise = Promise(method, bound, 0.9, largest, PILOT, enough)
        assert promise.chosen(zeros) == 0 and promise.chosen(zeros[:, 1:]) is None
        assert "The first setting that exits is UncertaintyThreshold" in text
        assert "larger certify_count" in text and "smaller largest=" in text


def test_a_ladder_without_a_safe_rung_ends_at_the_full_model(relative, scale):
    options = {"certify": "ltt", "largest": 3 * scale["relative"], "policy": [FixedExit(1)]}
    with pytest.warns(UserWarning, match="only the policy that never exits .* No number of"):
        result = search(relative, 0.5 * scale["relative"], **options)
    assert result.policy == NeverExit() and result.cost == 1.0 and result.error == 0.0
    assert result.certificate.chosen == 0 and len(result.certificate.risks) == 2


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
def test_how_many_would_do(method):
    promise = Promise(method, 0.1, 0.9, 1.0, 1, 1)
    steady = torch.full((50,), 0.05, dtype=torch.float64)
    enough = promise.enough(steady)
    assert promise.chosen(steady[:1].expand(1, enough)) == 0
    assert promise.chosen(steady[:1].expand(1, enough - 1)) is None
    assert promise.enough(torch.full((50,), 0.1, dtype=torch.float64)) is None
    assert promise.enough(torch.zeros(50, dtype=torch.float64)) < enough


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"certify": "lt"}, "no certify='lt' .known: ltt, crc, ucb.*Did you mean 'ltt'"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1, got 1.0"),
        ({"confidence": "high"}, "got 'high'"),
        ({"largest": 0.1}, "largest must be a number above max_error=0.1, got 0.1"),
        ({"largest": float("inf")}, "got inf"),
        ({"certify_count": 0}, "certify_count must be a whole number of at least 1, got 0"),
        ({"count": 2.5}, "seeds must be a whole number or a sequence of them, got 2.5"),
        ({"max_error": None, "budget": 0.5}, "give max_error, not budget"),
        ({"certify": None, "policy": [FixedExit(1)]}, "A ladder of policies can only be certified"),
        ({"scheduler": None, "shape": None, "loader": []}, "images that the pilot has not seen"),
        ({"policy": "treshold"}, "no policy 'treshold'"),
        ({"policy": UncertaintyThreshold(0)}, "are 0, which never exits"),
    ],
)
def test_bad_arguments_are_refused(relative, options, message):
    defaults = {"scheduler": SCHEDULER, "shape": SHAPE, "steps": 2, "count": 2, "certify_count": 2}
    asked = {"max_error": 0.1, "certify": "ltt", **options}
    with warnings.catch_warnings(), pytest.raises(ConfigError, match=message):
        calibrate(relative, **{**defaults, **asked})
    assert relative.policy == NeverExit()


# --- classifiers ----------------------------------------------------------------------------------


def images(count: int, seed: int, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 1, 16, 16, generator=g).split(size)
    return [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in drawn]


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        in_chans=1,
        num_classes=4,
        embed_dim=24,
        depth=4,
        num_heads=3,
    )
    # Its exits are the network's own tail, so that late ones mostly agree with it.
    model = wrap(perturb(net.eval()), "calm", example_inputs=(torch.zeros(2, 1, 16, 16),))
    model.policy = NeverExit()
    return model


def changed(model, policy, batches) -> Tensor:
    """1 for each image whose class is not the full model's, measured outside the calibration."""
    found = []
    with torch.no_grad():
        for batch, _ in batches:
            with acting(model, policy):
                early = model(batch).argmax(1)
            found.append((early != model.backbone(batch).argmax(1)).double())
    return torch.cat(found)


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
def test_a_classifier_is_certified_on_images_of_its_own(classifier, method):
    pilot, fresh = images(100, 0), images(400, 1)
    options = {"max_error": 0.2, "policy": CALM("margin", 0.9), "certify": method}
    result = calibrate_report(classifier, loader=pilot, certify_loader=fresh, **options)
    made = result.certificate
    assert made.policy == result.policy and made.chosen > 0 and result.cost < 1
    assert made.count == 400 and made.seeds is None
    losses = torch.stack([changed(classifier, p, fresh) for p in made.ladder[: len(made.risks)]])
    assert losses.mean(dim=1).tolist() == pytest.approx(made.risks, abs=1e-9)
    if method == "ltt":
        values = [hoeffding_bentkus(risk, 400, 0.2) for risk in losses.mean(dim=1).tolist()]
        assert values == pytest.approx(made.figures)
    # The promise, on images that nothing has seen.
    assert changed(classifier, result.policy, images(2000, 2)).mean() <= 0.2
    told = str(made)
    assert "on 400 fresh images, " in told and "class is not the full model's" in told
    assert "seed" not in told and "trajector" not in told


def test_a_classifier_is_not_certified_on_too_few_images_or_the_pilots(classifier):
    pilot = images(100, 0)
    asked = {"max_error": 0.02, "policy": CALM("margin", 0.9), "certify": "ltt"}
    with pytest.raises(CalibrationError, match=r"on 8 images.* About \d+ images would do"):
        calibrate(classifier, loader=pilot, certify_loader=images(8, 1), **asked)
    with pytest.raises(ConfigError, match="images that the pilot has not seen"):
        calibrate(classifier, loader=pilot, **asked)
    with pytest.raises(ConfigError, match="images that the pilot has not seen"):
        calibrate(classifier, loader=pilot, certify_loader=pilot, **asked)
    with pytest.raises(ConfigError, match="images that the pilot has not seen"):
        calibrate(classifier, loader=pilot, certify_loader=images(8, 1), budget=0.5)
    with pytest.raises(ConfigError, match="decides for a whole batch"):
        ladder = [CALM("margin", 0.5, whole_batch=True)]
        calibrate(
            classifier, loader=pilot, certify_loader=images(8, 1), **{**asked, "policy": ladder}
        )
