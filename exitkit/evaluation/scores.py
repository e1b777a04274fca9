"""From outputs and traces to the numbers of a row, and to what these numbers cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from exitkit.evaluation.entries import Rival
from exitkit.evaluation.evaluation_set import Runs
from exitkit.evaluation.intervals import bootstrap, distance_ratio
from exitkit.evaluation.metrics import Metrics, frechet_distance
from exitkit.evaluation.rows import Row
from exitkit.sampling.distance import paired_distance

FEW = 16
"""Samples below which nothing is said about a whole set."""
COLLAPSED = 0.8
"""Share of one label from which on labels are taken to be blind."""
FAR = 10.0
"""How many times the distance of two halves of the reference a model may be away from it."""


def sampled(rival: Rival, runs: Runs, full: str, steps: int, metrics: Metrics) -> Row:
    """Measures generated samples.

    Arguments:
        rival: Whose samples.
        runs: What came back.
        full: Name of the full model's row under the same sampler.
        steps: The full model's steps.
        metrics: What is measured.

    Returns:
        The row.
    """
    samples, originals = runs.outputs[rival.name], runs.outputs[full]
    distance = paired_distance(samples, originals)
    against = None
    if rival.opponent is not None:
        fewer = paired_distance(runs.outputs[rival.opponent], originals)
        against = distance_ratio(distance, fewer, seed=metrics.seed)
    trace = runs.traces.get(rival.name)
    part, network = (rival.steps or steps) / steps, rival.kind == "network"
    # A schedule's depth is a function of time by definition: that number would say nothing.
    share = trace.timestep_share() if trace and rival.kind == "policy" else math.nan
    labels = metrics.labels(samples, originals)
    return Row(
        name=rival.name,
        kind=rival.kind,
        family=rival.family,
        model=rival.model,
        sampler=rival.sampler,
        steps=rival.steps,
        count=len(samples),
        cost=(trace.cost if trace else rival.cost or 1.0) * part,
        layers=None if network else (trace.layer_ratio if trace else 1.0) * part,
        clock=runs.clock(rival.name, full) if metrics.clock else None,
        distance=bootstrap(distance, seed=metrics.seed),
        against_steps=against,
        frechet=metrics.frechet(samples, originals),
        kernel=metrics.kernel(samples),
        confidence=labels.confidence if labels else None,
        agreement=labels.agreement if labels else None,
        timestep_share=None if math.isnan(share) else share,
    )


def classified(
    rival: Rival, runs: Runs, labels: Tensor, full_macs: float, batches: int, metrics: Metrics
) -> Row:
    """Measures predicted classes.

    Arguments:
        rival: Whose classes.
        runs: What came back; the full model's row is called "full".
        labels: True classes, (n,).
        full_macs: Multiply-accumulates of the full model for one image.
        batches: Number of batches.
        metrics: What is measured.

    Returns:
        The row.
    """
    classes, trace, seed = runs.outputs[rival.name], runs.traces.get(rival.name), metrics.seed
    right, full_right = ((runs.outputs[n] == labels).double() for n in (rival.name, "full"))
    same = classes == runs.outputs["full"]
    fixed = None
    if rival.opponent is not None:
        theirs = (runs.outputs[rival.opponent] == labels).double()
        fixed = bootstrap(right - theirs, seed=seed)
    asks = trace is not None and rival.kind == "policy" and trace.decisions > 0
    timed = metrics.clock and not (trace and trace.oracle)
    return Row(
        name=rival.name,
        kind=rival.kind,
        family=rival.family,
        model=rival.model,
        count=len(right),
        cost=trace.macs / len(right) / full_macs if trace else rival.cost or 1.0,
        layers=trace.layer_ratio if trace else (1.0 if rival.kind == "full" else None),
        clock=runs.clock(rival.name, "full") if timed else None,
        distance=bootstrap((~same).double(), seed=seed),
        agreement=float(same.double().mean()),
        accuracy=bootstrap(right, seed=seed),
        against_full=bootstrap(right - full_right, seed=seed),
        against_fixed=fixed,
        depth=float(trace.depth.double().mean()) if trace else None,
        class_share=_share(trace.depth[0], labels) if trace and asks else None,
        host_checks=trace.host_checks / batches if trace else None,
    )


def _share(depth: Tensor, labels: Tensor) -> float | None:
    """Share of the variance of depth that the class explains, in [0, 1]; None without variance."""
    depth = depth.double().cpu()
    total = float(depth.var(correction=0))
    if total == 0:
        return None
    groups = [depth[labels == label] for label in labels.unique()]
    within = sum(float(g.var(correction=0)) * len(g) for g in groups) / len(depth)
    return 1 - within / total


def blind_spots(full: Mapping[str, Tensor], metrics: Metrics) -> list[str]:
    """Warns where a measure cannot tell rows apart, because of the full model itself.

    Arguments:
        full: Samples of the full model, by the name of its row: one for each sampler.
        metrics: What is measured.

    Returns:
        The warnings, in sentences.
    """
    found: list[str] = []
    reference = metrics.reference
    for name, images in full.items():
        labels = metrics.labels(images, images) if len(images) >= FEW else None
        if labels is not None and labels.commonest > COLLAPSED:
            found.append(
                f"The classifier gives {labels.commonest:.0%} of the images of {name!r} one "
                "and the same label: confidence and label agreement say nothing here."
            )
        if metrics.features is None or reference is None or len(reference) < FEW:
            continue
        reached = frechet_distance(images, reference, metrics.features)
        floor = frechet_distance(reference[::2], reference[1::2], metrics.features)
        if reached > FAR * floor:
            found.append(
                f"The images of {name!r} are {reached:,.0f} from the reference images by Fréchet "
                f"distance, where two halves of those are {floor:,.3g} apart: the full model does "
                "not draw them well, and its faults are what every distance here is measured to."
            )
    return found
