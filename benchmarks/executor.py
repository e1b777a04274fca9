"""What the executor costs, and how much of the work that is saved turns into time.

    python -m benchmarks.executor                     # all models, 1 and 2 threads, minutes
    python -m benchmarks.executor --models tiny --rounds 1 --threads 1

All rivals run in one process, interleaved, each round starting at the next one; a number is the
median over rounds of the ratio within a round. Rounds in which other processes used more than 3 %
of the machine are left out of the wall-clock columns, and the table says how many were kept. CPU
time of this process is shown beside it over all rounds: it is less hurt by neighbours, but counts
page faults. `again` is the bare model a second time, as another object over the same weights: how
far its ratio is from 1 is what this machine cannot tell apart.

| goal | bound |
| --- | --- |
| time ratio over executed-MACs share, depths spread uniformly | 1.06 |
| NeverExit over the bare model | 1.01 |
| an uncertainty policy that never fires over the bare model | 1.05 |
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

import exitkit as ek
from examples.reproduction.models.uvit import UViT, UViTConfig
from exitkit.evaluation.timing import interleave
from exitkit.policies import NeverExit, Policy, ScriptedExit, UncertaintyThreshold

RESULTS = Path(__file__).parent / "results"
MAX_FOREIGN = 0.03
GOALS = {"spread": 1.06, "never": 1.01, "unsure": 1.05}


@dataclass(frozen=True)
class Setting:
    """A model and what it is called with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    batch: int = 8


def _images(side: int) -> Callable[[int], tuple[Tensor, ...]]:
    def draw(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, 3, side, side, generator=generator)
        return x, torch.randint(0, 1000, (batch,), generator=generator)

    return draw


def _unet() -> nn.Module:
    from diffusers import UNet2DModel

    model: nn.Module = UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
    )
    return model


SETTINGS = {
    # 13 blocks, 257 tokens, 44 M parameters: the paper's CIFAR-10 model.
    "uvit": Setting(
        lambda: UViT(UViTConfig(32, 2, 3, embed_dim=512, depth=12, num_heads=8)), _images(32)
    ),
    "unet": Setting(_unet, _images(32)),
    # Small enough to be bound by Python: the nearest a CPU comes to a GPU waiting for launches.
    "tiny": Setting(
        lambda: UViT(UViTConfig(16, 2, 3, embed_dim=64, depth=12, num_heads=4)), _images(16)
    ),
}


@dataclass(frozen=True)
class Row:
    """Ratios of one rival to the bare model.

    Attributes:
        cost: Executed MACs over full MACs, heads included.
        wall: Median ratio of wall clock over the quiet rounds; None if there was none.
        low: Its lower quartile.
        high: Its upper quartile.
        cpu: Median ratio of CPU time over all rounds.
        kept: Quiet rounds.
        rounds: All rounds.
        foreign: Median share of the machine that others used.
        milliseconds: Median wall clock of the bare model, all rounds.
    """

    model: str
    threads: int
    batch: int
    rival: str
    cost: float
    wall: float | None
    low: float | None
    high: float | None
    cpu: float
    kept: int
    rounds: int
    foreign: float | None
    milliseconds: float

    @property
    def value(self) -> float | None:
        """What the goal is about: time over cost if rows leave, else time over time."""
        if self.wall is None:
            return None
        return self.wall / self.cost if self.rival == "spread" else self.wall


def spread(exits: int, batch: int) -> tuple[int, ...]:
    """Depths 1..K+1, uniformly over the rows."""
    return tuple(1 + round(exits * row / max(batch - 1, 1)) for row in range(batch))


