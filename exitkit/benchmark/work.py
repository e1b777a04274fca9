"""The steps of the command line: fit exits, calibrate their policy, draw samples; all kept in folders."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from exitkit.benchmark.targets import Target, WorkSettings
from exitkit.calibration.calibrate import calibrate
from exitkit.config import PRESETS
from exitkit.errors import ConfigError
from exitkit.model import Wrapped
from exitkit.persistence.folder import replaced
from exitkit.pipelines.capture import denoisers
from exitkit.pipelines.enabling import is_pipeline
from exitkit.pipelines.loading import load
from exitkit.pipelines.verbs import wrap
from exitkit.policies import Calibration
from exitkit.sampling.generate import generate
from exitkit.training.fit import fit
from exitkit.training.tasks import Classification

SAMPLES, TRACE = "samples.safetensors", "trace.json"


def fit_target(
    target: Target, work: WorkSettings, out: Path, *, progress: bool = False
) -> dict[str, Any]:
    """Wraps what an address stands for, fits its exits and saves them.

    Arguments:
        target: What the address stands for.
        work: The settings.
        out: Folder for the exits.
        progress: Whether to show progress bars.

    Returns:
        What was done, as plain values.

    Raises:
        ConfigError: If there is nothing to fit on.
    """
    overrides: dict[str, Any] = {}
    if work.exits is not None:
        overrides["exits"] = work.exits if isinstance(work.exits, str) else tuple(work.exits)
    config = PRESETS.get(work.preset)
    own = config is None or config.loss.target == "model"
    data: tuple[Any, ...]
    if target.data is not None:
        data = (target.data, Classification())
    elif target.suite is not None and not (own and target.sampler is not None):
        data = (target.suite.loader(work.fit.batch_size, work.fit.seed), target.suite.task)
    elif own:
        data = (target.with_sampler("fit"),)
    else:
        raise ConfigError(
            f"fit: exits of preset {work.preset!r} are trained on data, and {target.name} has none. Take "
            "'relative' or 'carried', or module:function of an exitkit.benchmark.Suite with its data; "
            "for timm/NAME name labelled images in the settings: data='module:function'."
        )
    model = wrap(target.subject, work.preset, example_inputs=target.example_inputs, **overrides)
    started = time.perf_counter()
    fit(model, *data, steps=work.fit.steps, seed=work.fit.seed, progress=progress)
    model.save_pretrained(out)
    return {
        "folder": str(out),
        "exits": [exit.path for exit in model.exits],
        "seconds": time.perf_counter() - started,
        "summary": model.summary(),
    }


def calibrate_target(
    target: Target,
    work: WorkSettings,
    exits: Path,
    given: dict[str, Any],
    *,
    progress: bool = False,
) -> Calibration:
    """Calibrates saved exits, and saves them with the policy that was found.

    Arguments:
        target: What the address stands for.
        work: The settings.
        exits: Folder of the exits.
        given: `budget`, `max_error` and `policy` in place of the settings' own, where not None.
        progress: Whether to show progress bars.

    Returns:
        The calibration.
    """
    model: Wrapped = load(target.subject, exits)
    asked = {name: value for name, value in given.items() if value is not None}
    told = {n: v for n, v in work.calibrate.model_dump().items() if v is not None}
    if "budget" in asked or "max_error" in asked:  # one of the two, and the command line's
        told = {n: v for n, v in told.items() if n not in ("budget", "max_error")}
    suite = target.suite
    on = (target.data or target.sampler) if suite is None else suite.calibrated_on()
    found = calibrate(
        model,
        target.with_sampler("calibrate") if on is None else on,
        progress=progress,
        **{**told, **asked},
    )
    model.policy = found.policy
    model.save_pretrained(exits)
    return found


def generate_target(
    target: Target, exits: Path | None, out: Path, seeds: int, *, progress: bool = False
) -> dict[str, Any]:
    """Draws samples and saves them with their accounts.

    Arguments:
        target: What the address stands for.
        exits: Folder of the exits; None to draw without.
        out: Folder for the samples.
        seeds: How many, counted from seed 0.
        progress: Whether to show a progress bar.

    Returns:
        What was done, as plain values.
    """
    sampler = target.with_sampler("generate")
    model = _bare(target.subject) if exits is None else load(target.subject, exits)
    sample = generate(model, sampler, seeds, progress=progress)
    trace = sample.trace
    told = {
        "folder": str(out),
        "samples": len(sample.samples),
        "seeds": list(sample.seeds),
        "cost": 1.0 if trace is None else float(trace.cost),
        "seconds": sample.seconds,
    }
    with replaced(out, (SAMPLES, TRACE)) as folder:
        save_file({"samples": sample.samples.contiguous()}, folder / SAMPLES)
        (folder / TRACE).write_text(json.dumps(told, indent=2) + "\n")
    return told


def _bare(subject: Any) -> nn.Module:
    """A network, or the denoisers of a pipeline, without exits."""
    if not is_pipeline(subject):
        network: nn.Module = subject
        return network
    networks = denoisers(subject)
    return nn.ModuleDict(networks) if len(networks) > 1 else next(iter(networks.values()))
