"""What people pass by mistake: each has its own text, with where, found, expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils.data import DataLoader, TensorDataset

import exitkit as ek
from exitkit.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    ExitKitError,
    ShapeError,
)
from exitkit.policies import FixedExit, UncertaintyThreshold
from exitkit.training import checkpoints
from tests.backbones import case
from tests.copies import copies
from tests.tiny_pipelines import case as pipeline

SHAPE = (3, 8, 8)
SAMPLER = ek.Sampler("ddim", SHAPE, 4)
Call = Callable[[], Any]


def bare() -> Any:
    return case("uvit").make()


@copies
def wrapped(name: str = "uvit") -> Any:
    args, kwargs = case(name).inputs(2)
    return ek.wrap(case(name).make(), "relative", example_inputs=ek.Inputs(*args, **kwargs))


@pytest.fixture(scope="module")
def model() -> Any:
    return wrapped()


@pytest.fixture(scope="module")
def labelled() -> Any:
    return wrapped("uvit_labels")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return pipeline("sd3").make()


def refused(call: Call, match: str, kind: type[ExitKitError] = ConfigError) -> None:
    with pytest.raises(kind, match=match):
        call()


# ---------------------------------------------------------------------------------- nothing is wrapped


@pytest.mark.parametrize("verb", ["fit", "calibrate"])
def test_verbs_of_exits_want_exits(verb: str, pipe: Any) -> None:
    options = {"fit": {"steps": 1}, "calibrate": {"budget": 0.5}}[verb]
    call = getattr(ek, verb)
    refused(
        lambda: call(bare(), SAMPLER, **options),
        rf"^{verb}: expected a wrapped model, got UViT, a network without exits. Wrap it first",
    )
    refused(
        lambda: call(pipe, SAMPLER, **options),
        rf"^{verb}: .* got the pipeline StableDiffusion3Pipeline. Pass what ek.wrap .*ek.{verb}\(model",
    )
    refused(lambda: call("m", SAMPLER, **options), rf"^{verb}: expected a wrapped model, got str")
    refused(lambda: ek.Rollouts(bare(), SAMPLER), r"^Rollouts: expected a wrapped model, got UViT")


def test_what_generates_and_what_is_compared(pipe: Any, model: Any) -> None:
    refused(lambda: ek.generate(pipe, SAMPLER), r"generate: .*StableDiffusion3Pipeline.*ek.wrap")
    refused(lambda: ek.generate("m", SAMPLER), r"generate: expected a wrapped model.*got str")
    refused(
        lambda: ek.compare(model, SAMPLER), r"expected a list of entries, found ExitModel.*ek.Entry"
    )
    refused(lambda: ek.compare([model], SAMPLER), r"expected a list of entries, found ExitModel")
    refused(lambda: ek.Entry("mine", pipe), r"model of 'mine' is StableDiffusion3Pipeline.*ek.wrap")


# -------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", ["fifty", "50", 10.5, True, 0, -1, float("nan"), [4]])
def test_steps_are_whole_numbers(value: Any, model: Any, pipe: Any) -> None:
    found = rf"whole number of at least 1.*{str(value)[:3] if value != [4] else '.4.'}"
    either = rf"({found}|steps={value!r} \(a whole number of at least 1\))".replace("[4]", r"\[4\]")
    refused(lambda: ek.Sampler("ddim", SHAPE, value), either)
    refused(lambda: ek.fit(model, SAMPLER, steps=value), either)
    refused(lambda: ek.PipelineSampler(pipe, [{}], num_inference_steps=value), either)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ek.Optimizer(lr="small"), r"Optimizer: .*lr='small' \(a number above 0\)"),
        (lambda: ek.Optimizer(warmup=2.5), r"warmup=2.5 \(a whole number of at least 0\)"),
        (lambda: ek.Optimizer(betas="ab"), r"betas='ab' \(two numbers"),
        (lambda: ek.Optimizer(clip="1", accumulation="2"), r"clip='1'.*accumulation='2'"),
        (lambda: ek.Optimizer(cooldown="half"), r"cooldown='half' \(above 0, at most 1\)"),
        (lambda: ek.Checkpoints(every="often"), r"every='often' \(a whole number of at least 1\)"),
        (lambda: ek.Checkpoints(log_every=1.5), r"log_every=1.5 \(a whole number"),
        (lambda: ek.Sampler("ddim", SHAPE, batch_size="8"), r"batch_size must be a whole.*got '8'"),
        (lambda: ek.Sampler("ddim", "3x8x8"), r"shape must hold the sizes.*got '3x8x8'"),
        (
            lambda: ek.Sampler("ddim", SHAPE, guidance_scale="4", negative_conditions={}),
            r"guidance_scale must be a number, got '4'",
        ),
        (lambda: UncertaintyThreshold("low"), r"threshold must be a finite number.*got 'low'"),
        (lambda: FixedExit(1.5), r"FixedExit.depth.*whole.*1.5"),
        (lambda: ek.RiskTarget("small", "ltt"), r"max_error must be a number above 0, got 'small'"),
    ],
)
def test_text_and_fractions_where_numbers_belong(call: Call, match: str) -> None:
    refused(call, match)


def test_text_where_verbs_want_numbers(model: Any) -> None:
    refused(lambda: ek.fit(model, SAMPLER, ema="a"), r"fit: .*ema='a' \(None, or between 0 and 1\)")
    refused(lambda: ek.fit(model, SAMPLER, seed="a"), r"fit: .*seed='a' \(a whole number\)")
    refused(
        lambda: ek.calibrate(model, SAMPLER, budget="half"), r"budget must be in \(0, 1\].*'half'"
    )
    refused(lambda: ek.calibrate(model, SAMPLER, max_error="low"), r"max_error must be.*'low'")
    refused(lambda: ek.generate(model, SAMPLER, seeds="many"), r"seeds must be a whole.*'many'")


def test_exits_that_are_not_there(model: Any) -> None:
    before, exits = model.policy, len(model.exits)
    message = r"FixedExit.depth is 99, and the model has \d exits. Take 1 to"
    refused(lambda: setattr(model, "policy", FixedExit(99)), message)
    refused(lambda: model.using(FixedExit(99)), message)
    costs = (0.5,) * (exits + 1)
    too_many = ek.policies.Oracle(price=1.0, costs=costs)
    refused(lambda: setattr(model, "policy", too_many), rf"{exits + 1} costs.*{exits} exits")
    assert model.policy is before
    model.policy = FixedExit(exits)  # the last one, and
    model.policy = FixedExit(ek.policies.FULL)
    model.policy = before


def test_what_is_no_policy(model: Any) -> None:
    found = ek.Calibration(FixedExit(1), 0.5, 0.1)
    refused(lambda: setattr(model, "policy", found), r"got Calibration. .*= found.policy")
    refused(lambda: setattr(model, "policy", FixedExit), r"got the class FixedExit. Make one of it")


class Timed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x + t.view(-1, 1) / 1000
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return x


CALL = (torch.randn(3, 8), torch.tensor([900.0, 500.0, 90.0]))
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wrap adapter": (
        lambda _: ek.wrap(Timed(), example_inputs=CALL, adapter="x"),
        r"adapter=: expected an adapter or None, got 'x'. Make one: ek.Adapter\(",
    ),
    "inspect adapter": (
        lambda _: ek.inspect(Timed(), example_inputs=CALL, adapter="x"),
        r"adapter=: expected an adapter or None, got 'x'",
    ),
    "register": (lambda _: ek.register_adapter(5), r"register_adapter: expected an adapter, got 5"),
    "report": (
        lambda _: ek.write_report(None, "a.html"),
        r"write_report: expected a comparison, got None. Pass what ek.compare",
    ),
    "optimizer": (
        lambda m: ek.fit(m, SAMPLER, optimizer=5),
        r"fit: optimizer=: expected ek.Optimizer\(...\) or None, got 5",
    ),
    "class": (
        lambda m: ek.fit(m, SAMPLER, optimizer=ek.Optimizer),
        r"fit: optimizer=: expected .*, got the class Optimizer",
    ),
    "checkpoints": (
        lambda m: ek.fit(m, SAMPLER, checkpoints=5),
        r"fit: checkpoints=: expected ek.Checkpoints\(...\) or None, got 5",
    ),
    "accelerator": (
        lambda m: ek.fit(m, SAMPLER, accelerator=5, steps=1),
        r"fit: accelerator=: expected an accelerate.Accelerator or None, got 5. Leave it out",
    ),
    "folder": (lambda _: ek.Checkpoints(5), r"Checkpoints: folder: expected a path or None, got 5"),
    "metrics": (
        lambda m: ek.compare([ek.Entry("a", m)], SAMPLER, metrics=5),
        r"compare: metrics=: expected ek.Metrics",
    ),
    "features": (lambda _: ek.Metrics(5), r"Metrics: features must be a network.*got 5"),
    "reference": (lambda _: ek.Metrics(reference=5), r"Metrics: reference: expected a tensor"),
    "load": (lambda _: ek.load(Timed(), None), r"load: expected a path, got None. Pass what"),
    "save": (
        lambda m: m.save_pretrained(5),
        r"save_pretrained: expected the path of a folder, got 5. For example",
    ),
    "disable": (
        lambda _: ek.disable_early_exit(5),
        r"disable_early_exit: expected a diffusers pipeline, got int. Of a network, ek.unwrap",
    ),
    "no exits": (lambda _: ek.ExitConfig(exits={}), r"ExitConfig: exits: expected indices.*got {}"),
    "text": (
        lambda _: ek.config.LossConfig(uncertainty_weight="a"),
        r"LossConfig: uncertainty_weight: .*valid number.*See exitkit.config.LossConfig",
    ),
    "one path": (
        lambda _: ek.wrap(Timed(), example_inputs=CALL, exits="blocks.0"),
        r"exits: expected indices.*got 'blocks.0'; pass exits=\('blocks.0',\)",
    ),
    "one index": (
        lambda _: ek.wrap(Timed(), example_inputs=CALL, exits=1),
        r"exits: expected indices.*got 1; pass exits=\(1,\)",
    ),
    "no file": (
        lambda _: ek.Comparison.from_json("/nowhere/at/all.json"),
        r"all.json cannot be read: .*No such file.*to_json",
    ),
    "no path": (lambda _: ek.Comparison.from_json(5), r"from_json: expected a path, got 5"),
    "policy": (lambda m: ek.Entry("a", m, 5), r"Entry: policy of 'a': expected a policy"),
    "name": (lambda m: ek.Entry("", m), r"Entry: expected a name.*got ''. For example"),
    "steps": (
        lambda m: m.trajectory(steps="a").__enter__(),
        r"trajectory: steps must be a whole number of at least 1, or None, got 'a'",
    ),
    "less than none": (lambda m: m.trajectory(steps=-1).__enter__(), r"steps must be.*got -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_of_another_kind_is_named(name: str, model: Any) -> None:
    call, match = WRONG[name]
    refused(lambda: call(model), match)


def test_what_is_of_the_kind_is_taken(model: Any, tmp_path: Path) -> None:
    """The control: the same calls with what fits."""
    assert ek.Entry("a", model, FixedExit(1)).policy == FixedExit(1)
    assert ek.ExitConfig(exits=[1, "blocks.*"]).exits == (1, "blocks.*")
    assert ek.ExitConfig(exits="first").exits == "first"
    with model.trajectory(steps=3) as opened:
        assert opened.steps == 3
    model.save_pretrained(str(tmp_path / "exits"))
    assert ek.Checkpoints(str(tmp_path)).path == tmp_path
    assert ek.Metrics(torch.nn.Flatten(), torch.zeros(2, 3)).features is not None


def test_the_argument_that_a_call_lacks_is_named() -> None:
    timed = ek.wrap(Timed(), example_inputs=CALL)
    match = (
        r"Timed: its parameters do not take this call, missing a required argument: 't'. Call the"
    )
    refused(lambda: timed(CALL[0]), match, ShapeError)
    assert timed(*CALL).shape == CALL[0].shape  # the control


def test_a_policy_that_reads_values_cannot_be_mapped() -> None:
    model = ek.wrap(Timed(), example_inputs=CALL)
    model.heads.mark_fitted()
    x, t = CALL

    def mapped(network: Any) -> torch.Tensor:
        made: torch.Tensor = torch.func.vmap(lambda a, b: network(a[None], b[None])[0])(x, t)
        return made

    model.policy = UncertaintyThreshold(0.5)
    match = r"reads on the host.*torch.func.vmap.*NeverExit\(\).*model.at"
    refused(lambda: mapped(model), match)
    by_row = torch.func.vmap(torch.func.grad(lambda a: model(a[None], t[:1]).sum()))
    refused(lambda: by_row(x), match)
    model.policy = ek.policies.NeverExit()  # the controls
    torch.testing.assert_close(mapped(model), mapped(model.backbone))
    assert mapped(model.at(1)).shape == x.shape


@pytest.mark.parametrize("policy", [UncertaintyThreshold(0.5), FixedExit(1)], ids=str)
def test_derivatives_of_torch_func_are_those_of_a_backward_pass(policy: Any) -> None:
    torch.manual_seed(0)
    model = ek.wrap(Timed(), example_inputs=CALL)
    model.heads.mark_fitted()
    model.policy = policy
    x, t = CALL
    leaf = x.clone().requires_grad_()
    model(leaf, t).square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0

    def loss(a: torch.Tensor) -> torch.Tensor:
        return model(a, t).square().sum()

    torch.testing.assert_close(torch.func.grad(loss)(x), leaf.grad)
    rows = torch.func.jacrev(lambda a: model(a, t))(x)
    torch.testing.assert_close((rows * 2 * model(x, t)[..., None, None]).sum((0, 1)), leaf.grad)


def test_rules_that_return_no_mask(model: Any) -> None:
    args, _ = case("uvit").inputs(2)

    @dataclass(frozen=True)
    class Wrong(ek.policies.ExitRule):
        made: Any = None
        name: ClassVar[str] = "wrong"
        needs: ClassVar[frozenset[str]] = frozenset()

        def decide(self, signals: Any) -> Any:
            return self.made

    try:
        for made, told in {
            torch.tensor(True): r"bool of shape \(\)",
            torch.zeros(2): r"float32 of shape \(2,\)",
            torch.ones(3, dtype=torch.bool): r"bool of shape \(3,\)",
            True: "bool at exit 1",
        }.items():
            model.policy = Wrong(made)
            with pytest.raises(ShapeError, match=rf"Wrong.decide returned {told}"):
                model(*args)
    finally:
        model.policy = ek.policies.NeverExit()


def test_carried_exits_that_were_never_fitted() -> None:
    args, kwargs = case("uvit").inputs(2)
    carried = ek.wrap(case("uvit").make(), "carried", example_inputs=ek.Inputs(*args, **kwargs))
    refused(
        lambda: ek.calibrate(carried, SAMPLER, budget=0.5, progress=False),
        r"UViT were never fitted.*Call ek.fit\(model, sampler\) first",
        CalibrationError,
    )


def test_a_fit_that_failed_has_told_the_exits_of_no_sampler(model: Any) -> None:
    before = model.fitted
    other = ek.Sampler("ddim", (9, *SAMPLER.shape[1:]), 3)
    with pytest.raises((RuntimeError, ExitKitError)) as failed:
        ek.fit(model, other, steps=1, progress=False)
    assert model.fitted == before
    notes = " ".join(getattr(failed.value, "__notes__", []))
    assert f"It was wrapped with samples of shape {SAMPLER.shape}" in notes


# ------------------------------------------------------------------------------- shapes and conditions


def test_a_shape_with_the_batch_in_it(model: Any) -> None:
    for verb in (
        lambda s: ek.generate(model, s, seeds=2),
        lambda s: ek.fit(model, s, steps=1, progress=False),
    ):
        wrong = replace(SAMPLER, shape=(2, *SHAPE))
        match = (
            r"shape is \(2, 3, 8, 8\).*UViT.*\(3, 8, 8\).*Leave the batch out: shape=\(3, 8, 8\)"
        )
        refused(lambda: verb(wrong), match, ShapeError)  # noqa: B023
        missing = replace(SAMPLER, shape=(8, 8))
        refused(lambda: verb(missing), r"shape is \(8, 8\).*Pass shape=\(3, 8, 8\)", ShapeError)  # noqa: B023


def test_errors_of_the_network_itself_are_explained(model: Any) -> None:
    for network, shape in ((bare(), (2, *SHAPE)), (model, (4, 8, 8))):
        with pytest.raises(RuntimeError) as caught:
            ek.generate(network, replace(SAMPLER, shape=shape), seeds=2)
        (note,) = caught.value.__notes__
        assert str((2, *shape)) in note and "without the batch" in note and "UViT" in note


@pytest.mark.parametrize("kind", ["wrapped", "bare"])
def test_the_misspelt_condition_is_named(kind: str, labelled: Any) -> None:
    network = labelled if kind == "wrapped" else labelled.backbone
    pool = torch.arange(3)
    for conditions in (
        {"contxt": pool},
        {"y": pool, "contxt": pool},
        lambda seeds: {"contxt": seeds},
    ):
        sampler = replace(SAMPLER, conditions=conditions)
        match = r"UViT takes no condition 'contxt' \(it takes y, context\). Did you mean 'context'"
        refused(lambda: ek.generate(network, sampler), match)  # noqa: B023
    negative = replace(
        SAMPLER, conditions={"y": pool}, guidance_scale=2.0, negative_conditions={"yy": pool}
    )
    refused(lambda: ek.generate(network, negative), r"takes no condition 'yy'")


def test_a_missing_condition_is_named() -> None:
    def network(
        x: torch.Tensor, t: torch.Tensor, label: torch.Tensor, size: int = 3
    ) -> torch.Tensor:
        return x

    refused(
        lambda: ek.generate(network, replace(SAMPLER, conditions={"size": 4})),
        r"needs 'label', which the conditions \(size\) do not hold. Pass conditions=\{'label': ...\}",
    )
    given = replace(SAMPLER, conditions={"label": torch.arange(2)})
    assert len(ek.generate(network, given).samples) == 1  # the control


def test_calls_that_do_not_fit_name_what_is_new(labelled: Any, pipe: Any) -> None:
    args, _ = case("uvit_labels").inputs(2)
    refused(
        lambda: labelled(*args[:2], yy=torch.arange(2)),
        r"'yy' is new. Did you mean 'y'",
        ShapeError,
    )
    with pytest.raises(ShapeError, match="its parameters do not take this call"):
        labelled(*args, *args, *args)
    match = r"example_inputs hold 'promt', which its call does not take. Did you mean 'prompt'"
    refused(lambda: ek.wrap(pipe, example_inputs={"promt": "a"}), match)
    refused(
        lambda: ek.PipelineSampler(pipe, [{"promt": "a"}]),
        r"takes no 'promt'. Did you mean 'prompt'",
    )


# ------------------------------------------------------------------------------------------ schedulers


def test_a_class_is_no_scheduler() -> None:
    match = (
        r"the scheduler is the class DDIMScheduler, expected an instance. Pass DDIMScheduler\(\) or"
    )
    refused(lambda: ek.Sampler(DDIMScheduler, SHAPE), match)
    refused(lambda: ek.tasks.Noise(DDIMScheduler), r"Noise: " + match)
    pipe = pipeline("sd3").make()
    pipe.scheduler = DDIMScheduler
    refused(lambda: ek.PipelineSampler(pipe, [{}]), r"StableDiffusion3Pipeline: " + match)


# ----------------------------------------------------------------------------- fits that are taken up


def fitted(folder: Path, sampler: Any = SAMPLER, seeds: int = 4, **more: Any) -> Any:
    model = wrapped()
    rollouts = ek.Rollouts(model, sampler, seeds=seeds, keep=2)
    options = {"steps": 2, "progress": False, "checkpoints": ek.Checkpoints(folder, every=1)}
    return ek.fit(model, rollouts, **{**options, **more})


def test_a_fit_is_taken_up_on_the_same_seed_and_data(tmp_path: Path) -> None:
    fitted(tmp_path)
    refused(
        lambda: fitted(tmp_path, seed=7), r"step-.*seed=7 \(was 0\).*resume=False", CheckpointError
    )
    refused(
        lambda: fitted(tmp_path, seeds=5), r"source=.*'seeds': \[0, 4, 5\].*was", CheckpointError
    )
    other = replace(SAMPLER, steps=5)
    refused(
        lambda: fitted(tmp_path, other), r"source=.*'steps': 5.*was.*'steps': 4", CheckpointError
    )
    assert fitted(tmp_path).steps == 2  # the control


def test_batches_are_known_again() -> None:
    from exitkit.training.sources import source_of

    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6)
    one = source_of(DataLoader(TensorDataset(images, labels), batch_size=2))
    assert one is not None and one["items"] == 6
    assert one == source_of(DataLoader(TensorDataset(images.clone(), labels), batch_size=2))
    others = [
        DataLoader(TensorDataset(images + 1e-3, labels), batch_size=2),
        DataLoader(TensorDataset(images[:4], labels[:4]), batch_size=2),
        DataLoader(TensorDataset(images, labels), batch_size=3),
        [(images, labels)],
    ]
    assert all(source_of(other) != one for other in others)
    assert source_of(iter([images])) is None  # which may be the same


# --------------------------------------------------------------------------------------------- folders


def test_checkpoints_want_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(lambda: ek.Checkpoints(file), r"Checkpoints: .*file is a file.*folder", CheckpointError)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    fitted(tmp_path / "kept")
    before = sorted(p.name for p in (tmp_path / "kept").iterdir())
    monkeypatch.setattr(checkpoints, "save_file", full)
    match = r"the checkpoint of step 3 could not be written: the disk is full"
    save = lambda: checkpoints.save(tmp_path / "kept", 3, {}, {})  # noqa: E731
    refused(save, match, CheckpointError)
    assert [
        n for n in sorted(p.name for p in (tmp_path / "kept").iterdir()) if n[0] != "."
    ] == before
