"""Finds what denoises in a pipeline, and with which arguments, by running the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from exitkit.errors import ConfigError, TracingError, suggest
from exitkit.modes.compiled import eager, uncompiled
from exitkit.modes.flags import preserved_rng
from exitkit.surgery.inputs import TIMESTEP_NAMES, Inputs, is_time, signature_of

# Called with a timestep as well, but what they return goes into the denoiser, not into the sampler.
_HELPERS = ("controlnet", "adapter", "encoder", "vae", "connector", "guider")


class _Seen(Exception):  # noqa: N818 - not an error: every denoiser was called, the rest is not needed
    """Ends a run of a pipeline whose denoisers have all been seen."""


def denoisers(pipe: Any, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The components of a pipeline that take a noisy input and a timestep.

    Arguments:
        pipe: The pipeline.
        names: Which components; all denoisers if None.

    Returns:
        The modules by component name; of those under `torch.compile`, what is inside.

    Raises:
        ConfigError: If there is none, or a name is wrong.
    """
    modules = {k: uncompiled(m) for k, m in pipe.components.items() if isinstance(m, nn.Module)}
    if names is not None:
        for name in names:
            if name not in modules:
                raise ConfigError(
                    f"{type(pipe).__name__} has no network {name!r} (networks: "
                    f"{', '.join(modules) or 'none'}).{suggest(name, modules)} Pass components=."
                )
        return {name: modules[name] for name in names}
    able = {k: m for k, m in modules.items() if not any(part in k for part in _HELPERS)}
    found = {k: m for k, m in able.items() if _takes(m, TIMESTEP_NAMES.__contains__)}
    # Packed sequences have a timestep for each kind of token: vision_timesteps and the like.
    found = found or {k: m for k, m in able.items() if _takes(m, is_time)}
    if not found:
        raise ConfigError(
            f"{type(pipe).__name__}: none of its networks ({', '.join(modules) or 'none'}) takes a "
            "timestep, so it is not clear which one denoises. Pass components=('name',)."
        )
    return found


def _takes(module: nn.Module, wanted: Callable[[str], bool]) -> bool:
    signature = signature_of(module.forward)
    return signature is not None and any(map(wanted, signature.parameters))


def first_calls(
    pipe: Any, modules: Mapping[str, nn.Module], example_inputs: Mapping[str, Any]
) -> dict[str, Inputs]:
    """Runs a pipeline until each denoiser was called once, and returns the arguments.

    Arguments:
        pipe: The pipeline.
        modules: Its denoisers by component name.
        example_inputs: What the pipeline is called with.

    Returns:
        The arguments of the first call of each denoiser that the pipeline used.

    Raises:
        TracingError: If the pipeline called none of them.
        ConfigError: If a keyword is unknown to the pipeline.
    """
    calls: dict[str, Inputs] = {}
    parameters = signature_of(type(pipe).__call__)
    if parameters is not None and not any(
        p.kind is p.VAR_KEYWORD for p in parameters.parameters.values()
    ):
        unknown = [n for n in example_inputs if n not in parameters.parameters]
        if unknown:
            raise ConfigError(
                f"{type(pipe).__name__}: example_inputs hold {', '.join(map(repr, unknown))}, which its call "
                f"does not take.{suggest(unknown[0], parameters.parameters)} Pass the keywords of "
                "the pipeline's call."
            )

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.setdefault(name, Inputs(*args, **kwargs))
            if len(calls) == len(modules):
                raise _Seen

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_pre_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(preserved_rng())
        stack.enter_context(eager())
        try:
            pipe(**example_inputs)
        except _Seen:
            pass
        finally:
            free = getattr(pipe, "maybe_free_model_hooks", None)
            if free is not None:
                free()
    if not calls:
        raise TracingError(
            f"{type(pipe).__name__} ran on example_inputs without calling "
            f"{' or '.join(map(repr, modules))}. Pass example_inputs as the pipeline is called in "
            "use, with at least one step, or the right components=."
        )
    return calls
