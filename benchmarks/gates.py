"""What a gate costs beside its block: 24 blocks so small that Python is all there is.

    python -m benchmarks.gates                     # this tree alone
    python -m benchmarks.gates --base ../other     # beside another checkout, in turns

Each round runs one process a tree, one after the other, the first in turns. A number is the smallest
CPU time of a case over its repetitions, less that of the bare network in the same process, for each of
the 24 gates; of the rounds the median is shown. CPU time of tiny operations swings by a tenth on a
machine that does other things, so read ratios, not microseconds.

`idle` is what a gate adds to a block that returns what it is given, where no run is open; `module` is
one call of an `nn.Identity`, for comparison. `never` is NeverExit, `fixed` a schedule in
which nobody leaves, `unsure` a threshold at every exit that never fires. `half` is the time of 8 rows of
which half leave at the first of the exits, over that of the bare network on all 8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

BLOCKS, ROWS = 24, 8
PAGE = Path(__file__).parent / "results" / "gates.md"
GOALS = {"idle": 0.33, "never": 0.46, "fixed": 0.56, "unsure": 0.42}


class Block(nn.Module):
    """A residual MLP on 16 tokens of 16 channels; nothing at all where it is `quiet`."""

    quiet = False

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Maps tokens (B, T, D) and a shift (B, D) to tokens."""
        if self.quiet:
            return x
        inner = self.wide(self.norm(x) + shift[:, None])
        out: Tensor = x + self.narrow(nn.functional.gelu(inner))
        return out


class Net(nn.Module):
    """24 such blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.time = nn.Linear(4, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.tail = nn.Linear(width, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Maps (B, T, 4) and timesteps (B,) to (B, T, 4)."""
        h, shift = self.stem(x), self.time(t.float().view(-1, 1) / 1000)
        for block in self.blocks:
            h = block(h, shift)
        out: Tensor = self.tail(h)
        return out


def measure(repetitions: int) -> dict[str, float]:
    """Measures the exitkit that this process imports.

    Arguments:
        repetitions: Repetitions of each case, of two calls each.

    Returns:
        Microseconds of the bare network a block; of each case, on top of it, a gate; of a module's
        call; `half` as ratio.
    """
    import exitkit as ek
    from exitkit.policies import NeverExit, Policy, ScriptedExit, UncertaintyThreshold

    torch.manual_seed(0)
    torch.set_num_threads(1)
    one = torch.randn(1, 16, 4), torch.randint(1, 1000, (1,))
    many = torch.randn(ROWS, 16, 4), torch.randint(1, 1000, (ROWS,))
    net, bare = Net().eval(), Net().eval()
    model = ek.wrap(net, "relative", example_inputs=one, exits=("blocks.*",))
    for head in (model.heads, *model.heads.modules()):
        getattr(head, "mark", lambda: None)()  # as fitted ones run; the other checkout has no marks
    full = len(model.exits) + 1

    def under(policy: Policy, args: tuple[Tensor, ...]) -> Callable[[], object]:
        def call() -> object:
            model.policy = policy
            return model(*args)

        return call

    cases: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(*one),
        "never": under(NeverExit(), one),
        "fixed": under(ScriptedExit((full,)), one),
        "unsure": under(UncertaintyThreshold(1e-9), one),
        "bare rows": lambda: bare(*many),
        "half": under(ScriptedExit((1, full) * (ROWS // 2)), many),
    }
    best = dict.fromkeys(cases, float("inf"))
    with torch.no_grad():
        for call in cases.values():
            call()
        for _ in range(repetitions):
            for name, call in cases.items():
                begun = time.process_time()
                for _ in range(2):
                    call()
                best[name] = min(best[name], (time.process_time() - begun) / 2 * 1e6)
    found = {name: (best[name] - best["bare"]) / BLOCKS for name in GOALS if name in best}
    half = {"half": best["half"] / best["bare rows"]}
    return {"bare": best["bare"] / BLOCKS, **measure_idle(net, bare), **found, **half}


def measure_idle(net: Net, bare: Net) -> dict[str, float]:
    """Measures gates without a run, on blocks that do nothing.

    Arguments:
        net: The network with gates.
        bare: The same network without.

    Returns:
        Microseconds that a gate adds to its block, and those of a call of an `nn.Identity`.
    """
    h, shift = torch.randn(1, 16, 16), torch.randn(1, 16)
    stacks: dict[str, list[nn.Module]] = {
        "gated": [*net.blocks],
        "bare": [*bare.blocks],
        "module": [nn.Identity() for _ in range(BLOCKS)],
    }
    best = dict.fromkeys(stacks, float("inf"))
    Block.quiet = True
    try:
        for _ in range(200):
            for name, stack in stacks.items():
                args = (h,) if name == "module" else (h, shift)
                begun = time.process_time()
                for _ in range(20):
                    for block in stack:
                        block(*args)
                best[name] = min(best[name], (time.process_time() - begun) / 20 / BLOCKS * 1e6)
    finally:
        Block.quiet = False
    return {"idle": best["gated"] - best["bare"], "module": best["module"]}


def child(root: Path, repetitions: int) -> dict[str, float]:
    """Measures the exitkit of a checkout in a process of its own."""
    roots = os.pathsep.join(map(str, (root, root / "adapters")))
    environment = {**os.environ, "PYTHONPATH": roots, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", "--repetitions", str(repetitions)]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"The measurement in {root} failed:\n{run.stderr[-2000:]}")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def page(mine: list[dict[str, float]], base: list[dict[str, float]]) -> str:
    """The page: one line a case, medians of the rounds."""
    about = (__doc__ or "").split("\n\n", 2)
    lines = [f"# {about[0]}", "", about[2].strip(), "", f"Rounds: {len(mine)}.", ""]
    lines += ["| case | µs a gate | before | ratio | goal |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, goal in {"bare": None, "module": None, **GOALS, "half": 1.4}.items():
        now, then = (median(r[name] for r in rows) if rows else None for rows in (mine, base))
        assert now is not None
        unit = "" if name == "half" else " µs"
        ratio = f"{now / then:.2f}" if then and name in GOALS else "-"
        before = f"{then:.2f}{unit}" if then is not None else "-"
        wanted = "-" if goal is None else f"{goal:.2f}"
        lines.append(f"| {name} | {now:.2f}{unit} | {before} | {ratio} | {wanted} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the page, and writes it with `--write`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path, help="another checkout of exitkit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.repetitions)))
        return
    here, found = Path(__file__).resolve().parent.parent, ([], [])
    trees = [(here, found[0])] + ([(args.base.resolve(), found[1])] if args.base else [])
    for number in range(args.rounds):
        for root, rows in trees[:: 1 if number % 2 else -1]:
            rows.append(child(root, args.repetitions))
    text = page(*found)
    print(text)
    if args.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
