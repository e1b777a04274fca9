"""Signals in tables: made up, or recorded from a real model. Policies can be walked over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor

from exitkit.execution.branch import Branch
from exitkit.heads import Reduction, reduce
from exitkit.policies import ExitRule, Policy, Schedule, StepInfo
from exitkit.policies.logits import class_logits
from exitkit.policies.registry import check_kind
from exitkit.policies.rule import check_named


@dataclass(frozen=True)
class SignalTable:
    """Everything that a policy may look at, for S steps, K exits and B rows, all run to the end.

    Attributes:
        timestep: With shape (S, B).
        maps: Uncertainty in [0, 1], with shape (S, K, B, ...).
        hidden: Hidden states, with shape (S, K, B, ...).
        entry: Hidden state before the first block, with shape (S, B, ...).
        prediction: Predictions, with shape (S, K, B, ...).
        full: Prediction of the full model, with shape (S, B, ...).
    """

    timestep: Tensor
    maps: Tensor
    hidden: Tensor
    entry: Tensor
    prediction: Tensor
    full: Tensor

    @classmethod
    def made_up(
        cls, steps: int = 3, exits: int = 5, batch: int = 6, seed: int = 0, classes: int = 0
    ) -> SignalTable:
        """Random signals, with rows that differ in how sure they are.

        Arguments:
            steps: S.
            exits: K.
            batch: B.
            seed: Seed of everything.
            classes: Predict so many classes instead of images.

        Returns:
            The table.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        # Spread the rows, or every policy would let all of them leave at one exit.
        spread = torch.linspace(0.1, 1, batch)
        maps = torch.rand(steps, exits, batch, 3, 4, 4, generator=generator) * 0.9
        output = (classes,) if classes else (3, 4, 4)
        wide = spread.view(-1, *[1] * len(output))
        tokens = spread[:, None, None]
        timestep = torch.linspace(990, 10, steps)[:, None].expand(-1, batch).clone()
        return cls(
            timestep=timestep,
            maps=maps * spread[:, None, None, None],
            hidden=normal(1, 1, batch, 5, 8) + tokens * normal(steps, exits, batch, 5, 8),
            entry=tokens * normal(steps, batch, 5, 8),
            prediction=normal(steps, 1, batch, *output)
            + wide * normal(steps, exits, batch, *output),
            full=normal(steps, batch, *output),
        )

    @property
    def steps(self) -> int:
        """Number of steps S."""
        return self.timestep.shape[0]

    @property
    def exits(self) -> int:
        """Number of exits K."""
        return self.maps.shape[1]

    @property
    def batch(self) -> int:
        """Number of rows B."""
        return self.timestep.shape[1]

    def only(self, row: int, other: SignalTable) -> SignalTable:
        """This row among the other rows of another table of the same size."""
        mixed = {}
        for name in (f.name for f in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name).clone()
            axis = 1 if name in ("timestep", "entry", "full") else 2
            theirs.select(axis, row).copy_(mine.select(axis, row))
            mixed[name] = theirs
        return replace(other, **mixed)

    def permuted(self, order: Tensor) -> SignalTable:
        """The rows in another order, (B,)."""
        axes = {name: 1 if name in ("timestep", "entry", "full") else 2 for name in vars(self)}
        return replace(
            self, **{n: getattr(self, n).index_select(a, order) for n, a in axes.items()}
        )

    def walk(
        self, policy: Policy, look: Callable[[TableSignals, Tensor], None] | None = None
    ) -> Tensor:
        """Depth of every row at every step under a policy, as a run would find it.

        Arguments:
            policy: The policy. What was recorded does not change with what it decides.
            look: Called with the signals and the answer of every decision.

        Returns:
            Depths in 1..K+1, long, with shape (S, B).

        Raises:
            ConfigError: If the policy is neither a `Schedule` nor an `ExitRule`, or a rule reads what it
                does not name.
        """
        check_kind(type(policy))
        depths = torch.full((self.steps, self.batch), self.exits + 1)
        branch = Branch(0, torch.zeros(self.batch, dtype=torch.long))
        for step in range(self.steps):
            info = StepInfo(self.batch, self.exits, self.timestep[step], step, self.steps)
            if isinstance(policy, Schedule):
                depths[step] = policy.depths(info)
            elif isinstance(policy, ExitRule) and policy.may_leave():
                self._step(step, policy, branch, depths, look)
            full = (depths[step] == self.exits + 1).nonzero().flatten()
            branch.age = (branch.age + 1).index_fill(0, full, 0)
        return depths

    def _step(
        self,
        step: int,
        rule: ExitRule,
        branch: Branch,
        depths: Tensor,
        look: Callable[[TableSignals, Tensor], None] | None,
    ) -> None:
        alive, memory = torch.arange(self.batch), dict[str, Tensor]()
        for at in range(1, self.exits + 1):
            signals = TableSignals(self, rule, step, at, alive, memory, branch)
            leaving = rule.decide(signals)
            if look is not None:
                look(signals, leaving)
            depths[step, alive[leaving]] = at
            alive = alive[~leaving]
            if not len(alive):
                return


