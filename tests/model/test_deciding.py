"""A policy for one request: in its thread or task, and nowhere else."""

from __future__ import annotations

import threading

import pytest
import torch

import exitkit as ek
from exitkit.errors import ConfigError
from exitkit.policies import FULL, FixedExit, LearningToExit, NeverExit, Oracle
from tests.backbones import case, prediction
from tests.copies import copies


@copies
def wrapped() -> tuple[ek.ExitModel, tuple[torch.Tensor, ...]]:
    args, _ = case("uvit").inputs(2)
    model = ek.wrap(case("uvit").make(), "relative", example_inputs=args)
    model.heads.mark_fitted()
    model.policy = NeverExit()
    return model, args


def run(model: ek.ExitModel, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.no_grad():
        return prediction(model(*args))


def test_a_policy_for_a_while() -> None:
    model, args = wrapped()
    full = run(model, args)
    model.policy = FixedExit(1)
    early = run(model, args)
    assert not torch.equal(full, early), "the control: nobody left early"
    with pytest.raises(ZeroDivisionError), model.using(NeverExit()):
        assert model.policy == NeverExit() and torch.equal(run(model, args), full)
        with model.using(FixedExit(1)):
            assert torch.equal(run(model, args), early)
        assert torch.equal(run(model, args), full), "the innermost counts"
        with pytest.raises(ConfigError, match=r"NeverExit\(\) is in use here.*FixedExit"):
            model.policy = FixedExit(2)
        raise ZeroDivisionError
    assert model.policy == FixedExit(1) and torch.equal(run(model, args), early)


def test_requests_in_threads_keep_their_own() -> None:
    model, args = wrapped()
    policies = [FixedExit(1), FixedExit(2), NeverExit()]
    expected = []
    for policy in policies:
        with model.using(policy):
            expected.append(run(model, args))
    assert not torch.equal(expected[0], expected[1])
    ready, wrong = threading.Barrier(3), []

    def request(i: int) -> None:
        with model.using(policies[i]):
            ready.wait()  # all three are inside now
            for _ in range(3):
                if not torch.equal(run(model, args), expected[i]):
                    wrong.append(i)
            ready.wait()

    threads = [threading.Thread(target=request, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and model.policy == NeverExit()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (FixedExit(99), "depth is 99, and the model has"),
        (Oracle(price=1.0, costs=(0.5,) * 99), "99 costs"),
        (LearningToExit(0.5, (0.5,) * 99), "99 thresholds"),
        (FixedExit, "the class FixedExit"),
    ],
    ids=["fixed", "oracle", "learned", "class"],
)
def test_policies_of_other_models_are_refused_where_they_are_set(
    policy: object, message: str
) -> None:
    model, _ = wrapped()
    with pytest.raises(ConfigError, match=message):
        model.policy = policy
    with pytest.raises(ConfigError, match=message):
        model.using(policy)
    assert model.policy == NeverExit()
    for fits in (FixedExit(len(model.exits)), FixedExit(FULL)):
        model.policy = fits
