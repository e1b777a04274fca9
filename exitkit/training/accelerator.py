"""The accelerator of a fit, and what it must not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from exitkit.errors import ConfigError


@contextmanager
def accelerated(device: torch.device, given: Any, precision: str | None) -> Iterator[Any]:
    """The user's accelerator, or one for a device whose global state ends with it.

    Arguments:
        device: Device of the model.
        given: The user's accelerator, or None.
        precision: Precision of the forward, for one that is made here.

    Yields:
        The accelerator.

    Raises:
        ConfigError: If it splits parameters, or does not fit what this process has already.
    """
    import accelerate
    from accelerate.state import AcceleratorState, GradientState, PartialState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs

    # Not every parameter takes part in every step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    if given is not None and not hasattr(given, "distributed_type"):
        raise ConfigError(
            f"fit: accelerator=: expected an accelerate.Accelerator or None, got {given!r:.60}. Leave it "
            "out: fit makes one."
        )
    if given is not None and precision is not None:
        raise ConfigError(
            "fit: precision with accelerator; set it there: Accelerator(mixed_precision=...)."
        )
    if given is not None:
        if str(given.distributed_type).rpartition(".")[2] in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ConfigError(
                f"fit: {given.distributed_type} splits parameters, and fit keeps whole ones. Use "
                "plain data parallelism, or your own loop with ExitLoss."
            )
        handler = given.ddp_handler
        try:
            given.ddp_handler = handler or unused
            yield given
        finally:
            given.ddp_handler = handler
        return
    fresh, bare = not is_initialized(), not PartialState._shared_state
    try:
        made = accelerate.Accelerator(
            mixed_precision=precision,
            cpu=device.type == "cpu",
            device_placement=False,
            kwargs_handlers=[unused],
        )
    except ValueError as error:
        raise ConfigError(
            f"fit: accelerate refuses ({error}). This process has an Accelerator with other "
            "settings; pass it as accelerator=."
        ) from error
    try:
        yield made
    finally:
        if fresh:
            # accelerate keeps precision and device for the whole process: the next fit, or the
            # user's own Accelerator, may want others.
            AcceleratorState._reset_state()
            GradientState._reset_state()
            if bare and not torch.distributed.is_initialized():
                PartialState._reset_state()
