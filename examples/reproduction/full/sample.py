"""Draws samples: `accelerate launch -m examples.reproduction.full.sample cifar10 --exits DIR --out DIR`.

Sample i grows from seed i, in a batch that is the same however many processes there are. Started
again, with any number of processes, it makes what is missing. Without `--exits` the full network
draws: the row to compare with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exitkit as ek
from exitkit.evaluation.timing import now
from exitkit.persistence.fingerprint import structure

from .conditions import conditions
from .config import Experiment
from .encode import load_autoencoder
from .loading import arguments, from_arguments
from .models import load_exits, wrap_exits
from .noise import sampler
from .processes import start
from .shards import Facts, Shards

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def sample(
    experiment: Experiment,
    accelerator: Any,
    out: Path,
    exits: Path | None = None,
    threshold: float | None = None,
) -> list[int]:
    """Draws the samples of an experiment.

    Arguments:
        experiment: The experiment.
        accelerator: What `processes.start` made.
        out: Folder of the shards.
        exits: The trained exits; the full network if None.
        threshold: Uncertainty below which a sample leaves; the experiment's if None.

    Returns:
        The shards that this process made.
    """
    settings, device = experiment.sampling, accelerator.device
    if exits is None:
        model = wrap_exits(experiment, device)
        model.policy = ek.policies.NeverExit()
    else:
        model = load_exits(experiment, exits, threshold, device)
    decode = decoder(experiment, device)
    given, scheduler = conditions(experiment), sampler(experiment)

    def make(items: range) -> tuple[dict[str, Tensor], Facts]:
        half = _DTYPES.get(settings.precision)
        with torch.autocast(device.type, half) if half else nullcontext():
            own = ek.Sampler(
                scheduler,
                experiment.sample_shape,
                settings.steps,
                batch_size=len(items),  # a shard is one batch: see `Shards`
                **({} if given is None else given.options()),
            )
            drawn = ek.generate(model, own, items)
        assert drawn.trace is not None
        started = now()
        images = decode(drawn.samples)
        facts = {
            "seconds": drawn.seconds,
            "decode_seconds": now() - started,
            "macs": drawn.trace.macs,
            "full_macs": drawn.trace.full_macs,
            "forwards": drawn.trace.depth.numel(),
            "layer_ratio": drawn.trace.layer_ratio,
            "depths": drawn.trace.histogram().sum(0)[1:].tolist(),
            "device": device_name(device),
        }
        return {"images": images, "seeds": torch.tensor(items)}, facts

    shards = Shards(out, settings.count, settings.shard)
    return shards.fill(identity(experiment, model, exits), accelerator, make)


def decoder(experiment: Experiment, device: torch.device, batch: int = 50) -> Any:
    """What turns the network's samples into images: (B, 3, H, W), uint8, on the CPU."""
    latents = experiment.latents
    if latents is None:
        return as_bytes
    autoencoder = load_autoencoder(latents.autoencoder, device)

    @torch.no_grad()
    def decode(samples: Tensor) -> Tensor:
        parts = (samples / latents.scale_factor).split(batch)
        return torch.cat([as_bytes(autoencoder.decode(z.to(device)).sample) for z in parts])

    return decode


def as_bytes(images: Tensor) -> Tensor:
    """From [-1, 1] to 0..255, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def device_name(device: torch.device) -> str:
    """What the seconds were measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def identity(experiment: Experiment, model: ek.ExitModel, exits: Path | None) -> dict[str, Any]:
    """What samples must have in common; `count` may grow."""
    digest = hashlib.sha256()
    judged = model.backbone if exits is None else model
    for name, tensor in sorted(judged.state_dict().items()):
        digest.update(name.encode())
        flat = tensor.detach().cpu().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().tobytes())
    return {
        "experiment": experiment.name,
        "exits": None if exits is None else experiment.exits.preset,
        "policy": model.policy.to_dict(),
        "sampling": experiment.sampling.model_dump(mode="json", exclude={"count", "shard"}),
        "guidance": experiment.guidance and experiment.guidance.scale,
        "autoencoder": experiment.latents and experiment.latents.autoencoder,
        "structure": structure(model.backbone),
        "weights": digest.hexdigest(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = arguments("sample", __doc__)
    parser.add_argument("--exits", type=Path, help="trained exits; the full network if left out")
    parser.add_argument("--preset", help="their preset, if it is not the config's")
    parser.add_argument("--threshold", type=float, help="instead of the config's")
    parser.add_argument("--weights", help="the published U-ViT checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of the samples")
    args = parser.parse_args(argv)
    changes = [f"exits.preset={args.preset}"] if args.preset else []
    changes += [f"backbone.weights={args.weights}"] if args.weights else []
    experiment = from_arguments(args, *changes)
    with start() as accelerator:
        sample(experiment, accelerator, args.out, args.exits, args.threshold)


if __name__ == "__main__":
    main()
