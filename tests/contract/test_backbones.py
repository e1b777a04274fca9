"""The public contract over all cases, an independent reference, and proof that both can fail."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import exitkit as ek
from exitkit.config import resolve_config
from exitkit.errors import ExitKitError, ShapeError
from exitkit.policies import (
    FULL,
    ExitRule,
    FixedExit,
    NeverExit,
    Policy,
    ScriptedExit,
    Signals,
    UncertaintyThreshold,
)
from exitkit.testing import ContractError, check_backbone, check_policy
from tests.backbones import CASES, Case, case, hidden_in, prediction
from tests.copies import copies

ATOL = 2e-5
SAME_SHAPE = [c for c in CASES if c.lands]
# Called once more in every way: one of each mechanism.
PRESETS = ("paper", "official", "carried")
MECHANISMS = ("uvit", "sd3", "unet", "timm_vit", "shared_block", "folded_frames", "inplace_blocks")
CALLS = MECHANISMS[4:]
# Exits that attach to a U-Net, and those that end in the tail of two streams, differ by their heads alone.
ALIKE = (("unet", "official"), ("sd3", "official"))


def each(*names: str) -> pytest.MarkDecorator:
    cases = [case(name) for name in names] if names else list(CASES)
    return pytest.mark.parametrize("backbone", cases, ids=lambda c: c.id)


def wrap(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]], **more: Any) -> Any:
    args, kwargs = call
    return ek.wrap(model, example_inputs=ek.Inputs(*args, **kwargs), **more)


@copies
def with_exits(backbone: Case, rows: int, config: str = "relative") -> Any:
    """Wrapped with that many rows as the example."""
    return wrap(backbone.make(), backbone.inputs(rows), config=config)


# ------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    "seed",
    [0, pytest.param(1, marks=pytest.mark.slow)],  # the same networks with other weights
)
@each()
def test_contract(backbone: Case, seed: int) -> None:
    args, kwargs = backbone.inputs(4, seed)
    check_backbone(backbone.make(seed), ek.Inputs(*args, **kwargs), atol=ATOL)


@pytest.mark.filterwarnings("ignore:.*nothing outside a trajectory:exitkit.errors.DoubtWarning")
@pytest.mark.parametrize(
    ("backbone", "preset"),
    [
        # Only exits that resume lean on how blocks are called.
        pytest.param(
            case(name),
            preset,
            id=f"{name}-{preset}",
            marks=[pytest.mark.slow]
            * (preset != "carried" and (name in CALLS or (name, preset) in ALIKE)),
        )
        for name in MECHANISMS
        for preset in PRESETS
    ],
)
def test_contract_of_the_other_presets(backbone: Case, preset: str) -> None:
    args, kwargs = backbone.inputs(3)
    example = ek.Inputs(*args, **kwargs)
    check_backbone(backbone.make(), example, config=preset, atol=ATOL)


@pytest.mark.parametrize(
    "backbone",
    [  # with two streams there is the SD3, too, and without a prompt the U-Net
        pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.id in ("flux", "unet_conditional")))
        for c in CASES
        if "large" in c.sizes
    ],
)
def test_another_resolution_than_the_examples(backbone: Case) -> None:
    """Works, or is refused in words; never a wrong output."""
    model, wrapped = backbone.make(), with_exits(backbone, 2)
    with torch.no_grad():
        args, kwargs = backbone.inputs(3, size="large")
        wrapped.policy = NeverExit()
        assert torch.equal(prediction(wrapped(*args, **kwargs)), prediction(model(*args, **kwargs)))
        depths = [1, len(wrapped.exits), len(wrapped.exits) + 1]
        wrapped.policy = ScriptedExit(tuple(depths))
        try:
            together = wrapped(*args, **kwargs)
        except ShapeError as error:
            assert "wrap again" in str(error)
            wrapped.policy = NeverExit()
            together = wrapped(*args, **kwargs)
            depths = [len(wrapped.exits) + 1] * 3
        for row, depth in enumerate(depths):
            wrapped.policy = ScriptedExit((depth,))
            args, kwargs = backbone.rows([row], size="large")
            alone = wrapped(*args, **kwargs)
            torch.testing.assert_close(
                backbone.select(together, row), backbone.select(alone, 0), rtol=0, atol=ATOL
            )


@pytest.mark.parametrize(
    ("backbone", "dtype"),
    [
        pytest.param(
            case(name),
            dtype,
            marks=[pytest.mark.slow] * (name == "sd3" and dtype != torch.bfloat16),
        )
        for name in ("uvit", "unet", "sd3", "timm_vit")
        for dtype in (torch.float64, torch.bfloat16)
    ],
    ids=lambda value: getattr(value, "id", str(value)),
)
def test_contract_in_other_dtypes(backbone: Case, dtype: torch.dtype) -> None:
    args, kwargs = _cast(backbone.inputs(3), dtype)
    model = backbone.make().to(dtype)
    atol = 1e-10 if dtype == torch.float64 else 0.05
    if backbone.id == "uvit" and dtype == torch.float64:
        atol = 1e-6  # its time embedding is float32 by construction
    if dtype == torch.float64:
        check_backbone(model, ek.Inputs(*args, **kwargs), atol=atol)
        return
    # Half precision has no tolerance that tells rounding from a wrong depth.
    wrapped = wrap(model, (args, kwargs))
    with torch.no_grad():
        assert torch.equal(prediction(wrapped(*args, **kwargs)), prediction(model(*args, **kwargs)))
        wrapped.policy = ScriptedExit((1, 2, 9))
        output = prediction(wrapped(*args, **kwargs))
    assert output.dtype == dtype
    assert output.isfinite().all()


def _cast(call: tuple[Any, dict[str, Any]], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    def cast(value: Any) -> Any:
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    return tuple(map(cast, call[0])), {k: cast(v) for k, v in call[1].items()}


@each("uvit", "unet", "encoder_sequence_first")
def test_an_example_of_one_row(backbone: Case) -> None:
    args, kwargs = backbone.inputs(1)
    check_backbone(backbone.make(), ek.Inputs(*args, **kwargs))


# 3 prompt tokens and 16 image tokens, 8 and 16 pixels, 4 channels: the batch hides among them.
HIDDEN_BATCHES = [("flux", 3), ("flux", 16), ("dit", 4), ("dit", 8), ("unet", 3), ("unet", 16)]


@pytest.mark.parametrize(
    ("backbone", "batch"),
    [
        pytest.param(
            case(name),
            batch,
            id=f"{name}-{batch}",
            marks=[pytest.mark.slow] * ((name, batch) not in HIDDEN_BATCHES),
        )
        for name in ("flux", "dit", "unet")
        for batch in (3, 4, 8, 16)
    ],
)
def test_an_example_whose_batch_is_as_large_as_something_else(backbone: Case, batch: int) -> None:
    args, kwargs = backbone.inputs(batch)
    model = backbone.make()
    wrapped = wrap(model, (args, kwargs))
    depths = [1 + row % (len(wrapped.exits) + 1) for row in range(batch)]
    wrapped.policy = ScriptedExit(tuple(depths))
    with torch.no_grad():
        together = wrapped(*args, **kwargs)
        wrapped.policy = ScriptedExit((depths[-1],))
        args, kwargs = backbone.rows([batch - 1])
        alone = wrapped(*args, **kwargs)
    torch.testing.assert_close(
        backbone.select(together, batch - 1), backbone.select(alone, 0), rtol=0, atol=ATOL
    )


@each("uvit", "unet")
def test_thinned_exits(backbone: Case) -> None:
    args, kwargs = backbone.inputs(3)
    config = resolve_config("relative", exits=(1, -1))
    check_backbone(backbone.make(), ek.Inputs(*args, **kwargs), config=config)
    wrapped = wrap(backbone.make(), (args, kwargs), exits=("*.1",))
    paths = [path for path in backbone.stages[:-1] if path.endswith(".1")]
    assert [e.path for e in wrapped.exits] == paths


# ------------------------------------------------------------------------- calls unlike the example


@pytest.mark.parametrize("depth", [1, 2, FULL])
@each("dit", "unet", "unet_conditional", "sd3")
def test_pipelines_ask_for_a_tuple(backbone: Case, depth: int) -> None:
    wrapped = with_exits(backbone, 2)
    wrapped.policy = FixedExit(depth)
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        named = wrapped(*args, **kwargs)
        output = wrapped(*args, **kwargs, return_dict=False)
        assert isinstance(output, tuple)
        assert torch.equal(output[0], named.sample)
        # And once more, now that shapes and output types are known.
        assert torch.equal(wrapped(*args, **kwargs, return_dict=False)[0], named.sample)


def test_a_pipeline_takes_the_wrapped_model() -> None:
    from diffusers import DDIMPipeline, DDIMScheduler

    backbone = case("unet")
    wrapped = with_exits(backbone, 2)

    def images(denoiser: nn.Module) -> Tensor:
        pipe = DDIMPipeline(denoiser, DDIMScheduler(num_train_timesteps=100))
        pipe.set_progress_bar_config(disable=True)
        seeded = torch.Generator().manual_seed(0)
        out = pipe(batch_size=2, num_inference_steps=2, generator=seeded, output_type="np")
        return torch.from_numpy(out.images)

    bare = images(backbone.make())
    wrapped.policy = NeverExit()
    assert torch.equal(images(wrapped), bare)
    wrapped.policy = FixedExit(1)
    assert not torch.equal(images(wrapped), bare)


@pytest.mark.parametrize("depth", [1, FULL])
def test_a_timestep_may_be_a_number_a_scalar_or_a_vector(depth: int) -> None:
    backbone = case("unet")
    wrapped = with_exits(backbone, 2)
    x = backbone.inputs(3)[0][0]
    wrapped.policy = FixedExit(depth)
    with torch.no_grad():
        vector = wrapped(x, torch.tensor([7, 7, 7])).sample
        for t in (7, torch.tensor(7), torch.tensor([7])):
            torch.testing.assert_close(wrapped(x, t).sample, vector, rtol=0, atol=ATOL)
            assert wrapped.trace.timesteps.tolist() == [7.0]


def test_an_example_with_a_number_as_timestep() -> None:
    backbone = case("unet")
    model = backbone.make()
    x = backbone.inputs(3)[0][0]
    check_backbone(model, (x, 7))


def test_arguments_may_change_between_position_and_name() -> None:
    backbone = case("dit")
    wrapped = with_exits(backbone, 2)
    args, kwargs = backbone.inputs(3)
    wrapped.policy = ScriptedExit((1, 2, 9))
    with torch.no_grad():
        by_name = wrapped(hidden_states=args[0], **kwargs).sample
        by_position = wrapped(args[0], *kwargs.values()).sample
    assert torch.equal(by_name, by_position)


@each("uvit", "unet")
def test_training_works_after_inference_mode(backbone: Case) -> None:
    # Whatever is remembered from one call must not be an inference tensor in the next.
    wrapped = with_exits(backbone, 3)
    args, kwargs = backbone.inputs(3)
    with torch.inference_mode():
        for policy in (NeverExit(), FixedExit(1), ScriptedExit((1, 2, 9))):
            wrapped.policy = policy
            wrapped(*args, **kwargs)
    found = wrapped(*args, **kwargs, output_exits=True)
    loss = sum(out.pow(2).mean() for out in found.exits) + sum(u.mean() for u in found.uncertainty)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.exit_parameters())
    assert all(p.grad is None for p in wrapped.backbone.parameters())
    wrapped.policy = FixedExit(1)
    assert prediction(wrapped(*args, **kwargs)).isfinite().all()


@each("uvit", "unet")
def test_a_deep_copy_is_a_model_of_its_own(backbone: Case) -> None:
    wrapped = with_exits(backbone, 3)
    wrapped.policy = ScriptedExit((1, 2, 9))
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        expected = prediction(wrapped(*args, **kwargs))
        twin = copy.deepcopy(wrapped)
        assert torch.equal(prediction(twin(*args, **kwargs)), expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.equal(prediction(twin(*args, **kwargs)), expected)
        assert torch.equal(prediction(wrapped(*args, **kwargs)), expected)
    bare = ek.unwrap(twin)
    assert not any("forward" in vars(module) for module in bare.modules())
    assert ek.unwrap(wrapped) is not bare


# ------------------------------------------------------------------------- an independent reference
# An untrained `tail` exit is the hidden state of block k put through the backbone's own tail. Here
# that is a forward hook on the unmodified third-party model, run on one row alone: no exitkit.


def _placed(output: Any, hidden: Tensor) -> Any:
    if isinstance(output, dict):
        return {**output, "hidden": hidden}
    return (*output[:-1], hidden) if isinstance(output, tuple) else hidden


@contextmanager
def cut_after(model: nn.Module, stages: tuple[str, ...], stage: int) -> Iterator[None]:
    """The last stage hands on what the given stage (1..N) returned."""
    caught: list[Tensor] = []
    seen: list[int] = []

    def step(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append(1)
        if len(seen) == stage:
            caught.append(hidden_in(output).clone())  # blocks may work in place
        return _placed(output, caught[0]) if len(seen) == len(stages) else None

    with ExitStack() as stack:
        for path in dict.fromkeys(stages):
            stack.callback(model.get_submodule(path).register_forward_hook(step).remove)
        yield


@pytest.mark.parametrize("backbone", SAME_SHAPE, ids=lambda c: c.id)
def test_rows_equal_the_unmodified_model_cut_by_a_hook(backbone: Case) -> None:
    reference, wrapped = backbone.make(), with_exits(backbone, 2)
    exits = len(wrapped.exits)
    assert exits == len(backbone.stages) - 1
    depths = [d for d in range(exits + 1, 0, -1)]
    args, kwargs = backbone.inputs(len(depths), seed=3)
    wrapped.policy = ScriptedExit(tuple(depths))
    with torch.no_grad():
        together = wrapped(*args, **kwargs)
        for row, depth in enumerate(depths):
            args, kwargs = backbone.rows([row], seed=3)
            alone = {}
            for at in (depth, depth % (exits + 1) + 1):
                with cut_after(reference, backbone.stages, at):
                    alone[at] = backbone.select(reference(*args, **kwargs), 0)
            mine = backbone.select(together, row)
            torch.testing.assert_close(mine, alone.pop(depth), rtol=0, atol=ATOL)
            # The control: the exit beside it is another output, so the test can fail.
            assert (mine - next(iter(alone.values()))).abs().max() > 10 * ATOL


@contextmanager
def watched(
    model: nn.Module, stages: tuple[str, ...], replace: dict[int, Any] | None = None
) -> Iterator[dict[int, Tensor]]:
    """Catches the hidden state after every stage; `replace` computes some of them anew."""
    caught: dict[int, Tensor] = {}

    def step(module: nn.Module, args: Any, output: Any) -> Any:
        stage = len(caught) + 1
        caught[stage] = hidden_in(output).clone()
        if replace and stage in replace:
            return _placed(output, replace[stage](caught))
        return None

    with ExitStack() as stack:
        for path in dict.fromkeys(stages):
            stack.callback(model.get_submodule(path).register_forward_hook(step).remove)
        yield caught


@each(
    "uvit", "dit", "sd3", "shared_block", "inplace_blocks", "glue_between", "tuple_blocks", "unet"
)
def test_carried_rows_reuse_the_rest_of_their_last_full_step(backbone: Case) -> None:
    """Untrained, a carried exit is plain reuse: of the rest h_N - h_k, or of what resumes."""
    reference = backbone.make()
    wrapped = with_exits(backbone, 2, "carried")
    wrapped.heads.mark_fitted()
    exit_at = next(s.index for s in wrapped.plan.stages if s.path == wrapped.exits[0].path)
    mirror = wrapped.plan.boundaries[exit_at - 1].mirror
    landing = len(backbone.stages) if backbone.lands else mirror - 1
    depths = [1, 2, 1]
    args, kwargs = backbone.inputs(3)
    later, named = _step_later(backbone, args, kwargs)
    with torch.no_grad(), wrapped.trajectory():
        wrapped.policy = NeverExit()
        wrapped(*args, **kwargs)
        wrapped.policy = ScriptedExit(tuple(depths))
        together = wrapped(*later, **named)
        assert wrapped.trace.depth.tolist() == [[2, 2, 2], depths]
    for row, depth in enumerate(depths):
        with torch.no_grad():
            args, kwargs = backbone.rows([row])
            later, named = _step_later(backbone, args, kwargs)
            with watched(reference, backbone.stages) as first:
                reference(*args, **kwargs)

            def reused(now: dict[int, Tensor], first: dict[int, Tensor] = first) -> Tensor:
                rest = first[landing] - first[exit_at] if backbone.lands else first[landing]
                return now[exit_at] + rest if backbone.lands else rest

            with watched(reference, backbone.stages, {landing: reused} if depth == 1 else None):
                alone = backbone.select(reference(*later, **named), 0)
            full = backbone.select(reference(*later, **named), 0)
        mine = backbone.select(together, row)
        torch.testing.assert_close(mine, alone, rtol=0, atol=ATOL)
        assert ((mine - full).abs().max() > 10 * ATOL) == (depth == 1)


def _step_later(backbone: Case, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The inputs of the next step: another noisy input, a smaller timestep."""

    def change(name: str, value: Any) -> Any:
        if name == backbone.noisy:
            return value * 0.7 + 0.1
        return value - 1 if name in ("t", "timestep") else value

    names = [k for k in backbone.row(torch.Generator(), "base") if k not in backbone.keywords]
    moved = tuple(change(name, value) for name, value in zip(names, args, strict=True))
    return moved, {name: change(name, value) for name, value in kwargs.items()}


