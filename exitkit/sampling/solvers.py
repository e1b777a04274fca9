r"""One interface over samplers; diffusers does the mathematics.

A solver is made for one generation and thrown away, because schedulers hold state. The variance
preserving SDE is integrated by Euler-Maruyama,

.. math:: x \leftarrow x + [\tfrac12 \beta(t) x + \beta(t) s(x, t)] / N + \sqrt{\beta(t) / N}\, z

with the score :math:`s = -\epsilon / \sigma(t)` from predicted noise, as diffusers' own
`ScoreSdeVpScheduler` has it (its argument named `score` is the predicted noise).

References:
    | Score-Based Generative Modeling through Stochastic Differential Equations
    | (Song et al., 2021), https://arxiv.org/abs/2011.13456
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from exitkit._compat import require
from exitkit.errors import ConfigError, suggest

SAMPLERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "flow": "FlowMatchEulerDiscreteScheduler",
    "euler-maruyama": "ScoreSdeVpScheduler",
}
"""Samplers by short name, and the diffusers classes that they stand for."""

_SDE_MODULE = "diffusers.schedulers.deprecated.scheduling_sde_vp"


class Solver(ABC):
    """The sampler of one generation.

    Attributes:
        timesteps: What the model is fed at each of its calls, in order, with shape (calls).
        learned_variance: Whether `step` wants the variance channels of the prediction too.
        scheduler: The diffusers scheduler that does the mathematics, of this generation alone.
    """

    scheduler: Any

    timesteps: Tensor
    learned_variance: bool = False

    @property
    def steps(self) -> int:
        """Steps of a trajectory: second-order samplers call the model twice at one timestep."""
        return 1 + int((self.timesteps[1:] != self.timesteps[:-1]).sum())

    def start(self, noise: Tensor) -> Tensor:
        """Scales unit noise, with shape (B, ...), to the sampler's first state."""
        return noise

    def model_input(self, x: Tensor, call: int) -> Tensor:
        """Turns the state, with shape (B, ...), into what the model is fed at this call."""
        return x

    @abstractmethod
    def step(
        self, prediction: Tensor, x: Tensor, call: int, generators: list[torch.Generator]
    ) -> Tensor:
        """Makes one step.

        Arguments:
            prediction: Output of the model, with shape (B, ...).
            x: State before the step, with shape (B, ...).
            call: Index of the call, from 0.
            generators: Source of noise of each row, B of them.

        Returns:
            State after the step, with shape (B, ...).
        """


class _Discrete(Solver):
    """Any diffusers scheduler with `set_timesteps` and `step`."""

    _options: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        self.scheduler = scheduler
        limit = getattr(scheduler.config, "num_train_timesteps", None)
        if limit is not None and steps > limit:
            raise ConfigError(
                f"{type(scheduler).__name__} was made for {limit} timesteps and cannot take "
                f"{steps} steps. Ask for at most {limit}."
            )
        if getattr(scheduler.config, "use_dynamic_shifting", False):
            raise ConfigError(
                f"{type(scheduler).__name__} shifts its timesteps by the size of the image, which "
                "only a pipeline knows. Make it anew with use_dynamic_shifting=False and a `shift`."
            )
        scheduler.set_timesteps(steps, device=device)
        self.take_over()

    def take_over(self) -> None:
        """Reads the timesteps that the scheduler has been set to."""
        scheduler = self.scheduler
        self.timesteps = scheduler.timesteps
        kind = getattr(scheduler.config, "variance_type", None)
        self.learned_variance = kind in ("learned", "learned_range")
        self._takes = frozenset(inspect.signature(scheduler.step).parameters)

    def start(self, noise: Tensor) -> Tensor:
        # Flow-matching schedulers have no such attribute: their first state is the noise itself.
        sigma = getattr(self.scheduler, "init_noise_sigma", 1.0)
        return noise * torch.as_tensor(sigma, dtype=noise.dtype, device=noise.device)

    def model_input(self, x: Tensor, call: int) -> Tensor:
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        scaled: Tensor = self.scheduler.scale_model_input(x, self.timesteps[call])
        return scaled

    def step(
        self, prediction: Tensor, x: Tensor, call: int, generators: list[torch.Generator]
    ) -> Tensor:
        options = dict(self._options)
        if "generator" in self._takes:
            options["generator"] = generators
        out = self.scheduler.step(prediction, self.timesteps[call], x, return_dict=False, **options)
        after: Tensor = out[0]
        return after.to(x.dtype)


class _EulerMaruyama(Solver):
    """The reverse VP-SDE. The last step leaves out the noise, which nothing would remove."""

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        self.scheduler = scheduler
        scheduler.set_timesteps(steps, device=device)
        # U-ViT and its kin are fed 999 t, t in (0, 1]. The scheduler's default of 2000 timesteps
        # has no part in its mathematics and says nothing about the model.
        trained = scheduler.config.num_train_timesteps
        self.timesteps = scheduler.timesteps * ((1000 if trained == 2000 else trained) - 1)

    def step(
        self, prediction: Tensor, x: Tensor, call: int, generators: list[torch.Generator]
    ) -> Tensor:
        time = self.scheduler.timesteps[call].to(x.dtype)
        noisy, mean = self.scheduler.step_pred(prediction, x, time, generator=generators)
        after: Tensor = mean if call == len(self.timesteps) - 1 else noisy
        return after


