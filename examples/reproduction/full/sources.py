"""The images of an experiment, with their classes and captions, wherever they come from."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from exitkit._compat import require
from exitkit.errors import ConfigError

from .config import Experiment, Source

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Item:
    """One image with what is known about it; label and captions only where the source has any."""

    image: Image.Image
    label: int | None = None
    captions: tuple[str, ...] = ()


class Images(Protocol):
    """A source of items by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int) -> Item:
        """One of them."""


class Folder:
    """Image files below a folder, by name."""

    def __init__(self, settings: Source) -> None:
        root = settings.root
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise ConfigError(f"source.root: no images in {root} ({', '.join(SUFFIXES)}).")
        self.classes: list[str] | None = None
        if settings.classes:
            self.classes = sorted({p.relative_to(root).parts[0] for p in self.files})
        self.root = root
        self.captions = read_captions(settings.captions) if settings.captions else None
        if self.captions is not None:
            # COCO has a few hundred images less in its captions than a mixed folder may hold.
            self.files = [p for p in self.files if self._name(p) in self.captions]
            if not self.files:
                raise ConfigError(f"{settings.captions} has captions for none of {root}'s images.")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        path = self.files[index]
        with Image.open(path) as image:
            picture = image.convert("RGB")
        label = None
        if self.classes is not None:
            label = self.classes.index(path.relative_to(self.root).parts[0])
        captions = () if self.captions is None else self.captions[self._name(path)]
        return Item(picture, label, captions)


class Cifar10:
    """torchvision's CIFAR-10, training part; fetched if it is not there."""

    def __init__(self, settings: Source) -> None:
        datasets = require("torchvision.datasets", "reproduce", "CIFAR-10")
        there = (settings.root / "cifar-10-batches-py").is_dir()
        self.data: Any = datasets.CIFAR10(str(settings.root), train=True, download=not there)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        image, label = self.data[index]
        return Item(image, int(label))


class HuggingFace:
    """A data set of the Hugging Face hub, or one that `save_to_disk` wrote."""

    def __init__(self, settings: Source) -> None:
        datasets = require("datasets", "reproduce", "source.kind = 'huggingface'")
        if settings.root.is_dir():
            data = datasets.load_from_disk(str(settings.root))
            data = data[settings.split] if isinstance(data, dict) else data
        else:
            data = datasets.load_dataset(settings.root.as_posix(), split=settings.split)
        wanted = (settings.image_column, settings.label_column, settings.caption_column)
        odd = [name for name in wanted if name is not None and name not in data.column_names]
        if odd:
            raise ConfigError(
                f"{settings.root} has no column {', '.join(odd)}; it has "
                f"{', '.join(data.column_names)}. Name them in source.*_column."
            )
        self.data, self.settings = data, settings

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        row, settings = self.data[index], self.settings
        label = row[settings.label_column] if settings.label_column else None
        captions: Any = row[settings.caption_column] if settings.caption_column else ()
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        return Item(row[settings.image_column].convert("RGB"), label, captions)


def open_images(settings: Source) -> Images:
    """Opens the images that the settings name."""
    kinds = {"cifar10": Cifar10, "folder": Folder, "huggingface": HuggingFace}
    return kinds[settings.kind](settings)


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Reads a file of captions.

    Arguments:
        path: COCO's annotations (.json), or one object with `file_name` and `text` (a text or a
            list of them) a line (.jsonl).

    Returns:
        Captions by file name.
    """
    found: dict[str, list[str]] = defaultdict(list)
    if path.suffix == ".jsonl":
        for line in filter(None, path.read_text().splitlines()):
            entry = json.loads(line)
            text = entry["text"]
            found[entry["file_name"]] += [text] if isinstance(text, str) else text
    else:
        notes = json.loads(path.read_text())
        names = {image["id"]: image["file_name"] for image in notes["images"]}
        for note in notes["annotations"]:
            found[names[note["image_id"]]].append(note["caption"].strip())
    return {name: tuple(texts) for name, texts in found.items()}


def pixels(image: Image.Image, settings: Source) -> Tensor:
    """Cuts a square out of an image and scales it.

    Arguments:
        image: The image.
        settings: Which part, which size, which filter.

    Returns:
        (3, resolution, resolution), uint8.
    """
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    box = settings.crop or (left, upper, left + side, upper + side)
    size = (settings.resolution, settings.resolution)
    if box != (0, 0, *image.size):
        image = image.crop(box)
    if image.size != size:
        image = image.resize(size, _FILTERS[settings.resample])
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.reshape(*size, 3).permute(2, 0, 1).contiguous()


def scaled(images: Tensor) -> Tensor:
    """From bytes to what networks see, in [-1, 1]."""
    return images.float() / 127.5 - 1


class Examples(Dataset[dict[str, Any]]):
    """Training examples in pixel space: `x0`, and `y` for a class-conditional backbone."""

    def __init__(self, experiment: Experiment, images: Images | None = None) -> None:
        self.settings, self.guidance = experiment.source, experiment.guidance
        self.images = images or open_images(experiment.source)
        self.null = experiment.backbone.shape.num_classes - 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.images[index]
        x0 = scaled(pixels(item.image, self.settings))
        if self.settings.flip and float(torch.rand(())) < 0.5:
            x0 = x0.flip(-1)
        if self.guidance is None:
            return {"x0": x0}
        dropped = float(torch.rand(())) < self.guidance.drop
        return {"x0": x0, "y": self.null if dropped else known(item.label)}


def known(label: int | None) -> int:
    """The label, which a class-conditional backbone needs.

    Raises:
        ConfigError: If there is none.
    """
    if label is None:
        raise ConfigError(
            "the images have no classes, and the backbone wants some. Set source.classes = true "
            "(a folder for each class) or source.label_column."
        )
    return label


def grid(images: Images, numbers: Sequence[int], settings: Source) -> Tensor:
    """Several images as they are compared with: no flips, (B, 3, H, W), uint8."""
    return torch.stack([pixels(images[i].image, settings) for i in numbers])
