"""The processes that `accelerate launch` started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from exitkit._compat import require


@contextmanager
def start(precision: str = "no") -> Iterator[Any]:
    """An accelerator for this process; one process is fine too.

    Arguments:
        precision: Of the forward.

    Yields:
        The `accelerate.Accelerator`.
    """
    accelerate = require("accelerate", "reproduce", "examples.reproduction.full")
    utils = require("accelerate.utils", "reproduce", "examples.reproduction.full")
    # Shards take hours, and processes wait for each other only at the end.
    patience = utils.InitProcessGroupKwargs(timeout=timedelta(days=7))
    unused = utils.DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = accelerate.Accelerator(
        mixed_precision=precision, kwargs_handlers=[patience, unused]
    )
    yield accelerator
    # Not after a failure: the others may never come to a common end.
    accelerator.end_training()
