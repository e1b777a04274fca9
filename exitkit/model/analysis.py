"""What training and analysis ask of a wrapped model: full forwards with everything kept, and replays."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from exitkit.execution.executor import Executor
from exitkit.execution.recording import Recording


class Analysis:
    """Runs the full backbone of a wrapped model, and its tail on hidden states."""

    _executor: Executor

    def record(self, *args: Any, **kwargs: Any) -> Recording:
        """Runs the full backbone once and keeps the hidden states that heads work on.

        Arguments:
            args: The backbone's positional arguments.
            kwargs: The backbone's keyword arguments.

        Returns:
            Output and hidden states, with gradients if they are enabled.
        """
        return self._executor.analyst.record(self._executor.bind(args, kwargs))

    def prediction_of(self, output: Any) -> Tensor:
        """The prediction tensor inside a backbone's output, rows first, with shape (B, ...)."""
        return self._executor.reader.prediction(output)

    def replay(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hiddens: list[Tensor],
        exit: int | None = None,
    ) -> list[Tensor]:
        """Puts hidden states behind a boundary and runs what the backbone does after it.

        Arguments:
            args: The backbone's positional arguments, B rows.
            kwargs: The backbone's keyword arguments.
            hiddens: Hidden states, each with shape (B, ...).
            exit: Put them where rows of this exit land; at the end of the network if None.

        Returns:
            The prediction for each, with shape (B, ...), from one pass where rows can be stacked.
        """
        bound = self._executor.bind(args, kwargs)
        batch = self._executor.reader.read(bound)[0]
        point = None if exit is None else self._executor.layout.points[exit - 1]
        return self._executor.analyst.replay_all(bound, hiddens, batch, point)
