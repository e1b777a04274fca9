"""Heads, settings and policy survive a round trip, and refuse a backbone that is not theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import exitkit as ek
from exitkit.errors import CheckpointError, ConfigError
from exitkit.policies import (
    Calibration,
    FixedExit,
    NeverExit,
    Policy,
    ScriptedExit,
    UncertaintyThreshold,
)
from tests.backbones import Case, case, prediction
from tests.copies import copies

# One of each mechanism, and each preset on at least two of them.
ROUND_TRIPS = [
    ("uvit", "paper"),
    ("uvit", "official"),
    ("uvit", "relative"),
    ("uvit", "carried"),
    ("unet", "paper"),
    ("unet", "relative"),
    ("unet", "carried"),
    ("timm_vit", "relative"),
    ("timm_vit", "official"),
    ("folded_frames", "carried"),
]


@copies
def untrained(backbone: Case, preset: str, seed: int = 0) -> Any:
    args, kwargs = backbone.inputs(3)
    return ek.wrap(backbone.make(seed), preset, example_inputs=ek.Inputs(*args, **kwargs))


def trained(backbone: Case, preset: str = "relative", seed: int = 0) -> Any:
    """A wrapped model whose heads are no longer in their initial state."""
    model = untrained(backbone, preset, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.exit_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.heads.mark_fitted()
    return model


def outputs(model: Any, backbone: Case, *policies: Policy) -> list[Tensor]:
    """Predictions of two steps under each policy; the second may be carried."""
    args, kwargs = backbone.inputs(3)
    found: list[Tensor] = []
    before = model.policy
    with torch.no_grad():
        for policy in policies:
            with model.trajectory():
                model.policy = NeverExit()
                found.append(prediction(model(*args, **kwargs)))
                model.policy = policy
                found.append(prediction(model(*args, **kwargs)))
    model.policy = before
    return found


def loaded(backbone: Case, path: Path, seed: int = 0) -> Any:
    args, kwargs = backbone.inputs(3)
    example = ek.Inputs(*args, **kwargs)
    return ek.ExitModel.from_pretrained(backbone.make(seed), path, example_inputs=example)


@pytest.mark.parametrize(("name", "preset"), ROUND_TRIPS)
def test_round_trip(name: str, preset: str, tmp_path: Path) -> None:
    backbone = case(name)
    model = trained(backbone, preset)
    model.policy = UncertaintyThreshold(0.37, per_timestep=((400.0, 0.2),))
    policies = [FixedExit(d) for d in range(1, len(model.exits) + 1)]
    expected = outputs(model, backbone, *policies)
    uncertainty = trace_of_uncertainty(model, backbone)
    model.save_pretrained(tmp_path / "heads")
    again = loaded(backbone, tmp_path / "heads")
    assert again.exit_config == model.exit_config.model_copy(
        update={"policy": again.exit_config.policy}
    )
    assert again.policy == model.policy
    assert [e.path for e in again.exits] == [e.path for e in model.exits]
    for mine, theirs in zip(outputs(again, backbone, *policies), expected, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(trace_of_uncertainty(again, backbone), uncertainty, strict=True):
        assert torch.equal(mine, theirs)
    # The control: an untrained model answers otherwise.
    fresh = trace_of_uncertainty(untrained(backbone, preset), backbone)
    assert not all(torch.equal(a, b) for a, b in zip(fresh, uncertainty, strict=True))


@pytest.mark.parametrize(
    ("name", "preset"),
    [("uvit", "paper"), pytest.param("unet", "carried", marks=pytest.mark.slow)],
)
def test_marks_of_fitted_heads_are_kept_and_heads_without_marks_count_as_fitted(
    name: str, preset: str, tmp_path: Path
) -> None:
    def marks(model: Any) -> list[bool]:
        return [model.heads.is_fitted, *(head.is_fitted for head in model.heads.uncertainty)]

    backbone = case(name)
    fresh = untrained(backbone, preset)
    fresh.save_pretrained(tmp_path)
    assert not any(marks(loaded(backbone, tmp_path)))
    fresh.heads.mark_fitted(uncertainty=False)
    fresh.save_pretrained(tmp_path)
    assert marks(loaded(backbone, tmp_path)) == [True, *[False] * len(fresh.exits)]
    # As it was written before there were marks.
    file = tmp_path / "exits.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.endswith("fitted")}, file)
    change(tmp_path, sums={})
    assert all(marks(loaded(backbone, tmp_path)))
    # Control: nothing else may be missing.
    save_file({n: t for n, t in load_file(file).items() if not n.endswith("bias")}, file)
    with pytest.raises(CheckpointError, match="missing"):
        loaded(backbone, tmp_path)


def trace_of_uncertainty(model: Any, backbone: Case) -> list[Tensor]:
    args, kwargs = backbone.inputs(3)
    if model.exit_config.output.kind == "carried":
        return [p.detach().clone() for p in model.exit_parameters()]
    with torch.no_grad():
        return list(model(*args, **kwargs, output_exits=True).uncertainty)


@pytest.mark.parametrize(
    "policy",
    [NeverExit(), FixedExit(2), ScriptedExit((1, 2, 3)), UncertaintyThreshold(0.2, patience=2)],
    ids=lambda p: p.name,
)
def test_the_policy_is_saved_with_the_heads(policy: Policy, tmp_path: Path) -> None:
    model = trained(case("uvit"))
    model.policy = policy
    model.save_pretrained(tmp_path)
    assert loaded(case("uvit"), tmp_path).policy == policy


def test_files_hold_heads_only_and_no_pickle(tmp_path: Path) -> None:
    model = trained(case("uvit"))
    model.save_pretrained(tmp_path)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert [Path(f).suffix for f in files].count(".safetensors") == 1
    assert {Path(f).suffix for f in files} <= {".json", ".safetensors", ".md"}
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text())
    size = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    heads = sum(p.numel() * p.element_size() for p in model.heads.parameters())
    assert heads <= size < heads + 20_000


def test_a_path_may_be_text(tmp_path: Path) -> None:
    model = trained(case("uvit"))
    model.save_pretrained(str(tmp_path / "a" / "b"))
    assert len(loaded(case("uvit"), str(tmp_path / "a" / "b")).exits) == len(model.exits)


def untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(module) for module in model.modules())


def refused(backbone: Case, path: Path, match: str, seed: int = 0) -> None:
    model = backbone.make(seed)
    args, kwargs = backbone.inputs(3)
    with pytest.raises(CheckpointError, match=match):
        ek.ExitModel.from_pretrained(model, path, example_inputs=ek.Inputs(*args, **kwargs))
    assert untouched(model), "a refused checkpoint leaves the backbone wrapped"


def test_heads_of_another_class_are_refused(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    refused(case("dit"), tmp_path, "UViT.*DiTTransformer2DModel|DiTTransformer2DModel.*UViT")


def test_heads_of_other_weights_are_refused(tmp_path: Path) -> None:
    trained(case("uvit"), seed=0).save_pretrained(tmp_path)
    refused(case("uvit"), tmp_path, "UViT", seed=1)


def weights(path: Path) -> Path:
    return next(path.glob("*.safetensors"))


@pytest.mark.parametrize("keep", [0, 4, 200, -10])
def test_truncated_heads_are_refused(tmp_path: Path, keep: int) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    file = weights(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    refused(case("uvit"), tmp_path, file.name)


def test_heads_with_a_missing_tensor_are_refused(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    tensors = load_file(weights(tmp_path))
    gone = next(name for name in sorted(tensors) if not name.endswith("fitted"))
    del tensors[gone]
    save_file(tensors, weights(tmp_path))
    refused(case("uvit"), tmp_path, gone.replace(".", r"\."))


def test_a_folder_without_heads_is_refused(tmp_path: Path) -> None:
    refused(case("uvit"), tmp_path, "save_pretrained")
    refused(case("uvit"), tmp_path / "nowhere", "nowhere")


def settings(path: Path) -> Path:
    return next(iter(sorted(path.glob("*.json"))))


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    file = settings(tmp_path)
    file.write_text(file.read_text()[:-20])
    refused(case("uvit"), tmp_path, file.name)


def test_settings_of_a_later_version_are_refused_by_name(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    file = settings(tmp_path)
    text = file.read_text()
    assert '"uncertainty"' in text
    file.write_text(text.replace('"shared"', '"shared_by_all"', 1))
    args, _ = case("uvit").inputs(3)
    model = case("uvit").make()
    with pytest.raises((CheckpointError, ConfigError), match="shared_by_all"):
        ek.ExitModel.from_pretrained(model, tmp_path, example_inputs=args)
    assert untouched(model)


def test_a_wrapped_model_survives_its_own_state_dict() -> None:
    first, second = trained(case("uvit"), seed=0), trained(case("uvit"), seed=1)
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(
        outputs(second, case("uvit"), FixedExit(1)),
        outputs(first, case("uvit"), FixedExit(1)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_calibration_is_saved_with_the_policy_that_it_found(tmp_path: Path) -> None:
    backbone = case("uvit")
    model = trained(backbone)
    found = Calibration(
        UncertaintyThreshold(0.2),
        0.5,
        0.1,
        budget=0.5,
        sampler={"steps": 3},
        seeds=(10_000, 10_007),
    )
    model.calibrations.append(found)
    model.policy = found.policy
    model.save_pretrained(tmp_path)
    assert loaded(backbone, tmp_path).calibration == found
    # Another policy is not what it found, and an old note does not stay behind.
    model.policy = FixedExit(1)
    model.save_pretrained(tmp_path)
    assert loaded(backbone, tmp_path).calibration is None
    model.policy = found.policy
    model.save_pretrained(tmp_path)
    (tmp_path / "calibration.json").write_text('{"policy": {}}')
    with pytest.raises(CheckpointError, match=r"calibration.json is damaged"):
        loaded(backbone, tmp_path)


def change(path: Path, **entries: Any) -> None:
    """Changes what was written beside the heads."""
    file = path / "exitkit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_versions_are_saved_and_those_of_now_raise_no_warning(tmp_path: Path) -> None:
    trained(case("timm_vit")).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "exitkit.json").read_text())["versions"]
    assert set(saved) == {"exitkit", "torch", "timm"}
    assert saved["torch"] == torch.__version__
    loaded(case("timm_vit"), tmp_path)  # warnings are errors here


def test_exits_of_another_major_version_are_told_with_both(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    change(tmp_path, versions={"torch": "1.13.1", "exitkit_no_such_library": "4.2"})
    with pytest.warns(UserWarning, match=r"torch 1\.13\.1") as caught:
        assert len(loaded(case("uvit"), tmp_path).exits) == len(trained(case("uvit")).exits)
    (text,) = [str(w.message) for w in caught]
    assert torch.__version__ in text
    assert "exitkit_no_such_library 4.2, which is not installed" in text
    # Another minor version is none of it.
    change(tmp_path, versions={"torch": f"{torch.__version__.split('.')[0]}.0"})
    loaded(case("uvit"), tmp_path)


def test_a_warning_that_is_an_error_leaves_the_backbone_as_it_was(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    change(tmp_path, versions={"torch": "1.13.1"})
    model = case("uvit").make()
    args, _ = case("uvit").inputs(3)
    with pytest.raises(UserWarning, match=r"torch 1\.13"):
        ek.ExitModel.from_pretrained(model, tmp_path, example_inputs=args)
    assert untouched(model)


def test_what_exits_were_fitted_on_is_saved_with_them(tmp_path: Path) -> None:
    model = trained(case("uvit"))
    model.save_pretrained(tmp_path)
    assert loaded(case("uvit"), tmp_path).fitted is None
    model.fitted = {"scheduler": "ddim", "steps": 7}
    model.save_pretrained(tmp_path)
    assert loaded(case("uvit"), tmp_path).fitted == {"scheduler": "ddim", "steps": 7}


# ------------------------------------------------------------------ exits that the config left open


class Mixing(nn.Module):
    """Blocks whose work grows with the square of the pixels, heads' work only with their number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.blocks = nn.ModuleList(Pairs() for _ in range(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.stem(x) + t.view(-1, 1, 1, 1) / 1000
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.tail(h)
        return out


