"""Settings of a fit: what is out of range, and what makes a run another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exitkit.errors import ConfigError
from exitkit.training.optimizer import Optimizer
from exitkit.training.settings import Checkpoints, FitResult, Settings


def settings(**changes: Any) -> Settings:
    usual: dict[str, Any] = {
        "steps": 10,
        "optimizer": Optimizer(lr=1e-3).filled(False),
        "checkpoints": Checkpoints(),
        "ema": 0.9,
        "precision": None,
        "seed": 0,
        "progress": False,
        "callback": None,
    }
    return Settings(**usual | changes)


def test_all_that_is_out_of_range_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"fit: .*steps=0.*ema=1\.5.*precision='half'.*'bf16'"):
        settings(steps=0, ema=1.5, precision="half")
    with pytest.raises(ConfigError, match=r"Checkpoints: .*every=0.*log_every=-1"):
        Checkpoints(every=0, log_every=-1)


@pytest.mark.parametrize("ema", [None, 0.5, 0.9999])
@pytest.mark.parametrize("precision", [None, "no", "bf16", "fp16"])
def test_what_is_in_range_is_taken(ema: float | None, precision: str | None) -> None:
    assert settings(ema=ema, precision=precision).ema == ema


def test_a_folder_may_be_text() -> None:
    assert Checkpoints("runs/a").path == Path("runs/a")
    assert Checkpoints().path is None


def own(**changes: Any) -> dict[str, Any]:
    return {"optimizer": Optimizer(lr=1e-3, **changes).filled(False)}


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"ema": None},
        {"accumulation": 2},
        {"checkpoints": Checkpoints(log_every=7)},
        {"optimizer": Optimizer(lr=2e-3).filled(False)},
        own(head_lr=1e-2),
        own(uncertainty_lr=0.0),
        own(head_steps=3),
        own(weight_decay=0.5),
        own(betas=(0.8, 0.9)),
        own(clip=2.0),
        own(warmup=1),
        own(name="lion"),
        own(matrices="muon"),
        own(matrices="muon", other_decay=0.1),
        own(schedule="cosine"),
        own(schedule="constant"),
        own(matrices="muon", kernels=True),
    ],
    ids=str,
)
def test_what_moves_the_weights_makes_another_run(changes: dict[str, Any]) -> None:
    assert settings(**changes).identity() != settings().identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": True},
        {"callback": print},
        {"checkpoints": Checkpoints("elsewhere", every=3, resume=False)},
    ],
    ids=str,
)
def test_what_leaves_them_alone_does_not(changes: dict[str, Any]) -> None:
    assert settings(**changes).identity() == settings().identity()


def test_steps_can_grow_where_the_rate_does_not_fall() -> None:
    level = settings(**own(schedule="constant"))
    assert replace(level, steps=20).identity() == level.identity()
    other = settings(**own(schedule="constant", cooldown=0.7))
    assert other.identity() == level.identity()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_steps_cannot_grow_where_the_rate_falls_with_them(schedule: Any) -> None:
    falling = settings(**own(schedule=schedule))
    assert replace(falling, steps=20).identity() != falling.identity()
    other = settings(**own(schedule=schedule, cooldown=0.7))
    assert (other.identity() != falling.identity()) is (schedule == "linear")


def test_a_result_has_no_checkpoint_where_none_was_written() -> None:
    result = FitResult(({"step": 1.0},), 1, 0.1)
    assert result.checkpoint is None and result.before == ()


FELL = "; it still fell by 50% at the end: take more steps"


def test_what_a_fit_did_in_words() -> None:
    first, last = {"step": 10.0, "total": 0.5}, {"step": 20.0, "total": 0.25, "exit_1": 0.125}
    part = FitResult((first, last), 20, 3.2)
    assert (
        str(part) == "Fitted in 20 steps, 3 s: loss 0.5 to 0.25; errors of the exits 0.125" + FELL
    )
    both = FitResult((), 40, 6.0, Path("last"), parts={"high": part, "low": part})
    assert str(both).splitlines()[1:] == [
        "  checkpoint last",
        "  high: 20 steps: loss 0.5 to 0.25; errors of the exits 0.125" + FELL,
        "  low: 20 steps: loss 0.5 to 0.25; errors of the exits 0.125" + FELL,
    ]
    assert str(FitResult(({"step": 1.0},), 1, 0.1)) == "Fitted in 1 steps, 0 s"


def test_the_words_tell_whether_the_fit_was_long_enough() -> None:
    """After a few steps there is one record, which is first and last: the first step tells what it was."""
    start = {"total": 2.0, "exit_1": 1.0, "exit_2": 0.5}
    only = {"step": 20.0, "total": 1.5, "exit_1": 0.75, "exit_2": 0.25}
    short = str(FitResult((only,), 20, 3.0, start=start))
    assert "loss 2 to 1.5; errors of the exits 1 to 0.75, 0.5 to 0.25; too few steps" in short
    falling = [
        {"step": 50.0 * i, "total": total, "final": 0.1} for i, total in ((1, 1.0), (2, 0.8))
    ]
    told = str(FitResult(tuple(falling), 100, 3.0, start=start))
    assert "of the full network 0.1; it still fell by 20% at the end: take more steps" in told
    # Control: a loss that has come to rest, or rises, is told as it is.
    for last in (0.98, 1.2):
        history = (falling[0], {**falling[1], "total": last})
        assert "still fell" not in str(FitResult(history, 100, 3.0, start=start))
