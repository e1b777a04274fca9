r"""Noise levels along time, and the three things that a network may predict of a noisy input.

With :math:`x = a D + s e` (D the clean sample, e the noise) the level is the log-SNR
:math:`l = \log(a / s)`. Diffusion keeps the variance (:math:`a^2 + s^2 = 1`), flows go along a line
(:math:`a + s = 1`); velocity is :math:`a e - s D` there and :math:`e - D` here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Quantity = Literal["noise", "x0", "velocity"]
QUANTITIES: tuple[Quantity, ...] = ("noise", "x0", "velocity")
_PLACES = 1001
_PER_UNIT = 1_000_000
_LIMIT = 20.0


class NoiseLevels(nn.Module):
    """Log-SNR by timestep. Buffers of whole numbers: half precision does not move them.

    Attributes:
        levels: Log-SNR at timesteps 0, 1 .. 1000 in millionths, int64, with shape (1001,).
        flow: Whether clean sample and noise mix along a line, boolean, a scalar.
        predicts: What the network predicts, an index into `QUANTITIES`, int64, a scalar.
    """

    levels: Tensor
    flow: Tensor
    predicts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.zeros(_PLACES, dtype=torch.int64))
        self.register_buffer("flow", torch.zeros((), dtype=torch.bool))
        self.register_buffer("predicts", torch.zeros((), dtype=torch.int64))
        self._known: tuple[int, bool, Quantity] | None = None

    def place(
        self, timesteps: Sequence[float], levels: Sequence[float], flow: bool, predicts: Quantity
    ) -> None:
        """Sets the levels; between the given timesteps they are interpolated.

        Arguments:
            timesteps: Timesteps on the scale 0..1000, rising.
            levels: Log-SNR at each of them.
            flow: Whether clean sample and noise mix along a line.
            predicts: What the network predicts.
        """
        at = torch.tensor(timesteps, dtype=torch.float64)
        known = torch.tensor(levels, dtype=torch.float64).clamp(-_LIMIT, _LIMIT)
        places = torch.arange(_PLACES, dtype=torch.float64)
        right = torch.searchsorted(at, places).clamp(1, len(at) - 1)
        share = (places - at[right - 1]) / (at[right] - at[right - 1])
        found = torch.lerp(known[right - 1], known[right], share.clamp(0, 1))
        self.levels.copy_((found * _PER_UNIT).round().long())
        self.flow.fill_(flow)
        self.predicts.fill_(QUANTITIES.index(predicts))

    @property
    def kind(self) -> tuple[bool, Quantity]:
        """Whether it is a flow, and what the network predicts; read once as long as nobody writes."""
        version = self.predicts._version + self.flow._version
        if self._known is None or self._known[0] != version:
            self._known = (version, bool(self.flow), QUANTITIES[int(self.predicts)])
        return self._known[1:]

    def __getstate__(self) -> dict[str, object]:
        """Leaves out what was read, which belongs to these very buffers."""
        return {**self.__dict__, "_known": None}

    def log_snr(self, timestep: Tensor) -> Tensor:
        """Log-SNR of timesteps on the scale 0..1000, float64, with shape (B,)."""
        t = timestep.double().clamp(0, _PLACES - 1)
        left = t.floor().long().clamp(max=_PLACES - 2)
        levels = self.levels.double() / _PER_UNIT
        return torch.lerp(levels[left], levels[left + 1], t - left)

    def mixture(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Shares a of the clean sample and s of the noise, float64, each with shape (B,)."""
        level = self.log_snr(timestep)
        if self.kind[0]:
            return torch.sigmoid(level), torch.sigmoid(-level)
        return torch.sigmoid(2 * level).sqrt(), torch.sigmoid(-2 * level).sqrt()

    def clean(self, x: Tensor, value: Tensor, quantity: Quantity, timestep: Tensor) -> Tensor:
        """The clean sample that a quantity of a noisy input stands for.

        Arguments:
            x: Noisy input, with shape (B, ...).
            value: The quantity, of the same shape.
            quantity: Which it is.
            timestep: Timesteps on the scale 0..1000, with shape (B,).
        """
        if quantity == "x0":
            return value
        a, s = (_beside(part, x) for part in self.mixture(timestep))
        if quantity == "noise":
            return (x - s * value) / a
        return x - s * value if self.kind[0] else a * x - s * value

    def quantity(self, x: Tensor, clean: Tensor, quantity: Quantity, timestep: Tensor) -> Tensor:
        """The inverse of `clean`: a quantity of a noisy input with a known clean sample."""
        if quantity == "x0":
            return clean
        a, s = (_beside(part, x) for part in self.mixture(timestep))
        noise = (x - a * clean) / s
        if quantity == "noise":
            return noise
        return noise - clean if self.kind[0] else a * noise - s * clean


def _beside(part: Tensor, x: Tensor) -> Tensor:
    """One number a row, (B,), in the form in which it multiplies (B, ...)."""
    return part.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
