"""From images and traces to the numbers of the table, and to what these numbers cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from exitkit.evaluation.entries import Rival, Setup
from exitkit.evaluation.interleave import Outcome
from exitkit.evaluation.metrics import (
    bootstrap,
    distance_ratio,
    frechet_distance,
    label_check,
)
from exitkit.evaluation.rows import Row
from exitkit.evaluation.timing import Stopwatch
from exitkit.execution.trace import Trace
from exitkit.sampling.distance import paired_distance

FEW = 16
"""Images below which nothing is said about a whole set."""
COLLAPSED = 0.8
"""Share of one label from which on labels are taken to be blind."""
FAR = 10.0
"""How many times the distance of two halves of the reference a model may be away from it."""


@dataclass(frozen=True)
class Judge:
    """Turns outcomes into rows, and warns where a measure is blind.

    Attributes:
        full: Name of the full model's rival for each sampler.
        images: Images of every rival by name, in the order of seeds.
        watch: Seconds by batch; None leaves the wall clock out.
        features: Maps images to vectors, or None.
        reference: Real images; the full run's own if None.
        classifier: Maps images to logits, or None.
    """

    full: Mapping[str, str]
    images: Mapping[str, Tensor]
    watch: Stopwatch | None
    features: nn.Module | None
    reference: Tensor | None
    classifier: Callable[[Tensor], Tensor] | None

    def row(self, rival: Rival, outcome: Outcome, setup: Setup) -> Row:
        """Measures what a rival brought back.

        Arguments:
            rival: The rival.
            outcome: What it brought back.
            setup: What all rivals share.

        Returns:
            Its row.
        """
        full = self.full[rival.sampler]
        images, originals = self.images[rival.name], self.images[full]
        distance = paired_distance(images, originals)
        equal = rival.at_equal_cost
        against = None
        if equal is not None:
            against = distance_ratio(distance, paired_distance(self.images[equal], originals))
        trace = Trace.join(outcome.traces) if outcome.traces else None
        part, network = rival.steps / setup.steps, rival.kind == "network"
        # A schedule's depth is a function of time by definition: that number would say nothing.
        share = trace.timestep_share() if trace and rival.kind == "policy" else math.nan
        real = self.reference if self.reference is not None else originals
        labels = label_check(images, originals, self.classifier) if self.classifier else None
        return Row(
            name=rival.name,
            kind=rival.kind,
            family=rival.family,
            sampler=rival.sampler,
            steps=rival.steps,
            count=len(images),
            cost=(trace.cost if trace else rival.cost or 1.0) * part,
            layers=None if network else (trace.layer_ratio if trace else 1.0) * part,
            distance=bootstrap(distance),
            clock=self.watch.ratio(rival.name, full) if self.watch else None,
            against_steps=against,
            frechet=frechet_distance(images, real, self.features) if self.features else None,
            confidence=labels.confidence if labels else None,
            agreement=labels.agreement if labels else None,
            timestep_share=None if math.isnan(share) else share,
        )

    def notes(self) -> list[str]:
        """Warns where a measure cannot tell rivals apart, because of the full model itself.

        Returns:
            The warnings, in sentences.
        """
        found: list[str] = []
        for full in self.full.values():
            images = self.images[full]
            if self.classifier is not None and len(images) >= FEW:
                labels = label_check(images, images, self.classifier)
                if labels.commonest > COLLAPSED:
                    found.append(
                        f"The classifier gives {labels.commonest:.0%} of the images of {full!r} one "
                        "and the same label: confidence and label agreement say nothing here."
                    )
            reference = self.reference
            if self.features is None or reference is None or len(reference) < FEW:
                continue
            reached = frechet_distance(images, reference, self.features)
            floor = frechet_distance(reference[::2], reference[1::2], self.features)
            if reached > FAR * floor:
                found.append(
                    f"The images of {full!r} are {reached:,.0f} from the reference images by Fréchet "
                    f"distance, where two halves of those are {floor:,.3g} apart: the full model does "
                    "not draw them well, and its faults are what every distance here is measured to."
                )
        return found
