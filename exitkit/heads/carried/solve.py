r"""Solves for the linear maps of a carried exit: no gradient descent, seconds instead of minutes.

Each window of rollouts of the full model is a point of a regression: what the exit sees now and what
it kept of the last two full steps, against where the full model lands. A map is found by ridge
regression, relative to the error of plain reuse, and its rank reduced along the main directions of
what it predicts (reduced-rank regression).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from exitkit.errors import CalibrationError, ConfigError, NonFiniteError
from exitkit.heads.carried.head import CarriedHead
from exitkit.heads.carried.state import Window
from exitkit.heads.carried.time_maps import STEP, TimeMaps


class WindowsAt(Protocol):
    """Gives windows by their timestep."""

    def __call__(self, timestep: float, /) -> Iterable[Window]:
        """Windows whose "now" is at a timestep, in groups of rows with the same gaps.

        Arguments:
            timestep: One of the timesteps solved for, on the scale 0..1000.

        Returns:
            The windows. Gaps as often as they will occur at inference are best.
        """


@torch.no_grad()
def solve(
    head: CarriedHead, timesteps: Sequence[float], windows: WindowsAt, ridge: float = 1e-6
) -> list[float]:
    r"""Finds the maps of a head in closed form; no gradient descent is needed, before or after.

    Arguments:
        head: The head; its maps are placed and overwritten.
        timesteps: Timesteps of the rollouts on the scale 0..1000.
        windows: Gives the windows; asked once a timestep and knot, so that one group at a time is
            in memory.
        ridge: Penalty relative to the size of each entry of x, above 0.

    Returns:
        By knot, in ascending order of time: what remains of plain reuse's squared error.

    Raises:
        ConfigError: If the head was built without `knots`.
        NonFiniteError: If a window is not finite.
        CalibrationError: If the penalty is not above 0.
    """
    if head.maps is None:
        raise ConfigError("CarriedHead: built without maps. Build it with knots=50, say.")
    remains = []
    for index in range(len(head.maps.place(timesteps))):
        solver = MapSolver(head.maps, index)
        for t in timesteps:
            share = dict(head.maps.weights(float(t))).get(index, 0.0)
            for window in windows(float(t)) if share else ():
                state = window.state
                change = head.value_of(window.h, window.landing) - state.last.v
                change = change.movedim(head.carried.channel_axis + 1, -1)
                solver.add(head.parts(window.h, state), state.gap1, change, share)
        remains.append(solver.solve(ridge))
    return remains


class MapSolver:
    """Ridge regression for the map of one knot; windows are added one group at a time.

    Arguments:
        maps: Where the solution goes.
        index: Index of the knot.
    """

    def __init__(self, maps: TimeMaps, index: int) -> None:
        self.maps, self.index = maps, index
        size, outputs = sum(maps.widths) + 1, maps.up.shape[-1]
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.cross = torch.zeros(size, outputs, dtype=torch.float64)
        self.weight = 0.0

    def add(self, parts: list[Tensor], gap: Tensor, change: Tensor, share: float = 1.0) -> None:
        """Adds windows of one step and one pair of gaps.

        Arguments:
            parts: The parts of x without the gap, channels last, (B, ..., width) each.
            gap: Time since the last full step on the scale 0..1, with shape (B,).
            change: What the map shall give, channels last, with shape (B, ..., D).
            share: Weight of the group, on top of the inverse of its plain reuse's error.

        Raises:
            NonFiniteError: If a value is not finite.
        """
        y = change.flatten(0, -2).float()
        scale = (gap / STEP).float().view(-1, *[1] * (change.dim() - 1))
        columns = [*parts, scale.expand(*change.shape[:-1], 1)]
        x = torch.cat([column.flatten(0, -2).float() for column in columns], dim=1)
        reuse = float(y.square().sum())
        if not math.isfinite(reuse) or not bool(x.isfinite().all()):
            raise NonFiniteError(
                "MapSolver: the rollouts hold NaN or infinity. Check that the full model is finite in "
                "this dtype, or roll it out in float32."
            )
        if reuse == 0.0:
            return  # nothing moved: plain reuse is exact, and there is no error to be relative to
        self.gram += share / reuse * (x.T @ x).double().cpu()
        self.cross += share / reuse * (x.T @ y).double().cpu()
        self.weight += share

    def solve(self, ridge: float = 1e-6) -> float:
        """Solves and stores the map.

        Arguments:
            ridge: Penalty relative to the size of each entry of x, above 0.

        Returns:
            What remains of the error, as a share of that of plain reuse (mean of squares), before
            the rank is reduced; 0 without windows.

        Raises:
            CalibrationError: If the penalty is not above 0.
        """
        if ridge <= 0:
            raise CalibrationError(f"MapSolver: ridge={ridge} must be above 0. Try 1e-6.")
        if self.weight == 0.0:
            return 0.0
        gram = self.gram
        # One scale for all entries of x; those that are 0 throughout get no weight.
        size = gram.diagonal().sqrt()
        inverse = torch.where(size > 0, 1 / size.clamp(min=1e-30), 0)
        scaled = inverse[:, None] * gram * inverse
        scaled.diagonal().add_(ridge)
        weights = inverse[:, None] * torch.linalg.solve(scaled, inverse[:, None] * self.cross)
        remains = (weights * (gram @ weights - 2 * self.cross)).sum() / self.weight + 1
        linear = weights[:-1]
        _, directions = torch.linalg.eigh(linear.T @ gram[:-1, :-1] @ linear)
        main = directions[:, -self.maps.rank :]
        self.maps.down[self.index] = (linear @ main).to(self.maps.down)
        self.maps.up[self.index] = main.T.to(self.maps.up)
        self.maps.offset[self.index] = weights[-1].to(self.maps.offset)
        return float(remains)
