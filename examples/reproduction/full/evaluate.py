"""Judges samples: `python -m examples.reproduction.full.evaluate cifar10 SAMPLES... --out DIR`.

FID, executed MACs, wall clock; one JSON file and one row of a Markdown table for each folder of
samples. Damaged or missing shards are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from exitkit.errors import CheckpointError, ConfigError

from .config import Experiment
from .fid import Frechet
from .loading import arguments, from_arguments
from .shards import IDENTITY, Facts, ShardError, Shards, replace
from .sources import grid, open_images

Row = dict[str, Any]

COLUMNS = {
    "experiment": "Data",
    "exits": "Exits",
    "threshold": "Threshold",
    "samples": "Samples",
    "fid": "FID",
    "gflops_per_forward": "GFLOPs a forward",
    "cost": "Cost",
    "layers": "Layers",
    "gflops_per_image": "GFLOPs an image",
    "seconds_per_image": "Seconds an image",
    "decode_seconds_per_image": "Decoding",
    "device": "Device",
}


def evaluate(experiment: Experiment, folder: Path, frechet: Frechet) -> Row:
    """Judges one folder of samples.

    Arguments:
        experiment: The experiment that they are samples of.
        folder: What `sample` wrote.
        frechet: The distance, with its real side.

    Returns:
        The row: see `COLUMNS`. A multiply-accumulate counts as two operations; `cost` is executed
        over full MACs, heads included.

    Raises:
        CheckpointError: If shards are missing or damaged, or belong to another experiment.
    """
    described = folder / IDENTITY
    if not described.is_file():
        raise CheckpointError(f"{folder} holds no samples of examples.reproduction.full.sample.")
    identity = json.loads(described.read_text())
    if identity["experiment"] != experiment.name:
        raise CheckpointError(f"{folder}: samples of {identity['experiment']!r}.")
    shards = Shards(folder, experiment.sampling.count, int(identity["size"]))
    facts: list[Facts] = []
    fid = frechet.distance(_images(shards, facts))
    count = shards.count

    def total(name: str) -> float:
        return float(sum(fact[name] for fact in facts))

    policy, forwards = identity["policy"], total("forwards")
    return {
        "experiment": experiment.name,
        "exits": identity["exits"] or "none",
        "threshold": policy.get("threshold"),
        "samples": count,
        "fid": fid,
        "features": frechet.name,
        "gflops_per_forward": 2e-9 * total("macs") / forwards,
        "cost": total("macs") / total("full_macs"),
        "layers": sum(fact["layer_ratio"] * fact["forwards"] for fact in facts) / forwards,
        "gflops_per_image": 2e-9 * total("macs") / count,
        "macs_per_image": total("macs") / count,
        "seconds_per_image": total("seconds") / count,
        "decode_seconds_per_image": total("decode_seconds") / count,
        "batch": shards.size,
        "depths": [sum(each) for each in zip(*(fact["depths"] for fact in facts), strict=True)],
        "device": ", ".join(sorted({fact["device"] for fact in facts})),
        "sampling": identity["sampling"],
        "policy": policy,
        "weights": identity["weights"],
    }


def _images(shards: Shards, facts: list[Facts]) -> Iterator[Tensor]:
    """All images, each number once; collects what else the shards say."""
    seen = 0
    try:
        for tensors, fact in shards:
            wanted = torch.tensor(shards.items(len(facts)))
            if not torch.equal(tensors["seeds"], wanted) or len(tensors["images"]) != len(wanted):
                raise ShardError(f"{shards.path(len(facts))}: its seeds are not its items.")
            facts.append(fact)
            seen += len(wanted)
            yield tensors["images"]
    except ShardError as error:
        missing, _ = shards.survey()
        raise CheckpointError(
            f"{error} {len(missing)} of {len(shards)} shards have to be made: run "
            "examples.reproduction.full.sample again with the same settings."
        ) from error
    assert seen == shards.count


def reference(experiment: Experiment, frechet: Frechet, kept: Path | None, limit: int) -> None:
    """Fills the real side: from a kept file, published statistics, or the images.

    Arguments:
        experiment: The experiment.
        frechet: The distance.
        kept: File to read the statistics from, or to keep them in.
        limit: Real images at most; 0 for all.

    Raises:
        ConfigError: If the statistics are those of other features.
    """
    source = experiment.source
    if kept is not None and kept.exists():
        state = load_file(kept)
        if state["real_features_sum"].shape != frechet.metric.real_features_sum.shape:
            raise ConfigError(f"{kept} was made with other features than {frechet.name}.")
        frechet.put_real_state(state)
        return
    if source.statistics is not None:
        frechet.set_real(source.statistics)
        return
    images = open_images(source)
    numbers = range(len(images) if not limit else min(limit, len(images)))
    frechet.add_real(grid(images, part, source) for part in _parts(numbers, 128))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace(kept, save(frechet.real_state()))


def _parts(numbers: range, size: int) -> Iterator[range]:
    return (numbers[first : first + size] for first in range(0, len(numbers), size))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = [row[name] for name in COLUMNS]
        shown = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append(f"| {' | '.join(shown)} |".replace("None", "-"))
    return "\n".join(lines) + "\n"


def export(shards: Shards, folder: Path) -> None:
    """Writes samples as numbered PNG files, for other tools."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for tensors, _ in shards:
        for seed, image in zip(tensors["seeds"].tolist(), tensors["images"], strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{seed:06d}.png")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = arguments("evaluate", __doc__)
    parser.add_argument("samples", nargs="+", type=Path, help="folders that `sample` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--features", help="module:function of a network instead of Inception")
    parser.add_argument("--inception", type=Path, help="file of Inception's weights")
    parser.add_argument("--reference", type=Path, help="file that keeps the real side's statistics")
    parser.add_argument("--real", type=int, default=0, help="real images at most; 0 for all")
    parser.add_argument("--png", type=Path, help="also write the samples as PNG files")
    args = parser.parse_args(argv)
    experiment = from_arguments(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frechet = Frechet(args.features, experiment.source.resolution, args.inception, device)
    reference(experiment, frechet, args.reference, args.real)
    rows = []
    for folder in args.samples:
        rows.append(evaluate(experiment, folder, frechet))
        if args.png:
            shards = Shards(folder, rows[-1]["samples"], rows[-1]["batch"])
            export(shards, args.png / folder.name)
    args.out.mkdir(parents=True, exist_ok=True)
    replace(args.out / "results.json", json.dumps(rows, indent=2).encode())
    replace(args.out / "results.md", table(rows).encode())
    print(table(rows))


if __name__ == "__main__":
    main()
