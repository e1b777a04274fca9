"""Latents and text embeddings as data: what `encode` wrote, example by example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from exitkit.errors import ConfigError

from .config import Experiment
from .shards import IDENTITY, Shards

EMPTY = "empty.safetensors"
"""The embedding of the empty caption, beside the shards."""


class Encoded:
    """The shards of one folder, read row by row: a data set may be larger than the memory."""

    def __init__(self, root: Path) -> None:
        described = root / IDENTITY
        if not described.is_file():
            raise ConfigError(
                f"{root} holds no latents. Write them with `accelerate launch -m "
                "examples.reproduction.full.encode CONFIG`."
            )
        identity = json.loads(described.read_text())
        self.root, self.count = root, int(identity["count"])
        self.shards = Shards(root, self.count, int(identity["size"]))
        absent = [s for s in range(len(self.shards)) if not self.shards.path(s).is_file()]
        if absent:
            raise ConfigError(
                f"{root}: {len(absent)} of {len(self.shards)} shards are missing, the first is "
                f"{self.shards.path(absent[0]).name}. Run `encode` again: it makes what is missing."
            )
        self._files: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes open their own files.
        return {**self.__dict__, "_files": {}}

    def row(self, name: str, index: int) -> Tensor:
        """One row of a tensor that has one for each item."""
        file, place = self._file(index)
        row: Tensor = file.get_slice(name)[place]
        return row

    def text(self, index: int, caption: int | None = None) -> Tensor:
        """The embedding of one of an item's captions, (tokens, width); a random one if None."""
        first, count = (int(v) for v in self.row("text_rows", index))
        chosen = int(torch.randint(count, ())) if caption is None else caption % count
        file, _ = self._file(index)
        row: Tensor = file.get_slice("text")[first + chosen]
        return row.float()

    def empty(self) -> Tensor:
        """The embedding of the empty caption, (tokens, width)."""
        return load_file(self.root / EMPTY)["text"].float()

    def _file(self, index: int) -> tuple[Any, int]:
        shard, place = divmod(index, self.shards.size)
        if shard not in self._files:
            self._files[shard] = safe_open(self.shards.path(shard), framework="pt")
        return self._files[shard], place


class LatentExamples(Dataset[dict[str, Any]]):
    """Training examples in latent space: `x0`, and `y` or `context` for a conditional backbone."""

    def __init__(self, experiment: Experiment) -> None:
        assert experiment.latents is not None
        self.encoded = Encoded(experiment.latents.root)
        self.scale = experiment.latents.scale_factor
        self.backbone, self.guidance = experiment.backbone, experiment.guidance
        self.empty = self.encoded.empty() if self.backbone.shape.clip_dim > 0 else None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example: dict[str, Any] = {"x0": self._latent(index)}
        if self.guidance is None:
            return example
        dropped = float(torch.rand(())) < self.guidance.drop
        if self.empty is not None:
            example["context"] = self.empty if dropped else self.encoded.text(index)
        else:
            label = int(self.encoded.row("labels", index))
            example["y"] = self.backbone.shape.num_classes - 1 if dropped else label
        return example

    def _latent(self, index: int) -> Tensor:
        """Draws from the autoencoder's posterior, anew each time, as U-ViT does."""
        mean, logvar = self.encoded.row("moments", index).float().chunk(2)
        std = (0.5 * logvar.clamp(-30.0, 20.0)).exp()
        return self.scale * (mean + std * torch.randn_like(mean))
