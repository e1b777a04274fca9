"""Certified calibration by real runs of tiny wrapped models: fresh seeds judge, refusals say why."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from exitkit import wrap
from exitkit.calibration.acting import acting
from exitkit.calibration.calibrate import calibrate
from exitkit.calibration.certificates import (
    betting_bound,
    conformal_statistics,
    hoeffding_bentkus,
)
from exitkit.calibration.risk_target import RiskTarget
from exitkit.errors import CalibrationError, ConfigError
from exitkit.model import ExitModel
from exitkit.policies import (
    CALM,
    FULL,
    Calibration,
    Certificate,
    FixedExit,
    NeverExit,
    Policy,
    StepSchedule,
    UncertaintyThreshold,
)
from exitkit.sampling.distance import paired_distance
from exitkit.sampling.sampler import Sampler
from tests.backbones import TokenNet, perturb
from tests.calibration import models
from tests.calibration.classifiers import classifier as make_classifier
from tests.calibration.classifiers import images

SHAPE, STEPS, TUNING, FRESH = (3, 4, 4), 5, 6, 64
SAMPLER = Sampler(DDIMScheduler(clip_sample=False), SHAPE, STEPS)
EARLIEST: dict[str, Policy] = {
    "relative": FixedExit(1),
    "carried": StepSchedule((FULL, *[1] * (STEPS - 1))),
}


def make(preset: str, net: Any = None, example: Any = None, **overrides: Any) -> ExitModel:
    """A wrapped model whose heads disagree and whose exits are a little off."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    example = example or (torch.randn(2, *SHAPE, generator=g), torch.tensor([5, 700]))
    net = perturb((net or TokenNet(depth=4, dim=16)).eval())
    model = wrap(net, preset, example_inputs=example, **overrides)
    assert isinstance(model, ExitModel)
    model.policy = NeverExit()
    with torch.no_grad():
        for name, p in model.heads.uncertainty.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
            if name.endswith("bias"):
                p.zero_()
        for p in model.heads.output.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    model.heads.mark_fitted()
    return model


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return make("relative")


@pytest.fixture(scope="module")
def carried() -> ExitModel:
    return make("carried", output={"kind": "carried", "width": 8})


@functools.cache  # the methods test the same candidates
def samples(model: ExitModel, policy: Policy, seed: int, count: int) -> Tensor:
    with acting(model, policy):
        return SAMPLER.run(model, range(seed, seed + count)).samples


def errors(model: ExitModel, policy: Policy, *, seed: int, count: int) -> Tensor:
    """Error of each trajectory, measured independently of the calibration."""
    both = (samples(model, chosen, seed, count) for chosen in (policy, NeverExit()))
    return paired_distance(*both).double()


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> dict[str, float]:
    """What leaving at the first exit always costs, for each model: bounds are given in it."""
    return {
        name: float(errors(request.getfixturevalue(name), EARLIEST[name], seed=0, count=16).mean())
        for name in ("relative", "carried")
    }


def search(
    model: ExitModel, value: float, *, seeds: int = TUNING, policy: Any = None, **options: Any
) -> Calibration:
    risk = RiskTarget(value, **{"seeds": FRESH, **options})
    return calibrate(model, SAMPLER, max_error=risk, seeds=seeds, policy=policy, progress=False)


def certificate(model: ExitModel, value: float, **options: Any) -> Certificate:
    made = search(model, value, **options).certificate
    assert made is not None
    return made


# --- what is certified ----------------------------------------------------------------------------


QUICK = (
    ("relative", "threshold", "ltt"),
    ("relative", "threshold", "ucb"),
    ("relative", "threshold", "crc"),
    ("relative", "schedule", "crc"),
    ("carried", "threshold", "ltt"),
    ("carried", "schedule", "ucb"),
)
CERTIFIED = [
    pytest.param(*member, marks=() if member in QUICK else pytest.mark.slow)
    for member in itertools.product(
        ("relative", "carried"), ("threshold", "schedule"), ("ltt", "ucb", "crc")
    )
]


