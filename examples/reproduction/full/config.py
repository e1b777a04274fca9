"""What one experiment is made of: frozen, checked settings, as the TOML files name them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from examples.reproduction.models.uvit_configs import UViTConfig
from exitkit.errors import ConfigError

Preset = Literal["paper", "official", "relative", "carried"]
Precision = Literal["no", "bf16", "fp16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """The images: what training reads (or `encode`, for latents), and what FID compares with.

    Attributes:
        kind: torchvision's CIFAR-10, a folder of image files, or a Hugging Face data set.
        root: Folder of the files; for `huggingface` the name of a data set, or a folder that
            `save_to_disk` wrote.
        split: Split of a Hugging Face data set.
        resolution: Side of the square images.
        crop: Left, upper, right and lower edge of the part to keep; the middle square if None.
        resample: Filter of the resizing.
        flip: Whether images are mirrored at random; for latents, whether both sides are kept.
        classes: Whether the folders below `root`, sorted, are classes.
        captions: File of captions beside the images: COCO's annotations (.json), or one object
            with `file_name` and `text` a line (.jsonl).
        image_column: Column of a Hugging Face data set that holds the image.
        label_column: Its column of classes, or None.
        caption_column: Its column of captions, or None.
        statistics: Published statistics for FID (.npz with mu and sigma) to use instead of images.
    """

    kind: Literal["cifar10", "folder", "huggingface"]
    root: Path
    split: str = "train"
    resolution: int = Field(ge=1)
    crop: tuple[int, int, int, int] | None = None
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    flip: bool = False
    classes: bool = False
    captions: Path | None = None
    image_column: str = "image"
    label_column: str | None = None
    caption_column: str | None = None
    statistics: Path | None = None


class Latents(_Frozen):
    """Latents of the images and embeddings of the captions, as `encode` writes them.

    Attributes:
        root: Folder of the shards.
        prompts: Folder of the shards whose captions are sampled; `root` if None.
        autoencoder: Name or folder of a diffusers AutoencoderKL.
        scale_factor: Latents are multiplied with it: about 1 / their standard deviation.
        text_encoder: Name or folder of a transformers CLIPTextModel and its tokenizer, or None.
        shard: Items of one file.
    """

    root: Path
    prompts: Path | None = None
    autoencoder: str
    scale_factor: float = Field(gt=0)
    text_encoder: str | None = None
    shard: int = Field(default=512, ge=1)


class Backbone(_Frozen):
    """A U-ViT and its published weights.

    Attributes:
        weights: File of the weights; the network is drawn at random if None.
        shape: Its shape.
    """

    weights: Path | None = None
    shape: UViTConfig


class Guidance(_Frozen):
    """Classifier-free guidance.

    Attributes:
        scale: negative + scale * (conditional - negative). U-ViT's code counts from the conditional
            prediction: its 0.4 is 1.4 here.
        drop: Share of training examples whose condition is left out.
    """

    scale: float
    drop: float = Field(ge=0, le=1)


class Exits(_Frozen):
    """Which exits, and when a sample takes one.

    Attributes:
        preset: What is trained, and how.
        thresholds: Uncertainty below which a sample leaves, by preset. The released scripts give
            certainties: their 0.92 is 0.08 here.
    """

    preset: Preset
    thresholds: dict[Preset, float]

    @property
    def threshold(self) -> float:
        """The threshold of the preset."""
        return self.thresholds[self.preset]


class Training(_Frozen):
    """One training; `batch` counts all processes.

    Attributes:
        steps: Optimiser steps.
        batch: Images of one step.
        lr: Learning rate.
        uncertainty_lr: That of the uncertainty heads; `lr` if None.
        betas: AdamW's betas.
        weight_decay: AdamW's decay.
        warmup: Steps in which the rate rises.
        ema: Decay of the average of the weights.
        clip: Largest norm of the gradient; 1e9 never clips, as U-ViT's and AdaDiff's code.
        precision: Of the forward.
        accumulation: Batches that a process adds up for one step.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps of one record of the history.
        workers: Loader processes of each process.
        seed: Seed of everything random.
        rollout_steps: Sampler steps of the trajectories on which `carried` exits are fitted.
        rollouts: Trajectories, for `carried` exits.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    uncertainty_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.03
    warmup: int = 5000
    ema: float = 0.9999
    clip: float = 1e9
    precision: Precision = "fp16"
    accumulation: int = Field(default=1, ge=1)
    checkpoint_every: int = 5000
    log_every: int = 100
    workers: int = Field(default=8, ge=0)
    seed: int = 1234
    rollout_steps: int = 50
    rollouts: int = 512

    def share(self, processes: int) -> int:
        """Images of one batch of one process.

        Arguments:
            processes: How many there are.

        Raises:
            ConfigError: If the batch cannot be divided.
        """
        parts = processes * self.accumulation
        if self.batch % parts:
            raise ConfigError(
                f"training: a batch of {self.batch} cannot be split among {processes} processes "
                f"with accumulation={self.accumulation}. Choose numbers that divide it."
            )
        return self.batch // parts