class TableSignals:
    """`Signals` of one exit, cut out of a table."""

    def __init__(
        self,
        table: SignalTable,
        rule: ExitRule,
        step: int,
        at: int,
        rows: Tensor,
        memory: dict[str, Tensor],
        branch: Branch,
    ) -> None:
        self._table, self._rule, self._step = table, rule, step
        self._branch = branch
        self.exit, self.exits, self.batch = at, table.exits, table.batch
        self.rows, self.memory = rows, memory
        self.step: int | None = step
        self.steps: int | None = table.steps
        self.timestep = table.timestep[step, rows]

    @property
    def age(self) -> Tensor:
        """Steps in a row that left early, with shape (R)."""
        check_named(self._rule, "age")
        return self._branch.age[self.rows]

    @property
    def state(self) -> dict[str, Tensor]:
        """What the rule keeps from step to step."""
        check_named(self._rule, "state")
        return self._branch.state

    @property
    def kept(self) -> dict[str, Tensor]:
        """What is in `state`, whoever asks."""
        return self._branch.state

    def any(self, mask: Tensor) -> bool:
        """Whether an entry holds."""
        return bool(mask.any())

    def uncertainty_map(self) -> Tensor:
        """Uncertainty, with shape (R, ...)."""
        check_named(self._rule, "uncertainty")
        return self._table.maps[self._step, self.exit - 1, self.rows]

    def uncertainty(self, reduction: str = "mean", q: float = 0.9) -> Tensor:
        """Uncertainty of each row, with shape (R)."""
        return reduce(self.uncertainty_map(), cast(Reduction, reduction), q)

    def hidden(self) -> Tensor:
        """Hidden state, with shape (R, ...)."""
        check_named(self._rule, "hidden")
        return self._table.hidden[self._step, self.exit - 1, self.rows]

    def previous_hidden(self) -> Tensor | None:
        """Hidden state at the exit before, or None at the first."""
        check_named(self._rule, "previous_hidden")
        return None if self.exit == 1 else self._table.hidden[self._step, self.exit - 2, self.rows]

    def prediction(self) -> Tensor:
        """Prediction, with shape (R, ...)."""
        check_named(self._rule, "prediction")
        return self._prediction()

    def logits(self) -> Tensor:
        """Prediction of a classifier, with shape (R, classes)."""
        check_named(self._rule, "logits")
        return class_logits(self._rule, self._prediction())

    def _prediction(self) -> Tensor:
        return self._table.prediction[self._step, self.exit - 1, self.rows]

    def previous_prediction(self) -> Tensor | None:
        """Prediction of the exit before, or None at the first."""
        check_named(self._rule, "previous_prediction")
        before = self.exit - 2
        return None if before < 0 else self._table.prediction[self._step, before, self.rows]

    def entry(self) -> Tensor | None:
        """Hidden state before the first block, with shape (R, ...)."""
        check_named(self._rule, "entry")
        return self._table.entry[self._step, self.rows]

    def predictions(self) -> tuple[Tensor, Tensor]:
        """What each exit and the full model predict, with shapes (R, K, ...) and (R, ...)."""
        check_named(self._rule, "oracle")
        mine = self._table.prediction[self._step][:, self.rows].transpose(0, 1)
        return mine, self._table.full[self._step, self.rows]

    def gaps(self) -> Tensor:
        """Distance of each exit's prediction to the full model's, with shape (R, K)."""
        mine, full = self.predictions()
        return (mine - full[:, None]).flatten(2).square().mean(dim=2).sqrt()
