"""What a sampler lets the denoisers of a pipeline do: leave early, run in full, be recorded or edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exitkit.errors import ConfigError, NonFiniteError
from exitkit.execution.calls import CallReader
from exitkit.model import ExitModel, ExitModels
from exitkit.pipelines.capture import denoisers
from exitkit.pipelines.routes import Answer, wrapped_in
from exitkit.sampling.sample import Edit, Record
from exitkit.surgery.inputs import bind, signature_of


class Answers:
    """Who answers the calls of each denoiser while a sampler drives a pipeline.

    Arguments:
        pipe: The pipeline.
        model: The wrapped model, or several; the bare denoiser or several by component name; or what runs
            in the place of the only denoiser.
        seeds: Seeds of the samples, with shape (B,).
        edit: Changes predictions, or None.
        record: Runs the full models and keeps what it sees, or None.

    Raises:
        ConfigError: If the model does not belong to the pipeline, or some denoisers are left out.
    """

    def __init__(
        self,
        pipe: Any,
        model: Any,
        seeds: Tensor,
        edit: Edit | None = None,
        record: Record | None = None,
    ) -> None:
        self._pipe, self._seeds, self._edit, self._record = pipe, seeds, edit, record
        self._step, self._met = 0, set[int]()
        self._networks = denoisers(pipe)
        self._runs = self._assigned(model)
        if record is None and isinstance(model, ExitModel | ExitModels):
            self._check_all_run()

    def _assigned(self, model: Any) -> dict[nn.Module, Any]:
        """What runs for each denoiser that does not run bare."""
        if isinstance(model, ExitModels):
            return {self._own(one.backbone, name): one for name, one in model.items()}
        if isinstance(model, nn.ModuleDict):
            return {self._own(network, name): network for name, network in model.items()}
        stands_for = getattr(model, "stands_for", model)
        backbone = stands_for.backbone if isinstance(stands_for, ExitModel) else model
        if any(backbone is network for network in self._networks.values()):
            return {backbone: model}
        if len(self._networks) == 1:
            return {next(iter(self._networks.values())): model}
        raise ConfigError(
            f"PipelineSampler: {type(self._pipe).__name__} has {len(self._networks)} denoisers "
            f"({', '.join(self._networks)}), and {type(model).__name__} is none of them. Pass what "
            "ek.wrap(pipe) returned, or a ModuleDict of networks by these names."
        )

    def _own(self, backbone: nn.Module, name: str) -> nn.Module:
        """The denoiser that a network belongs to: itself, or the one of its name."""
        if any(backbone is network for network in self._networks.values()):
            return backbone
        if name not in self._networks:
            raise ConfigError(
                f"PipelineSampler: {type(self._pipe).__name__} has no denoiser {name!r} (denoisers: "
                f"{', '.join(self._networks)})."
            )
        return self._networks[name]

    def _check_all_run(self) -> None:
        """Refuses a part of several wrapped denoisers: the cost would be that of a part alone."""
        others = [
            name
            for name, network in self._networks.items()
            if network not in self._runs and wrapped_in(network) is not None
        ]
        if others:
            raise ConfigError(
                f"PipelineSampler: {type(self._pipe).__name__} has further wrapped denoisers, "
                f"{', '.join(others)}, and costs are those of all. Pass what ek.wrap(pipe) returned."
            )

    def by_backbone(self) -> Mapping[nn.Module, Answer]:
        """Who answers, by denoiser."""
        return {
            network: self._answer(network, self._runs.get(network, network))
            for network in self._networks.values()
        }

    def next_step(self) -> None:
        """The scheduler has made a step."""
        self._step += 1
        if self._record is not None:
            self._record.next_call()

    def check(self) -> None:
        """Refuses a call of the pipeline that never came to what was to run.

        Raises:
            ConfigError: If none of them was called.
        """
        if self._runs and not self._met:
            names = [n for n, network in self._networks.items() if network in self._runs]
            raise ConfigError(
                f"PipelineSampler: {type(self._pipe).__name__} never called {' or '.join(names)}. Has a "
                "component been exchanged since it was wrapped? Wrap the pipeline again."
            )

    def _answer(self, network: nn.Module, runs: Any) -> Answer:
        def answer(
            through: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            self._met.add(id(network))
            if runs is network:
                output = through(*args, **kwargs)
            elif not isinstance(runs, ExitModel):
                output = runs(*args, **kwargs)
            elif runs._executor.suspended:
                output = through(*args, **kwargs)
            elif self._record is not None:
                output = self._record.call(runs, args, kwargs, through)
            elif runs.backbone is network:
                output = runs._run(through, args, kwargs)
            else:
                output = runs(*args, **kwargs)
            plan_of = runs if isinstance(runs, ExitModel) else wrapped_in(network)
            if plan_of is None:
                if self._edit is not None:
                    raise ConfigError(
                        "PipelineSampler: predictions of a network that is not wrapped cannot be edited. "
                        "Use ek.wrap(pipe, ...) first."
                    )
                return output
            return self._looked_at(plan_of, through, args, kwargs, output)

        return answer

    def _looked_at(
        self,
        model: ExitModel,
        through: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """Checks a prediction, and edits it: the copies of guidance one by one."""
        reader = CallReader(model.plan)
        prediction = reader.prediction(output)
        if not bool(torch.isfinite(prediction).all()):
            raise NonFiniteError(
                f"{model.plan.class_name} returned NaN or infinity at step {self._step}. Check the "
                "weights and the inputs; in half precision, whether the network overflows."
            )
        if self._edit is None:
            return output
        noisy = reader.read(bind(signature_of(through), args, kwargs))[1]
        learned = prediction.ndim > 1 and prediction.shape[1] == 2 * noisy.shape[1]
        mean = prediction[:, : noisy.shape[1]] if learned else prediction
        copies = -(-len(mean) // len(self._seeds))
        parts = [
            self._edit(self._step, self._seeds[: len(part)], part)
            for part in mean.split(-(-len(mean) // copies))
        ]
        edited = torch.cat(parts)
        if learned:
            edited = torch.cat([edited, prediction[:, noisy.shape[1] :]], dim=1)
        return reader.with_prediction(output, edited)
