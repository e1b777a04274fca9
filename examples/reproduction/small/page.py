"""The page "What the paper says and what we measured", from the jobs that are done."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """Something the article says, and where to look for it here.

    Attributes:
        job: Name of the job.
        says: The claim, with the article's numbers.
        better: Row that the article finds better.
        worse: Row that it finds worse.
        remark: Why ours may differ, or what the article leaves out.
    """

    job: str
    says: str
    better: str
    worse: str
    remark: str


CLAIMS = (
    Claim(
        "table1_unconditional",
        "Fine-tuning with exits improves the full model (CIFAR-10: FID 3.11 to 2.70)",
        "adadiff paper, no exit",
        "full",
        "The article's fine-tuning adds 60 % of the images of the pretraining; here it is 300 steps. "
        "Equation 11 sums over exits, so that they outweigh the full model's own loss; with the "
        "released code's weights, which sum to one, the U-ViT stays itself (policies_uvit).",
    ),
    Claim(
        "table1_unconditional",
        "AdaDiff beats BERxiT (3.7 at -47.7 % against 20.5 at -20.5 %)",
        "adadiff paper",
        "berxit",
        "All rows here have heads trained equally long and meet the same budget.",
    ),
    Claim(
        "table1_unconditional",
        "AdaDiff beats CALM (3.7 at -47.7 % against 20.0 at -20.5 %)",
        "adadiff paper",
        "calm meta",
        "As above. Where all rows decide alike, cost jumps over the budget, and the row stands at another "
        "cost: the notes of the page tell.",
    ),
    Claim(
        "table1_unconditional",
        "A dynamic exit beats one exit for all (CelebA: 3.9 at -46.2 % against 5.04 at -32.1 %)",
        "adadiff paper",
        "static",
        "Probably because this sampler does not clip the predicted image, so that an exit's error at high "
        "noise is amplified; tested under DDIM and DPM-Solver++ only (benchmarks/results/clipping.md).",
    ),
    Claim(
        "table2_unconditional_unet",
        "The method carries over to CNNs",
        "adadiff paper",
        "berxit",
        "The article's CNN results are in a supplement that we have not seen.",
    ),
    Claim(
        "table3_class_conditional",
        "Class-conditional: AdaDiff beats BERxiT (4.5 at -45.2 % against 23.5 at -17.8 %)",
        "adadiff paper",
        "berxit",
        "With the predicted image clipped to its range, as DDIM does by default. Without, exits run away "
        "(benchmarks/results/clipping.md): neither the solver's order nor branches that leave apart do that.",
    ),
    Claim(
        "table3_class_conditional",
        "Class-conditional: AdaDiff beats CALM (4.5 at -45.2 % against 21.4 at -19.3 %)",
        "adadiff paper",
        "calm meta",
        "",
    ),
    Claim(
        "table3_class_conditional",
        "A dynamic exit beats one exit for all, by class",
        "adadiff paper",
        "static",
        "",
    ),
    Claim(
        "table4_text_guided",
        "Text-guided: AdaDiff beats BERxiT (7.40 at -43.6 % against 18.9 at -10.0 %)",
        "adadiff paper",
        "berxit",
        "Clipped, as for class-conditional generation.",
    ),
    Claim(
        "table5_pruning",
        "Exits beat structural pruning of equal cost (4.12 at -47.7 % against 5.29 at -44.2 %)",
        "adadiff paper",
        "structural pruning",
        "The article compares different backbones; here it is the same one.",
    ),
    Claim(
        "table5_pruning",
        "Exits beat a small model from scratch (3.7 against 6.68)",
        "adadiff paper",
        "small model",
        "The small model had 2,400 steps of 64 digits, the exits 300 of 32.",
    ),
    Claim(
        "table6_ablations",
        "Without the layer-wise loss it is worse (3.9 at -46 % against 14.5 at -20 %)",
        "the whole recipe",
        "without layer-wise loss",
        "Exits with an output layer of their own then get no gradient at all; the released code shares "
        "the tail, whose exits always draw something.",
    ),
    Claim(
        "table6_ablations",
        "Uncertainty-aware weights matter (no uniform control in the article)",
        "the whole recipe",
        "uniform weights",
        "The steps of the heads alone weigh evenly in both.",
    ),
    Claim(
        "table6_ablations",
        "One shared uncertainty head is worse (3.9 against 5.7)",
        "the whole recipe",
        "shared uncertainty head",
        "",
    ),
    Claim(
        "table6_ablations",
        "The whole model has to be trained",
        "the whole recipe",
        "frozen backbone",
        "Two reimplementations found the opposite.",
    ),
)


PAGES = (
    ("Table 1, unconditional, U-ViT, Euler-Maruyama 1000", "table1_unconditional.md"),
    ("Table 2, unconditional, a CNN", "table2_unconditional_unet.md"),
    ("Table 3, by class, guided, DPM-Solver 50", "table3_class_conditional.md"),
    ("Table 4, by text, guided, DPM-Solver 50", "table4_text_guided.md"),
    ("Table 5, pruning and small networks, DDIM 100", "table5_pruning.md"),
    ("Table 6, ablations", "table6_ablations.md"),
    ("Figure 1, error of each exit against the full output", "error_by_layer.png"),
    ("Figure 3, the same error along the timesteps", "loss_by_timestep.png"),
    ("Figure 5, quality against cost", "tradeoff.png"),
    ("Figure 6, uncertainty maps", "uncertainty_*.png"),
    ("Every policy, U-ViT", "policies_uvit.md"),
    ("Every policy, DiT with guidance", "policies_dit.md"),
    ("Every policy, UNet", "policies_unet.md"),
)
"""What the article shows, and the page or picture here. Numbers of figures differ between versions."""


def load(work: Path) -> dict[str, Rows]:
    """Rows of the jobs that are done, by job and name."""
    found = {}
    for path in sorted(work.glob("*.json")):
        data = json.loads(path.read_text())
        found[path.stem] = {row["name"]: row for row in data["rows"]}
    return found


def _number(row: dict[str, Any]) -> str:
    distance = row["distance"]
    middle, low, high = distance["mean"], distance["low"], distance["high"]
    frechet = row.get("frechet")
    shown = f"distance {middle:.3f} [{low:.3f}, {high:.3f}] at cost {row['cost']:.2f}"
    return shown if frechet is None else f"Fréchet {frechet:.1f}, {shown}"


def verdict(better: dict[str, Any], worse: dict[str, Any]) -> str:
    """Whether two rows agree with the article, by Fréchet distance, the article's measure."""
    a, b = better.get("frechet"), worse.get("frechet")
    if a is None or b is None:
        a, b = better["distance"]["mean"], worse["distance"]["mean"]
    if abs(a - b) < 0.05 * max(a, b):
        return "no difference"
    return "agrees" if a < b else "contradicts"


