"""ASE's schedules: the deeper the less noise is left, in equal bins of the timestep.

References:
    | A Simple Early Exiting Framework for Accelerated Sampling in Diffusion Models
    | (Moon et al., 2024), https://arxiv.org/abs/2408.05927
"""

from __future__ import annotations

from collections.abc import Sequence

from exitkit.errors import ConfigError
from exitkit.policies.base import FULL
from exitkit.policies.fields import integer, real, sequence
from exitkit.policies.step_schedule import TimestepSchedule

PUBLISHED = (1.0, 1.0, 24 / 28, 24 / 28, 20 / 28, 20 / 28, 16 / 28, 16 / 28, 12 / 28, 12 / 28)
"""Share of the blocks that run in each tenth of the timesteps, from 0 up; a DiT of 28 blocks."""


def ase_schedule(
    exits: Sequence[float],
    shares: Sequence[float] = PUBLISHED,
    *,
    train_timesteps: int = 1000,
    scale: float = 1.0,
) -> TimestepSchedule:
    """Makes an ASE schedule for a model.

    Arguments:
        exits: What part of the network each exit has behind it, rising; for instance
            `[e.cost for e in model.exits]`, which a large head may lift above 1.
        shares: Part of the network that each bin of the timestep may run, in (0, 1], from the lowest
            timesteps up.
        train_timesteps: Range of the timesteps.
        scale: Multiplies all shares, to meet a budget; what gets above 1 runs to the end.

    Returns:
        The schedule: in each bin the deepest exit that is within its share, at least the first.

    Raises:
        ConfigError: If there is no exit or no bin, or a value is out of range.

    Example:
        >>> ase_schedule([0.25, 0.5, 0.75], (1.0, 0.5)).per_bin
        (1000000, 2)
    """
    parts = sequence("ase_schedule.exits", exits, lambda n, v: real(n, v, 0))
    wanted = sequence("ase_schedule.shares", shares, lambda n, v: real(n, v, 0, 1))
    total = integer("ase_schedule.train_timesteps", train_timesteps)
    if not parts or not wanted:
        raise ConfigError("ase_schedule needs at least one exit and one bin.")
    factor = real("ase_schedule.scale", scale, 0)
    depths = [_depth(parts, share * factor) for share in wanted]
    edges = [total * i / len(wanted) for i in range(1, len(wanted))]
    return TimestepSchedule(tuple(edges), tuple(depths))


def _depth(parts: tuple[float, ...], share: float) -> int:
    if share >= 1 - 1e-9:
        return FULL
    within = [i for i, part in enumerate(parts, start=1) if part <= share + 1e-9]
    return within[-1] if within else 1