@pytest.mark.parametrize(("preset", "kind", "method"), CERTIFIED)
def test_a_certificate_rests_on_fresh_seeds(
    request: pytest.FixtureRequest, scale: dict[str, float], preset: str, kind: str, method: str
) -> None:
    model, bound = request.getfixturevalue(preset), 0.6 * scale[preset]
    loss_bound = 3 * scale[preset]
    result = search(model, bound, policy=kind, method=method, loss_bound=loss_bound)
    made = result.certificate
    assert made is not None and made.policy == result.policy and made.chosen > 0
    assert model.calibrations[-1] is result and model.policy == NeverExit()
    assert (made.method, made.value, made.loss_bound, made.count) == (
        method,
        bound,
        loss_bound,
        FRESH,
    )
    assert made.delta == (None if method == "crc" else 0.1)
    assert made.seeds == (20_000, 20_000 + FRESH - 1) and result.seeds == (10_000, 10_000 + 5)
    # Every number again, from the fresh seeds alone.
    losses = torch.stack(
        [
            errors(model, policy, seed=20_000, count=FRESH).clamp(max=loss_bound)
            for policy in made.candidates[: len(made.risks)]
        ]
    )
    torch.testing.assert_close(
        torch.tensor(made.risks).double(), losses.mean(dim=1), rtol=1e-4, atol=1e-7
    )
    if method == "ltt":
        means = (losses.mean(dim=1) / loss_bound).tolist()
        statistics = [hoeffding_bentkus(min(m, 1.0), FRESH, bound / loss_bound) for m in means]
    elif method == "crc":
        statistics = conformal_statistics(losses, loss_bound).tolist()
    else:
        statistics = betting_bound(losses, 0.1, loss_bound).tolist()
    assert made.statistics == pytest.approx(tuple(statistics), rel=1e-3)
    # All up to the chosen one pass, and the one behind it, if there is one, was tested and failed.
    assert all(s <= made.limit for s in made.statistics[: made.chosen + 1])
    assert len(made.risks) == min(made.chosen + 2, len(made.candidates))
    assert all(s > made.limit for s in made.statistics[made.chosen + 1 :])
    assert result.error == pytest.approx(made.risks[made.chosen]) and result.error < bound
    assert result.cost < 1 and result.budget is None and result.max_error == bound
    # The guarantee itself, on seeds that nobody has seen: here with some room, but in expectation only
    # a single calibration may lie above it.
    unseen = errors(model, result.policy, seed=90_000, count=64)
    room = 3 * float(unseen.std()) / 8 if method == "crc" else 0.0
    assert float(unseen.mean()) <= bound + room


