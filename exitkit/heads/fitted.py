"""The mark that tells fitted heads from new ones: a buffer, saved with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

FITTED = "fitted"
"""Name of the buffer."""


class Fitted(nn.Module):
    """A module that knows whether it was ever fitted.

    The mark is set by `fit`, by a backward through `ExitLoss` or `CarriedLoss`, by a state dict that
    has none (it was written before there were marks), and by `mark()`.

    Attributes:
        fitted: The mark, boolean, a scalar.
    """

    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(FITTED, torch.zeros((), dtype=torch.bool))
        self._read: tuple[Tensor, int, bool] | None = None

    @property
    def is_fitted(self) -> bool:
        """The mark on the host: the device is asked again only when the buffer has changed."""
        mark, read = self._buffers[FITTED], self._read
        assert mark is not None
        if read is not None and read[0] is mark and read[1] == mark._version:
            return read[2]
        if mark.is_meta:
            return False
        if mark.is_inference():  # has no version
            return bool(mark)
        read = self._read = (mark, mark._version, bool(mark))
        return read[2]

    def mark(self) -> None:
        """Says that this module is fitted."""
        if not self.is_fitted:
            with torch.no_grad():
                self.fitted.fill_(True)

    @contextmanager
    def regarded_as_fitted(self) -> Iterator[None]:
        """Lets the module act as a fitted one for a while: how long it takes does not depend on that."""
        kept = self.fitted.clone()
        self.mark()
        try:
            yield
        finally:
            with torch.no_grad():
                self.fitted.copy_(kept)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what was read, which belongs to this very buffer."""
        return {**self.__dict__, "_read": None}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(prefix + FITTED, torch.ones((), dtype=torch.bool))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def with_marks(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A saved state with the marks that it has not: it was saved before there were any.

    Arguments:
        state: What was saved.
        own: The state that it is for.

    Returns:
        The state, with marks that are set where it has none.
    """
    marks = {n: torch.ones_like(t) for n, t in own.items() if n.rpartition(".")[2] == FITTED}
    return {**marks, **state}
