"""Placements of a completion's full steps, each judged with the scalars that are solved for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from exitkit.calibration.workload import GenerationWorkload
from exitkit.model import ExitModel
from exitkit.modes.flags import evaluating
from exitkit.policies import Measurement, Policy, UncertaintyThreshold
from exitkit.sampling.sampler import SamplerBase
from exitkit.training.completion import CompletionSolver, full_steps


class CompletionWorkload(GenerationWorkload):
    """Trajectories of a sampler, judged by their distance to what the completion is solved for.

    Scalars belong to a placement: they are solved anew before one is measured, on the trajectories of
    the fit. `close` leaves those of the placement that was found in the model, or puts back what was.

    Arguments:
        model: The wrapped model, whose completion was solved before.
        sampler: The sampler.
        seeds: Seeds of the trajectories that judge.
        template: Not read: there are no exits between blocks.
        progress: Whether to show a progress bar.
    """

    def __init__(
        self,
        model: ExitModel,
        sampler: SamplerBase,
        seeds: Sequence[int],
        template: UncertaintyThreshold | None = None,
        *,
        progress: bool = False,
    ) -> None:
        fitted = model.fitted or {}
        first, last = fitted["seeds"]
        self._before = {k: v.clone() for k, v in model.heads.state_dict().items()}, model.fitted
        self._one, self._placed = model, list(fitted.get("full_steps", ()))
        try:
            self._solver = CompletionSolver(model, sampler, tuple(range(first, last + 1)), progress)
            super().__init__(model, sampler, seeds, template, progress=progress)
            self.reference = self._aimed(sampler)
        except BaseException:
            self._put_back()
            raise

    def _aimed(self, sampler: SamplerBase) -> Tensor:
        """Samples of the run that completion aims at."""
        parts = torch.tensor(self.seeds).split(sampler.batch_size)
        with torch.no_grad(), evaluating(self._one), self._one.suspended():
            found = [sampler.aimed(self._one, part) for part in parts]
        return torch.cat(found).to(self.reference)

    @override
    def measure_samples(self, policy: Policy) -> tuple[Measurement, Tensor]:
        self._solve(policy)
        return super().measure_samples(policy)

    def _solve(self, policy: Policy) -> None:
        full = full_steps(policy, self._solver.steps)
        at = [step for step, runs in enumerate(full) if runs]
        if at != self._placed:
            self._solver.solve(full)
            self._placed = at

    @override
    def close(self, found: Policy | None = None) -> None:
        super().close()
        if found is None:
            self._put_back()
        else:
            self._solve(found)
        self._solver.close()

    def _put_back(self) -> None:
        heads, self._one.fitted = self._before
        self._one.heads.load_state_dict(heads)