def test_candidates_are_fixed_on_the_tuning_split_alone(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    bound, loss_bound = 0.6 * scale["relative"], 3 * scale["relative"]
    one = certificate(relative, bound, loss_bound=loss_bound)
    other = certificate(relative, bound, method="ucb", loss_bound=loss_bound, seeds=TUNING)
    assert one.candidates == other.candidates
    risk = RiskTarget(bound, loss_bound=loss_bound, seeds=40)
    fewer = calibrate(relative, SAMPLER, max_error=risk, seeds=TUNING, progress=False).certificate
    assert fewer is not None and fewer.candidates == one.candidates and fewer.count == 40
    moved = certificate(relative, bound, loss_bound=loss_bound, seeds=TUNING + 2)
    assert moved.candidates != one.candidates
    candidates = one.candidates
    assert candidates[0] == NeverExit() and len(set(candidates)) == len(candidates) >= 5
    tops = [
        max([p.threshold, *(v for _, v in p.per_timestep or ())])
        for p in candidates[1:]
        if isinstance(p, UncertaintyThreshold)
    ]
    assert tops == sorted(tops) and len(tops) == len(candidates) - 1


def test_tuning_and_calibration_seeds_do_not_meet(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    parts: list[set[int]] = []

    class Watched(Sampler):
        def run(self, model: Any, seeds: Any, **options: Any) -> Any:
            if set(seeds) not in parts:
                parts.append(set(seeds))
            return super().run(model, seeds, **options)

    watched = Watched(SAMPLER.scheduler, SHAPE, STEPS)
    bound, loss_bound = 0.6 * scale["relative"], 3 * scale["relative"]
    risk = RiskTarget(bound, loss_bound=loss_bound, seeds=FRESH)
    calibrate(relative, watched, max_error=risk, seeds=TUNING, progress=False)
    tuning, fresh = parts
    assert not tuning & fresh and (len(tuning), len(fresh)) == (TUNING, FRESH)
    meeting = RiskTarget(bound, loss_bound=loss_bound, seeds=range(10_003, 10_020))
    with pytest.raises(ConfigError, match="Seeds 10003 to 10005 are in both splits"):
        calibrate(relative, SAMPLER, max_error=meeting, seeds=TUNING, progress=False)


def test_schedules_give_up_full_steps_one_by_one(
    carried: ExitModel, scale: dict[str, float]
) -> None:
    made = certificate(
        carried,
        0.6 * scale["carried"],
        policy="schedule",
        method="ucb",
        loss_bound=3 * scale["carried"],
    )
    full = [p.per_step.count(FULL) for p in made.candidates[1:] if isinstance(p, StepSchedule)]
    assert full == sorted(full, reverse=True) and full[0] < STEPS
    assert isinstance(made.policy, StepSchedule) and len(full) == len(made.candidates) - 1


def test_the_better_kind_is_chosen_by_the_tuning_split(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    made = certificate(
        relative,
        0.6 * scale["relative"],
        policy="best",
        method="ucb",
        loss_bound=3 * scale["relative"],
    )
    kinds = {type(p) for p in made.candidates[1:]}
    assert len(kinds) == 1 and type(made.policy) in kinds


@pytest.mark.parametrize("kind", ["static", "ase", CALM("cosine", 0.9)], ids=str)
def test_other_kinds_go_along_their_path(
    relative: ExitModel, scale: dict[str, float], kind: Any
) -> None:
    bound = 0.8 * scale["relative"]
    result = search(
        relative, bound, policy=kind, method="ucb", loss_bound=3 * scale["relative"], seeds=TUNING
    )
    assert result.certificate is not None
    candidates = result.certificate.candidates[1:]
    costs = [models.run(relative, policy, SAMPLER, count=TUNING)[0] for policy in candidates]
    assert candidates and costs == sorted(costs, reverse=True)
    tuned = [m for m in result.history[: -len(result.certificate.risks)] if m.error <= bound]
    best = min(tuned, key=lambda m: m.cost)
    assert best.policy in candidates, "what the tuning split found is among them"


def test_policies_that_couple_rows_cannot_be_certified(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    coupled = UncertaintyThreshold(1.0, batch_mean=True)
    for policy in (coupled, [coupled]):
        with pytest.raises(ConfigError, match="decides for a whole batch.*batch_mean=False"):
            search(relative, scale["relative"], policy=policy, loss_bound=10.0)


def test_candidates_of_ones_own(relative: ExitModel, scale: dict[str, float]) -> None:
    own = [FixedExit(d) for d in range(len(relative.exits), 0, -1)]
    options = {"loss_bound": 3 * scale["relative"], "policy": own}
    result = search(relative, 2 * scale["relative"], **options)
    assert result.certificate is not None
    assert result.certificate.candidates == (NeverExit(), *own)
    assert result.policy == FixedExit(1) and len(result.history) == len(own) + 1
    with pytest.raises(ConfigError, match="got str among them"):
        search(relative, scale["relative"], **{**options, "policy": ["threshold"]})


def test_errors_are_clipped_and_the_words_say_so(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    bound, loss_bound = 0.25 * scale["relative"], 0.5 * scale["relative"]
    result = search(relative, bound, method="ucb", loss_bound=loss_bound, delta=0.2)
    assert result.certificate is not None and max(result.certificate.risks) <= loss_bound
    text = str(result)
    for words in (
        f"Certified by an upper confidence bound by betting on {FRESH} fresh trajectories",
        f"with probability at least 0.8 over the seeds of the calibration, the mean error of new "
        f"trajectories is at most {bound:g}",
        f"counted as at most {loss_bound:g}",
        "the same sampler, number of steps, guidance and distribution of conditions",
        "not certified: any single image; another sampler",
        str(result.policy),
    ):
        assert words in text
    expected = search(relative, bound, method="crc", loss_bound=loss_bound)
    assert "on average over calibrations" in str(expected)
    assert "with probability" not in str(expected)


def test_the_result_stays_with_the_model(relative: ExitModel, scale: dict[str, float]) -> None:
    result = search(relative, 0.6 * scale["relative"], loss_bound=3 * scale["relative"])
    assert relative.calibration is None, "its policy is not in use yet"
    before, relative.policy = relative.policy, result.policy
    try:
        twin = copy.deepcopy(relative)
        assert twin.calibration == result and str(twin.calibration) == str(result)
        with pytest.raises(CalibrationError):  # A refusal takes nothing away.
            calibrate(
                relative,
                SAMPLER,
                max_error=RiskTarget(0.01 * scale["relative"], seeds=2),
                seeds=TUNING,
                progress=False,
            )
        assert relative.calibration is result
    finally:
        relative.policy = before
    plain = calibrate(relative, SAMPLER, max_error=1.0, seeds=TUNING, progress=False)
    assert plain.certificate is None and "Certified" not in str(plain)


def test_conditions_go_by_the_seeds_of_both_splits() -> None:
    class Labelled(TokenNet):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Any:
            seen.append(label)
            return super().forward(x + label[:, None, None, None], t)

    seen: list[Tensor] = []
    example = (torch.randn(2, *SHAPE), torch.tensor([5, 700]), torch.tensor([0.1, 0.3]))
    model = make("relative", Labelled(depth=3, dim=16), example)
    sampler = Sampler(
        SAMPLER.scheduler, SHAPE, 3, conditions=lambda seeds: {"label": (seeds >= 20_000).float()}
    )
    own = [FixedExit(len(model.exits)), FixedExit(1)]
    risk = RiskTarget(9.0, "ucb", loss_bound=10.0, seeds=30)
    seen.clear()
    calibrate(model, sampler, max_error=risk, seeds=4, policy=own, progress=False)
    assert {(len(label), *label.unique().tolist()) for label in seen} == {(4, 0.0), (30, 1.0)}
    seen.clear()
    calibrate(model, sampler, max_error=risk, seeds=4, progress=False)
    assert {tuple(label.unique().tolist()) for label in seen} == {(0.0,), (1.0,)}


# --- refusals -------------------------------------------------------------------------------------


def test_too_few_trajectories_are_refused_with_the_number_that_would_do(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    bound, loss_bound = 0.5 * scale["relative"], 5 * scale["relative"]
    for method, figure in (("ltt", "p-value"), ("ucb", "upper bound"), ("crc", "corrected error")):
        risk = RiskTarget(bound, method, loss_bound=loss_bound, seeds=4)  # type: ignore[arg-type]
        with pytest.raises(CalibrationError, match="cannot be certified") as caught:
            calibrate(relative, SAMPLER, max_error=risk, seeds=TUNING, progress=False)
        text = str(caught.value)
        assert f"the {figure} " in text and "on 4 trajectories" in text
        assert "Never exiting has an observed error of 0 " in text
        enough = int(text.split("About ")[1].split()[0])
        # It is the number: as many do, for the policy that never exits; one fewer does not.
        zeros = torch.zeros(1, enough)
        assert risk.chosen(zeros) == 0 and risk.chosen(zeros[:, 1:]) is None
        assert "The first candidate that exits is UncertaintyThreshold" in text
        assert "more in RiskTarget(seeds=...)" in text and "smaller loss_bound" in text


def test_candidates_without_a_safe_one_end_at_the_full_model(
    relative: ExitModel, scale: dict[str, float]
) -> None:
    options = {"loss_bound": 3 * scale["relative"], "policy": [FixedExit(1)]}
    with pytest.warns(UserWarning, match="only the policy that never exits .* No number of"):
        result = search(relative, 0.5 * scale["relative"], **options)
    assert result.policy == NeverExit() and result.cost == 1.0 and result.error == 0.0
    assert result.certificate is not None
    assert result.certificate.chosen == 0 and len(result.certificate.risks) == 2


# --- classifiers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> ExitModel:
    return make_classifier()


def changed(model: ExitModel, policy: Policy, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """1 for each image whose class is not the full model's, measured outside the calibration."""
    found = []
    with torch.no_grad():
        for batch, _ in batches:
            with acting(model, policy):
                early = model(batch).argmax(1)
            found.append((early != model.backbone(batch).argmax(1)).double())
    return torch.cat(found)


@pytest.mark.parametrize("method", ["ltt", "ucb", "crc"])
def test_a_classifier_is_certified_on_images_of_its_own(classifier: ExitModel, method: Any) -> None:
    tuning, fresh = images(100, 0), images(400, 1, size=200)
    risk = RiskTarget(0.2, method, on=fresh)
    result = calibrate(
        classifier, tuning, max_error=risk, policy=CALM("margin", 0.9), progress=False
    )
    made = result.certificate
    assert made is not None
    assert made.policy == result.policy and made.chosen > 0 and result.cost < 1
    assert made.count == 400 and made.seeds is None and result.seeds is None
    losses = torch.stack(
        [changed(classifier, p, fresh) for p in made.candidates[: len(made.risks)]]
    )
    assert losses.mean(dim=1).tolist() == pytest.approx(made.risks, abs=1e-9)
    if method == "ltt":
        values = [hoeffding_bentkus(risk, 400, 0.2) for risk in losses.mean(dim=1).tolist()]
        assert values == pytest.approx(made.statistics)
    # The guarantee, on images that nothing has seen.
    assert changed(classifier, result.policy, images(2000, 2, size=1000)).mean() <= 0.2
    told = str(made)
    assert "on 400 fresh images, " in told and "class is not the full model's" in told
    assert "seed" not in told and "trajector" not in told


def test_a_classifier_is_not_certified_on_too_few_images_or_those_that_tuned(
    classifier: ExitModel,
) -> None:
    tuning, few = images(100, 0), images(8, 1)
    asked: dict[str, Any] = {"policy": CALM("margin", 0.9), "progress": False}
    with pytest.raises(CalibrationError, match=r"on 8 images.* About \d+ images would do"):
        calibrate(classifier, tuning, max_error=RiskTarget(0.02, on=few), **asked)
    for on in (None, tuning):
        with pytest.raises(ConfigError, match="images that the tuning split has not seen"):
            calibrate(classifier, tuning, max_error=RiskTarget(0.02, on=on), **asked)
    with pytest.raises(ConfigError, match="decides for a whole batch"):
        own = [CALM("margin", 0.5, whole_batch=True)]
        calibrate(
            classifier, tuning, max_error=RiskTarget(0.02, on=few), **{**asked, "policy": own}
        )
