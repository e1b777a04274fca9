r"""Tasks: what the backbone was trained to predict, and how a training example is drawn.

Variance-preserving diffusion, with :math:`\bar\alpha_t` from a diffusers scheduler:

.. math:: x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t} \epsilon

`Noise` predicts :math:`\epsilon`, `Velocity` :math:`v = \sqrt{\bar\alpha_t} \epsilon -
\sqrt{1 - \bar\alpha_t} x_0`, `Sample` :math:`x_0`. `FlowMatching` has :math:`x_s = (1 - s) x_0 +
s \epsilon` and predicts :math:`\epsilon - x_0`. `Classification` is for timm's models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from exitkit.errors import ConfigError, ShapeError
from exitkit.sampling.solvers import check_instance
from exitkit.training.batches import Example, split_batch, split_labelled
from exitkit.training.divergences import Classes, Divergence, Regression, first_channels


class Task(ABC):
    """Draws examples and measures predictions.

    Attributes:
        prediction_type: What the model predicts: `epsilon`, `v_prediction`, `sample`,
            `flow_prediction` (in diffusers' words) or `class`.
    """

    prediction_type: ClassVar[str]

    @property
    def divergence(self) -> Divergence:
        """How far outputs are from targets, and from each other."""
        return Classes() if self.prediction_type == "class" else Regression()

    @abstractmethod
    def draw(self, batch: Any, generator: torch.Generator | None = None) -> Example:
        """Makes a training example from a batch.

        Arguments:
            batch: A batch of the user's data; the forms are in `exitkit.training.batches`.
            generator: Source of timesteps and noise; PyTorch's own if None.

        Returns:
            The arguments of one forward, and its target.
        """

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Measures a prediction.

        Arguments:
            prediction: Output of the model, with shape (B, ...).
            target: Target of the example.

        Returns:
            One loss per row, with shape (B,).
        """


class _Regression(Task):
    """Squared error against a target with the data's shape."""

    def __init__(self, conditions: Sequence[str | None] | None) -> None:
        self.conditions = conditions if conditions is None else tuple(conditions)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each row, (B,), over the target's channels."""
        error = first_channels(prediction, target) - target
        return error.square().flatten(1).mean(dim=1)


class _Diffusion(_Regression):
    """Diffusion with integer timesteps, drawn uniformly from 0 to T - 1.

    Arguments:
        scheduler: A diffusers scheduler that knows the noise levels of the training:
            `alphas_cumprod` (the noisy input is then what the network sees under any of them), or
            its own `add_noise`.
        conditions: What to do with further entries of a batch, see
            `exitkit.training.batches.split_batch`.

    Raises:
        ConfigError: If the scheduler has no noise levels by integer timestep.
    """

    def __init__(self, scheduler: Any, *, conditions: Sequence[str | None] | None = None) -> None:
        super().__init__(conditions)
        check_instance(type(self).__name__, scheduler)
        self.scheduler = scheduler
        config = getattr(scheduler, "config", None)
        steps = getattr(config, "num_train_timesteps", None)
        alphas = getattr(scheduler, "alphas_cumprod", None)
        name, own = type(scheduler).__name__, type(self).__name__
        if alphas is None and not hasattr(scheduler, "add_noise"):
            raise ConfigError(
                f"{own}: {name} has neither `alphas_cumprod` nor `add_noise`, so it cannot noise "
                "training data. Pass the scheduler of the training (such as diffusers' "
                "DDPMScheduler); for a flow-matching model use tasks.FlowMatching()."
            )
        if not isinstance(steps, int) or steps < 1:
            raise ConfigError(
                f"{own}: {name}.config.num_train_timesteps is {steps!r}, expected a positive int."
            )
        declared = getattr(config, "prediction_type", None)
        if declared is not None and declared != self.prediction_type:
            raise ConfigError(
                f"{own} trains prediction_type={self.prediction_type!r}, but {name}.config says "
                f"{declared!r}. Use the task that fits: tasks.Noise (epsilon), tasks.Velocity "
                "(v_prediction), tasks.Sample (sample) or tasks.FlowMatching() (flow_prediction)."
            )
        self.steps = steps

    def draw(self, batch: Any, generator: torch.Generator | None = None) -> Example:
        """Draws t and noise, and noises the batch; see `Task.draw`.

        Arguments:
            batch: Tensor x_0 (B, ...), tuple (x_0, conditions...) or dictionary.
            generator: Source of t and of the noise.

        Returns:
            The example: args (x_t, t, ...) with t int64 (B,), and its target.
        """
        x0, extras, kwargs = split_batch(batch, type(self).__name__, self.conditions)
        device = generator.device if generator is not None else x0.device
        t = torch.randint(0, self.steps, (len(x0),), generator=generator, device=device)
        t, noise = t.to(x0.device), _noise_like(x0, generator)
        x_t = self._mix(x0, noise, t)
        return Example((x_t, t, *extras), kwargs, self._target(x0, noise, t))

    @abstractmethod
    def _target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...

    def _levels(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Signal and noise levels at t, shaped to multiply `like`; None if unknown."""
        alphas = getattr(self.scheduler, "alphas_cumprod", None)
        if alphas is None:
            return None
        # In the data's dtype before the roots, as diffusers does: equal to its add_noise, bitwise.
        alpha = torch.as_tensor(alphas).to(like.device, like.dtype)[t]
        alpha = alpha.reshape(-1, *[1] * (like.dim() - 1))
        return alpha**0.5, (1 - alpha) ** 0.5

    def _mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        levels = self._levels(x0, t)
        if levels is None:
            mixed: Tensor = self.scheduler.add_noise(x0, noise, t)
            return mixed
        return levels[0] * x0 + levels[1] * noise


class Noise(_Diffusion):
    """The model predicts the noise: the target of eq. 8 and 11, and of most published models."""

    prediction_type: ClassVar[str] = "epsilon"

    def _target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise


class Sample(_Diffusion):
    """The model predicts the clean sample x_0."""

    prediction_type: ClassVar[str] = "sample"

    def _target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return x0


class Velocity(_Diffusion):
    """The model predicts the velocity v (v_prediction)."""

    prediction_type: ClassVar[str] = "v_prediction"

    def _target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        levels = self._levels(x0, t)
        if levels is not None:
            return levels[0] * noise - levels[1] * x0
        if not hasattr(self.scheduler, "get_velocity"):
            raise ConfigError(
                f"Velocity: {type(self.scheduler).__name__} has neither `alphas_cumprod` nor "
                "`get_velocity`. Pass the scheduler of the training, such as DDPMScheduler."
            )
        velocity: Tensor = self.scheduler.get_velocity(x0, noise, t)
        return velocity


class FlowMatching(_Regression):
    """Straight paths between data (s = 0) and noise (s = 1); the model predicts noise - x_0.

    Arguments:
        timestep_scale: The model is given s times this (diffusers' transformers want 1000).
        sampling: `uniform` s in [0, 1), or `logit_normal`: s = sigmoid(mean + std z), z normal.
        mean: Mean of the logit.
        std: Standard deviation of the logit.
        conditions: What to do with further entries of a batch, see
            `exitkit.training.batches.split_batch`.

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis
          (Esser et al., 2024)
        | https://arxiv.org/abs/2403.03206

    Raises:
        ConfigError: If an argument is out of range.
    """

    prediction_type: ClassVar[str] = "flow_prediction"

    def __init__(
        self,
        *,
        timestep_scale: float = 1000.0,
        sampling: Literal["uniform", "logit_normal"] = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        conditions: Sequence[str | None] | None = None,
    ) -> None:
        super().__init__(conditions)
        if sampling not in ("uniform", "logit_normal"):
            raise ConfigError(
                f"FlowMatching: sampling must be 'uniform' or 'logit_normal', got {sampling!r}."
            )
        if timestep_scale <= 0 or std <= 0:
            raise ConfigError(
                f"FlowMatching: timestep_scale and std must be positive, got {timestep_scale} "
                f"and {std}."
            )
        self.timestep_scale, self.sampling = timestep_scale, sampling
        self.mean, self.std = mean, std

    def draw(self, batch: Any, generator: torch.Generator | None = None) -> Example:
        """Draws s and noise, and mixes the batch; see `Task.draw`.

        Arguments:
            batch: Tensor x_0 (B, ...), tuple (x_0, conditions...) or dictionary.
            generator: Source of s and of the noise.

        Returns:
            The example: args (x_s, s * timestep_scale, ...), target noise - x_0.
        """
        x0, extras, kwargs = split_batch(batch, type(self).__name__, self.conditions)
        device = generator.device if generator is not None else x0.device
        if self.sampling == "uniform":
            s = torch.rand(len(x0), generator=generator, device=device)
        else:
            normal = torch.randn(len(x0), generator=generator, device=device)
            s = torch.sigmoid(self.mean + self.std * normal)
        s, noise = s.to(x0.device), _noise_like(x0, generator)
        part = s.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1))
        x_s = (1 - part) * x0 + part * noise
        return Example((x_s, s * self.timestep_scale, *extras), kwargs, noise - x0)


class Classification(Task):
    """The model predicts class logits (B, classes); the loss is the cross entropy."""

    prediction_type: ClassVar[str] = "class"

    def draw(self, batch: Any, generator: torch.Generator | None = None) -> Example:
        """Reads images and labels; nothing is drawn.

        Arguments:
            batch: Tuple (image, label), or a dictionary with such names.
            generator: Unused.

        Returns:
            The example: args (image,), target (B,) int64.
        """
        images, labels, kwargs = split_labelled(batch, type(self).__name__)
        return Example((images,), kwargs, labels)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of each row, (B,), for logits (B, classes)."""
        if prediction.dim() != 2 or target.shape != prediction.shape[:1]:
            raise ShapeError(
                f"Classification: expected logits (B, classes) and labels (B,), got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        return F.cross_entropy(prediction, target, reduction="none")


def _noise_like(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else x0.device
    noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype)
    return noise.to(x0.device)