def twin(module: nn.Module) -> nn.Module:
    """Another object with the same parameters and buffers."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def measure(
    name: str, setting: Setting, threads: int, rounds: int, chosen: Collection[str]
) -> list[Row]:
    """Times all rivals of one model."""
    torch.manual_seed(0)
    bare = setting.build().eval()
    inputs = setting.inputs(setting.batch)
    # The bare model is an object of its own (a wrapped backbone called bare still passes its gates)
    # over the same weights: the same numbers elsewhere in memory take up to 2 % more or less.
    model = ek.wrap(twin(bare), "relative", example_inputs=inputs)
    again = twin(bare)
    rivals: dict[str, Policy] = {
        "never": NeverExit(),
        "unsure": UncertaintyThreshold(1e-6),  # new heads are read as 1
        "spread": ScriptedExit(spread(len(model.exits), setting.batch)),
    }
    rivals = {rival: policy for rival, policy in rivals.items() if rival in chosen}
    cpu: dict[str, list[float]] = {}
    cost: dict[str, float] = {"bare": 1.0}

    def timed(rival: str, call: Callable[[], Any]) -> Callable[[], object]:
        def run() -> object:
            start = time.process_time()
            output = call()
            cpu.setdefault(rival, []).append(time.process_time() - start)
            return output

        return run

    def early(rival: str, policy: Policy) -> Callable[[], object]:
        def call() -> object:
            model.policy = policy
            output = model(*inputs)
            cost[rival] = model.trace.cost
            return output

        return timed(rival, call)

    calls = {"bare": timed("bare", lambda: bare(*inputs))}
    calls["again"] = timed("again", lambda: again(*inputs))
    cost["again"] = 1.0
    calls |= {rival: early(rival, policy) for rival, policy in rivals.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            watch = interleave(calls, rounds=rounds, warmup=1)
    finally:
        torch.set_num_threads(before)
    quiet = [n for n, share in enumerate(watch.foreign) if share is None or share <= MAX_FOREIGN]
    known = [share for share in watch.foreign if share is not None]
    rows = []
    for rival in ("again", *rivals):
        mine, base = watch.seconds[rival], watch.seconds["bare"]
        ratios = [mine[n] / base[n] for n in quiet]
        low, middle, high = _quartiles(ratios)
        cpu_ratios = [a / b for a, b in zip(cpu[rival][1:], cpu["bare"][1:], strict=True)]
        rows.append(
            Row(
                model=name,
                threads=threads,
                batch=setting.batch,
                rival=rival,
                cost=cost[rival],
                wall=middle,
                low=low,
                high=high,
                cpu=median(cpu_ratios),
                kept=len(quiet),
                rounds=rounds,
                foreign=median(known) if known else None,
                milliseconds=1000 * median(base),
            )
        )
    return rows


def _quartiles(values: list[float]) -> tuple[float | None, float | None, float | None]:
    if len(values) < 2:
        return (values[0],) * 3 if values else (None, None, None)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| model | batch | threads | rival | MACs | time / bare (quartiles) | CPU / bare | goal | "
        "met | rounds kept | others used | bare |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        wall = "-" if row.wall is None else f"{row.wall:.3f} ({row.low:.3f}..{row.high:.3f})"
        foreign = "?" if row.foreign is None else f"{row.foreign:.1%}"
        goal, met = GOALS.get(row.rival), "-"
        if row.value is not None and goal is not None:
            met = f"{'yes' if row.value <= goal else 'no'} ({row.value:.3f})"
        bound = "" if goal is None else f"{goal:.2f}"
        lines.append(
            f"| {row.model} | {row.batch} | {row.threads} | {row.rival} | {row.cost:.3f} | {wall} "
            f"| {row.cpu:.3f} | {bound} | {met} | {row.kept} of {row.rounds} | {foreign} "
            f"| {row.milliseconds:.1f} ms |"
        )
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if "model name" in x
        ]
        cpu = f"{len(names)} x {names[0]}" if names else cpu
    return {"cpu": cpu, "torch": torch.__version__, "python": platform.python_version()}


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="Time the executor against the bare model.")
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=["uvit", "unet"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rivals", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder for executor.md and .json"
    )
    options = parser.parse_args(arguments)
    rows = [
        row
        for name in options.models
        for threads in options.threads
        for row in measure(name, SETTINGS[name], threads, options.rounds, options.rivals)
    ]
    about, table = machine(), markdown(rows)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    notes = ", ".join(f"{key} {value}" for key, value in about.items())
    text = (
        f"# Executor\n\n{__doc__}\n{notes}. `MACs` is the executed share, heads included; the goal "
        f"of `spread` is time over MACs.\n\n{table}\n"
    )
    (options.out / "executor.md").write_text(text)
    found = {"machine": about, "rows": [{**asdict(row), "value": row.value} for row in rows]}
    (options.out / "executor.json").write_text(json.dumps(found, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
