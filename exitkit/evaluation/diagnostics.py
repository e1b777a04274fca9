"""Where exits go wrong, and whether the uncertainty heads know: two measurements on full runs.

Both run the full model's own trajectory and look at every exit on the way, so that an exit's error
is that of this step alone and not of the steps before it. Carried exits are looked at on the way
that their policy takes, since what they carry depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.evaluation.figure_data import DepthMap, LayerErrors, UncertaintyMaps
from exitkit.execution.calls import CallReader
from exitkit.execution.trace import Trace
from exitkit.model import ExitModel
from exitkit.policies import ExitRule, Policy, Schedule, Signals, StepInfo
from exitkit.sampling.sampler import SamplerBase
from exitkit.surgery.inputs import bind, signature_of


def error_by_layer(
    model: ExitModel,
    sampler: SamplerBase,
    seeds: Sequence[int] = tuple(range(16)),
    *,
    progress: bool = False,
) -> LayerErrors:
    """Measures the error of every exit against the full output (the paper's figures 1 and 3).

    Arguments:
        model: The wrapped model; its policy is used by carried exits only.
        sampler: The sampler.
        seeds: Seeds of the samples.
        progress: Whether to show a progress bar for each batch.

    Returns:
        The errors by step and exit.
    """
    paths = tuple(exit.path for exit in model.exits)
    parts = batches_of(sampler, seeds)
    probes = [_probed(model, sampler, part, progress=progress) for part in parts]
    sizes = torch.tensor([float(len(part)) for part in parts])
    errors = torch.stack([torch.stack(probe.errors) for probe in probes])
    # Batches may differ in size, and every sample counts alike.
    mean = errors[0] if len(probes) == 1 else (errors * sizes[:, None, None]).sum(0) / sizes.sum()
    return LayerErrors(tuple(probes[0].timesteps), mean, paths, len(seeds))


def uncertainty_maps(
    model: ExitModel,
    sampler: SamplerBase,
    *,
    exit: int | None = None,
    moments: int = 8,
    seeds: Sequence[int] = (0, 1),
) -> UncertaintyMaps:
    """Collects uncertainty maps along the trajectory (the paper's figure 6).

    Arguments:
        model: The wrapped model, with heads that predict maps; its policy is used by carried exits
            only.
        sampler: The sampler.
        exit: Which exit, 1..K; the one in the middle if None.
        moments: How many evenly spread steps.
        seeds: Seeds of the samples, at most a batch of the sampler's.

    Returns:
        Maps of predicted and actual uncertainty.

    Raises:
        ConfigError: If there is no such exit, or the heads predict one value a sample.
    """
    count = len(model.exits)
    exit = exit or (count + 1) // 2
    if not 1 <= exit <= count:
        raise ConfigError(f"uncertainty_maps: got exit={exit}, the model has exits 1..{count}.")
    probe = _probed(model, sampler, seeds[: sampler.batch_size], look=exit)
    chosen = torch.linspace(0, len(probe.timesteps) - 1, min(moments, len(probe.timesteps)))
    index = chosen.round().long().tolist()
    noisy, predicted, actual = (
        torch.stack([part[i] for i in index])
        for part in (probe.noisy, probe.predicted, probe.actual)
    )
    if predicted.shape != noisy.shape:
        raise ConfigError(
            f"uncertainty_maps: exit {exit} predicts uncertainty of shape "
            f"{tuple(predicted.shape[2:])} for samples of shape {tuple(noisy.shape[2:])}. Wrap "
            f"with UncertaintyConfig(kind='map') on a backbone whose token grid is known."
        )
    timesteps = tuple(probe.timesteps[i] for i in index)
    return UncertaintyMaps(timesteps, noisy, predicted, actual, model.exits[exit - 1].path)


def depth_map(trace: Trace) -> DepthMap:
    """How much of the network each sample ran at each step.

    Arguments:
        trace: What was executed, all samples side by side.

    Returns:
        Shares of the blocks by step and sample.
    """
    share = torch.tensor(trace.layers)[trace.depth] / trace.layers[-1]
    return DepthMap(tuple(trace.timesteps.tolist()), share)


def batches_of(sampler: SamplerBase, seeds: Sequence[int]) -> list[Sequence[int]]:
    """Seeds in parts that the sampler runs together."""
    size = sampler.batch_size
    return [seeds[first : first + size] for first in range(0, len(seeds), size)]


def _probed(
    model: ExitModel,
    sampler: SamplerBase,
    seeds: Sequence[int],
    look: int | None = None,
    progress: bool = False,
) -> _Probe:
    """Looks at the exits while one batch of samples is drawn."""
    probe = _Probe(model, look)
    with model.trajectory(steps=sampler.trajectory_steps):
        sampler.run(probe, seeds, progress=progress)
    return probe


class _Probe(nn.Module):
    """Stands in for the model, called alike, and notes what the exits say.

    `look` is the exit whose maps it keeps.

    Stateless exits answer all at once while the full model runs. Carried exits have an answer only
    after what earlier steps left: there the model runs with its policy, and the full output at the
    same input is computed beside it.
    """

    def __init__(self, model: ExitModel, look: int | None = None) -> None:
        super().__init__()
        self.model = self.stands_for = model
        self.look = look
        self.timesteps: list[float] = []
        self.errors: list[Tensor] = []
        self.noisy: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.actual: list[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Notes what every exit says, and answers for the sampler."""
        given = bind(signature_of(self.model.backbone.forward), args, kwargs)
        noisy = CallReader(self.model.plan).read(given)[1]
        if self.model.heads.kind.needs_trajectory:
            return self._carried(noisy, args, kwargs)
        out = self.model(*args, **kwargs, output_exits=True)
        self._note(noisy, float(out.timestep[0]), out.prediction, out.exits, out.uncertainty)
        return out.output

    def _carried(self, noisy: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        full = self.model.prediction_of(self.model.backbone(*args, **kwargs))
        own = self.model.policy
        seen: list[tuple[float, Tensor, Tensor]] = []
        with self.model.using(_Look(own, seen.append)):
            output = self.model(*args, **kwargs)
        # The first step has no exit: nothing is carried yet.
        for timestep, prediction, uncertainty in seen:
            self._note(noisy, timestep, full, [prediction], [uncertainty])
        return output

    def _note(
        self,
        noisy: Tensor,
        timestep: float,
        full: Tensor,
        exits: Sequence[Tensor],
        maps: Sequence[Tensor],
    ) -> None:
        self.timesteps.append(timestep)
        full = full.float()
        size = _size(full)
        if self.look is None:
            gaps = [(_size(exit.float() - full) / size).mean() for exit in exits]
            self.errors.append(torch.stack(gaps).cpu())
            return
        gap = (exits[self.look - 1].float() - full).abs()
        if self.model.exit_config.loss.uncertainty_target == "relative":
            gap = gap / size.reshape(-1, *[1] * (gap.dim() - 1))
        self.noisy.append(noisy.float().cpu())
        self.predicted.append(maps[self.look - 1].float().cpu())
        self.actual.append(gap.tanh().cpu())


@dataclass(frozen=True)
class _Look(ExitRule):
    """Decides as another policy does, and hands on what it could have seen."""

    inner: Policy
    note: Callable[[tuple[float, Tensor, Tensor]], None]

    name: ClassVar[str] = "look"
    needs: ClassVar[frozenset[str]] = frozenset({"prediction", "uncertainty"})

    def reads(self) -> frozenset[str]:
        """What it notes, and what the other policy reads."""
        return self.needs | (self.inner.reads() if isinstance(self.inner, ExitRule) else set())

    def decide(self, signals: Signals) -> Tensor:
        """Notes timestep, prediction and uncertainty map, then asks the other policy."""
        seen = (float(signals.timestep[0]), signals.prediction(), signals.uncertainty_map())
        self.note(seen)
        if isinstance(self.inner, ExitRule):
            return self.inner.decide(signals)
        assert isinstance(self.inner, Schedule)
        depth = signals.memory.get("depth")
        if depth is None:  # the first exit: all rows are here
            s, device = signals, signals.rows.device
            info = StepInfo(s.batch, s.exits, s.timestep, s.step, s.steps, device)
            depth = signals.memory["depth"] = self.inner.depths(info)
        return depth[signals.rows] == signals.exit


def _size(values: Tensor) -> Tensor:
    """Root mean square of each row, (B,)."""
    return values.flatten(1).square().mean(dim=1).sqrt()
