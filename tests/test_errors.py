"""Every refusal names the place and the way out, and leaves the backbone as it was."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit import errors
from exitkit.policies import FixedExit, ScriptedExit, UncertaintyThreshold
from exitkit.sampling.sampler import Sampler
from tests.backbones import COUPLED, NoBlocks, case
from tests.copies import copies
from tests.test_wrapping import assert_unchanged, snapshot, values

UVIT = case("uvit")


@contextmanager
def refused(kind: type[Exception], *parts: str, model: nn.Module | None = None) -> Iterator[None]:
    """Expects an error whose text holds every part, and the model as it was."""
    facts = None if model is None else (snapshot(model), values(model))
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    for part in parts:
        assert re.search(part, text), f"{part!r} is not in: {text}"
    if model is not None and facts is not None:
        assert_unchanged(model, *facts)


@copies
def wrapped_uvit(**more: Any) -> Any:
    return ek.wrap(UVIT.make(), example_inputs=UVIT.inputs(3)[0], **more)


# ----------------------------------------------------------------------------------------- wrapping


def test_no_blocks() -> None:
    model = NoBlocks().eval()
    with refused(errors.UnsupportedBackboneError, "NoBlocks", "blocks", "adapter", model=model):
        ek.wrap(model, example_inputs=torch.randn(3, 4))


def test_rows_that_see_each_other() -> None:
    model = COUPLED.make()
    with refused(errors.ExitKitError, "TokenNet", "rows", model=model):
        ek.wrap(model, example_inputs=COUPLED.inputs(3)[0])


@pytest.mark.parametrize(
    "example",
    [
        (torch.randn(2, 3, 8, 8),),
        (torch.randn(2, 5, 8, 8), torch.tensor([1, 2])),
        {"x": torch.randn(2, 3, 8, 8), "step": torch.tensor([1, 2])},
        (torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])),
    ],
    ids=["missing", "channels", "misspelt", "unwanted"],
)
def test_example_inputs_that_do_not_fit(example: Any) -> None:
    model = UVIT.make()
    with refused(errors.TracingError, "UViT", "example_inputs", model=model):
        ek.wrap(model, example_inputs=example)


@pytest.mark.parametrize("example", [None, 3, "x", (), {}, (torch.tensor([1, 2]),)], ids=repr)
def test_example_inputs_that_are_none(example: Any) -> None:
    model = UVIT.make()
    with refused(errors.ExitKitError, "example_inputs", model=model):
        ek.wrap(model, example_inputs=example)


def test_an_empty_example() -> None:
    model = UVIT.make()
    with refused(errors.ShapeError, "UViT", "'x'", "empty batch", "row", model=model):
        ek.wrap(model, example_inputs=(torch.randn(0, 3, 8, 8), torch.zeros(0)))


def test_something_that_is_no_module() -> None:
    with refused(errors.ExitKitError, "function|callable|Module"):
        ek.wrap(lambda x: x, example_inputs=torch.randn(2, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exits", "parts"),
    [
        (("in_block.1",), ("in_block.1", "Did you mean 'in_blocks.1'")),
        (("*encoder*",), (r"\*encoder\*", "in_blocks.0")),
        ((9,), ("9", "4|5")),
        ((0,), ("0", "1")),
        ((-7,), ("-7",)),
        (("out_blocks.1",), ("out_blocks.1", "4 usable|end of the network")),
    ],
    ids=str,
)
def test_an_exit_that_is_not_there(exits: Any, parts: tuple[str, ...]) -> None:
    model = UVIT.make()
    with refused(errors.BoundaryError, "UViT", *parts, model=model):
        ek.wrap(model, example_inputs=UVIT.inputs(3)[0], exits=exits)


def test_a_preset_that_is_not_there() -> None:
    model = UVIT.make()
    with refused(errors.ConfigError, "'relativ'", "Did you mean 'relative'", model=model):
        ek.wrap(model, "relativ", example_inputs=UVIT.inputs(3)[0])


def test_a_setting_that_is_not_there() -> None:
    model = UVIT.make()
    with refused(errors.ConfigError, "exitz", "ExitConfig", model=model):
        ek.wrap(model, example_inputs=UVIT.inputs(3)[0], exitz=(1,))


# ------------------------------------------------------------------------------------------ running


def test_an_empty_batch() -> None:
    model = wrapped_uvit()
    model.policy = FixedExit(1)
    with refused(errors.ShapeError, "UViT", "empty"):
        model(torch.randn(0, 3, 8, 8), torch.zeros(0))


def test_a_script_for_another_batch() -> None:
    model = wrapped_uvit()
    model.policy = ScriptedExit((1, 2))
    with refused(errors.ConfigError, "ScriptedExit", "2 rows", "FixedExit"):
        model(*UVIT.inputs(3)[0])
    model.policy = FixedExit(1)
    assert model(*UVIT.inputs(3)[0]).isfinite().all()


@pytest.mark.parametrize("source", ["block", "input"])
def test_nan_at_a_decision(source: str) -> None:
    model = wrapped_uvit()
    model.heads.mark_fitted()
    model.policy = UncertaintyThreshold(0.6)
    x, t = UVIT.inputs(3)[0]
    if source == "input":
        x = x.clone()
        x[1, 0, 0, 0] = float("nan")
        place = r"\[1\]|row 1"
    else:
        with torch.no_grad():
            model.backbone.in_blocks[0].mlp.fc2.bias[0] = float("nan")
        place = "0, 1, 2"
    with pytest.warns(errors.NonFiniteWarning) as told, torch.no_grad():
        found = model(x, t)
    (message,) = {str(warning.message) for warning in told}
    for part in ("exit 1", "'in_blocks.0'", place, "NaN", "run to the end", "Check"):
        assert re.search(part, message), message
    # The broken rows ran to the end; the others left where they leave without them.
    broken = [1] if source == "input" else [0, 1, 2]
    sound = [row for row in range(3) if row not in broken]
    assert model.trace.depth[0, broken].tolist() == [len(model.exits) + 1] * len(broken)
    assert not found[broken].isfinite().any()
    if source == "input":
        assert model.trace.depth[0, sound].tolist() == [1, 1]
        with torch.no_grad():  # the run is over: the next one is not disturbed
            torch.testing.assert_close(found[sound], model(*UVIT.inputs(3)[0])[sound])


def test_a_policy_that_is_none() -> None:
    model = wrapped_uvit()
    before = model.policy
    with refused(errors.ConfigError, "0.5|float", "UncertaintyThreshold|[Pp]olic"):
        model.policy = 0.5
    assert model.policy == before


def test_a_resolution_that_the_backbone_refuses_shows_its_own_error() -> None:
    model = wrapped_uvit()
    model.policy = FixedExit(1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2]))
    assert model(*UVIT.inputs(3)[0]).isfinite().all()


# -------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("budget", [-0.5, 0.0, 1.5, float("nan")])
def test_a_budget_that_cannot_be_met(budget: float) -> None:
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    model = wrapped_uvit()
    kinds = (errors.CalibrationError, errors.ConfigError)
    with pytest.raises(kinds, match="budget") as caught:
        sampler = Sampler(DDIMScheduler(), (3, 8, 8), 3)
        ek.calibrate(model, sampler, budget=budget, seeds=2, progress=False)
    assert re.search(r"\(?0, 1|between 0 and 1|\[0, 1", str(caught.value)), caught.value


def test_a_calibration_without_a_goal() -> None:
    from diffusers import DDIMScheduler

    model = wrapped_uvit()
    with refused((errors.CalibrationError, errors.ConfigError), "budget", "max_error"):
        ek.calibrate(model, Sampler(DDIMScheduler(), (3, 8, 8), 3), seeds=2, progress=False)


# ------------------------------------------------------------------------------------ loading heads


def test_heads_of_another_backbone(tmp_path: Path) -> None:
    wrapped_uvit().save_pretrained(tmp_path)
    other = case("dit")
    model, (args, kwargs) = other.make(), other.inputs(3)
    parts = ("UViT", "DiTTransformer2DModel", "save_pretrained|fit|heads")
    with refused(errors.CheckpointError, *parts, model=model):
        ek.ExitModel.from_pretrained(model, tmp_path, example_inputs=ek.Inputs(*args, **kwargs))


def test_truncated_heads(tmp_path: Path) -> None:
    wrapped_uvit().save_pretrained(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    model = UVIT.make()
    with refused(errors.CheckpointError, re.escape(str(file)), "again|complete", model=model):
        ek.ExitModel.from_pretrained(model, tmp_path, example_inputs=UVIT.inputs(3)[0])


# ----------------------------------------------------------------------------------- missing extras


def test_fit_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped_uvit()
    import exitkit.training  # noqa: F401 - imported before accelerate goes away

    for name in [n for n in sys.modules if n.split(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    data: list[Tensor] = [torch.randn(2, 3, 8, 8)]
    with refused(errors.MissingExtraError, "accelerate", r'pip install "exitkit-torch\[train'):
        ek.fit(model, data, ek.tasks.FlowMatching(), steps=1, progress=False)


# ----------------------------------------------------------------------------------------- the tree


def test_every_error_is_ours_and_also_a_builtin() -> None:
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ExitKitError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        if kind is not errors.ExitKitError:
            builtins = [b for b in kind.__mro__ if b.__module__ == "builtins"]
            assert builtins[0] is not Exception, f"{kind.__name__} is no builtin error"
        assert kind.__doc__


def test_suggestions_are_close_or_absent() -> None:
    assert errors.suggest("blocks.33", ["blocks.3", "norm"]) == " Did you mean 'blocks.3'?"
    assert errors.suggest("zzz", ["blocks.3", "norm"]) == ""
