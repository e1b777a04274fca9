"""Saved exits, read from a folder and held against a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exitkit._compat import version_conflicts
from exitkit.config import ExitConfig, parse_config
from exitkit.errors import BoundaryError, CheckpointError, ConfigError
from exitkit.execution.gate import check_ungated
from exitkit.heads.build import Heads
from exitkit.modes.flags import preserved_rng
from exitkit.persistence.example import drawn
from exitkit.persistence.fingerprint import lora_adapters, structure, values
from exitkit.persistence.settings import (
    CALIBRATION,
    CONFIG,
    Components,
    Settings,
    read_json,
    read_settings,
)
from exitkit.persistence.weights import BACKBONE, HEADS, tensors_for
from exitkit.policies import Calibration, Policy, policy_from_dict
from exitkit.surgery.inputs import Inputs
from exitkit.surgery.spec import Plan
from exitkit.tree import leaves, substitute


@dataclass(frozen=True)
class Saved:
    """Exits of one model as they lie in a folder: read and checked, weights aside.

    Attributes:
        folder: The folder.
        settings: What exitkit.json says.
        config: The config.
        policy: The policy.
        calibration: The calibration that found the policy, or None.
    """

    folder: Path
    settings: Settings
    config: ExitConfig
    policy: Policy
    calibration: Calibration | None

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """Reads a folder.

        Arguments:
            folder: Written by `save_pretrained`.

        Returns:
            What it holds.

        Raises:
            CheckpointError: If a file is missing or damaged, or it holds several denoisers.
        """
        settings = read_settings(folder)
        if isinstance(settings, Components):
            raise CheckpointError(
                f"{folder} holds the exits of {' and '.join(settings.components)}, which belong to one "
                f"pipeline. Pass the pipeline: ek.load(pipe, path); or one of the folders in it."
            )
        try:
            config, policy = parse_config(settings.config), policy_from_dict(settings.policy)
        except (ConfigError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder / CONFIG} does not hold settings of this version of exitkit: {error}"
            ) from error
        return cls(folder, settings, config, policy, _calibration(folder))

    def check(self, backbone: nn.Module, check_weights: bool) -> None:
        """Refuses a backbone that cannot take these exits, and tells what else differs.

        Arguments:
            backbone: The backbone at hand.
            check_weights: Whether it must be the one that was saved.

        Raises:
            CheckpointError: If its class, its state or its weights differ.
            AlreadyWrappedError: If it is wrapped.
        """
        if check_weights:
            self._check_backbone(backbone)
        check_ungated(backbone)
        conflicts = version_conflicts(self.settings.versions)
        if conflicts:
            warnings.warn(
                f"{self.folder}: these exits were saved with {'; '.join(conflicts)}. Compare the model's "
                "outputs with those of then, or fit and save the exits again.",
                stacklevel=4,
            )
        now, then = lora_adapters(backbone), list(self.settings.backbone.adapters)
        if now != then:
            warnings.warn(
                f"{self.folder}: {type(backbone).__name__} has {_adapters(now)} loaded, and these exits were "
                f"fitted with {_adapters(then)}. Their uncertainty and corrections may be off; compare with "
                "the full model, or fit them with the adapter loaded.",
                stacklevel=4,
            )

    def _check_backbone(self, backbone: nn.Module) -> None:
        saved = self.settings.backbone
        here = structure(backbone)
        if saved.structure != here:
            raise CheckpointError(
                f"{self.folder}: these heads belong to a {saved.class_name} with other modules or shapes "
                f"than this {type(backbone).__name__} (structure {here}, saved {saved.structure}). Pass the "
                "backbone that was wrapped when they were fitted."
            )
        now = None if self.config.loss.train_backbone else values(backbone)
        if now is not None and saved.values is not None and saved.values != now:
            raise CheckpointError(
                f"{self.folder}: these heads belong to a {saved.class_name} with other weights (values "
                f"{now}, saved {saved.values}). Load the weights the heads were fitted on, or pass "
                "check_weights=False if you know that they fit."
            )

    def example_for(self, backbone: nn.Module, given: Any) -> Any:
        """The call that a backbone is probed with.

        Arguments:
            backbone: The backbone.
            given: What the user passed, or None.

        Returns:
            What the user passed, or a call of the kind that was described.

        Raises:
            CheckpointError: If there is neither.
        """
        if given is not None:
            return given
        if self.settings.example is None:
            raise CheckpointError(
                f"{self.folder / CONFIG} does not say what the backbone was called with. Pass "
                "example_inputs= as for ek.wrap."
            )
        first = next(backbone.parameters(), None)
        hook = getattr(backbone, "_hf_hook", None)
        device = getattr(hook, "execution_device", None) or (
            first.device if first is not None else "cpu"
        )
        made = drawn(self.settings.example, torch.device(device), str(self.folder / CONFIG))
        was, now = self.settings.backbone.dtype, None if first is None else first.dtype
        if was is None or now is None or not now.is_floating_point:
            return made
        return _in_dtype(made, getattr(torch, was), now)

    def as_fitted(self, plan: Plan) -> Plan:
        """A plan with the range of the timestep that the heads were fitted with.

        Arguments:
            plan: Plan of the backbone at hand.

        Returns:
            The plan, whatever its own example or adapter says of that range.
        """
        time = (self.settings.example or {}).get("time")
        if plan.timestep is None or time is None:
            return plan
        scale, origin = map(float, time)
        return replace(plan, timestep_scale=scale, timestep_origin=origin, doubts=())

    def heads_for(self, plan: Plan) -> Heads:
        """Makes heads at the exits that were saved, whichever ones the config would choose today.

        Arguments:
            plan: Plan of the backbone at hand.

        Returns:
            The heads, not loaded yet.

        Raises:
            CheckpointError: If the backbone has no such exit.
        """
        try:
            with preserved_rng():  # their start is not kept
                return Heads(plan, self.config.model_copy(update={"exits": self.settings.exits}))
        except BoundaryError as error:
            raise CheckpointError(
                f"{self.folder}: an exit that was saved is not there ({error}). Pass example_inputs and the "
                "adapter that the backbone was wrapped with when its heads were fitted."
            ) from error

    def load_weights(self, heads: Heads, backbone: nn.Module) -> None:
        """Loads saved heads, and the backbone that was trained with them; nothing if one cannot be.

        Arguments:
            heads: The heads.
            backbone: The backbone.

        Raises:
            CheckpointError: If a file is missing, damaged, or does not fit.
        """
        sums = self.settings.sums
        state = tensors_for(self.folder / HEADS, heads, "heads", sums)
        if self.config.loss.train_backbone:
            trained = tensors_for(self.folder / BACKBONE, backbone, "backbone", sums)
            backbone.load_state_dict(trained)
        heads.load_state_dict(state)
        heads.sizes.ends = self.settings.sizes


def _calibration(folder: Path) -> Calibration | None:
    file = folder / CALIBRATION
    if not file.is_file():
        return None
    try:
        return Calibration.from_dict(read_json(file))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{file} is damaged ({error}). Delete it, and calibrate the model again."
        ) from error


def _adapters(names: Sequence[str]) -> str:
    return f"the LoRA {' and '.join(map(repr, names))}" if names else "no LoRA"


def _in_dtype(inputs: Inputs, was: torch.dtype, now: torch.dtype) -> Inputs:
    """Arguments of another dtype, where they had the backbone's."""
    both = (inputs.args, inputs.kwargs)
    cast = {path: t.to(now) for path, t in leaves(both) if t.dtype == was}
    args, kwargs = substitute(both, cast)
    return Inputs(*args, **kwargs)
