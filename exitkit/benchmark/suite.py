"""What a comparison needs to know about a backbone: how it is made, called, trained and judged."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from exitkit.errors import ConfigError
from exitkit.sampling.conditions import Conditions as Inputs
from exitkit.sampling.sampler import Sampler
from exitkit.training.tasks import Classification, Task


@dataclass(frozen=True)
class Study:
    """One backbone with its data and its sampler.

    Attributes:
        name: What tables call it.
        backbone: Makes the trained backbone anew, in eval mode.
        example_inputs: What it is called with, as for `wrap`.
        scheduler: A diffusers scheduler, or a short name as in `generate`.
        shape: Shape of one sample.
        task: What it was trained to predict.
        loader: Makes a loader of training data, given a batch size and a seed.
        inputs: Conditioning of samples by row number, as in `generate`.
        negative_inputs: Conditioning of the negative call under guidance.
        guidance_scale: Scale of classifier-free guidance, or None.
        features: Makes the network that maps images to vectors, for a Frechet distance.
        reference_images: Makes real images for it.
        classifier: Makes what maps images to logits.
        networks: Other networks that compete as they are, by name: each is made when needed.
    """

    name: str
    backbone: Callable[[], nn.Module]
    example_inputs: Any
    scheduler: Any
    shape: tuple[int, ...]
    task: Task
    loader: Callable[[int, int], Any]
    inputs: Inputs | None = None
    negative_inputs: Inputs | None = None
    guidance_scale: float | None = None
    features: Callable[[], nn.Module] | None = None
    reference_images: Callable[[], Tensor] | None = None
    classifier: Callable[[], Callable[[Tensor], Tensor]] | None = None
    networks: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)

    def sampler(self, steps: int) -> Sampler:
        """The sampler of the study.

        Arguments:
            steps: Sampler steps.

        Returns:
            The sampler.
        """
        return Sampler(
            self.scheduler,
            self.shape,
            steps,
            conditions=self.inputs,
            guidance_scale=self.guidance_scale,
            negative_conditions=self.negative_inputs,
        )

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `generate` that belong to the study."""
        return {
            "inputs": self.inputs,
            "negative_inputs": self.negative_inputs,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True)
class ClassStudy:
    """One classifier with its images.

    Attributes:
        name: What tables call it.
        backbone: Makes the trained classifier anew, in eval mode.
        example_inputs: What it is called with, as for `wrap`.
        loader: Makes batches (images, classes) for fine-tuning, given a batch size and a seed.
        calibration: Batches that no weight was fitted to, for budgets.
        held_out: Batches to compare on.
    """

    name: str
    backbone: Callable[[], nn.Module]
    example_inputs: Any
    loader: Callable[[int, int], Any]
    calibration: Callable[[], Sequence[Any]]
    held_out: Callable[[], Sequence[Any]]

    @property
    def task(self) -> Task:
        """The task of its fits."""
        return Classification()


def load_study(address: str) -> Study | ClassStudy:
    """Finds a study by its address.

    Arguments:
        address: `package.module:name`, a `Study`, a `ClassStudy`, or a function without arguments
            that makes one.

    Returns:
        The study.

    Raises:
        ConfigError: If there is none at that address.
    """
    module, _, name = address.partition(":")
    if not module or module.startswith(".") or not name:
        raise ConfigError(
            f"{address!r} is no address of a study. Expected module:name, for instance "
            "examples.reproduction.models.studies:uvit."
        )
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"There is no study at {address!r}: {type(error).__name__}: {error}. Run from the folder "
            "that holds the module, or install it."
        ) from error
    made = found() if callable(found) and not isinstance(found, Study | ClassStudy) else found
    if not isinstance(made, Study | ClassStudy):
        raise ConfigError(
            f"{address!r} gives {type(made).__name__}, expected an exitkit.benchmark.Study or ClassStudy."
        )
    return made
