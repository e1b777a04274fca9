"""Further pipelines over the parts of a wrapped one: they leave early too, each in a loop of its own."""

from __future__ import annotations

from typing import Any

import diffusers as d
import pytest
import torch
from torch import Tensor

import exitkit as ek
from exitkit.policies import FixedExit, Interval, NeverExit
from tests.pipelines.test_loop import Stop, is_open
from tests.pipelines.test_situations import of_parts, picture
from tests.tiny_pipelines import PipelineCase, case, models


def of_components(pipe: Any) -> Any:
    return quiet(type(pipe)(**pipe.components))


def from_pipe(pipe: Any) -> Any:
    return quiet(type(pipe).from_pipe(pipe))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def steps(wrapped: Any) -> list[list[int]]:
    return [[call.step for call in model.trace.calls] for model in models(wrapped)]


@pytest.mark.parametrize(
    ("one", "again"),
    [(case("sd3"), of_components), (case("sd3"), from_pipe), (case("wan"), from_pipe)],
    ids=lambda x: getattr(x, "id", None) or x.__name__,
)
def test_a_second_pipeline_leaves_early_too(one: PipelineCase, again: Any) -> None:
    pipe = one.make()
    bare = one.run(pipe)
    wrapped = one.wrap(pipe)
    wrapped.policy = Interval(2)
    early, counted = one.run(pipe), steps(wrapped)
    assert not torch.equal(early, bare), "the control: nobody left early"
    other = again(pipe)
    for first in (other, pipe, other, again(other)):  # also one made of the second
        assert torch.equal(one.run(first), early)
        assert steps(wrapped) == counted
        assert not any(is_open(model) for model in models(wrapped)), "the loop did not end"
    wrapped.policy = NeverExit()
    assert torch.equal(one.run(other), bare)
    ek.unwrap(other)
    for each in (pipe, other):
        one.assert_bare(each)
        assert torch.equal(one.run(each), bare)


def test_a_first_loop_broken_off_leaves_nothing_behind() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    early = one.run(pipe)

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            raise Stop
        return {}

    for next_one in range(2):
        other = of_components(pipe)
        with pytest.raises(Stop):
            one.run(other, seed=1, callback_on_step_end=stop)
        assert torch.equal(one.run((pipe, other)[next_one]), early)
        assert not is_open(model)


def test_a_pipeline_of_another_kind_over_the_same_parts() -> None:
    """As one that was wrapped itself."""
    one = case("sd")
    given = {**one.call(1), "image": picture(3, 0), "strength": 0.7}
    given |= {"num_inference_steps": 6, "output_type": "latent"}
    for name in ("height", "width"):
        del given[name]

    def call(pipe: Any) -> Tensor:
        return torch.as_tensor(pipe(**given, generator=torch.Generator().manual_seed(0))[0])

    fresh = of_parts(d.StableDiffusionImg2ImgPipeline)()
    bare = call(fresh)
    own = ek.wrap(fresh, "carried", example_inputs=given)
    own.heads.mark_fitted(uncertainty=False)
    own.policy = Interval(2)
    early = call(fresh)
    assert not torch.equal(early, bare)

    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    one.run(pipe)
    other = quiet(d.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    for _ in range(2):
        torch.testing.assert_close(call(other), early)
        assert steps(model) == steps(own) and model.trace.cost == pytest.approx(own.trace.cost)
    ek.unwrap(model)
    assert torch.equal(call(other), bare) and "progress_bar" not in vars(other)


def test_calls_outside_any_pipeline_are_those_of_a_bare_loop() -> None:
    one = case("sd3")
    pipe = one.make()
    model = one.wrap(pipe)
    model.policy = Interval(2)
    one.run(pipe)
    seen: list[Any] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    one.run(pipe)
    hook.remove()
    args, kwargs = seen[0]
    model.policy = FixedExit(1)
    with torch.no_grad(), pytest.warns(UserWarning, match="nothing to carry outside a trajectory"):
        pipe.transformer(*args, **kwargs)
    assert not is_open(model) and model.trace.cost == pytest.approx(1, abs=0.01)
