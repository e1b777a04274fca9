"""Exits kept in a folder: those of another fit must not pass for the ones that were asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exitkit.benchmark import Recipe, fitted
from exitkit.benchmark.cache import RECORD
from exitkit.benchmark.methods import BERXIT, CARRIED, PLAIN, Exits
from exitkit.errors import CheckpointError
from exitkit.training import Checkpoints
from tests import tiny_suites

RECIPE = Recipe(steps=2, batch_size=2, rollouts=4)
KINDS = (BERXIT, CARRIED, PLAIN)
SUITE = tiny_suites.suite().with_steps(3)


def weights(
    exits: Exits, folder: Path, sampler_steps: int = 3, **changes: Any
) -> dict[str, Tensor]:
    """Weights of exits that are fitted, or found in the folder."""
    recipe = replace(RECIPE, **changes)
    return fitted(SUITE.with_steps(sampler_steps), exits, recipe, folder).state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exits of every kind of fit."""
    made = tmp_path_factory.mktemp("kept")
    for exits in KINDS:
        weights(exits, made)
    return made


@pytest.mark.parametrize("exits", [BERXIT, CARRIED], ids=lambda e: e.name)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3}, "steps=3 (was 2)"),
        ({"batch_size": 4}, "batch_size=4 (was 2)"),
        ({"seed": 1, "steps": 1}, "seed=1 (was 0), steps=1 (was 2)"),
        ({"fit": {"betas": (0.8, 0.9)}}, "betas=[0.8, 0.9] (was None)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_exits_of_another_fit_are_refused(
    exits: Exits, changes: dict[str, Any], said: str, folder: Path
) -> None:
    with pytest.raises(CheckpointError) as refused:
        weights(exits, folder, **changes)
    assert said in str(refused.value) and str(folder / "tiny" / exits.name) in str(refused.value)
    assert "another folder, or delete this one" in str(refused.value)


def test_rollouts_decide_carried_exits_alone(folder: Path) -> None:
    for change in ({"rollouts": 8}, {"sampler_steps": 5}):
        with pytest.raises(
            CheckpointError, match=r"(rollouts=8 \(was 4\)|sampler_steps=5 \(was 3\))"
        ):
            weights(CARRIED, folder, **change)
        weights(BERXIT, folder, **change)
    weights(PLAIN, folder, steps=9, seed=9)  # nothing of it is fitted


def test_what_changes_no_weight_is_no_other_fit(folder: Path) -> None:
    """Negative control; and what is found is what was made."""
    told = {"checkpoints": Checkpoints(every=1), "callback": print, "progress": False}
    for exits in KINDS:
        found = weights(exits, folder, fit=told)
        anew = fitted(SUITE, exits, RECIPE).state_dict()
        assert found.keys() == anew.keys()
        assert all(torch.equal(value, anew[name]) for name, value in found.items())


def test_checkpoints_go_when_the_exits_are_there(folder: Path) -> None:
    assert {path.name for path in (folder / "tiny").iterdir()} == {e.name for e in KINDS}


def test_a_stopped_fit_goes_on_and_is_kept(tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told = {"callback": stop, "checkpoints": Checkpoints(every=1, log_every=1)}
        weights(BERXIT, tmp_path, steps=4, fit=told)
    place = tmp_path / "tiny" / BERXIT.name
    assert not place.exists() and place.with_name(f"{place.name}.checkpoints").is_dir()
    with pytest.raises(CheckpointError, match="other settings"):
        weights(BERXIT, tmp_path, steps=8)
    same = {"checkpoints": Checkpoints(every=1, log_every=1)}
    resumed = weights(BERXIT, tmp_path, steps=4, fit=same)
    straight = fitted(SUITE, BERXIT, replace(RECIPE, steps=4)).state_dict()
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


def test_exits_without_a_record_are_of_an_unknown_fit(tmp_path: Path) -> None:
    weights(BERXIT, tmp_path)
    (tmp_path / "tiny" / BERXIT.name / RECORD).unlink()
    with pytest.raises(CheckpointError, match=r"steps=2 \(was None\)"):
        weights(BERXIT, tmp_path)
