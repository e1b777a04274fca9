"""What a scheduler's next step makes of a prediction, where that is linear: read off copies of it."""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor

from exitkit.errors import ConfigError
from exitkit.sampling.solvers import Solver, seeded

Quantity = Literal["noise", "x0", "velocity"]
_PREDICTS: dict[str, Quantity] = {
    "epsilon": "noise",
    "sample": "x0",
    "v_prediction": "velocity",
    "flow_prediction": "velocity",
}
_TOLERANCE = 1e-3


def next_state(solver: Solver, x: Tensor, call: int) -> tuple[Tensor, Tensor]:
    """The next state as offset + slope * prediction, with what the solver remembers.

    Arguments:
        solver: The solver, at this call; it stays as it is. Clipping of its predictions is left out.
        x: State before the step, with shape (B, ...).
        call: Index of the call.

    Returns:
        The offset, with shape (B, ...), and the slope, a scalar, both float64.

    Raises:
        ConfigError: If the step adds noise, or is not linear in the prediction.
    """

    def after(prediction: float, seed: int = 0) -> Tensor:
        copied = copy.deepcopy(solver)
        _unclip(copied.scheduler)
        seeds = seeded([seed + row for row in range(len(x))])
        return copied.step(torch.full_like(x, prediction), x, call, seeds).double()

    below, offset, above = after(-1.0), after(0.0), after(1.0)
    slopes, slope = (above - below) / 2, (above - below).mean() / 2
    name, size = type(solver.scheduler).__name__, float(slope.abs())
    if not torch.equal(offset, after(0.0, seed=len(x))):
        raise ConfigError(
            f"fit: {name} adds noise at every step, so no prediction leads to the states of another run. "
            "Complete the steps of a deterministic scheduler (DPM-Solver++, DDIM with eta 0, UniPC, "
            "Euler, flow-matching Euler), or use the preset 'relative'."
        )
    uneven = float((slopes - slope).abs().max())
    # Three more places than a line needs: clipping and other odd curves are straight through some.
    bent = max(float((after(at) - offset - at * slope).abs().max()) for at in (-1.0, 0.25, 4.0)) / 4
    rounding = 1e-6 * float(offset.abs().max())
    if not size > 0 or max(uneven, bent) > _TOLERANCE * size + rounding:
        raise ConfigError(
            f"fit: the step {call} of {name} is not linear in the prediction (slope {size:.3g}, off by "
            f"{max(uneven, bent):.3g}), so completion cannot be solved along it. Use DPM-Solver++, DDIM, "
            "UniPC, DEIS or Euler without thresholding, or the preset 'relative'."
        )
    return offset, slope


def _unclip(scheduler: Any) -> None:
    if scheduler.config.get("clip_sample"):
        scheduler.register_to_config(clip_sample=False)


def clips_at(scheduler: Any) -> float | None:
    """Where a scheduler clips the clean sample that a prediction stands for; None where it does not."""
    config = scheduler.config
    return float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample") else None


def check_solvable(solver: Solver) -> None:
    """Refuses solvers that completion cannot be solved along.

    Arguments:
        solver: The solver.

    Raises:
        ConfigError: If it calls the network several times a step, thresholds, or is of an unknown kind.
    """
    scheduler = getattr(solver, "scheduler", None)
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    why = ""
    if solver.steps != len(solver.timesteps):
        why = "calls the network several times at one timestep"
    elif solver.learned_variance:
        why = "draws noise by a learned variance"
    elif config.get("thresholding"):
        why = "thresholds predictions (thresholding=True), which is not linear"
    elif not hasattr(scheduler, "alphas_cumprod") and "FlowMatch" not in name:
        why = "has neither alphas_cumprod nor the times of a flow, so noise levels are unknown"
    if why:
        raise ConfigError(
            f"fit: completion cannot be solved along {name}: it {why}. Use DPM-Solver++ (multistep), "
            "DDIM, UniPC, DEIS, Euler or flow-matching Euler, or the preset 'relative'."
        )


def levels_of(solver: Solver) -> tuple[list[float], list[float], bool, Quantity]:
    """Noise levels of a scheduler.

    Arguments:
        solver: A solver that passed `check_solvable`.

    Returns:
        The scheduler's timesteps, rising; log(signal / noise) at each; whether signal and noise mix along
        a line; and what the network predicts.
    """
    scheduler = solver.scheduler
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    flow = not hasattr(scheduler, "alphas_cumprod") or kind == "flow_prediction"
    count = scheduler.config.num_train_timesteps
    if flow:
        shares = [step / count for step in range(1, count)]
        found = [math.log((1 - s) / s) for s in shares]
        times = [float(step) for step in range(1, count)]
        # The ends are infinite in theory; the nearest that is of use in float32 stands for them.
        return [0.0, *times, float(count)], [20.0, *found, -20.0], True, _PREDICTS[kind]
    kept = scheduler.alphas_cumprod.double()
    found = (0.5 * (kept / (1 - kept)).log()).tolist()
    return [float(step) for step in range(len(kept))], found, False, _PREDICTS[kind]
