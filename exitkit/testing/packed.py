"""What is checked of a backbone without a batch axis: whole calls that leave at some depth."""

from __future__ import annotations

from exitkit.policies.fixed import FixedExit
from exitkit.policies.never import NeverExit
from exitkit.testing.batches import Batch
from exitkit.testing.contract import require


def check_whole(batch: Batch, atol: float) -> None:
    """Every depth gives another output.

    Arguments:
        batch: The packed sequence.
        atol: Largest absolute difference of two outputs that count as equal.

    Raises:
        ContractError: At the first broken promise.
    """
    outputs = [batch.row(batch.run([0], FixedExit(d + 1)), 0) for d in range(batch.exits)]
    outputs.append(batch.row(batch.run([0], NeverExit()), 0))
    for depth in range(1, batch.exits + 1):
        require(
            batch.difference(outputs[depth - 1], outputs[depth]) > atol,
            f"{batch.name}: the output is the same at depths {depth} and {depth + 1}, so a wrong depth "
            "would not be noticed. Zero-initialised gates? Perturb the parameters of an untrained "
            "backbone first.",
        )
