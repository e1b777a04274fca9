"""What a forward keeps of earlier calls to know the hidden state behind a later one."""

from __future__ import annotations

from torch import Tensor

from exitkit.execution.gate import CallSite


class Stream:
    """Hidden states that callers add outputs to, and the running sum of what a tail adds up.

    Arguments:
        kept: Calls whose entering hidden state is a base, by their number in the forward.
    """

    def __init__(self, kept: frozenset[int]) -> None:
        self._kept = kept
        self._entered: dict[int, Tensor] = {}
        self._sum: Tensor | None = None

    def copied(self) -> Stream:
        """What is kept by now, for a call that runs again later."""
        other = Stream(self._kept)
        other._entered, other._sum = dict(self._entered), self._sum
        return other

    def enter(self, site: CallSite, entering: Tensor) -> None:
        """Notes the hidden state that enters a call."""
        if site.number in self._kept:
            self._entered[site.number] = entering

    def base(self, site: CallSite) -> Tensor | None:
        """What a call's output is added to, apart from its factor; None if nothing."""
        call = site.call
        if call.summed:
            return self._sum
        return None if call.base is None else self._entered[site.number - call.base]

    def leave(self, out: Tensor) -> None:
        """Adds what a call gave to the running sum."""
        self._sum = out if self._sum is None else self._sum + out
