"""FID by torchmetrics, fed shard by shard; the real side from images or published statistics."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exitkit._compat import require
from exitkit.errors import ConfigError, MissingExtraError


class _Features(nn.Module):
    """Features in double precision; says their width, which torchmetrics would else probe."""

    def __init__(self, features: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.features = features
        self.num_features = int(features(example).flatten(1).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).flatten(1).double()


class Frechet:
    """Frechet distance between images (B, 3, H, W), uint8, in a feature space.

    Arguments:
        features: `module:function` that makes a module from such images to (B, d); Inception's
            2048 features, FID proper, if None.
        resolution: Side of the images.
        weights: File of Inception's weights; torch-fidelity fetches them if None.
        device: Where features are computed.
    """

    def __init__(
        self,
        features: str | None,
        resolution: int,
        weights: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        fid = require("torchmetrics.image.fid", "reproduce", "FID")
        self.name = features or "inception-2048"
        if features is None:
            if importlib.util.find_spec("torch_fidelity") is None:
                raise MissingExtraError(
                    "FID needs `torch-fidelity` for Inception, which is not installed. Install it "
                    'with: pip install "exitkit-torch[reproduce]"; or name a network of your own: '
                    "--features module:function."
                )
            path = None if weights is None else str(weights)
            metric = fid.FrechetInceptionDistance(2048, feature_extractor_weights_path=path)
        else:
            example = torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8)
            metric = fid.FrechetInceptionDistance(_Features(_made(features), example))
        self.device = torch.device(device)
        self.metric: Any = metric.eval().to(self.device)

    @torch.no_grad()
    def add_real(self, batches: Iterable[Tensor]) -> None:
        """Adds real images."""
        for images in batches:
            self.metric.update(images.to(self.device), real=True)

    def set_real(self, path: Path) -> None:
        """Takes published statistics (mu and sigma of an .npz) for the real side.

        Raises:
            ConfigError: If the file has others, or those of another feature space.
        """
        with np.load(path, allow_pickle=False) as file:
            if "mu" not in file or "sigma" not in file:
                raise ConfigError(f"{path} holds {sorted(file)}, expected mu and sigma.")
            mean = torch.from_numpy(file["mu"]).double().to(self.device)
            covariance = torch.from_numpy(file["sigma"]).double().to(self.device)
        if mean.shape != self.metric.real_features_sum.shape:
            raise ConfigError(
                f"{path} describes {len(mean)} features, {self.name} has "
                f"{len(self.metric.real_features_sum)}."
            )
        # torchmetrics keeps sums; any number of samples gives mean and covariance back.
        n = 50_000
        self.metric.real_features_sum = mean * n
        self.metric.real_features_cov_sum = covariance * (n - 1) + n * torch.outer(mean, mean)
        self.metric.real_features_num_samples = torch.tensor(n, device=self.device)

    def real_state(self) -> dict[str, Tensor]:
        """What is known of the real side, to be kept and put back."""
        names = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")
        return {name: getattr(self.metric, name).cpu().clone() for name in names}

    def put_real_state(self, state: dict[str, Tensor]) -> None:
        """Puts back what `real_state` gave."""
        for name, value in state.items():
            setattr(self.metric, name, value.to(self.device))

    @torch.no_grad()
    def distance(self, batches: Iterable[Tensor], batch: int = 128) -> float:
        """The squared distance of generated images from the real ones, which stay."""
        real = self.real_state()
        self.metric.reset()
        self.put_real_state(real)
        for images in batches:
            for part in images.split(batch):
                self.metric.update(part.to(self.device), real=False)
        return max(float(self.metric.compute()), 0.0)


def _made(name: str) -> nn.Module:
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f"--features {name}: expected module:function.")
    made = getattr(importlib.import_module(module), function)()
    if not isinstance(made, nn.Module):
        raise ConfigError(f"--features {name} made a {type(made).__name__}, expected a module.")
    return made.eval()