class Pairs(nn.Module):
    """Every pixel looks at every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(16, 4, 1)
        self.up = nn.Conv2d(4, 16, 1)

    def forward(self, h: Tensor) -> Tensor:
        flat = self.up(self.down(h)).flatten(2)
        near = (flat.transpose(1, 2) @ flat / 16).softmax(dim=1)
        return h + (flat @ near).view_as(h)


def pixels(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size), torch.tensor([10.0, 900.0])


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Mixing().eval()


def test_saved_exits_decide_and_not_which_ones_would_pay_now(tmp_path: Path) -> None:
    # Wrapped on large images all exits pay; loaded with small ones, some would be no default.
    few = [e.path for e in ek.wrap(net(), "relative", example_inputs=pixels(2)).exits]
    model = ek.wrap(net(), "relative", example_inputs=pixels(8))
    assert model.exit_config.exits is None
    assert len(few) < len(model.exits), "the control: both sizes choose alike"
    with torch.no_grad():
        for parameter in model.exit_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = ek.ExitModel.from_pretrained(net(), tmp_path, example_inputs=pixels(2))
    assert [e.path for e in again.exits] == [e.path for e in model.exits]
    assert again.exit_config == model.exit_config
    x, t = pixels(8)
    for depth in range(1, len(model.exits) + 1):
        model.policy = again.policy = FixedExit(depth)
        with torch.no_grad():
            assert torch.equal(model(x, t), again(x, t))
    # Saved once more it says the same.
    again.save_pretrained(tmp_path / "again")
    saved = [json.loads((p / "exitkit.json").read_text()) for p in (tmp_path, tmp_path / "again")]
    assert saved[0]["exits"] == saved[1]["exits"] and saved[1]["config"]["exits"] is None


def test_a_saved_exit_that_is_not_there_is_refused(tmp_path: Path) -> None:
    trained(case("uvit")).save_pretrained(tmp_path)
    change(tmp_path, exits=["in_blocks.0", "in_blocks.77"])
    refused(case("uvit"), tmp_path, r"saved is not there.*in_blocks\.77.*example_inputs")


def test_the_range_of_the_timestep_comes_back_though_no_example_tells_it(tmp_path: Path) -> None:
    args, kwargs = case("shared_block").inputs(3)
    call = ek.Inputs(args[0], torch.ones(3), **kwargs)  # an end of 0..1, or a step of a thousand
    flow = ek.Adapter("flow", lambda net: True, timestep_range=(1.0, 0.0))
    model = ek.wrap(case("shared_block").make(), example_inputs=call, adapter=flow)
    model.save_pretrained(tmp_path)
    again = ek.load(case("shared_block").make(), tmp_path)
    assert again.plan.time == model.plan.time == (-1000.0, 1.0)
    assert again.plan.doubts == ()
