"""Writes latents of images and embeddings of captions, sharded and resumable.

`accelerate launch -m examples.reproduction.full.encode imagenet256 [--images DIR] [--captions FILE]`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from exitkit._compat import require
from exitkit.errors import ConfigError

from .config import Experiment
from .latents import EMPTY
from .loading import arguments, from_arguments
from .processes import start
from .shards import Facts, Shards, replace
from .sources import Images, known, open_images, pixels, scaled


@dataclass
class TextEncoder:
    """CLIP's text model with its tokenizer."""

    tokenizer: Any
    model: Any

    @classmethod
    def load(cls, name: str, device: torch.device) -> TextEncoder:
        """Loads both from a folder or the hub."""
        transformers = require("transformers", "reproduce", "Embedding captions")
        model = transformers.CLIPTextModel.from_pretrained(name).eval().to(device)
        return cls(transformers.CLIPTokenizer.from_pretrained(name), model)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Embeds captions, (B, tokens, width); all tokens, those of the padding too."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        )
        hidden: Tensor = self.model(tokens["input_ids"].to(self.model.device)).last_hidden_state
        return hidden.float().cpu()


def load_autoencoder(name: str, device: torch.device) -> Any:
    """Loads a diffusers AutoencoderKL from a folder or the hub."""
    diffusers = require("diffusers", "reproduce", "The autoencoder")
    autoencoder: nn.Module = diffusers.AutoencoderKL.from_pretrained(name)
    return autoencoder.eval().to(device)


def encode(experiment: Experiment, accelerator: Any, batch: int = 32) -> list[int]:
    """Encodes the images of an experiment.

    Arguments:
        experiment: The experiment; it must work on latents.
        accelerator: Shares the shards among processes.
        batch: Images in one call of the autoencoder.

    Returns:
        The shards that this process made.

    Raises:
        ConfigError: If the experiment has no latents, or an image has no caption.
    """
    settings, source = experiment.latents, experiment.source
    if settings is None:
        raise ConfigError(f"{experiment.name} works on pixels; there is nothing to encode.")
    images = open_images(source)
    autoencoder = load_autoencoder(settings.autoencoder, accelerator.device)
    text = None
    if settings.text_encoder is not None:
        text = TextEncoder.load(settings.text_encoder, accelerator.device)
    sides = 2 if source.flip else 1

    def make(items: range) -> tuple[dict[str, Tensor], Facts]:
        moments = []
        for first in range(items.start, items.stop, batch):
            part = range(first, min(first + batch, items.stop))
            x = torch.stack([_side(images, i, sides, experiment) for i in part])
            posterior = autoencoder.encode(scaled(x).to(accelerator.device)).latent_dist
            moments.append(posterior.parameters.cpu())
        tensors = {"moments": torch.cat(moments).half()}
        if experiment.backbone.shape.num_classes > 0:
            labels = [known(images[i // sides].label) for i in items]
            tensors["labels"] = torch.tensor(labels)
        if text is not None:
            tensors |= _embedded(text, [images[i // sides].captions for i in items], batch)
        return tensors, {}

    count = sides * len(images)
    shards = Shards(settings.root, count, settings.shard)
    identity = {
        "count": count,
        "source": source.model_dump(mode="json", exclude={"statistics"}),
        "autoencoder": settings.autoencoder,
        "text_encoder": settings.text_encoder,
    }
    made = shards.fill(identity, accelerator, make)
    if text is not None and accelerator.is_main_process:
        replace(settings.root / EMPTY, save({"text": text([""])[0].half()}))
    return made


def _side(images: Images, item: int, sides: int, experiment: Experiment) -> Tensor:
    image = pixels(images[item // sides].image, experiment.source)
    return image.flip(-1) if item % sides else image


def _embedded(text: TextEncoder, captions: list[tuple[str, ...]], batch: int) -> dict[str, Tensor]:
    """All captions below each other, and for each item where its own begin and how many."""
    counts = torch.tensor([len(own) for own in captions])
    if not bool(counts.all()):
        raise ConfigError("an image has no caption; source.captions must name one for each.")
    flat = [caption for own in captions for caption in own]
    parts = [text(flat[first : first + batch]) for first in range(0, len(flat), batch)]
    starts = counts.cumsum(0) - counts
    return {"text": torch.cat(parts).half(), "text_rows": torch.stack([starts, counts], dim=1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = arguments("encode", __doc__)
    parser.add_argument("--images", help="folder of the images")
    parser.add_argument("--captions", help="file of the captions")
    parser.add_argument("--batch", type=int, default=32, help="images in one call")
    args = parser.parse_args(argv)
    changes = [f"source.root={args.images}"] if args.images else []
    changes += [f"source.captions={args.captions}"] if args.captions else []
    experiment = from_arguments(args, *changes)
    with start() as accelerator:
        encode(experiment, accelerator, args.batch)


if __name__ == "__main__":
    main()
