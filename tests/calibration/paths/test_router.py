"""The learned router: against trying every choice, and with every other step a full one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exitkit.calibration.paths import router
from exitkit.calibration.paths.router import predictions_by_step, router_path
from exitkit.calibration.workload import GenerationWorkload
from exitkit.errors import CalibrationError
from exitkit.model import ExitModel
from exitkit.policies import FULL, StepSchedule
from exitkit.sampling.sampler import Sampler
from tests.calibration import models
from tests.tiny_suites import SCHEDULER, SHAPE, STEPS, wrapped

SAMPLER = Sampler(SCHEDULER, SHAPE, STEPS)
COSTS = [0.2, 0.5, 0.7]


def predictions(gaps: list[list[float]], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Per step: exits at known distances from the full prediction, in units of its size."""
    g = torch.Generator().manual_seed(seed)
    steps = []
    for mine in gaps:
        full = torch.randn(3, 2, 4, generator=g)
        # Differences at right angles to each other: mixing choices has no cancelled error.
        basis = torch.linalg.qr(torch.randn(24, len(mine), generator=g))[0].T * 24**0.5
        size = full.square().mean().sqrt()
        away = torch.tensor(mine)[:, None] * size * basis
        exits = full[:, None] + away.reshape(len(mine), 3, 2, 4).transpose(0, 1)
        steps.append((exits, full))
    return steps


def learned(
    steps: list[tuple[Tensor, Tensor]], penalty: float, *, every_other: bool = False
) -> StepSchedule:
    return router_path(steps, COSTS, every_other=every_other).learned(penalty)


CLEAR = [
    ([3.0, 2.0, 0.05], 0.05),
    ([0.02, 2.0, 2.0], 0.05),
    ([3.0, 0.05, 3.0], 0.1),
    ([4.0, 4.0, 4.0], 0.5),
    ([0.01, 0.01, 0.01], 1.0),
]


@pytest.mark.parametrize(("gaps", "penalty"), CLEAR, ids=str)
def test_a_clear_choice_is_the_one_that_trying_them_all_finds(
    gaps: list[float], penalty: float
) -> None:
    router = learned(predictions([gaps]), penalty)
    totals = [gap**2 + penalty * cost for gap, cost in zip(gaps, COSTS, strict=True)] + [penalty]
    best = min(range(4), key=totals.__getitem__)
    assert router.per_step == (FULL if best == 3 else best + 1,)


def test_steps_choose_for_themselves() -> None:
    gaps = [gaps for gaps, _ in CLEAR[:4]]
    router = learned(predictions(gaps), 0.05)
    assert router.per_step == (3, 1, 2, FULL)
    # The order of steps carries over, and nothing else.
    reverse = learned(predictions(gaps[::-1], seed=1), 0.05)
    assert reverse.per_step == router.per_step[::-1]


def test_every_other_step_stays_full_where_exits_lean_on_full_steps() -> None:
    seen = predictions([[0.01, 0.01, 0.01]] * 5)
    assert learned(seen, 1.0).per_step == (1,) * 5
    kept = learned(seen, 1.0, every_other=True)
    assert kept.per_step == (FULL, 1, FULL, 1, FULL)


def test_penaltys_are_in_units_of_the_prediction() -> None:
    """Ten times the numbers, the same router; and a penalty at either end decides alone."""
    gaps = [gaps for gaps, _ in CLEAR[:4]]
    seen = predictions(gaps)
    large = [(10 * exits, 10 * full) for exits, full in seen]
    routers = [learned(s, 0.05) for s in (seen, large)]
    assert routers[0] == routers[1]
    assert learned(seen, 1e4).per_step == (1,) * 4


def test_choices_that_rows_may_not_take_are_not_taken() -> None:
    exits, full = predictions([[0.01, 3.0, 3.0]])[0]
    barred = exits.clone()
    barred[:, 0] = torch.nan
    assert learned([(exits, full)], 0.05).per_step == (1,)
    assert learned([(barred, full)], 0.05).per_step == (FULL,)


@pytest.fixture(scope="module")
def relative() -> ExitModel:
    return wrapped("relative")


@pytest.fixture(scope="module")
def plain() -> ExitModel:
    """Plain reuse at every exit: what the learned router of the catalogue is run on."""
    return wrapped("carried", exits=None, output={"kind": "carried", "width": 8})


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter learning, where the search over penaltys is what is tested."""
    monkeypatch.setattr(router, "LEARNING_STEPS", 60)
    monkeypatch.setattr(router, "_RATE", 0.2)


def test_predictions_by_step_are_what_the_exits_would_have_predicted(relative: ExitModel) -> None:
    sampler = Sampler(SCHEDULER, SHAPE, STEPS, batch_size=4)
    workload = GenerationWorkload(relative, sampler, range(10_000, 10_006))
    seen = predictions_by_step(workload)
    assert len(seen) == STEPS and not workload.history
    x = torch.stack(
        [torch.randn(SHAPE, generator=torch.Generator().manual_seed(10_000 + i)) for i in range(6)]
    )
    SCHEDULER.set_timesteps(STEPS)
    with torch.no_grad():
        out = relative(x, SCHEDULER.timesteps[0].expand(6), output_exits=True)
    torch.testing.assert_close(seen[0][0], torch.stack(out.exits, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][1], out.prediction, rtol=1e-4, atol=1e-5)


def test_a_router_meets_its_budget(relative: ExitModel, quickly: None) -> None:
    budget = 0.6
    result = models.found(relative, SAMPLER, policy="router", budget=budget, seeds=6)
    assert isinstance(result.policy, StepSchedule) and result.cost <= budget * 1.02
    assert result.cost > budget - 0.2


def test_a_router_of_carried_exits_keeps_even_steps_full(plain: ExitModel, quickly: None) -> None:
    result = models.found(plain, SAMPLER, policy="router", budget=0.9, seeds=6)
    assert isinstance(result.policy, StepSchedule) and result.cost <= 0.9 * 1.02
    assert set(result.policy.per_step[::2]) == {FULL}
    # Half the steps are full, so that no penalty brings the cost below that.
    with pytest.raises(
        CalibrationError,
        match=r"budget=0.4 is out of reach for a learned router with every .*0\.[5-9]",
    ):
        models.found(plain, SAMPLER, policy="router", budget=0.4, seeds=6)


def test_a_router_keeps_an_error_bound_even_where_only_full_steps_do(
    relative: ExitModel, quickly: None
) -> None:
    bound = 1e-9
    result = models.found(relative, SAMPLER, policy="router", max_error=bound, seeds=6)
    assert result.error <= bound
    assert result.policy == StepSchedule((FULL,) * STEPS)
