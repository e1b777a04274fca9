"""A text-guided pipeline at half of its cost, from wrap to exits loaded in another process.

    python -m benchmarks.pixart --solvers dpm++        # two minutes on one core; ddim five
    python -m benchmarks.pixart --solvers ddim --seeds 30 --rollouts 16 --calibration 16

The shipped PixArt on digits, with MiniLM as its text encoder and guidance of 1.5; every caption of the
training. Distance: root mean square difference of the final pictures, in [-1, 1], to the full pipeline's
of the same seed. "Right": pictures in which a classifier sees the digit that the prompt asks for.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

import exitkit as ek
from examples.reproduction.models.captions import WORDS, every_caption
from examples.reproduction.models.models import load_classifier
from examples.reproduction.models.pixart_pipeline import CALL, pixart_pipeline, request

CAPTIONS = every_caption()[1:]
SOLVERS: dict[str, tuple[Any, int]] = {
    "dpm++": (DPMSolverMultistepScheduler, 20),
    "ddim": (DDIMScheduler, 50),
}
FIRST = 100_000
"""Seed that comparing counts from."""


def pipeline(solver: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline under a solver, and the keywords of every call."""
    kind, steps = SOLVERS[solver]
    pipe = pixart_pipeline()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe, {**CALL, "num_inference_steps": steps}


def sampler_of(pipe: Any, call: dict[str, Any]) -> ek.PipelineSampler:
    calls = [request(caption) for caption in CAPTIONS]
    return ek.PipelineSampler(pipe, calls, rows=16, **call)


def drawn(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """One picture by the pipeline itself."""
    noise = torch.Generator().manual_seed(1)
    asked = request("a handwritten seven")
    return pipe(**asked, **call, generator=noise, output_type="latent").images


def again(solver: str, folder: Path) -> None:
    """What another process does: the pipeline, its exits, a picture."""
    pipe, call = pipeline(solver)
    ek.load(pipe, folder)
    save_file({"picture": drawn(pipe, call).contiguous()}, folder / "again.safetensors")


def story(solver: str, preset: str, args: argparse.Namespace) -> list[str]:
    """The eight lines; rows of the table."""
    pipe, call = pipeline(solver)
    model = ek.wrap(pipe, preset, example_inputs={**request(CAPTIONS[7]), **call})
    sampler = sampler_of(pipe, call)
    rollouts = ek.Rollouts(model, sampler, seeds=args.rollouts)
    ek.fit(model, rollouts, steps=args.steps, progress=False)
    found = ek.calibrate(
        model, sampler, budget=0.5, policy="schedule", seeds=args.calibration, progress=False
    )
    model.policy = found.policy
    picture = drawn(pipe, call)
    spent = model.trace.cost
    metrics = ek.Metrics(classifier=load_classifier(), pictures=args.seeds, exits=False)
    entry = ek.Entry(preset, model)
    comparison = ek.compare([entry], sampler, seeds=args.seeds, metrics=metrics, progress=False)
    print(comparison, flush=True)
    with TemporaryDirectory() as kept:
        model.save_pretrained(kept)
        command = [sys.executable, "-m", "benchmarks.pixart", "--again", kept, "--solvers", solver]
        subprocess.run(command, check=True)
        same = torch.equal(load_file(Path(kept) / "again.safetensors")["picture"], picture)
    print(f"{solver} {preset}: {found}; one picture {spent:.3f}; same bits elsewhere: {same}")
    lines = []
    for row in comparison.rows:
        right = correct(comparison.images[row.name])
        lines.append(
            f"| {solver} {SOLVERS[solver][1]} | {preset} | {row.name} | {row.cost:.3f} | {row.distance} "
            f"| {right:.1%} | {'yes' if same else 'NO'} |"
        )
    return lines


def correct(pictures: torch.Tensor) -> float:
    """Share of pictures that show what was asked for."""
    asked = [CAPTIONS[(FIRST + i) % len(CAPTIONS)].split()[-1] for i in range(len(pictures))]
    digits = torch.tensor([WORDS.index(word) for word in asked])
    with torch.no_grad():
        return float((load_classifier()(pictures).argmax(dim=1) == digits).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--presets", nargs="+", default=["carried"])
    parser.add_argument("--seeds", type=int, default=60, help="pictures that rows are compared on")
    parser.add_argument("--rollouts", type=int, default=64, help="trajectories of the fit")
    parser.add_argument("--calibration", type=int, default=32, help="pictures of the calibration")
    parser.add_argument("--steps", type=int, default=100, help="of the fit of carried exits")
    parser.add_argument("--out", type=Path, help="a page that the rows are written to")
    parser.add_argument("--again", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.again is not None:
        return again(args.solvers[0], args.again)
    lines = [
        "| sampler | preset | row | cost | distance (95 %) | right | loaded: same bits |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for solver in args.solvers:
        for preset in args.presets:
            lines += story(solver, preset, args)
            print("\n".join(lines), flush=True)
    if args.out is not None:
        write(args.out, lines)


def write(page: Path, lines: list[str]) -> None:
    """Adds rows to a page, under the command that they are from."""
    said = sys.argv[1:]
    if "--out" in said:
        at = said.index("--out")
        del said[at : at + 2]
    title, _, what = (__doc__ or "").split("\n\n")[:3]
    before = page.read_text() if page.is_file() else f"# {title.rstrip('.')}\n\n{what}"
    page.write_text(
        f"{before}\n`python -m benchmarks.pixart {' '.join(said)}`\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
