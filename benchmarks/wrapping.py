"""What `wrap` costs on a large backbone: forward passes, seconds and memory.

    python -m benchmarks.wrapping          # a DiT of 300 M parameters, half a minute

Each line runs in a process of its own, since the peak of memory belongs to a process. `forward` runs
the bare model once on three rows, as many as the largest dry run has; `wrap` wraps it and does
nothing else. The C library is told to give freed memory back at once (MALLOC_MMAP_THRESHOLD_): with
its defaults the pages that it keeps for later would be counted as if they were in use.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel

import exitkit as ek

RESULTS = Path(__file__).parent / "results"
ROWS, SIDE = 3, 32


def backbone() -> DiTTransformer2DModel:
    """A DiT of about 300 M parameters."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_layers=16, num_attention_heads=16, attention_head_dim=64, sample_size=SIDE
    )
    for parameter in model.parameters():  # zero-initialised gates would hide the blocks
        torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def measure(what: str, end: Connection) -> None:
    """Sends parameters, forwards, seconds and the peak of memory in MiB."""
    model = backbone()
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(ROWS, 4, SIDE, SIDE),
        "timestep": torch.tensor([100, 500, 900]),
        "class_labels": torch.tensor([1, 2, 3]),
    }
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = model.register_forward_pre_hook(count)
    start, heads = time.perf_counter(), 0
    if what == "wrap":
        wrapped = ek.wrap(model, "relative", example_inputs=inputs)
        heads = sum(p.numel() * p.element_size() for p in wrapped.heads.parameters())
    elif what == "forward":
        with torch.no_grad():
            model(**inputs)
    seconds = time.perf_counter() - start
    handle.remove()
    end.send(
        {
            "what": what,
            "parameters": sum(p.numel() for p in model.parameters()),
            "forwards": forwards,
            "seconds": round(seconds, 2),
            "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "heads_mib": round(heads / 2**20, 1),
        }
    )


def main() -> None:
    """Prints and writes the table."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "100000"
    context = multiprocessing.get_context("spawn")
    rows = []
    for what in ("load", "forward", "wrap"):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(what, theirs))
        process.start()
        rows.append(mine.recv())
        process.join()
    lines = ["| what | parameters | forwards | seconds | peak MiB | heads MiB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    print("\n".join(lines))
    title = "# What wrapping costs\n\n"
    text = (__doc__ or "") + "\n" + "\n".join(lines) + "\n"
    (RESULTS / "wrapping.md").write_text(title + text.split("\n", 2)[2])
    (RESULTS / "wrapping.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
