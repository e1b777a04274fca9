"""The contract of a policy."""

from __future__ import annotations

import copy
import json

import torch
from torch import Tensor

from exitkit.policies.base import Policy, StepInfo, policy_from_dict
from exitkit.testing.contract import ContractError, require


def check_policy(policy: Policy, *, exits: int = 5, batch: int = 6, seed: int = 0) -> None:
    """Checks every promise of a policy on made-up signals.

    Arguments:
        policy: The policy.
        exits: Number of exits K of the made-up model.
        batch: Rows of the made-up batch, at least 2.
        seed: Seed of the signals.

    Raises:
        ContractError: At the first broken promise.

    Example:
        >>> from exitkit.policies.threshold import UncertaintyThreshold
        >>> check_policy(UncertaintyThreshold(0.5))
    """
    name = type(policy).__name__
    params = getattr(policy, "__dataclass_params__", None)
    require(
        params is not None and params.frozen,
        f"{name}: a policy is a frozen dataclass. Decorate it with @dataclass(frozen=True) and "
        "keep what changes in signals.memory.",
    )
    try:
        text = json.dumps(policy.to_dict())
    except TypeError as error:
        raise ContractError(f"{name}.to_dict() is not JSON ({error}). Use plain values.") from error
    require(
        policy_from_dict(json.loads(text)) == policy,
        f"{name}: policy_from_dict(policy.to_dict()) gives another policy. Every field must be in "
        "to_dict(), and the class registered with @register_policy.",
    )
    world = World(exits, batch, seed)
    together = world.walk(policy)
    require(
        together == world.walk(policy),
        f"{name}: two runs on the same signals decide differently. Keep no state in the policy.",
    )
    if getattr(policy, "batch_mean", False):
        return  # couples rows openly
    other = World(exits, batch, seed + 1)
    for row in range(batch):
        mates_changed = world.only(row, other).walk(policy)
        require(
            mates_changed[row] == together[row],
            f"{name}: row {row} leaves at depth {together[row]}, and at {mates_changed[row]} with "
            "other batch mates. Reduce over everything but the rows.",
        )


class World:
    """Made-up signals of one forward."""

    def __init__(self, exits: int, batch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.exits = exits
        self.timestep = torch.randint(1, 1000, (batch,), generator=generator).float()
        self.age = torch.randint(0, 4, (batch,), generator=generator)
        self.maps = torch.rand(exits, batch, 3, 4, 4, generator=generator) * 0.9
        # Spread the rows, or every policy would let all of them leave at one exit.
        self.maps = self.maps * torch.linspace(0.1, 1, batch)[:, None, None, None]
        self.hidden = torch.randn(exits, batch, 5, 8, generator=generator)
        self.prediction = torch.randn(exits, batch, 3, 4, 4, generator=generator)

    def only(self, row: int, other: World) -> World:
        """This row among the other rows of another world."""
        mixed = copy.copy(other)
        mixed.timestep, mixed.age = other.timestep.clone(), other.age.clone()
        mixed.timestep[row], mixed.age[row] = self.timestep[row], self.age[row]
        for field in ("maps", "hidden", "prediction"):
            values = getattr(other, field).clone()
            values[:, row] = getattr(self, field)[:, row]
            setattr(mixed, field, values)
        return mixed

    def walk(self, policy: Policy) -> list[int]:
        """Depth of every row under a policy."""
        name, count = type(policy).__name__, len(self.timestep)
        planned = policy.depths(StepInfo(count, self.exits, self.timestep, 3, 10))
        if planned is not None:
            require(
                planned.shape == (count,) and planned.dtype == torch.long,
                f"{name}.depths: expected ({count},) of torch.long, got {tuple(planned.shape)} of "
                f"{planned.dtype}.",
            )
            require(
                bool(((planned >= 1) & (planned <= self.exits + 1)).all()),
                f"{name}.depths: expected 1..{self.exits + 1}, got {planned.tolist()}.",
            )
            return [int(depth) for depth in planned]
        memory: dict[str, Tensor] = {}
        depths, alive = torch.full((count,), self.exits + 1), torch.arange(count)
        for at in range(1, self.exits + 1):
            signals = _MadeUpSignals(self, alive, at, memory)
            before = copy.deepcopy(vars(self))
            leaves_here = policy.decide(signals)
            require(
                leaves_here.shape == alive.shape and leaves_here.dtype == torch.bool,
                f"{name}.decide: expected {tuple(alive.shape)} of torch.bool, got "
                f"{tuple(leaves_here.shape)} of {leaves_here.dtype}.",
            )
            require(
                all(v.equal(before[k]) for k, v in vars(self).items() if isinstance(v, Tensor)),
                f"{name}.decide: changes a signal in place. Work on a copy.",
            )
            require(
                policy.reads_uncertainty or not signals.uncertainty_was_read,
                f"{name}: reads the uncertainty but says reads_uncertainty = False, so no head "
                "would be there. Set it to True.",
            )
            require(
                all(len(value) == count for value in memory.values()),
                f"{name}.decide: signals.memory holds full-batch tensors, ({count}, ...); got "
                f"{ {k: tuple(v.shape) for k, v in memory.items()} }.",
            )
            depths[alive[leaves_here]] = at
            alive = alive[~leaves_here]
            if not len(alive):
                break
        return [int(depth) for depth in depths]


class _MadeUpSignals:
    """`Signals` of one exit, cut out of a `World`."""

    def __init__(self, world: World, rows: Tensor, at: int, memory: dict[str, Tensor]) -> None:
        self._world = world
        self.exit, self.exits, self.batch = at, world.exits, len(world.timestep)
        self.rows, self.memory = rows, memory
        self.timestep, self.age = world.timestep[rows], world.age[rows]
        self.step: int | None = 3
        self.steps: int | None = 10
        self.uncertainty_was_read = False

    def _at(self, values: Tensor, exit_index: int) -> Tensor:
        return values[exit_index - 1, self.rows]

    def uncertainty_map(self) -> Tensor:
        self.uncertainty_was_read = True
        return self._at(self._world.maps, self.exit)

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        flat = self.uncertainty_map().flatten(1)
        if reduction == "quantile":
            return flat.quantile(q, dim=1)
        return flat.amax(dim=1) if reduction == "max" else flat.mean(dim=1)

    def hidden(self) -> Tensor:
        return self._at(self._world.hidden, self.exit)

    def previous_hidden(self) -> Tensor | None:
        return None if self.exit == 1 else self._at(self._world.hidden, self.exit - 1)

    def prediction(self) -> Tensor:
        return self._at(self._world.prediction, self.exit)

    def previous_prediction(self) -> Tensor | None:
        return None if self.exit == 1 else self._at(self._world.prediction, self.exit - 1)