@dataclass(frozen=True)
class _Watch(ExitRule):
    """Writes down what it sees and lets nobody leave."""

    seen: dict[int, tuple[Tensor, Tensor | None]]
    name: ClassVar[str] = "watch"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden", "previous_hidden"})

    def decide(self, signals: Signals) -> Tensor:
        before = signals.previous_hidden()
        self.seen[signals.exit] = (
            signals.hidden().clone(),
            before if before is None else before.clone(),
        )
        return torch.zeros_like(signals.rows, dtype=torch.bool)


@each("uvit", "value_branch", "inplace_blocks")
def test_a_policy_sees_the_hidden_state_of_the_exit_before(backbone: Case) -> None:
    wrapped = with_exits(backbone, 2)
    wrapped.policy = _Watch({})
    args, kwargs = backbone.inputs(3)
    with torch.no_grad():
        wrapped(*args, **kwargs)
    seen = wrapped.policy.seen
    assert list(seen) == list(range(1, len(wrapped.exits) + 1))
    assert seen[1][1] is None
    for at in range(2, len(seen) + 1):
        assert torch.equal(seen[at][1], seen[at - 1][0])
        assert not torch.equal(seen[at][1], seen[at][0])


# ------------------------------------------------------------------------------ the checks can fail


# ----------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize(
    "policy",
    [
        NeverExit(),
        FixedExit(2),
        ScriptedExit((1, 2, 3, 4, 5, 9)),
        UncertaintyThreshold(0.3),
        UncertaintyThreshold(0.3, reduction="quantile", patience=2, minimum_depth=2, max_age=2),
        UncertaintyThreshold(0.2, per_timestep=((500.0, 0.4),)),
        UncertaintyThreshold(0.3, batch_mean=True),
    ],
    ids=repr,
)
def test_policies_keep_their_contract(policy: Policy) -> None:
    check_policy(policy)


