"""The sizes of samples that heads were fitted on, against those that they meet."""

from __future__ import annotations

import warnings
from collections.abc import Sequence


class FittedSizes:
    """Smallest and largest size of a sample along each of its axes, since the last fit began.

    Attributes:
        ends: Smallest and largest size of each axis; empty where nothing is known.
        told: Whether another size was told of.
    """

    def __init__(self) -> None:
        self.ends: tuple[tuple[int, int], ...] = ()
        self.told = False

    def clear(self) -> None:
        """Forgets all, and tells again: a new fit begins."""
        self.ends, self.told = (), False

    def note(self, shape: Sequence[int]) -> None:
        """Notes what heads are fitted on.

        Arguments:
            shape: Shape of a row of the noisy input; with another number of axes than before, it alone
                counts.
        """
        if len(self.ends) != len(shape):
            self.ends = tuple((size, size) for size in shape)
        pairs = zip(self.ends, shape, strict=True)
        self.ends = tuple((min(low, size), max(high, size)) for (low, high), size in pairs)

    def tell(self, name: str, shape: Sequence[int]) -> None:
        """Warns, once a fit, of samples of another size.

        Arguments:
            name: The backbone, as the subject of the message.
            shape: Shape of a row of the noisy input of a call whose rows may leave.
        """
        if self.told or len(self.ends) != len(shape):
            return
        pairs = zip(self.ends, shape, strict=True)
        if all(low <= size <= high for (low, high), size in pairs):
            return
        self.told = True
        warnings.warn(
            f"{name}: the exits were fitted on samples of shape {self}, and this call has "
            f"({', '.join(map(str, shape))}). What they say and give may be off at another size; fit on "
            "samples of this one, or compare with the full model.",
            stacklevel=8,
        )

    def __str__(self) -> str:
        """The sizes as a shape, with ranges where there were several."""
        sizes = [str(low) if low == high else f"{low} to {high}" for low, high in self.ends]
        return f"({', '.join(sizes)})"