def make_scheduler(name: str, base: Any = None) -> Any:
    """Makes a diffusers scheduler by short name.

    Arguments:
        name: One of `SAMPLERS`.
        base: A scheduler whose training settings (noise levels, kind of prediction) to take over;
            the class's own defaults if None.

    Returns:
        A fresh scheduler.

    Raises:
        ConfigError: If there is no such sampler, or it cannot take over the settings of `base`.
        MissingExtraError: If diffusers is not installed.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"There is no sampler {name!r} (samplers: {', '.join(SAMPLERS)})."
            f"{suggest(name, SAMPLERS)} Any diffusers scheduler object is fine too."
        )
    needed_for = f"The sampler {name!r}"
    if name != "euler-maruyama":
        cls = getattr(require("diffusers", "diffusers", needed_for), SAMPLERS[name])
        return cls() if base is None else cls.from_config(base.config)
    # Not from the top of diffusers: there the class is only shown where transformers is installed.
    cls = require(_SDE_MODULE, "diffusers", needed_for).ScoreSdeVpScheduler
    return cls(num_train_timesteps=1000) if base is None else cls(**_continuous(base.config))


def _continuous(config: Any) -> dict[str, Any]:
    """Reads the settings of the SDE from those of a discrete scheduler."""
    kind = config.get("prediction_type", "epsilon")
    schedule = config.get("beta_schedule", "linear")
    if kind != "epsilon" or schedule != "linear" or config.get("trained_betas") is not None:
        raise ConfigError(
            "Euler-Maruyama integrates the VP-SDE of linear betas from predicted noise, but the "
            f"scheduler has prediction_type={kind!r} and beta_schedule={schedule!r}"
            f"{' with trained_betas' if config.get('trained_betas') is not None else ''}. "
            "Use 'ddpm' or 'ddim'."
        )
    n = config["num_train_timesteps"]
    return {
        "num_train_timesteps": n,
        "beta_min": n * config["beta_start"],
        "beta_max": n * config["beta_end"],
    }


def check_instance(owner: str, scheduler: Any) -> None:
    """Refuses the class of a scheduler where one of its instances belongs.

    Arguments:
        owner: Who was given it, as the subject of the message.
        scheduler: What was given.

    Raises:
        ConfigError: If it is a class.
    """
    if isinstance(scheduler, type):
        name = scheduler.__name__
        raise ConfigError(
            f"{owner}: the scheduler is the class {name}, expected an instance. Pass {name}() or "
            f"{name}.from_config(other.config)."
        )


def make_solver(
    scheduler: Any, steps: int, *, base: Any = None, device: torch.device | str = "cpu"
) -> Solver:
    """Makes the solver of one generation; the scheduler that is passed stays as it is.

    Arguments:
        scheduler: A diffusers scheduler, or one of `SAMPLERS`.
        steps: Number of sampler steps.
        base: For a name: the scheduler whose training settings to take over.
        device: Where the states live.

    Returns:
        A fresh solver.

    Raises:
        ConfigError: If `steps` is below 1 or too large, or the scheduler cannot be used.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps must be a whole number of at least 1, got {steps!r}.")
    check_instance("Sampler", scheduler)
    if isinstance(scheduler, str):
        scheduler = make_scheduler(scheduler, base)
    elif not hasattr(scheduler, "set_timesteps") or not hasattr(scheduler, "config"):
        raise ConfigError(
            f"Expected a diffusers scheduler or one of {', '.join(SAMPLERS)}, got "
            f"{type(scheduler).__name__}. Pass an object such as DDIMScheduler()."
        )
    else:
        scheduler = copy.deepcopy(scheduler)
    where = torch.device(device)
    if hasattr(scheduler, "step_pred") and hasattr(scheduler.config, "beta_min"):
        return _EulerMaruyama(scheduler, steps, where)
    if not hasattr(scheduler, "step"):
        raise ConfigError(
            f"{type(scheduler).__name__} has no `step`, and of the samplers without one only "
            "ScoreSdeVpScheduler is known. Use one of diffusers' other schedulers."
        )
    return _Discrete(scheduler, steps, where)


def solver_around(scheduler: Any, **options: Any) -> Solver:
    """A solver that goes on with a scheduler in the middle of a run; the scheduler is not copied.

    Arguments:
        scheduler: A diffusers scheduler whose timesteps are set.
        options: Arguments of every step.
    """
    solver = _Discrete.__new__(_Discrete)
    solver.scheduler, solver._options = scheduler, options
    solver.take_over()
    return solver


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """Makes one source of noise a sample, on the CPU: the same images on every device.

    Arguments:
        seeds: One seed a sample.

    Returns:
        The generators, in the same order.
    """
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
    """Draws unit noise, each row from its own generator.

    Arguments:
        shape: Shape of one sample.
        generators: One for each row.

    Returns:
        Noise in float32 on the CPU, with shape (B, *shape).
    """
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])