def _pages(out: Path, say: Callable[[str], None]) -> list[str]:
    """A line for each table and figure, with links to what there is."""
    lines = []
    for title, pattern in PAGES:
        found = sorted(path.name for path in out.glob(pattern))
        if not found:
            say(f"not there yet: {title}")
        links = ", ".join(f"[{name}]({name})" for name in found) or "not measured yet"
        lines.append(f"- {title}: {links}")
    return lines


def write(work: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Writes the page.

    Args:
        work: Folder of the finished jobs.
        out: Folder for the page.
        say: Told of claims whose job is not done.

    Returns:
        The page.
    """
    jobs = load(work)
    lines = [
        "# What the paper says and what we measured",
        "",
        "The article: AdaDiff (arXiv 2309.17074). Its numbers are FID-50k on CIFAR-10, CelebA,",
        "ImageNet and MS-COCO with networks of 44 M to 287 M parameters; ours are Fréchet distances",
        "in the feature space of a digit classifier, on digits, with networks of 0.7 M to 3 M. What",
        "can be compared is the direction: which of two rows is better. Within 5 % it is called no",
        "difference. Distances are paired with the full model's image of the same seed.",
        "",
        "## Tables and figures",
        "",
        *_pages(out, say),
        "",
        "## Claims",
        "",
        "| The article says | better there | worse there | here |",
        "|---|---|---|---|",
    ]
    remarks = []
    for claim in CLAIMS:
        rows = jobs.get(claim.job)
        if rows is None or claim.better not in rows or claim.worse not in rows:
            say(f"no result yet for: {claim.says}")
            lines.append(f"| {claim.says} | {claim.better} | {claim.worse} | not measured yet |")
            continue
        better, worse = rows[claim.better], rows[claim.worse]
        said = verdict(better, worse)
        lines.append(
            f"| {claim.says} | {claim.better}: {_number(better)} | {claim.worse}: "
            f"{_number(worse)} | [{said}]({claim.job}.md) |"
        )
        if claim.remark:
            remarks.append(f"- {claim.says}: {said}. {claim.remark}")
    lines += ["", "## Remarks", "", *remarks, ""]
    lines += ["## What the article does not compare with", ""]
    for job, rows in jobs.items():
        fewer = [r for r in rows.values() if r["kind"] == "fewer steps"]
        policies = [r for r in rows.values() if r["kind"] == "policy"]
        if not fewer or not policies:
            continue
        nearest = min(fewer, key=lambda r: abs(r["cost"] - 0.55))
        best = min(policies, key=lambda r: r["distance"]["mean"])
        beaten = sum(r["distance"]["mean"] < nearest["distance"]["mean"] for r in policies)
        lines.append(
            f"- [{job}]({job}.md): {nearest['name']}: {_number(nearest)}. {beaten} of "
            f"{len(policies)} policies are closer to the full run; the closest is {best['name']}: "
            f"{_number(best)}."
        )
    path = out / "paper.md"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
