"""Switches exits on and off in a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from exitkit.config import ExitConfig
from exitkit.errors import ConfigError, TracingError
from exitkit.model import ExitModel, ExitModels
from exitkit.modes.compiled import uncompiled
from exitkit.pipelines.capture import denoisers, first_calls
from exitkit.pipelines.loop import LoopWatch
from exitkit.pipelines.routes import take_over, wrapped_in
from exitkit.pipelines.time_range import with_time_range
from exitkit.surgery.adapter import Adapter
from exitkit.wrapping import wrap_network


def is_pipeline(thing: object) -> bool:
    """Whether something is a pipeline: it is called, and has components by name."""
    if isinstance(thing, nn.Module | type) or not callable(thing):
        return False
    return isinstance(getattr(thing, "components", None), Mapping)


def enable_early_exit(
    pipe: Any,
    config: str | ExitConfig = "carried",
    *,
    example_inputs: Mapping[str, Any],
    components: Sequence[str] | None = None,
    adapter: Adapter | None = None,
    **overrides: Any,
) -> ExitModels:
    """Gives the denoisers of a pipeline exits and lets the pipeline use them.

    The pipeline goes on holding its own denoisers and is called as before. Its denoising loop is a
    trajectory of each of them.

    Arguments:
        pipe: A diffusers pipeline.
        config: As for `wrap`.
        example_inputs: What the pipeline is called with, for example `{"prompt": "a lighthouse"}`.
            It runs until its denoisers were called, on these.
        components: Names of the denoisers, `("transformer",)`; all that take a timestep if None.
        adapter: As for `wrap`.
        overrides: As for `wrap`.

    Returns:
        The wrapped denoisers by component name.

    Raises:
        ConfigError: If there is no denoiser, or `example_inputs` are not the pipeline's keywords.
        TracingError: If the pipeline does not call its denoisers on the example.
        UnsupportedBackboneError: If a denoiser has no blocks to skip.
    """
    if not is_pipeline(pipe):
        raise ConfigError(
            f"enable_early_exit: expected a diffusers pipeline, got {type(pipe).__name__}. Wrap a "
            "network itself with ek.wrap(network, example_inputs=...)."
        )
    if not isinstance(example_inputs, Mapping):
        raise ConfigError(
            f"{type(pipe).__name__}: example_inputs of a pipeline are the keywords of its call, for "
            f"example {{'prompt': 'a lighthouse'}}; got {type(example_inputs).__name__}."
        )
    wanted = denoisers(pipe, components)
    calls = first_calls(pipe, wanted, example_inputs)
    unmet = [name for name in wanted if name not in calls]
    if unmet:
        raise TracingError(
            f"{type(pipe).__name__}: the example call did not reach {' and '.join(unmet)} (it called "
            f"{', '.join(calls)}). Pass example_inputs with as many steps as in use, such as "
            "num_inference_steps=50, or name the denoisers that get exits: ek.enable_early_exit(pipe, ..., "
            f"components=({', '.join(map(repr, calls))},))."
        )

    def wrapped(name: str) -> ExitModel:
        inputs = calls[name]
        known = with_time_range(adapter, wanted[name], inputs, getattr(pipe, "scheduler", None))
        held = getattr(pipe, name, wanted[name])
        return wrap_network(held, config, example_inputs=inputs, adapter=known, **overrides)

    return installed(pipe, calls, wrapped)


def installed(pipe: Any, names: Iterable[str], wrapped: Callable[[str], ExitModel]) -> ExitModels:
    """Wraps the denoisers of a pipeline, all or none, and sends its calls through the exits.

    Arguments:
        pipe: The pipeline.
        names: Names of the denoisers.
        wrapped: Wraps the one of a name.

    Returns:
        The wrapped denoisers by component name.
    """
    models: dict[str, ExitModel] = {}
    watch: LoopWatch | None = None
    try:
        for name in names:
            models[name] = wrapped(name)
        watch = LoopWatch(pipe, models) if hasattr(pipe, "progress_bar") else None
        for model in models.values():
            if watch is None:
                take_over(model)
            else:
                take_over(model, watch.remove, watch.join_caller)
    except BaseException:
        for model in models.values():
            model.release()
        if watch is not None:
            watch.remove()
        raise
    return ExitModels(models)


def disable_early_exit(pipe: Any) -> Any:
    """Undoes `enable_early_exit`.

    Arguments:
        pipe: The pipeline.

    Returns:
        The pipeline, the same object, as it was.

    Raises:
        ConfigError: If it is no pipeline, or was not enabled.
    """
    if not is_pipeline(pipe):
        raise ConfigError(
            f"disable_early_exit: expected a diffusers pipeline, got {type(pipe).__name__}. Of a network, "
            "ek.unwrap(model) takes the exits out."
        )
    watch = vars(pipe).get("progress_bar")
    models = {id(m): m for m in _owners(pipe)}
    if isinstance(watch, LoopWatch):
        models |= {id(m): m for m in watch.models.values() if not m.released}
    if not models:
        raise ConfigError(
            f"{type(pipe).__name__} has no exits to disable. ek.enable_early_exit(pipe, ...) or "
            "ek.wrap(pipe, ...) gives it some."
        )
    for model in models.values():
        model.release()
    if vars(pipe).get("progress_bar") is watch is not None:  # of a shallow copy
        del pipe.progress_bar
    return pipe


def _owners(pipe: Any) -> Iterator[ExitModel]:
    for component in pipe.components.values():
        model = wrapped_in(uncompiled(component)) if isinstance(component, nn.Module) else None
        if model is not None:
            yield model