@dataclass(frozen=True)
class _Odd(ExitRule):
    """Breaks one promise, chosen by name."""

    fault: str
    name: ClassVar[str] = "never"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def to_dict(self) -> dict[str, Any]:
        return NeverExit().to_dict()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def decide(self, signals: Signals) -> Tensor:
        hidden = signals.hidden().flatten(1).mean(dim=1)  # (R, ...) -> (R,)
        if self.fault == "couples":
            return hidden > hidden.mean()
        if self.fault == "random":
            return torch.rand(len(signals.rows)) > 0.5
        if self.fault == "float":
            return hidden
        if self.fault == "one":
            return hidden.mean() > 0
        if self.fault == "unsaid":
            return signals.uncertainty() < 0.5
        if self.fault == "memory":
            signals.memory["seen"] = hidden[:1]
        return hidden > 0.2


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        ("couples", "batch mates"),
        ("random", "decide differently"),
        ("float", "torch.bool"),
        ("one", "torch.bool"),
        ("unsaid", "'uncertainty' without naming it"),
        ("memory", "full-batch"),
    ],
)
def test_a_policy_that_breaks_a_promise_is_noticed(fault: str, promise: str) -> None:
    with pytest.raises(ContractError, match=promise):
        check_policy(_Odd(fault))


@dataclass(frozen=True)
class _Unregistered(ExitRule):
    name: ClassVar[str] = "unregistered"

    def decide(self, signals: Signals) -> Tensor:
        return signals.rows < 0


@dataclass
class _Thawed(ExitRule):
    name: ClassVar[str] = "thawed"

    def decide(self, signals: Signals) -> Tensor:
        return signals.rows < 0


def test_a_policy_that_cannot_be_saved_is_noticed() -> None:
    with pytest.raises(ExitKitError, match="register_policy"):
        check_policy(_Unregistered())
    with pytest.raises(ContractError, match="frozen"):
        check_policy(_Thawed())
