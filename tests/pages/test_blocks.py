"""The Python blocks of the pages of docs, run as they stand on small models.

README's and the first page's program is run by tests/examples/test_first_program.py, the page on
writing a policy by tests/policies/test_pages.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

import exitkit as ek
from exitkit.benchmark import Recipe
from tests.hub_server import Hub, hub
from tests.pages.reading import ROOT, blocks
from tests.tiny_pipelines import WIDTH, case
from tests.tiny_suites import SCHEDULER, SHAPE, opinionated, wrapped
from tests.tiny_suites import suite as tiny_suite
from tests.training.test_completion import Denoiser

__all__ = ["hub"]  # a fixture

ELSEWHERE = {"docs/index.rst", "docs/write-a-policy.rst"}
COVERED = {
    "docs/comparing.rst": 2,
    "docs/fine-tuning.rst": 7,
    "docs/how-it-works.rst": 2,
    "docs/pipelines.rst": 6,
    "docs/policies.rst": 2,
}
"""How many blocks of each page are run here."""


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "a page", "exec"), names)
    names.pop("__builtins__")
    return names


def of(page: str) -> list[str]:
    return blocks((ROOT / page).read_text(encoding="utf-8"))


def shorter(code: str, long: str, short: str) -> str:
    assert code.count(long) == 1, f"the page says {long!r} otherwise now"
    return code.replace(long, short)


def test_every_block_of_docs_is_run_somewhere() -> None:
    pages = (page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.rst"))
    found = {page: len(of(page)) for page in pages if page not in ELSEWHERE}
    assert {page: count for page, count in found.items() if count} == COVERED


@pytest.fixture
def pipe() -> Any:
    """A tiny Stable Diffusion whose prompts are drawn from their own characters."""
    pipe = case("sd").make()

    def encode_prompt(prompt: str, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(sum(map(ord, prompt)))
        return torch.randn(1, 5, WIDTH, generator=source), torch.zeros(1, 5, WIDTH)

    pipe.encode_prompt = encode_prompt
    return pipe


def test_pipelines(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _, _, requests, suspended, guided = of("docs/pipelines.rst")
    before = pipe.unet.state_dict().keys()
    whole = shorter(whole, 'at dusk")', 'at dusk", num_inference_steps=4)')
    found = run(whole, pipe=pipe)
    assert len(found["images"]) == 1
    assert "rows by depth" in capsys.readouterr().out
    assert pipe.unet.state_dict().keys() == before
    found = run(shorter(guided, "{...}", "{'prompt': 'a lighthouse'}"), pipe=pipe, ek=ek)
    model = found["model"]
    assert isinstance(model, ek.ExitModel)
    model.heads.mark_fitted()
    model.policy = ek.policies.FixedExit(1)
    bare = shorter(suspended, 'at dusk", ', 'at dusk", num_inference_steps=4, ')
    early = bare.replace("with model.suspended():", "if True:")
    images = [run(code, pipe=pipe, model=model, torch=torch)["full"] for code in (bare, early)]
    requests = shorter(requests, "own(prompt)", "own(prompt, num_inference_steps=4)")
    answer = run(requests, pipe=pipe, model=model)["answer"]
    answers = [answer("a cat", p)[0] for p in (ek.policies.FixedExit(1), ek.policies.NeverExit())]
    assert not np.array_equal(*answers) and model.policy == ek.policies.FixedExit(1)
    ek.unwrap(pipe)
    want = run(early, pipe=pipe, torch=torch)["full"]
    assert [np.array_equal(image, want) for image in images] == [True, False]


@pytest.mark.slow  # a minute: every verb runs the whole pipeline
def test_a_pipeline_from_wrap_to_report(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = of("docs/pipelines.rst")[1]
    for long, short in {
        "num_inference_steps=28": "num_inference_steps=8, height=64, width=64",
        "ek.fit(model, sampler)": "ek.fit(model, ek.Rollouts(model, sampler, 2), steps=1, progress=False)",
        "budget=0.6": "budget=0.8, policy='interval', seeds=1, progress=False",
        'at dusk"': 'at dusk", num_inference_steps=8, height=64, width=64, output_type="latent"',
        "model)], sampler": "model)], sampler, seeds=2, fewer_steps=[4], progress=False",
    }.items():
        code = shorter(code, long, short)
    monkeypatch.chdir(tmp_path)
    found = run(code, pipe=pipe, ek=ek)
    assert found["model"].calibration.cost <= 0.8 * 1.02
    assert {"full", "mine", "fewer steps (4)"} <= {row.name for row in found["comparison"].rows}
    assert "<html" in Path("report.html").read_text() and Path("exits").is_dir()
    ek.unwrap(pipe)


def test_exits_are_kept(
    pipe: Any, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ek.wrap(pipe, "carried", example_inputs={"prompt": "a lighthouse"})
    model.policy = ek.policies.Interval(3)
    model.save_pretrained("exits")
    ek.unwrap(pipe)
    found = run(of("docs/pipelines.rst")[2], pipe=pipe, ek=ek)
    assert found["model"].policy == ek.policies.Interval(3)
    assert "exits.safetensors" in hub.files("me/exits-for-my-pipe")


def test_from_a_budget_to_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    code = shorter(of("docs/policies.rst")[0], "steps=50", "steps=10")
    with torch.no_grad():
        found = run(code, model=wrapped("calm"), scheduler=SCHEDULER, shape=SHAPE, ek=ek)
    assert found["found"].cost <= 0.51
    assert isinstance(found["model"].policy, ek.policies.CALM)
    assert "cost" in capsys.readouterr().out


def test_a_completion_within_a_budget() -> None:
    code = of("docs/how-it-works.rst")[0]
    for long, short in {
        "steps=40": "steps=8",
        "ek.fit(model, sampler)": "ek.fit(model, ek.Rollouts(model, sampler, 4), progress=False)",
        "budget=0.5": "budget=0.5, seeds=2, progress=False",
    }.items():
        code = shorter(code, long, short)
    example = {"x": torch.randn(2, 1, 8, 8), "t": torch.tensor([10.0, 20.0])}
    names = {"backbone": Denoiser().eval(), "shape": (1, 8, 8), "ek": ek, **example}
    found = run(code, DPMSolverMultistepScheduler=DPMSolverMultistepScheduler, **names)
    assert found["model"].policy.per_step.count(0) == 4 and found["model"].heads.is_fitted


def labelled(count: int = 8) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, 32, 32, generator=source), torch.arange(count) % 10


def vit(depth: int = 8) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": depth, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes).eval()


def test_fine_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fitted, launched, own, when, compared, fixed, _ = of("docs/fine-tuning.rst")
    short = shorter(fitted, "steps=500", "steps=2, progress=False")
    loader = [labelled(), labelled(7)]
    names = run(short, network=vit(), images=labelled()[0], loader=loader)
    model = names["model"]
    before = [p.detach().clone() for p in model.heads.parameters()]
    names = run(shorter(launched, "steps=500", "steps=2, progress=False"), **names)
    assert Path("exits").is_dir()
    names = run(own, **names, torch=torch)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.heads.parameters(), strict=True))
    with torch.no_grad():
        names = run(when, **names, held_back=[labelled()])
    assert names["logits"].shape == (7, 10) and names["found"].cost <= 0.5 * 1.02
    found = run(compared, **names, smaller=vit(2), test_set=[labelled()])["comparison"]
    assert {"full", "confidence", "patience", "smaller network"} <= {r.name for r in found.rows}
    assert "minus fixed exit" in capsys.readouterr().out
    run(fixed, **names)
    loaded = torch.export.load("exit2.pt2").module()
    model.policy = ek.policies.FixedExit(2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(names["images"]), model(names["images"]))


def test_a_diffusion_network_with_its_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = of("docs/fine-tuning.rst")[-1]
    for long, short in {
        "steps=20_000": "steps=3, progress=False",
        "steps=50": "steps=4",
        "budget=0.5": "budget=0.9, policy='static', seeds=2, progress=False",
        "baseline=before": "baseline=before, seeds=2, progress=False",
    }.items():
        code = shorter(code, long, short)
    names = {"x": torch.randn(2, *SHAPE), "t": torch.tensor([10.0, 500.0])}
    loader = [torch.randn(4, *SHAPE)]
    found = run(code, backbone=tiny_suite().backbone(), loader=loader, scheduler=SCHEDULER, **names)
    assert {"full", "paper", "paper, no exit"} <= {row.name for row in found["comparison"].rows}
    assert "errors of the exits" in capsys.readouterr().out
    assert Path("exits/backbone.safetensors").is_file() and any(Path("runs/paper").iterdir())


def test_comparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    own, ran = of("docs/comparing.rst")
    tiny = tiny_suite()
    names = run(
        shorter(own, "steps=50", "steps=6"),
        make_backbone=tiny.backbone,
        make_loader=tiny.loader,
        x=torch.randn(2, *SHAPE),
        t=torch.tensor([5, 700]),
        scheduler=SCHEDULER,
        shape=SHAPE,
        training_scheduler=DDPMScheduler(),
    )
    short = "seeds=2, recipe=Recipe(steps=2, batch_size=2, rollouts=2, calibration=2)"
    found = run(shorter(ran, "seeds=64", short), **names, Recipe=Recipe)
    assert "first block cache" in capsys.readouterr().out
    assert ek.Comparison.from_json("mine.json").rows == found["comparison"].rows


def test_classifiers(capsys: pytest.CaptureFixture[str]) -> None:
    code = shorter(of("docs/policies.rst")[1], "steps=500", "steps=3, progress=False")
    run(
        code,
        ek=ek,
        timm_model=vit(),
        bare=vit(),
        images=labelled()[0],
        loader=[labelled(), labelled()],
        held_back=[labelled()],
        test_batches=[labelled()],
    )
    assert "entropy" in capsys.readouterr().out


def test_a_certified_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    code = shorter(of("docs/how-it-works.rst")[1], "0.02", "0.8")
    model = opinionated(wrapped("relative"))
    sampler = ek.Sampler(SCHEDULER, SHAPE, steps=4)
    found = run(code, model=model, sampler=sampler, ek=ek)
    assert found["found"].certificate.delta == 0.1
    assert "Certified by Learn then Test" in capsys.readouterr().out
