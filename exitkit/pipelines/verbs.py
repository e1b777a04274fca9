"""The three calls that begin and end everything, for networks and for pipelines alike."""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from exitkit.config import ExitConfig
from exitkit.model import ExitModel, ExitModels
from exitkit.pipelines.enabling import disable_early_exit, enable_early_exit, is_pipeline
from exitkit.surgery.adapter import Adapter
from exitkit.surgery.spec import Plan
from exitkit.wrapping import inspect_network, unwrap_network, wrap_network


@overload
def wrap(
    backbone: nn.Module,
    config: str | ExitConfig = ...,
    *,
    example_inputs: Any,
    adapter: Adapter | None = ...,
    **overrides: Any,
) -> ExitModel: ...


@overload
def wrap(
    backbone: Any,
    config: str | ExitConfig = ...,
    *,
    example_inputs: Any,
    adapter: Adapter | None = ...,
    **overrides: Any,
) -> Any: ...


def wrap(
    backbone: Any,
    config: str | ExitConfig = "relative",
    *,
    example_inputs: Any,
    adapter: Adapter | None = None,
    **overrides: Any,
) -> Any:
    """Gives a backbone, or the denoisers of a pipeline, exits.

    The blocks are found by running the backbone a few times on the example. Nothing of the backbone
    is rewritten, nothing changes until a policy lets rows leave, and untrained heads never do.

    Arguments:
        backbone: Any denoiser or classifier; or a diffusers pipeline, which goes on holding its own
            denoisers and uses the exits from then on (see `enable_early_exit`).
        config: Name of a preset (`paper`, `official`, `relative`, `carried`) or an `ExitConfig`.
        example_inputs: What the backbone is called with: a tuple is positional, a dict is keyword,
            `ek.Inputs(*args, **kwargs)` is both. Any batch size of one or more. Of a pipeline, the
            keywords of its call: `{"prompt": "a lighthouse"}`.
        adapter: Declarations about the architecture; looked up if None.
        overrides: Fields of `ExitConfig` to replace, for example `exits=(1, -1)`.

    Returns:
        The wrapped model, called like the backbone; of a pipeline with several denoisers, all of
        them by component name.

    Raises:
        AlreadyWrappedError: If the backbone is wrapped already.
        UnsupportedBackboneError: If it has no blocks to skip; the message lists what was seen.
        TracingError: If it does not run on the example.
        BoundaryError: If an exit is named that is not there.
        ConfigError: If the config is wrong.
    """
    if not is_pipeline(backbone):
        return wrap_network(
            backbone, config, example_inputs=example_inputs, adapter=adapter, **overrides
        )
    models = enable_early_exit(
        backbone, config, example_inputs=example_inputs, adapter=adapter, **overrides
    )
    return next(iter(models.values())) if len(models) == 1 else models


def inspect(backbone: nn.Module, *, example_inputs: Any, adapter: Adapter | None = None) -> Plan:
    """Tells where a backbone could be cut, without touching it.

    Arguments:
        backbone: Any denoiser or classifier.
        example_inputs: As for `wrap`.
        adapter: As for `wrap`.

    Returns:
        The plan; printed, a table of boundary, path, class, shape, share of MACs, and whether it is
        usable or why not.
    """
    return inspect_network(backbone, example_inputs=example_inputs, adapter=adapter)


@overload
def unwrap(model: ExitModel) -> nn.Module: ...


@overload
def unwrap(model: Any) -> Any: ...


def unwrap(model: Any) -> Any:
    """Undoes `wrap`.

    Arguments:
        model: What `wrap` returned, which cannot be used afterwards; or a pipeline whose denoisers
            are wrapped.

    Returns:
        The backbone or the pipeline, the same object, as it was.

    Raises:
        AlreadyWrappedError: If it was undone before.
        ConfigError: If it is not a wrapped model.
    """
    if is_pipeline(model):
        return disable_early_exit(model)
    if isinstance(model, ExitModels):
        # Those that an interrupted call has undone stay undone.
        for one in [one for one in model.values() if not one.released] or model.values():
            one.release()
        return {name: one.backbone for name, one in model.items()}
    return unwrap_network(model)
