"""What `wrap` costs: forward passes, seconds and memory on a DiT, a U-ViT, a Flux and an SD-UNet.

    python -m benchmarks.wrapping          # all four, some minutes
    python -m benchmarks.wrapping flux     # one of them

Each line runs in a process of its own, since the peak of memory belongs to a process. `forward` runs
the bare model once on three rows, as many as the largest dry run has; `wrap` wraps it with the preset
`carried` and does nothing else. Forwards are those of the dry runs and of the experiments that tell where
rows go on (docs/landing.rst); seconds are also given in forwards of three rows, which a loaded machine
changes less. The peak is compared with that of one forward and the heads. The C library is told to give
freed memory back at once (MALLOC_MMAP_THRESHOLD_): with its defaults the pages that it keeps for later
would be counted as if they were in use.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

import exitkit as ek
from examples.reproduction.models.uvit import UViT
from examples.reproduction.models.uvit_configs import UViTConfig

RESULTS = Path(__file__).parent / "results"
ROWS = 3
TIMES = torch.tensor([100.0, 500.0, 900.0])

Inputs = dict[str, Any]


def _dit() -> tuple[nn.Module, Inputs]:
    model = diffusers.DiTTransformer2DModel(
        num_layers=12, num_attention_heads=10, attention_head_dim=64, sample_size=16
    )
    labels = torch.tensor([1, 2, 3])
    latents = torch.randn(ROWS, 4, 16, 16)
    return model, {"hidden_states": latents, "timestep": TIMES.long(), "class_labels": labels}


def _uvit() -> tuple[nn.Module, Inputs]:
    model = UViT(UViTConfig(16, 2, 4, 640, depth=12, num_heads=10))
    return model, {"x": torch.randn(ROWS, 4, 16, 16), "timesteps": TIMES}


def _flux() -> tuple[nn.Module, Inputs]:
    model = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=6,
        num_single_layers=12,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=256,
        pooled_projection_dim=256,
        axes_dims_rope=(8, 28, 28),
        guidance_embeds=True,
    )
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    inputs = {
        "hidden_states": torch.randn(ROWS, 64, 64),
        "encoder_hidden_states": torch.randn(ROWS, 16, 256),
        "pooled_projections": torch.randn(ROWS, 256),
        "timestep": TIMES / 1000,
        "img_ids": torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(16, 3),
        "guidance": torch.full((ROWS,), 3.5),
    }
    return model, inputs


def _unet() -> tuple[nn.Module, Inputs]:
    model = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 128, 256, 256), cross_attention_dim=256
    )
    latents, words = torch.randn(ROWS, 4, 16, 16), torch.randn(ROWS, 16, 256)
    return model, {"sample": latents, "timestep": TIMES, "encoder_hidden_states": words}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "dit": _dit,
    "uvit": _uvit,
    "flux": _flux,
    "unet": _unet,
}


_CALLS: list[int] = []  # rows of each forward; a hook's own variables are put back after dry runs


def _count(_: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> None:
    _CALLS.append(len(next(iter((*args, *kwargs.values())))))


def measure(name: str, what: str, end: Connection) -> None:
    """Sends parameters, forwards, rows, seconds and the peak of memory in MiB."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, inputs = NETWORKS[name]()
    model.eval()
    for parameter in model.parameters():  # zero-initialised gates would hide the blocks
        torch.nn.init.normal_(parameter, std=0.02)
    heads = 0
    handle = model.register_forward_pre_hook(_count, with_kwargs=True)
    start = time.perf_counter()
    if what == "wrap":
        wrapped = ek.wrap(model, "carried", example_inputs=inputs)
        heads = sum(t.numel() * t.element_size() for t in wrapped.heads.state_dict().values())
    elif what == "forward":
        with torch.no_grad():
            model(**inputs)
    seconds = time.perf_counter() - start
    handle.remove()
    end.send(
        {
            "network": name,
            "what": what,
            "parameters": sum(p.numel() for p in model.parameters()),
            "forwards": len(_CALLS),
            "rows": sum(_CALLS),
            "seconds": round(seconds, 2),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "heads_mib": round(heads / 2**20, 1),
        }
    )


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """The table, a line for each network."""
    lines = [
        "| network | parameters | forwards of `wrap` | rows | seconds | in forwards of 3 rows | peak MiB "
        "| of one forward and heads |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    by = {(row["network"], row["what"]): row for row in rows}
    for name in dict.fromkeys(row["network"] for row in rows):
        one, wrap = by[name, "forward"], by[name, "wrap"]
        share = wrap["peak_mib"] / (one["peak_mib"] + wrap["heads_mib"])
        cells = (
            name,
            f"{wrap['parameters'] / 1e6:.0f} M",
            wrap["forwards"],
            wrap["rows"],
            f"{wrap['seconds']:.1f}",
            f"{wrap['seconds'] / one['seconds']:.1f}",
            f"{wrap['peak_mib']:.0f}",
            f"{share:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", help="all if none is given, and then written down")
    chosen = parser.parse_args().networks or list(NETWORKS)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "100000"
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in chosen:
        for what in ("forward", "wrap"):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(name, what, theirs))
            process.start()
            rows.append(mine.recv())
            process.join()
            print(json.dumps(rows[-1]), flush=True)
    lines = summary(rows)
    print("\n".join(lines))
    if chosen != list(NETWORKS):
        return
    text = (__doc__ or "") + "\n" + "\n".join(lines) + "\n"
    (RESULTS / "wrapping.md").write_text("# What wrapping costs\n\n" + text.split("\n", 2)[2])
    (RESULTS / "wrapping.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