class Sampling(_Frozen):
    """How samples are drawn.

    Attributes:
        sampler: `euler-maruyama` (the reverse SDE) or `dpm-solver` (DPM-Solver++ of third order).
        steps: Calls of the network for one sample.
        count: Samples in all; sample i has seed i.
        shard: Samples of one file, which always run together: what a sample is does not depend on
            how many processes there are.
        precision: Of the forward.
    """

    sampler: Literal["euler-maruyama", "dpm-solver"]
    steps: int = Field(ge=1)
    count: int = Field(default=50_000, ge=1)
    shard: int = Field(default=250, ge=1)
    precision: Precision = "fp16"


class Experiment(_Frozen):
    """All settings of one experiment.

    Attributes:
        name: Its name, in tables.
        schedule: Noise levels: the continuous VP-SDE with beta from 0.1 to 20, or the 1000 levels
            of Stable Diffusion.
        source: The images.
        latents: Their latents, if the network works on latents.
        backbone: The network.
        guidance: Guidance, if the network is conditional.
        exits: The exits.
        training: Training of the whole network (presets `paper` and `official`).
        heads: Training of heads alone (presets `relative` and `carried`).
        sampling: The sampler.
    """

    name: str
    schedule: Literal["vp-sde", "stable-diffusion"]
    source: Source
    latents: Latents | None = None
    backbone: Backbone
    guidance: Guidance | None = None
    exits: Exits
    training: Training
    heads: Training
    sampling: Sampling

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        shape = self.backbone.shape
        if (self.guidance is not None) != (shape.num_classes > 0 or shape.clip_dim > 0):
            raise ValueError("guidance belongs to a conditional backbone, and to no other")
        if shape.clip_dim > 0 and (self.latents is None or self.latents.text_encoder is None):
            raise ValueError("a backbone that reads text needs latents.text_encoder")
        if self.schedule == "stable-diffusion" and self.sampling.sampler == "euler-maruyama":
            raise ValueError("euler-maruyama integrates the VP-SDE; set schedule = 'vp-sde'")
        if self.latents is None and self.source.resolution != shape.img_size:
            raise ValueError("source.resolution and backbone.shape.img_size differ")
        if self.exits.preset not in self.exits.thresholds:
            raise ValueError(f"exits.thresholds has none for preset {self.exits.preset!r}")
        return self

    @property
    def recipe(self) -> Training:
        """The training that the preset asks for."""
        return self.training if self.exits.preset in ("paper", "official") else self.heads

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Shape of what the network denoises, (C, H, W)."""
        return (
            self.backbone.shape.in_chans,
            self.backbone.shape.img_size,
            self.backbone.shape.img_size,
        )
